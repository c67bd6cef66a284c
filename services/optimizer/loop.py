"""The main loop: ask, generate, score, tell; then measure the winner on fresh examples."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from instructzero.contracts import JobSpec, JobStatus, StatusReason
from instructzero.errors import (
    GeneratorUnavailable,
    InstructZeroError,
    JobStopped,
    UnknownTarget,
)
from services.optimizer import final, meters, store
from services.optimizer.buyer import Buyer, Order, Scorer, first_error
from services.optimizer.database import Database
from services.optimizer.failpoints import fail_point
from services.optimizer.jobs import SEARCH_SHARE_OF_TIME, Connections
from services.optimizer.ledger import Ledger, Signals
from services.optimizer.meters import timed
from services.optimizer.results import leader
from services.optimizer.search import make_strategy
from services.optimizer.search.strategy import Decision, Room, Strategy
from services.optimizer.settings import Settings
from services.optimizer.state import (
    JobState,
    Step,
    decision_from_json,
    decision_to_json,
    given_arms,
)
from services.optimizer.store import Claim
from services.optimizer.tables import JobRow
from services.optimizer.writer import Generator, Writer


@dataclass(frozen=True)
class LoopDeps:
    """What the loop works with; the composition root chooses the adapters."""

    database: Database
    generator: Generator
    scorer: Scorer
    settings: Settings
    one_ask: asyncio.Lock = field(default_factory=asyncio.Lock)


class Interrupted(Exception):
    """A person, or the end of this process, wants the job to leave `running` now."""

    def __init__(self, to: JobStatus) -> None:
        super().__init__(to)
        self.to = to


@dataclass
class Permission:
    """Whether the job may still buy and write: nobody interrupts it, and there is time."""

    signals: Signals
    search_ends_at: float | None
    ends_at: float | None
    in_final_check: bool = False

    def may_write(self) -> bool:
        """Whether more instructions may be generated."""
        return self.signals.interruption() is None

    def may_buy(self) -> bool:
        """Whether another paid call may start."""
        is_free = self.signals.interruption() is None and self.signals.has_lease()
        return is_free and not self.is_late()

    def is_late(self) -> bool:
        """Whether the time for the present part of the job is over."""
        end = self.ends_at if self.in_final_check else self.search_ends_at
        return end is not None and time.monotonic() >= end

    def check_interruption(self) -> None:
        """Leave the loop if somebody wants it.

        Raises:
            Interrupted: with the status to take.
        """
        if (to := self.signals.interruption()) is not None:
            raise Interrupted(to)


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


async def run_job(claim: Claim, deps: LoopDeps, signals: Signals) -> None:
    """Spend the job's budget and store its result; or leave it cancelled, paused, queued, failed.

    Raises:
        LeaseLost: the job is not ours any more.
        StoreUnavailable: the database is away; the lease will run out.
    """
    run = await open_run(claim, deps, signals)
    try:
        while (step := await timed("ask", ask(run))) is not None:  # None: nothing more to buy
            await timed("carry_out", carry_out(run, step))  # no transaction is open here
            await timed("tell", tell(run, step))  # fenced by claim.lease_token
        await final.measure_winner(run)
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
    permission = Permission(signals, *_deadlines(claim.spec, used))
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
    return JobRun(claim, deps, state, ledger, strategy, permission, buyer, writer)


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


def _deadlines(spec: JobSpec, used_seconds: float) -> tuple[float | None, float | None]:
    """Return when search and job end, on this process's monotonic clock."""
    if spec.budget.seconds is None:
        return None, None
    begun = time.monotonic() - max(used_seconds, 0.0)
    return begun + SEARCH_SHARE_OF_TIME * spec.budget.seconds, begun + spec.budget.seconds


def _strategy(state: JobState) -> Strategy:
    """Return the strategy as it stands after every step that was carried out."""
    spec = state.spec.strategy
    strategy = make_strategy(spec.name, state.problem(), spec.options)
    for step in state.search_steps:
        strategy.decided(decision_from_json(step.content))
        if step.is_done:
            strategy.observe(state.texts_of(step), state.scores_of(step))
    return strategy


async def ask(run: JobRun) -> Step | None:
    """Return the step to carry out next: one left unfinished, or a new decision, journaled."""
    row = await run.ledger.refresh()
    run.permission.check_interruption()
    last = run.state.steps[-1] if run.state.steps else None
    if last is not None and last.kind == "final":
        run.stop_reason = last.content["stop_reason"]
        return None
    if last is not None and not last.is_done:
        return last
    if last is not None and run.state.missing(last.pairs, "validation"):
        run.stop_reason = _exhausted(run, row)
        return None
    room = run.state.room(row)
    if room.calls == 0 or run.permission.is_late():
        run.stop_reason = _exhausted(run, row)
        return None
    async with run.deps.one_ask:
        decision = await asyncio.to_thread(run.strategy.propose, room)
    if decision is None:
        run.stop_reason = _why_nothing(run, row, room)
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
    content = decision_to_json(decision)
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
    order = Order(step.number, "validation", step.pairs, run.state.keep)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(run.writer.write(step))
            group.create_task(run.buyer.buy(order))
    except* InstructZeroError as errors:
        run.permission.check_interruption()
        raise first_error(errors) from errors
    run.permission.check_interruption()


async def tell(run: JobRun, step: Step) -> None:
    """Let the strategy learn from a step, and publish the leader."""
    state = run.state
    run.strategy.observe(state.texts_of(step), state.scores_of(step))
    found = run.strategy.recommend()
    best = None
    if found is not None:
        arm = state.arms[found.arm]
        best = leader(arm.text, arm.trial or 0, state.answers.get(("validation", arm.n), {}))
    content = None if best is None else best.model_dump(mode="json")
    fail_point("scored")
    await store.transact(
        run.deps.database.writes,
        lambda s: store.finish_step(s, run.claim, step=step.number, best=content),
    )
    fail_point("told")
    step.is_done = True


def _exhausted(run: JobRun, row: JobRow) -> str:
    """Name the budget that ended the search."""
    if run.permission.is_late():
        return "budget_seconds"
    budget, one = run.state.spec.budget, run.state.average_call()
    left = {
        "budget_calls": (budget.calls, run.ledger.spent.calls, one.calls),
        "budget_tokens": (budget.tokens, run.ledger.spent.tokens, one.tokens),
        "budget_usd": (budget.usd, run.ledger.spent.usd, one.usd),
    }
    shares = {
        name: (limit - spent) / max(each, 1e-12)
        for name, (limit, spent, each) in left.items()
        if limit is not None
    }
    return min(shares, key=lambda name: shares[name]) if shares else "search_complete"


def _why_nothing(run: JobRun, row: JobRow, room: Room) -> str:
    """Name why the strategy had nothing more to propose."""
    state, goal = run.state, run.state.spec.stop.score
    n = len(state.splits.validation)
    for arm in state.arms:
        answers = state.answers.get(("validation", arm.n), {})
        is_full = goal is not None and len(answers) == n
        if is_full and sum(a.score for a in answers.values()) / n >= (goal or 0.0):
            return "score_reached"
    if room.trials == 0:
        return "budget_trials"
    if room.calls is not None and room.calls < n:
        return _exhausted(run, row)
    planned = state.problem().calls
    is_spent = planned is not None and state.decided_pairs() + n > planned
    return _exhausted(run, row) if is_spent else "search_complete"


def reason_of(error: InstructZeroError) -> StatusReason:
    """Return an error as a job's status reason."""
    return StatusReason(code=error.reason, message=error.detail)
