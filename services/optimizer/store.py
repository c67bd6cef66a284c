"""The SQL of a claimed job, one function per thing its runner does; Postgres and SQLite.

Each write of a runner goes through `guard`: it locks the job's row and checks the lease token, so a
runner that lost its lease can write nothing. Functions never commit; `transact` does, and repeats
the whole transaction when the connection broke. Every statement is therefore written so that a
second run after an unseen commit changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Select, Table, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, defer
from tenacity import (
    AsyncRetrying,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

from instructzero.contracts import JobSpec, JobStatus, StatusReason
from instructzero.errors import LeaseLost, StoreUnavailable
from services.optimizer.database import BlockingSessionMaker, SessionMaker
from services.optimizer.jobs import NEXT, Cost
from services.optimizer.seals import sealed
from services.optimizer.tables import (
    AnswerRow,
    ArmRow,
    EvaluationRow,
    EventRow,
    HandoverRow,
    JobRow,
    PointRow,
    StepRow,
    microseconds,
    now,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Claim:
    """A job that this runner owns for as long as its lease token is the newest."""

    job_id: str
    lease_token: int
    spec: JobSpec
    fruitless_claims: int
    claimed_at: float
    """On this process's monotonic clock, just before the lease began."""


@dataclass(frozen=True)
class Journal:
    """All that a job has decided and learned, in order."""

    steps: Sequence[StepRow]
    points: Sequence[PointRow]
    arms: Sequence[ArmRow]
    evaluations: Sequence[EvaluationRow]
    next_handover: int
    fingerprint: str | None
    counted: tuple[int, int, int]
    """How many points, arms and evaluations there must be."""
    learned: Mapping[str, Any] | None


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, OperationalError | InterfaceError | PoolTimeout):
        return True
    return isinstance(error, DBAPIError) and error.connection_invalidated


async def transact(
    sessions: SessionMaker,
    work: Callable[[AsyncSession], Awaitable[T]],
    *,
    patience_seconds: float = 30.0,
) -> T:
    """Run `work` in one transaction, again if the database went away or two of them collided.

    Raises:
        StoreUnavailable: the database did not come back within `patience_seconds`.
    """
    try:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(_is_transient),
            wait=wait_random_exponential(0.05, max=2.0),
            stop=stop_after_delay(patience_seconds),
            reraise=True,
        ):
            with attempt:
                async with sessions.begin() as session:
                    return await work(session)
    except (DBAPIError, PoolTimeout) as error:
        if not _is_transient(error):
            raise
        raise StoreUnavailable(f"the database does not answer ({type(error).__name__})") from error
    raise StoreUnavailable("the database does not answer")


def transact_in_thread(
    sessions: BlockingSessionMaker, work: Callable[[Session], T], *, patience_seconds: float = 30.0
) -> T:
    """Like `transact`, for a thread that has no event loop."""
    try:
        for attempt in Retrying(
            retry=retry_if_exception(_is_transient),
            wait=wait_random_exponential(0.05, max=2.0),
            stop=stop_after_delay(patience_seconds),
            reraise=True,
        ):
            with attempt, sessions.begin() as session:
                return work(session)
    except (DBAPIError, PoolTimeout) as error:
        if not _is_transient(error):
            raise
        raise StoreUnavailable(f"the database does not answer ({type(error).__name__})") from error
    raise StoreUnavailable("the database does not answer")


