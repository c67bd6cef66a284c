"""The main loop: ask, generate, score, tell; then measure the winner on fresh examples."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from instructzero.contracts import JobSpec, JobStatus, StatusReason, StrategyName
from instructzero.errors import (
    GeneratorUnavailable,
    InstructZeroError,
    JobStopped,
    UnknownTarget,
)
from services.optimizer import final, meters, store
from services.optimizer.buyer import Buyer, Scorer, first_error
from services.optimizer.database import Database
from services.optimizer.endings import exhausted, why_nothing
from services.optimizer.failpoints import fail_point
from services.optimizer.jobs import Connections
from services.optimizer.ledger import Ledger, Signals
from services.optimizer.meters import timed
from services.optimizer.orders import Order
from services.optimizer.permission import Interrupted, Permission
from services.optimizer.results import leader
from services.optimizer.search import make_strategy
from services.optimizer.search.strategy import Decision, Room, Strategy
from services.optimizer.settings import Settings
from services.optimizer.state import STEPS_AT_ONCE, JobState, given_arms
from services.optimizer.steps import Step, decision_from_json, decision_to_json
from services.optimizer.store import Claim
from services.optimizer.writer import Generator, Writer

T = TypeVar("T")


@dataclass(frozen=True)
class LoopDeps:
    """What the loop works with; the composition root chooses the adapters."""

    database: Database
    generator: Generator
    scorer: Scorer
    settings: Settings
    one_ask: asyncio.Lock = field(default_factory=asyncio.Lock)


class Moment(NamedTuple):
    """How many evaluations there were at a moment of this process's clock."""

    evaluations: int
    seconds: float


@dataclass
class JobRun:
    """One claimed job while it runs."""

    claim: Claim
    deps: LoopDeps
    state: JobState
    ledger: Ledger
    strategy: Strategy
    permission: Permission
    buyer: Buyer
    writer: Writer
    stop_reason: str | None = None
    early_check: asyncio.Task[None] | None = None
    learned_at: Moment = field(default_factory=lambda: Moment(0, time.monotonic()))

    def learn(self) -> dict[str, Any]:
        """Note how long a step took, and return what was learned of costs up to the one before."""
        before, self.learned_at = self.learned_at, Moment(self.state.n_searched(), time.monotonic())
        self.state.learned = self.state.learned.after_step(
            self.learned_at.evaluations - before.evaluations,
            self.learned_at.seconds - before.seconds,
            self.state.bills,
        )
        return self.state.learned.content()

    @property
    def steps_at_once(self) -> int:
        """Steps that are carried out side by side; the paper's method knows all of the last one."""
        return 1 if self.claim.spec.strategy.name is StrategyName.INSTRUCTZERO else STEPS_AT_ONCE

    async def think(self, work: Callable[[], T]) -> T:
        """Let the strategy compute in a thread, one job of this process at a time.

        How many threads linear algebra takes is set for the whole process (`one_thread`). Shielded:
        a thread that still computes must keep others out.
        """
        return await asyncio.shield(asyncio.ensure_future(self._think(work)))

    async def _think(self, work: Callable[[], T]) -> T:
        async with self.deps.one_ask:
            return await asyncio.to_thread(work)


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


async def open_run(claim: Claim, deps: LoopDeps, signals: Signals) -> JobRun:
    """Rebuild everything the job knows from the database."""
    connections = await find_connections(claim.spec, deps.scorer)
    state = JobState.open(claim.job_id, claim.spec, connections)
    writes = deps.database.writes
    meters.IN_DOUBT.inc(
        await store.transact(writes, lambda s: store.charge_calls_in_doubt(s, claim))
    )
    fail_point("recovered")
    await store.transact(writes, lambda s: store.add_given_arms(s, claim, given_arms(claim.spec)))
    journal = await store.transact(
        deps.database.reads, lambda s: store.load_journal(s, claim.job_id)
    )
    state.load(journal)
    ledger = Ledger(deps.database, claim, signals, next_handover=journal.next_handover)
    used = await store.transact(
        deps.database.reads, lambda s: store.seconds_since_start(s, claim.job_id)
    )
    permission = Permission.open(claim.spec, signals, used)
    strategy = await asyncio.to_thread(_strategy, state)
    writer = Writer(
        state,
        ledger,
        deps.generator,
        deps.database,
        claim,
        batch=deps.settings.generator_batch,
        patience_seconds=deps.settings.generator_patience_seconds,
        may_go_on=permission.may_write,
    )
    buyer = Buyer(state, ledger, deps.scorer, may_go_on=permission.may_buy)
    run = JobRun(claim, deps, state, ledger, strategy, permission, buyer, writer)
    run.learned_at = Moment(state.n_searched(), time.monotonic())
    return run


