"""The ledger of paid calls: reserve before, record after, never beyond the budget.

Many calls are in flight at once, so writes are gathered: while one fenced transaction is committed,
in a thread, the next one fills. Answers, and the ends of handovers, are committed with the next
write that cannot wait, or a moment later. Writes are committed in the order they were made.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructzero.contracts import JobSpec, JobStatus, ScoreLine
from instructzero.errors import LeaseLost
from services.optimizer import meters, store
from services.optimizer.database import Database
from services.optimizer.jobs import Cost, how_many_fit
from services.optimizer.seals import seal
from services.optimizer.store import Claim
from services.optimizer.tables import EvaluationRow, HandoverRow, JobRow


@dataclass(frozen=True)
class Handover:
    """A reservation for `n` evaluations of one arm."""

    number: int
    n: int
    calls: int


@dataclass
class Signals:
    """What somebody asked of the job, as last heard of; set by the ledger and the heartbeat."""

    is_draining: Callable[[], bool] = lambda: False
    cancel_requested: bool = False
    pause_requested: bool = False
    safe_until: float = math.inf
    """When the lease might run out, on this process's monotonic clock: no paid call after it."""

    def has_lease(self) -> bool:
        """Whether the lease was renewed lately enough to spend money under it."""
        return time.monotonic() < self.safe_until

    def lease_seconds(self) -> float | None:
        """For how long money may be spent under the lease as it was renewed last; None: always."""
        left = self.safe_until - time.monotonic()
        return max(left, 0.0) if math.isfinite(left) else None

    def interruption(self) -> JobStatus | None:
        """Return the status that the job should take now, None to go on."""
        if self.cancel_requested:
            return JobStatus.CANCELLED
        if self.pause_requested:
            return JobStatus.PAUSED
        return JobStatus.QUEUED if self.is_draining() else None


@dataclass
class Transaction:
    """What the writes of one commit share: the job's row and what was read or stored for all."""

    session: Session
    row: JobRow
    handovers: dict[int, HandoverRow]
    new_evaluations: frozenset[tuple[str, int, int]]


Apply = Callable[[Transaction], Any]
LONGEST_PAUSE_SECONDS = 0.05
"""After this a write that can wait is committed even if nothing else is."""


@dataclass(eq=False)
class _Write:
    """One waiting write: what it stores, which handover it is about, and what it does then."""

    apply: Apply
    handover: int | None = None
    evaluation: Mapping[str, Any] | None = None
    done: asyncio.Future[Any] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


def spent_by(row: JobRow) -> Cost:
    """Return what the job has spent, reserved and may have spent in doubt."""
    return Cost(
        row.calls + row.reserved_calls,
        row.prompt_tokens + row.completion_tokens + row.in_doubt_tokens + row.reserved_tokens,
        row.usd + row.in_doubt_usd + row.reserved_usd,
    )


