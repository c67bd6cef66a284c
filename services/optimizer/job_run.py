"""One claimed job while it runs: its parts, and how they are rebuilt from the database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from instructzero.contracts import JobSpec, StrategyName
from instructzero.errors import JobStopped, UnknownTarget
from services.optimizer import meters, store
from services.optimizer.buyer import Buyer, Scorer
from services.optimizer.database import Database
from services.optimizer.failpoints import fail_point
from services.optimizer.jobs import Connections
from services.optimizer.ledger import Ledger, Signals
from services.optimizer.permission import Permission
from services.optimizer.search import make_strategy
from services.optimizer.search.strategy import Strategy
from services.optimizer.settings import Settings
from services.optimizer.state import STEPS_AT_ONCE, JobState, given_arms
from services.optimizer.steps import decision_from_json
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
    """One claimed job while it runs.

    Attributes:
        n_read: how many steps of the search the strategy knows the texts of.
        writing: the tasks that write the steps' texts, by step.
        early_check: the task that buys the first part of the final check.
    """

    claim: Claim
    deps: LoopDeps
    state: JobState
    ledger: Ledger
    strategy: Strategy
    permission: Permission
    buyer: Buyer
    writer: Writer
    n_read: int
    stop_reason: str | None = None
    writing: dict[int, asyncio.Task[None]] = field(default_factory=dict)
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
    buyer = Buyer(state, ledger, deps.scorer, permission)
    n_read = max(len(state.search_steps) - 1, 0)
    run = JobRun(claim, deps, state, ledger, strategy, permission, buyer, writer, n_read)
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
    """Return the strategy as it stood when it had decided the last step, and told what was told.

    Before each decision it knew the scores of the steps that were told by then, and the texts of
    every step before.
    """
    spec = state.spec.strategy
    strategy = make_strategy(spec.name, state.problem(), spec.options)
    n_told = 0

    def tell_up_to(n_steps: int) -> None:
        nonlocal n_told
        for step in state.search_steps[n_told:n_steps]:
            strategy.observe((), state.scores_of(step))
        n_told = max(n_told, n_steps)

    for number, step in enumerate(state.search_steps):
        tell_up_to(step.n_told)
        if number:
            strategy.observe(state.texts_of(state.search_steps[number - 1]), ())
        strategy.decided(decision_from_json(step.content))
    tell_up_to(state.n_told)
    return strategy