async def find_connections(spec: JobSpec, scorer: Scorer) -> Connections:
    """Return what the job calls.

    Raises:
        JobStopped: it is not registered any more.
    """
    known = {target.name: target for target in await scorer.targets()}
    try:
        return Connections.of(spec, known)
    except KeyError as error:
        name = error.args[0]
        raise JobStopped(
            f"no target named {name} is registered; register it again and submit a new job",
            reason=UnknownTarget.code,
        ) from error


def _strategy(state: JobState) -> Strategy:
    """Return the strategy as it stands after everything that was decided and told."""
    spec = state.spec.strategy
    strategy = make_strategy(spec.name, state.problem(), spec.options)
    n_told = 0

    def tell_up_to(n_steps: int) -> None:
        nonlocal n_told
        for step in state.search_steps[n_told:n_steps]:
            strategy.observe(state.texts_of(step), state.scores_of(step))
        n_told = max(n_told, n_steps)

    for step in state.search_steps:
        tell_up_to(step.n_told)
        strategy.decided(decision_from_json(step.content))
    tell_up_to(state.n_told)
    return strategy


async def spend(run: JobRun) -> None:
    """Search, then measure the winner."""
    try:
        async with asyncio.TaskGroup() as group:
            await search(run, group)
            run.permission.check_interruption()
            await final.measure_winner(run)
    except* (InstructZeroError, Interrupted) as errors:
        run.permission.check_interruption()
        raise first_error(errors) from errors


async def search(run: JobRun, group: asyncio.TaskGroup) -> None:
    """Ask, generate, score, tell: the next step is decided while the last one is carried out.

    Steps are told in order and each decision says how many it knew, so that nothing depends on
    which answer came first. With nothing more to ask the final check begins, whose first part needs
    no winner: it fills what the last answers of the search leave free.
    """
    flying: deque[tuple[Step, asyncio.Task[None]]] = deque()

    def start(step: Step) -> None:
        work = timed("carry_out", carry_out(run, step))
        flying.append((step, group.create_task(work)))

    for step in run.state.search_steps[run.state.n_told :]:
        start(step)  # left unfinished by another runner
    while not run.permission.is_interrupted():
        is_free = len(flying) < run.steps_at_once
        asked = await timed("ask", ask(run)) if is_free else None
        if asked is not None:
            start(asked)
        elif flying:
            if is_free and not any(step.points for step, _ in flying):
                await final.begin(run, group)
            step, work = flying.popleft()
            await work
            if not run.permission.is_interrupted():
                await timed("tell", tell(run, step))
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
    decision = await run.think(lambda: run.strategy.propose(room))
    if decision is None:
        run.stop_reason = why_nothing(run, room)
        return None
    meters.note_proposals(decision.point_notes, row.best)
    return await _journal(run, decision, room)


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


async def carry_out(run: JobRun, step: Step) -> None:
    """Generate and score side by side; what is stored already is not done again."""
    order = Order(step.number, "validation", step.pairs)
    try:
        async with asyncio.TaskGroup() as group:  # no transaction is open here
            group.create_task(run.writer.write(step))
            group.create_task(run.buyer.buy(order))
    except* InstructZeroError as errors:
        if not run.permission.is_interrupted():
            raise first_error(errors) from errors


async def tell(run: JobRun, step: Step) -> None:
    """Let the strategy learn from a step, and publish the leader; fenced by the lease."""
    state = run.state
    run.strategy.observe(state.texts_of(step), state.scores_of(step))
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
