"""SQL of the API: store a job, find it again, and read what it left; nothing here commits.

The runner's own statements are in `store.py`. Lists are read by keyset, never by offset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Select, and_, delete, exists, func, or_, select, tuple_
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, defer

from instructzero.contracts import JobSpec, JobStatus
from instructzero.errors import FieldProblem, IdempotencyMismatch, NotFound
from services.optimizer import store
from services.optimizer.tables import (
    ArmRow,
    EvaluationRow,
    EventRow,
    IdempotencyRow,
    JobRow,
    PointRow,
    StepRow,
    now,
)

CHUNK = 500


class Mark(NamedTuple):
    """What changes when a job changes: cheap to read, compared by those who wait."""

    version: int
    is_finished: bool
    n_events: int


class Tried(NamedTuple):
    """An arm that was tried, with the point that first gave its text (None: given by a person)."""

    arm: ArmRow
    point: PointRow | None


class Queue(NamedTuple):
    """How many jobs wait and run, and whether they are looked after."""

    queued: float
    running: float
    expired_leases: float
    age_seconds: float


class Timing(NamedTuple):
    """When an arm was first decided on, and when its last answer came."""

    started_at: datetime | None
    finished_at: datetime | None


async def insert_job(
    session: AsyncSession,
    job_id: str,
    spec: JobSpec,
    *,
    outlook: dict[str, Any],
    key: str | None,
    body_hash: str,
) -> JobRow:
    """Store a queued job; with a key, return the job that the key made first.

    Two requests with one key may race: whoever loses takes back its own row.

    Raises:
        IdempotencyMismatch: the key came before with another body.
    """
    if key is not None and (known := await find_idempotent(session, key, body_hash)) is not None:
        return known
    row = JobRow.of(job_id, spec, outlook=outlook, n_events=0)
    session.add(row)
    await session.flush()
    if key is not None and not await _take_key(session, key, body_hash, job_id):
        await session.execute(delete(JobRow).where(JobRow.id == job_id))
        session.expunge(row)
        known = await find_idempotent(session, key, body_hash)
        if known is not None:
            return known
        raise NotFound("the job that this Idempotency-Key made was deleted; send it again")
    await store.add_event(session, row, "queued", {})
    await session.flush()
    await session.refresh(row)
    return row


async def find_idempotent(session: AsyncSession, key: str, body_hash: str) -> JobRow | None:
    """Return the job that a key made, None if the key is new.

    Raises:
        IdempotencyMismatch: the key came before with another body.
    """
    known = await session.get(IdempotencyRow, key, populate_existing=True)
    if known is None:
        return None
    if known.body_hash != body_hash:
        detail = "came before with another body; send a new key with a new job"
        raise IdempotencyMismatch(
            f"Idempotency-Key {detail}", errors=[FieldProblem("/header/idempotency-key", detail)]
        )
    return await read_job(session, known.job_id)


async def _take_key(session: AsyncSession, key: str, body_hash: str, job_id: str) -> bool:
    is_postgres = session.get_bind().dialect.name == "postgresql"
    insert = postgresql_insert if is_postgres else sqlite_insert
    taken = await session.scalar(
        insert(IdempotencyRow)
        .values(key=key, body_hash=body_hash, job_id=job_id)
        .on_conflict_do_nothing()
        .returning(IdempotencyRow.key)
    )
    return taken is not None


async def read_job(session: AsyncSession, job_id: str, *, lock: bool = False) -> JobRow:
    """Return a job's row as committed now; `lock` holds it until the transaction ends.

    Raises:
        NotFound: there is no such job.
    """
    query = select(JobRow).where(JobRow.id == job_id).execution_options(populate_existing=True)
    row = await session.scalar(query.with_for_update() if lock else query)
    if row is None:
        raise NotFound("there is no such job")
    return row


def read_jobs(session: Session, job_ids: Sequence[str]) -> dict[str, JobRow]:
    """Return the rows of those jobs that exist."""
    return {row.id: row for row in session.scalars(select(JobRow).where(JobRow.id.in_(job_ids)))}


def read_marks(session: Session, job_ids: Sequence[str]) -> dict[str, Mark]:
    """Return what changes when a job changes, of those jobs that exist."""
    rows = session.execute(
        select(JobRow.id, JobRow.version, JobRow.status, JobRow.n_events).where(
            JobRow.id.in_(job_ids)
        )
    )
    return {
        job_id: Mark(version, JobStatus(status).is_finished, n_events)
        for job_id, version, status, n_events in rows
    }


async def read_queue(session: AsyncSession) -> Queue:
    """Return how many jobs wait and run; each half reads an index of its own."""
    waiting = select(func.count(), func.min(JobRow.created_at), now())
    queued, oldest, at = (
        await session.execute(waiting.where(JobRow.status == JobStatus.QUEUED))
    ).one()
    held = select(func.count(), func.count().filter(JobRow.lease_expires_at < now()))
    running, expired = (await session.execute(held.where(JobRow.status == JobStatus.RUNNING))).one()
    age = 0.0 if oldest is None else max(0.0, (at - oldest).total_seconds())
    return Queue(queued, running, expired, age)


async def list_jobs(
    session: AsyncSession,
    *,
    status: JobStatus | None,
    labels: Mapping[str, str],
    after: tuple[datetime, str] | None,
    limit: int,
) -> Sequence[JobRow]:
    """Return jobs, newest first, that come after a (created_at, id)."""
    query = (
        select(JobRow)
        .options(defer(JobRow.result))
        .order_by(JobRow.created_at.desc(), JobRow.id.desc())
        .limit(limit)
    )
    if status is not None:
        query = query.where(JobRow.status == status)
    for key, value in labels.items():
        query = query.where(JobRow.labels[key].as_string() == value)
    if after is not None:
        at, job_id = after
        query = query.where(
            or_(JobRow.created_at < at, and_(JobRow.created_at == at, JobRow.id < job_id))
        )
    return (await session.scalars(query)).all()


async def delete_job(session: AsyncSession, job_id: str) -> None:
    """Delete a job and all it left."""
    await session.execute(delete(JobRow).where(JobRow.id == job_id))


def _tried(job_id: str) -> Select[ArmRow, PointRow]:
    scored = exists().where(
        EvaluationRow.job_id == ArmRow.job_id,
        EvaluationRow.arm == ArmRow.n,
        EvaluationRow.split == "validation",
        EvaluationRow.score.is_not(None),
    )
    return (
        select(ArmRow, PointRow)
        .outerjoin(PointRow, and_(PointRow.job_id == ArmRow.job_id, PointRow.n == ArmRow.point))
        .where(ArmRow.job_id == job_id, ArmRow.trial.is_not(None), scored)
    )


async def list_tried(
    session: AsyncSession, job_id: str, *, after: int, limit: int
) -> Sequence[Tried]:
    """Return the arms with a score, in the order they were first tried, after a trial number."""
    query = _tried(job_id).where(ArmRow.trial > after).order_by(ArmRow.trial).limit(limit)
    return [Tried(arm, point) for arm, point in await session.execute(query)]


async def read_tried(session: AsyncSession, job_id: str, trial: int) -> Tried:
    """Return one arm by its trial number.

    Raises:
        NotFound: there is no such trial, or none of its answers has come yet.
    """
    found = (await session.execute(_tried(job_id).where(ArmRow.trial == trial))).one_or_none()
    if found is None:
        raise NotFound("the job has no such trial, or it has no answer yet")
    return Tried(*found)


async def read_scores(
    session: AsyncSession, job_id: str, arms: Sequence[int]
) -> dict[int, list[float]]:
    """Return validation scores by arm, in the order of the examples."""
    scores: dict[int, list[float]] = {arm: [] for arm in arms}
    rows = await session.execute(
        select(EvaluationRow.arm, EvaluationRow.score)
        .where(
            EvaluationRow.job_id == job_id,
            EvaluationRow.split == "validation",
            EvaluationRow.arm.in_(arms),
            EvaluationRow.score.is_not(None),
        )
        .order_by(EvaluationRow.arm, EvaluationRow.example)
    )
    for arm, score in rows:
        scores[arm].append(score or 0.0)
    return scores


async def read_evaluations(session: AsyncSession, job_id: str, arm: int) -> Sequence[EvaluationRow]:
    """Return one arm's validation answers, failed ones included, in the order of the examples."""
    query = (
        select(EvaluationRow)
        .where(
            EvaluationRow.job_id == job_id,
            EvaluationRow.split == "validation",
            EvaluationRow.arm == arm,
        )
        .order_by(EvaluationRow.example)
    )
    return (await session.scalars(query)).all()