def checksum(decision: dict[str, Any]) -> str:
    """Return the SHA-256 of a decision's canonical JSON."""
    canonical = json.dumps(decision, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


async def guard(session: AsyncSession, claim: Claim) -> JobRow:
    """Lock the job's row and return it if the lease is still ours.

    Raises:
        LeaseLost: another runner claimed the job, or it is not running any more.
    """
    return _ours(await session.scalar(_owned(claim)), claim)


def guard_in_thread(session: Session, claim: Claim) -> JobRow:
    """Like `guard`; what may be large and no line of the ledger needs is not read.

    Raises:
        LeaseLost: another runner claimed the job, or it is not running any more.
    """
    large = (
        JobRow.spec,
        JobRow.result,
        JobRow.labels,
        JobRow.status_reason,
        JobRow.outlook,
        JobRow.learned,
    )
    light = _owned(claim).options(*map(defer, large))
    return _ours(session.scalar(light), claim)


def _owned(claim: Claim) -> Select[Any]:
    return (
        select(JobRow)
        .where(
            JobRow.id == claim.job_id,
            JobRow.lease_token == claim.lease_token,
            JobRow.status == JobStatus.RUNNING,
        )
        .with_for_update()
    )


def _ours(row: JobRow | None, claim: Claim) -> JobRow:
    if row is None:
        raise LeaseLost(f"job {claim.job_id} has another owner")
    row.version += 1
    return row


async def add_event(session: AsyncSession, row: JobRow, kind: str, data: dict[str, Any]) -> None:
    """Append to the job's events; the caller holds the row."""
    session.add(new_event(row, kind, data))


def new_event(row: JobRow, kind: str, data: dict[str, Any]) -> EventRow:
    """Return the job's next event; the caller holds the row."""
    row.n_events += 1
    return EventRow(job_id=row.id, seq=row.n_events, type=kind, data=data)


async def load_journal(session: AsyncSession, job_id: str) -> Journal:
    """Read back everything a job has decided and learned."""

    async def rows(table: type[T], *order: Any) -> Sequence[T]:
        query = select(table).where(table.job_id == job_id).order_by(*order)  # type: ignore[attr-defined]
        return (await session.scalars(query)).all()

    handovers = select(HandoverRow.n).where(HandoverRow.job_id == job_id)
    last = await session.scalar(handovers.order_by(HandoverRow.n.desc()).limit(1))
    job = (
        await session.execute(
            select(
                JobRow.fingerprint,
                JobRow.n_points,
                JobRow.n_arms,
                JobRow.n_evaluations,
                JobRow.learned,
            ).where(JobRow.id == job_id)
        )
    ).one()
    return Journal(
        steps=await rows(StepRow, StepRow.step),
        points=await rows(PointRow, PointRow.n),
        arms=await rows(ArmRow, ArmRow.n),
        evaluations=await rows(
            EvaluationRow, EvaluationRow.split, EvaluationRow.arm, EvaluationRow.example
        ),
        next_handover=0 if last is None else last + 1,
        fingerprint=job.fingerprint,
        counted=(job.n_points, job.n_arms, job.n_evaluations),
        learned=job.learned,
    )


async def charge_calls_in_doubt(session: AsyncSession, claim: Claim) -> int:
    """Charge what a dead runner had handed over and never accounted for; return the calls."""
    row = await guard(session, claim)
    query = select(HandoverRow).where(
        HandoverRow.job_id == claim.job_id,
        HandoverRow.state == "sent",
        HandoverRow.lease_token < claim.lease_token,
    )
    calls = 0
    for handover in (await session.scalars(query)).all():
        calls += close_handover(row, handover, is_in_doubt=True)
    row.reserved_calls = row.reserved_tokens = 0  # no handover is open
    row.reserved_usd = 0.0
    if calls:
        await add_event(session, row, "calls_in_doubt", {"calls": calls})
    return calls


def close_handover(row: JobRow, handover: HandoverRow, *, is_in_doubt: bool) -> int:
    """Give a reservation back, or charge what is left of it; return the calls in doubt."""
    if handover.state != "sent":
        return 0
    left = still_reserved(handover)
    _release(row, left)
    handover.state = "in_doubt" if is_in_doubt and left.calls else "done"
    if not is_in_doubt or not left.calls:
        return 0
    row.calls += left.calls
    row.in_doubt_calls += left.calls
    row.in_doubt_tokens += left.tokens
    row.in_doubt_usd += left.usd
    return left.calls


def use_calls(row: JobRow, handover: HandoverRow, calls: int) -> None:
    """Take calls that are accounted for out of the reservation they were made under."""
    before = still_reserved(handover)
    handover.used_calls += calls
    after = still_reserved(handover)
    _release(
        row,
        Cost(before.calls - after.calls, before.tokens - after.tokens, before.usd - after.usd),
    )


def still_reserved(handover: HandoverRow) -> Cost:
    """Return what an open handover may still cost: the share of its calls that is not used."""
    left = max(handover.reserved_calls - handover.used_calls, 0)
    share = left / handover.reserved_calls if handover.reserved_calls else 0.0
    return Cost(left, round(handover.reserved_tokens * share), handover.reserved_usd * share)


def _release(row: JobRow, cost: Cost) -> None:
    row.reserved_calls -= cost.calls
    row.reserved_tokens -= cost.tokens
    row.reserved_usd = max(row.reserved_usd - cost.usd, 0.0)


def add_evaluations(
    session: Session, evaluations: Sequence[Mapping[str, Any]]
) -> frozenset[tuple[str, int, int]]:
    """Insert those that are not there yet; return their (split, arm, example)."""
    if not evaluations:
        return frozenset()
    table = EvaluationRow.__table__
    assert isinstance(table, Table)  # noqa: S101 - a mapped class has one
    is_postgres = session.get_bind().dialect.name == "postgresql"
    insert = postgresql_insert if is_postgres else sqlite_insert
    stored = session.execute(
        insert(table)
        .on_conflict_do_nothing()
        .returning(table.c.split, table.c.arm, table.c.example),
        [dict(evaluation) for evaluation in evaluations],
    )
    return frozenset((split, arm, example) for split, arm, example in stored)


async def add_given_arms(
    session: AsyncSession, claim: Claim, arms: Sequence[tuple[str, str]]
) -> None:
    """Store the instructions a job starts from: (text, source), numbered from 0."""
    row = await guard(session, claim)
    for n, (instruction, source) in enumerate(arms):
        if await session.get(ArmRow, (claim.job_id, n)) is None:
            arm = ArmRow(job_id=claim.job_id, n=n, text=instruction, source=source, step=0)
            session.add(sealed(arm))
    row.n_arms = max(row.n_arms, len(arms))


async def add_empty_arm(session: AsyncSession, claim: Claim) -> ArmRow:
    """Store the empty instruction, which only the final check measures, as the last arm."""
    row = await guard(session, claim)
    known = await session.scalar(
        select(ArmRow).where(ArmRow.job_id == claim.job_id, ArmRow.source == "empty")
    )
    if known is not None:
        return known
    arm = ArmRow(job_id=claim.job_id, n=row.n_arms, text="", source="empty", step=row.step)
    session.add(sealed(arm))
    row.n_arms += 1
    return arm


async def journal_decision(
    session: AsyncSession,
    claim: Claim,
    *,
    step: int,
    kind: str,
    decision: dict[str, Any],
    snapshot: dict[str, Any] | None,
    new_trials: Sequence[int],
    learned: dict[str, Any] | None = None,
) -> None:
    """Store a decision before anything depends on it, and number the arms it tries first.

    `learned` is what it says of the job's cost, if anything.
    """
    row = await guard(session, claim)
    if await session.get(StepRow, (claim.job_id, step)) is not None:
        return  # our own commit, unseen
    session.add(
        StepRow(
            job_id=claim.job_id,
            step=step,
            kind=kind,
            decision=decision,
            checksum=checksum(decision),
            snapshot=snapshot,
            lease_token=claim.lease_token,
        )
    )
    for arm in new_trials:
        row.n_trials += 1
        await session.execute(
            update(ArmRow)
            .where(ArmRow.job_id == claim.job_id, ArmRow.n == arm, ArmRow.trial.is_(None))
            .values(trial=row.n_trials, trial_step=step)
        )
    row.step = step
    if learned is not None:
        row.learned = learned


async def store_texts(
    session: AsyncSession,
    claim: Claim,
    *,
    fingerprint: str,
    points: Sequence[PointRow],
    new_arms: Sequence[ArmRow],
) -> None:
    """Store what the generator wrote for some points, in order, with the arms they open."""
    row = await guard(session, claim)
    if points and await session.get(PointRow, (claim.job_id, points[0].n)) is not None:
        return
    row.fingerprint = fingerprint
    row.fruitless_claims = 0
    row.n_points += len(points)
    row.n_arms += len(new_arms)
    session.add_all(sealed(arm) for arm in new_arms)
    await session.flush()
    session.add_all(sealed(point) for point in points)
    for point in points:
        if point.arm is not None:
            await session.execute(
                update(ArmRow)
                .where(ArmRow.job_id == claim.job_id, ArmRow.n == point.arm)
                .values(n_points=ArmRow.n_points + 1)
                .execution_options(synchronize_session=False)  # a retry stores the same objects
            )


async def finish_step(
    session: AsyncSession,
    claim: Claim,
    *,
    step: int,
    best: dict[str, Any] | None,
    learned: dict[str, Any] | None = None,
) -> None:
    """Mark a step as done, publish the leader and what was learned of costs, note what was paid."""
    row = await guard(session, claim)
    moved = await session.scalar(
        update(StepRow)
        .where(StepRow.job_id == claim.job_id, StepRow.step == step, StepRow.is_done.is_(False))
        .values(is_done=True, done_at=now())
        .returning(StepRow.step)
    )
    if moved is None:
        return  # our own commit, unseen
    row.fruitless_claims = 0
    if learned is not None:
        row.learned = learned
    spent = {"calls": row.calls, "cached_calls": row.cached_calls}
    await add_event(session, row, "step_done", {"step": step, **spent, "best": best})
    if best is not None:
        if row.best is None or row.best.get("instruction") != best["instruction"]:
            await add_event(session, row, "new_best", best)
        row.best = best


async def move_job(
    session: AsyncSession,
    claim: Claim,
    to: JobStatus,
    *,
    reason: StatusReason | None = None,
    stop_reason: str | None = None,
    result: dict[str, Any] | None = None,
    is_fault: bool = False,
) -> None:
    """Leave `running`: give the lease back, or end the job with its result.

    A claim that ends in a fault of ours stays counted as fruitless.

    Raises:
        LeaseLost: the job is not ours any more.
    """
    if to not in NEXT[JobStatus.RUNNING]:
        raise ValueError(f"a running job cannot become {to}")
    row = await guard(session, claim)
    row.status, row.runner_id, row.lease_expires_at = to, None, None
    row.status_reason = reason.model_dump() if reason else None
    row.conditions = []
    if to.is_finished:
        finished_at = await session.scalar(select(now()))
        row.stop_reason, row.finished_at = stop_reason, finished_at
        if result is not None and finished_at is not None:
            row.result = {**result, "finished_at": finished_at.isoformat()}
        row.cancel_requested = row.pause_requested = False
    elif to is JobStatus.PAUSED:
        row.pause_requested = False
    if to is JobStatus.QUEUED and not is_fault:
        row.fruitless_claims = max(row.fruitless_claims - 1, 0)
    await add_event(session, row, str(to), {"reason": reason.code} if reason else {})


async def seconds_since_start(session: AsyncSession, job_id: str) -> float:
    """Return how long ago a job was first claimed, by the database's clock; 0 if it never was."""
    query = select(now(), JobRow.started_at).where(JobRow.id == job_id)
    clock, started_at = (await session.execute(query)).one()
    return 0.0 if started_at is None else (clock - started_at).total_seconds()


def read_answers(
    session: Session, keys: Sequence[str], max_age_seconds: float
) -> dict[str, dict[str, Any]]:
    """Return the stored answers that are young enough, by key."""
    found = session.execute(
        select(AnswerRow.key, AnswerRow.content).where(
            AnswerRow.key.in_(keys), AnswerRow.stored_at > now() - microseconds(max_age_seconds)
        )
    )
    return {key: content for key, content in found}


def write_answers(session: Session, answers: Mapping[str, dict[str, Any]]) -> None:
    """Store answers, in place of older ones; two processes may store the same at a time."""
    is_postgres = session.get_bind().dialect.name == "postgresql"
    insert = postgresql_insert if is_postgres else sqlite_insert
    rows = [{"key": key, "content": content} for key, content in sorted(answers.items())]
    statement = insert(AnswerRow).values(rows)
    session.execute(
        statement.on_conflict_do_update(
            index_elements=[AnswerRow.key],
            set_={"content": statement.excluded.content, "stored_at": now()},
        )
    )


async def ping(sessions: SessionMaker) -> None:
    """Ask the database for its time."""
    async with sessions() as session:
        await session.scalar(select(now()))
