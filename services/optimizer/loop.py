"""The main loop: ask, generate, score, tell; then measure the winner on fresh examples."""

from __future__ import annotations

import asyncio
from collections import deque

from instructzero.contracts import JobStatus, StatusReason
from instructzero.errors import GeneratorUnavailable, InstructZeroError, JobStopped
from services.optimizer import final, meters, store
from services.optimizer.buyer import first_error
from services.optimizer.endings import exhausted, why_nothing
from services.optimizer.failpoints import fail_point
from services.optimizer.job_run import JobRun, LoopDeps, open_run
from services.optimizer.ledger import Signals
from services.optimizer.meters import timed
from services.optimizer.orders import Order
from services.optimizer.permission import Interrupted
from services.optimizer.results import leader
from services.optimizer.search.strategy import Decision, Room
from services.optimizer.steps import Step, decision_to_json
from services.optimizer.store import Claim


async def run_job(claim: Claim, deps: LoopDeps, signals: Signals) -> None:
    """Spend the job's budget and store its result; or leave it cancelled, paused, queued, failed.

    Raises:
        LeaseLost: the job is not ours any more.
        StoreUnavailable: the database is away; the lease will run out.
    """
    run = await open_run(claim, deps, signals)
    try:
        await spend(run)
        await final.finish(run, JobStatus.SUCCEEDED)
    except Interrupted as interruption:
        if interruption.to is JobStatus.CANCELLED:
            fail_point("cancelling")
            await final.finish(run, JobStatus.CANCELLED)
        else:
            await leave(run.deps, claim, interruption.to)
    except JobStopped as error:
        await final.finish(run, JobStatus.FAILED, reason=reason_of(error))
    except GeneratorUnavailable as error:
        await leave(run.deps, claim, JobStatus.PAUSED, reason_of(error))


async def leave(
    deps: LoopDeps,
    claim: Claim,
    to: JobStatus,
    reason: StatusReason | None = None,
    *,
    is_fault: bool = False,
) -> None:
    """Give the lease back without a result."""
    fail_point("leaving")
    await store.transact(
        deps.database.writes,
        lambda s: store.move_job(s, claim, to, reason=reason, is_fault=is_fault),
    )
    meters.LEFT.labels(to).inc()


async def spend(run: JobRun) -> None:
    """Search, then measure the winner."""
    try:
        async with asyncio.TaskGroup() as group:
            await search(run, group)
            if not run.permission.is_interrupted():  # else what is in flight ends first
                await final.measure_winner(run)
    except* (InstructZeroError, Interrupted) as errors:
        run.permission.check_interruption()
        raise first_error(errors) from errors
    run.permission.check_interruption()


async def search(run: JobRun, group: asyncio.TaskGroup) -> None:
    """Ask, generate, score, tell: the next step is decided while the last one is carried out.

    Steps are told in order and each decision says how many it knew, so that nothing depends on
    which answer came first; texts are known as soon as they are written, in order too. With nothing
    more to ask the final check begins, whose first part needs no winner: it fills what the last
    answers of the search leave free.
    """
    flying: deque[tuple[Step, asyncio.Task[None]]] = deque()

    def start(step: Step) -> None:
        run.writing[step.number] = group.create_task(write(run, step))
        flying.append((step, group.create_task(carry_out(run, step))))

    for step in run.state.search_steps[run.state.n_told :]:
        start(step)  # left unfinished by another runner
    while not run.permission.is_interrupted():
        is_free = len(flying) < run.steps_at_once
        asked = await ask(run) if is_free else None
        if asked is not None:
            start(asked)
        elif flying:
            if is_free and not run.permission.is_interrupted():
                await final.begin(run, group)
            step, work = flying.popleft()
            await work
            if not run.permission.is_interrupted():
                with timed("tell"):
                    await tell(run, step)
        else:  # nothing more to buy or to wait for
            break


async def ask(run: JobRun) -> Step | None:
    """Return a new decision, journaled; None while, or because, nothing more can be decided."""
    row = await run.ledger.refresh()
    if run.permission.is_interrupted():
        return None
    last = run.state.steps[-1] if run.state.steps else None
    if last is not None and last.kind == "final":
        run.stop_reason = last.content["stop_reason"]
        return None
    room = run.state.room(row)
    if room.calls == 0 or run.permission.is_late() or run.state.is_cut_short:
        run.stop_reason = exhausted(run)
        return None
    await read(run)
    if run.permission.is_interrupted():
        return None
    with timed("ask"):
        decision = await run.think(lambda: run.strategy.propose(room))
        if decision is None:
            run.stop_reason = why_nothing(run, room)
            return None
        meters.note_proposals(decision.point_notes, row.best)
        return await _journal(run, decision, room)


async def read(run: JobRun) -> None:
    """Wait until the texts of all steps are written, and let the strategy know them."""
    for step in run.state.search_steps[run.n_read :]:
        if step.number in run.writing:
            await run.writing[step.number]
        if run.permission.is_interrupted():
            return
        run.strategy.observe(run.state.texts_of(step), ())
        run.n_read += 1


async def _journal(run: JobRun, decision: Decision, room: Room) -> Step:
    state = run.state
    number = len(state.steps)
    tried = {arm for step in state.search_steps for arm, _ in step.pairs}
    new = [arm for arm in dict.fromkeys(e.arm for e in decision.evaluations) if arm not in tried]
    too_many = room.calls is not None and len(decision.evaluations) > room.calls
    if too_many or (room.trials is not None and len(new) > room.trials):
        raise JobStopped(
            "the strategy asked for more than the budget holds", reason="strategy_fault"
        )
    content = decision_to_json(decision, n_told=state.n_told)
    fail_point("decided")
    await store.transact(
        run.deps.database.writes,
        lambda session: store.journal_decision(
            session,
            run.claim,
            step=number,
            kind="search",
            decision=content,
            snapshot=dict(decision.snapshot) or None,
            new_trials=new,
        ),
    )
    fail_point("journaled")
    step = Step(number, "search", content)
    for arm in new:
        trials = [known.trial for known in state.arms if known.trial is not None]
        state.arms[arm].trial = max(trials, default=0) + 1
    state.steps.append(step)
    run.strategy.decided(decision)
    return step


async def write(run: JobRun, step: Step) -> None:
    """Generate a step's texts; what is stored already is not written again."""
    try:
        await run.writer.write(step)
    except InstructZeroError:
        if not run.permission.is_interrupted():
            raise


async def carry_out(run: JobRun, step: Step) -> None:
    """Buy a step's answers, and see its texts written; no transaction is open here."""
    with timed("carry_out"):
        try:
            await run.buyer.buy(Order(step.number, "validation", step.pairs))
        except InstructZeroError:
            if not run.permission.is_interrupted():
                raise
        await run.writing[step.number]


async def tell(run: JobRun, step: Step) -> None:
    """Let the strategy learn from a step, and publish the leader; fenced by the lease."""
    state = run.state
    run.strategy.observe((), state.scores_of(step))
    found = await run.think(run.strategy.recommend)
    best = None
    if found is not None:
        arm = state.arms[found.arm]
        best = leader(arm.text, arm.trial or 0, state.answers.get(("validation", arm.n), {}))
    content = None if best is None else best.model_dump(mode="json")
    learned = run.learn()
    fail_point("scored")
    await store.transact(
        run.deps.database.writes,
        lambda s: store.finish_step(s, run.claim, step=step.number, best=content, learned=learned),
    )
    fail_point("told")
    state.tell(step)


def reason_of(error: InstructZeroError) -> StatusReason:
    """Return an error as a job's status reason."""
    return StatusReason(code=error.reason, message=error.detail)
