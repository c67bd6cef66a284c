"""What a person asks of a job: cancel, pause, resume, delete; and the result of one that never ran.

Cancel and pause of a running job are flags, which its runner sees with its next write. A job that
nobody runs is moved here, in one transaction with its row locked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from instructzero.contracts import (
    JobSpec,
    JobStatus,
    MetricName,
    Result,
    StatusReason,
    TargetView,
)
from instructzero.errors import Conflict, JournalDamaged, ScorerRefused, ScorerUnavailable
from services.optimizer import reads, store
from services.optimizer.buyer import Scorer
from services.optimizer.final import build_result
from services.optimizer.jobs import NEXT, Connections
from services.optimizer.state import JobState
from services.optimizer.store import Journal
from services.optimizer.tables import JobRow, now


async def cancel(session: AsyncSession, job_id: str, connections: Connections) -> JobRow:
    """End a job: at once if nobody runs it, otherwise as soon as its runner sees the flag.

    Raises:
        NotFound: there is no such job.
        Conflict: it has ended otherwise.
    """
    row = await reads.read_job(session, job_id, lock=True)
    status = JobStatus(row.status)
    if status is JobStatus.CANCELLED or row.cancel_requested:
        return row
    _refuse_finished(status, "cancelled")
    row.version += 1
    if status is JobStatus.RUNNING:
        row.cancel_requested = True
        await store.add_event(session, row, "cancel_requested", {})
        return row
    finished_at = await session.scalar(select(now()))
    row.finished_at = finished_at
    result = await result_without_runner(session, row, connections, JobStatus.CANCELLED)
    row.result = result.model_dump(mode="json")
    row.pause_requested = False
    await _move(session, row, JobStatus.CANCELLED)
    return row


async def pause(session: AsyncSession, job_id: str) -> JobRow:
    """Stop a job from spending until it is resumed.

    Raises:
        NotFound: there is no such job.
        Conflict: it has ended.
    """
    row = await reads.read_job(session, job_id, lock=True)
    status = JobStatus(row.status)
    _refuse_finished(status, "paused")
    if status is JobStatus.PAUSED or row.pause_requested or row.cancel_requested:
        return row
    row.version += 1
    if status is JobStatus.RUNNING:
        row.pause_requested = True
        await store.add_event(session, row, "pause_requested", {})
    else:
        await _move(session, row, JobStatus.PAUSED)
    return row


async def resume(session: AsyncSession, job_id: str) -> JobRow:
    """Queue a paused job again, or take back a pause that no runner has seen yet.

    Raises:
        NotFound: there is no such job.
        Conflict: it has ended.
    """
    row = await reads.read_job(session, job_id, lock=True)
    status = JobStatus(row.status)
    _refuse_finished(status, "resumed")
    if row.pause_requested:
        row.version += 1
        row.pause_requested = False
        await store.add_event(session, row, "pause_withdrawn", {})
    elif status is JobStatus.PAUSED:
        row.version += 1
        row.fruitless_claims = 0
        await _move(session, row, JobStatus.QUEUED)
    return row


async def delete(session: AsyncSession, job_id: str) -> None:
    """Delete a finished job and all it left.

    Raises:
        NotFound: there is no such job.
        Conflict: it has not ended.
    """
    row = await reads.read_job(session, job_id, lock=True)
    if not JobStatus(row.status).is_finished:
        raise Conflict(
            f"the job is {row.status}; cancel it first and delete it when it has ended",
            reason="not_finished",
        )
    await reads.delete_job(session, job_id)


def _refuse_finished(status: JobStatus, wish: str) -> None:
    if status.is_finished:
        raise Conflict(f"the job has {status} and cannot be {wish} any more", reason="finished")


async def _move(session: AsyncSession, row: JobRow, to: JobStatus) -> None:
    if to not in NEXT[JobStatus(row.status)]:
        raise Conflict(f"a job that is {row.status} cannot become {to}")
    row.status, row.status_reason = to, None
    await store.add_event(session, row, str(to), {})


async def find_connections(spec: Mapping[str, Any], scorer: Scorer) -> Connections:
    """Return what a stored job calls; without limits and price where that is not known now."""
    try:
        known = {target.name: target for target in await scorer.targets()}
    except (ScorerUnavailable, ScorerRefused):
        known = {}

    def find(name: str) -> TargetView:
        return known.get(name) or TargetView(
            name=name, model="unknown", limits={}, price=None, max_tokens=1
        )

    metric = spec["metric"]
    is_judged = metric["name"] == MetricName.JUDGE
    return Connections(find(spec["target"]), find(metric["target"]) if is_judged else None)


async def result_without_runner(
    session: AsyncSession, row: JobRow, connections: Connections, status: JobStatus
) -> Result:
    """Return the result document of a job that no runner ended in order."""
    journal = await store.load_journal(session, row.id)
    return await asyncio.to_thread(_result, row, connections, status, journal)


def _result(row: JobRow, connections: Connections, status: JobStatus, journal: Journal) -> Result:
    spec = JobSpec.model_validate(row.spec)
    state = JobState.open(row.id, spec, connections)
    try:
        state.load(journal)
    except JournalDamaged:  # what cannot be trusted is not reported
        state = JobState.open(row.id, spec, connections)
    trial = (row.best or {}).get("trial")
    winner = next((arm.n for arm in state.arms if trial and arm.trial == trial), None)
    result = build_result(
        state,
        row,
        status,
        winner=winner,
        stop_reason=row.stop_reason,
        reason=StatusReason(**row.status_reason) if row.status_reason else None,
    )
    return result.model_copy(update={"finished_at": row.finished_at})