class Ledger:
    """Reservations and answers of one claimed job."""

    def __init__(
        self, database: Database, claim: Claim, signals: Signals, *, next_handover: int
    ) -> None:
        self._database = database
        self._claim = claim
        self._spec: JobSpec = claim.spec
        self._next = next_handover
        self._lines: Counter[int] = Counter()
        self._waiting: list[_Write] = []
        self._committing: asyncio.Task[None] | None = None
        self._is_urgent = False
        self._pause: asyncio.TimerHandle | None = None
        self._signals = signals
        self.spent = Cost()

    async def reserve(
        self, *, step: int, arm: int, wanted: int, one: Cost, keep: Cost
    ) -> Handover | None:
        """Reserve up to `wanted` evaluations of an arm, each at most `one`; None: none fits.

        Args:
            step: the step that wants them.
            arm: the arm they belong to.
            wanted: number of evaluations.
            one: the most that one evaluation costs.
            keep: what must stay unspent (the final check's share).
        """
        number = self._next
        self._next += 1

        def apply(tx: Transaction) -> Handover | None:
            known, row = tx.handovers.get(number), tx.row
            if known is not None:  # our own commit, unseen
                return Handover(number, known.reserved_calls // one.calls, known.reserved_calls)
            n = how_many_fit(self._spec, spent_by(row).plus(keep), one, wanted)
            if n == 0:
                return None
            cost = one.times(n)
            row.reserved_calls += cost.calls
            row.reserved_tokens += cost.tokens
            row.reserved_usd += cost.usd
            tx.handovers[number] = HandoverRow(
                job_id=self._claim.job_id,
                n=number,
                step=step,
                arm=arm,
                state="sent",
                reserved_calls=cost.calls,
                reserved_tokens=cost.tokens,
                reserved_usd=cost.usd,
                used_calls=0,
                lease_token=self._claim.lease_token,
            )
            tx.session.add(tx.handovers[number])
            return Handover(number, n, cost.calls)

        try:
            granted: Handover | None = await asyncio.shield(self._write(_Write(apply, number)))
        except asyncio.CancelledError:  # nobody will hand it over
            self._write(_Write(_closing(number, is_in_doubt=False), number))
            raise
        return granted

    def record(
        self, handover: Handover, line: ScoreLine, *, step: int, split: str, arm: int, example: int
    ) -> asyncio.Future[bool]:
        """Store one answer (or a failure that is final) and what it cost; whether it was new.

        It is committed when the future is done, and before, or together with, whatever is written
        from now on.
        """
        evaluation = {
            "job_id": self._claim.job_id,
            "split": split,
            "arm": arm,
            "example": example,
            "step": step,
            "score": line.score,
            "answer": line.answer or "",
            "error": line.error.code if line.error else None,
            "is_refused": line.refused,
            "is_cached": line.cached,
            "calls": line.calls,
            "failed_calls": line.failed_calls,
            "prompt_tokens": line.usage.prompt_tokens,
            "completion_tokens": line.usage.completion_tokens,
            "usd": line.usd,
            "latency_ms": line.latency_ms,
        }
        evaluation["seal"] = seal(EvaluationRow, evaluation)
        number = self._next_line(handover)

        def apply(tx: Transaction) -> bool:
            if (split, arm, example) not in tx.new_evaluations:  # our own commit, unseen
                return False
            tx.row.n_evaluations += 1
            tx.row.fruitless_claims = 0
            tx.row.cached_calls += line.cached
            tx.row.refused_answers += line.refused
            self._charge(tx, handover, line, number)
            return True

        return self._write(_Write(apply, handover.number, evaluation), can_wait=True)

    def charge_failure(self, handover: Handover, line: ScoreLine) -> asyncio.Future[bool]:
        """Charge the calls of an example that will be handed over again; like `record`."""
        number = self._next_line(handover)

        def apply(tx: Transaction) -> bool:
            self._charge(tx, handover, line, number)
            return False

        return self._write(_Write(apply, handover.number), can_wait=True)

    def _next_line(self, handover: Handover) -> int:
        self._lines[handover.number] += 1
        return self._lines[handover.number]

    def _charge(self, tx: Transaction, handover: Handover, line: ScoreLine, number: int) -> None:
        held, row = tx.handovers.get(handover.number), tx.row
        if held is not None and held.n_lines >= number:  # our own commit, unseen
            return
        if held is None or held.state != "sent":
            raise LeaseLost(f"job {self._claim.job_id}: handover {handover.number} was closed")
        held.n_lines = number
        store.use_calls(row, held, line.calls)
        row.calls += line.calls
        row.failed_calls += line.failed_calls
        if not line.cached:
            row.prompt_tokens += line.usage.prompt_tokens
            row.completion_tokens += line.usage.completion_tokens
            row.usd += line.usd or 0.0
        if line.judge is not None:
            row.judge_calls += line.judge.calls
            row.judge_failed_calls += line.judge.failed_calls
            row.judge_prompt_tokens += line.judge.usage.prompt_tokens
            row.judge_completion_tokens += line.judge.usage.completion_tokens
            row.judge_usd += line.judge.usd or 0.0

    async def close(self, handover: Handover, *, is_in_doubt: bool = False) -> None:
        """Give back what a handover did not use; in doubt: charge it instead."""
        closing = _closing(handover.number, is_in_doubt=is_in_doubt)
        write = self._write(_Write(closing, handover.number), can_wait=True)
        meters.IN_DOUBT.inc(await asyncio.shield(write))

    async def set_condition(self, name: str, *, is_on: bool) -> None:
        """Show or clear a condition of the job."""

        def apply(tx: Transaction) -> None:
            kept = [known for known in tx.row.conditions if known != name]
            conditions = [*kept, name] if is_on else kept
            if conditions != tx.row.conditions:
                tx.row.conditions = conditions
                kind = "condition_on" if is_on else "condition_off"
                tx.session.add(store.new_event(tx.row, kind, {"condition": name}))

        await asyncio.shield(self._write(_Write(apply)))

    async def refresh(self) -> JobRow:
        """Check the lease and return the job's row as committed; updates flags and spending."""
        committed: JobRow = await asyncio.shield(self._write(_Write(lambda tx: tx.row)))
        return committed

    def _write(self, write: _Write, *, can_wait: bool = False) -> asyncio.Future[Any]:
        self._waiting.append(write)
        if not can_wait:
            self._hurry()
        elif self._pause is None:
            loop = asyncio.get_running_loop()
            self._pause = loop.call_later(LONGEST_PAUSE_SECONDS, self._hurry)
        return write.done

    def _hurry(self) -> None:
        """Have all that waits committed now."""
        self._is_urgent = True
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit())

    async def _commit(self) -> None:
        """Commit what waits, in the order written, until nothing urgent does."""
        try:
            while self._is_urgent:
                self._is_urgent = False
                batch, self._waiting = self._waiting, []
                await self._commit_batch(batch)
        finally:
            self._committing = None

    async def _commit_batch(self, batch: Sequence[_Write]) -> None:
        try:
            results = await asyncio.to_thread(
                store.transact_in_thread,
                self._database.thread_writes,
                lambda session: self._apply_all(session, batch),
            )
        except Exception as error:  # noqa: BLE001 - whoever waits raises it
            for write in batch:
                if not write.done.done():
                    write.done.set_exception(error)
                    write.done.exception()  # who waited may be gone
        else:
            for write, result in zip(batch, results, strict=True):
                if not write.done.done():
                    write.done.set_result(result)

    def _apply_all(self, session: Session, batch: Sequence[_Write]) -> list[Any]:
        row = store.guard_in_thread(session, self._claim)
        numbers = {write.handover for write in batch if write.handover is not None}
        evaluations = [write.evaluation for write in batch if write.evaluation is not None]
        tx = Transaction(
            session,
            row,
            self._handovers(session, numbers),
            store.add_evaluations(session, evaluations),
        )
        results = [write.apply(tx) for write in batch]
        self._signals.cancel_requested = row.cancel_requested
        self._signals.pause_requested = row.pause_requested
        self.spent = spent_by(row)
        return results

    def _handovers(self, session: Session, numbers: set[int]) -> dict[int, HandoverRow]:
        if not numbers:
            return {}
        found = session.scalars(
            select(HandoverRow).where(
                HandoverRow.job_id == self._claim.job_id, HandoverRow.n.in_(sorted(numbers))
            )
        )
        return {handover.n: handover for handover in found}


def _closing(number: int, *, is_in_doubt: bool) -> Apply:
    def apply(tx: Transaction) -> int:
        held = tx.handovers.get(number)
        return 0 if held is None else store.close_handover(tx.row, held, is_in_doubt=is_in_doubt)

    return apply