async def read_timing(session: AsyncSession, job_id: str, arm: ArmRow) -> Timing:
    """Return when an arm was tried."""
    started_at = await session.scalar(
        select(StepRow.decided_at).where(StepRow.job_id == job_id, StepRow.step == arm.trial_step)
    )
    finished_at = await session.scalar(
        select(func.max(EvaluationRow.stored_at)).where(
            EvaluationRow.job_id == job_id,
            EvaluationRow.arm == arm.n,
            EvaluationRow.split == "validation",
        )
    )
    return Timing(started_at, finished_at)


async def list_events(
    session: AsyncSession, job_id: str, *, after: int, limit: int
) -> Sequence[EventRow]:
    """Return events after a sequence number, oldest first."""
    query = (
        select(EventRow)
        .where(EventRow.job_id == job_id, EventRow.seq > after)
        .order_by(EventRow.seq)
        .limit(limit)
    )
    return (await session.scalars(query)).all()


class Exported(NamedTuple):
    """An evaluation with the instruction it belongs to."""

    evaluation: EvaluationRow
    arm: ArmRow
    z: list[Any] | None


async def list_evaluations(
    session: AsyncSession, job_id: str, *, after: tuple[str, int, int] | None
) -> Sequence[Exported]:
    """Return a chunk of a job's evaluations in (split, arm, example) order."""
    query = (
        select(EvaluationRow, ArmRow, PointRow.z)
        .join(ArmRow, and_(ArmRow.job_id == EvaluationRow.job_id, ArmRow.n == EvaluationRow.arm))
        .outerjoin(PointRow, and_(PointRow.job_id == ArmRow.job_id, PointRow.n == ArmRow.point))
        .where(EvaluationRow.job_id == job_id)
        .order_by(EvaluationRow.split.desc(), EvaluationRow.arm, EvaluationRow.example)
        .limit(CHUNK)
    )
    if after is not None:
        split, arm, example = after
        query = query.where(
            or_(
                EvaluationRow.split < split,
                and_(
                    EvaluationRow.split == split,
                    tuple_(EvaluationRow.arm, EvaluationRow.example) > (arm, example),
                ),
            )
        )
    return [Exported(*row) for row in await session.execute(query)]
