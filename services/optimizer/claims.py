"""Who runs which job: the SQL of claiming one, fairly, and of renewing its lease."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from sqlalchemy import ColumnElement, Select, and_, func, literal, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute, aliased

from instructzero.contracts import JobSpec, JobStatus
from services.optimizer import store
from services.optimizer.store import Claim
from services.optimizer.tables import ALGO_VERSION, JobRow, microseconds, now


def _has(status: JobStatus, column: InstrumentedAttribute[str] = JobRow.status) -> Any:
    """Compare with a literal: a partial index is used only where the plan can see the value."""
    return column == literal(str(status), literal_execute=True)


def _is_orphan(runner_id: str, *, take_over: bool) -> ColumnElement[bool]:
    """Running under a lease that ran out (`take_over`: under any but our own)."""
    is_over: ColumnElement[bool] = JobRow.lease_expires_at < now()
    if take_over:
        is_over = or_(is_over, JobRow.runner_id != runner_id)
    return and_(_has(JobStatus.RUNNING), is_over)


def waiting_tenants() -> Select[str]:
    """Return the tenants with queued jobs: who has the fewest running first, then by waiting time.

    Walks from tenant to tenant along the index, so that a long queue costs no more than a short
    one.
    """
    later = aliased(JobRow)
    waiting = select(func.min(JobRow.tenant).label("tenant")).where(_has(JobStatus.QUEUED))
    first = waiting.cte("waiting", recursive=True)
    following = (
        select(func.min(later.tenant))
        .where(_has(JobStatus.QUEUED, later.status), later.tenant > first.c.tenant)
        .scalar_subquery()
    )
    tenants = first.union_all(select(following).where(first.c.tenant.is_not(None)))
    running = (
        select(JobRow.tenant, func.count().label("n"))
        .where(_has(JobStatus.RUNNING))
        .group_by(JobRow.tenant)
        .subquery()
    )
    oldest = (
        select(func.min(later.created_at))
        .where(_has(JobStatus.QUEUED, later.status), later.tenant == tenants.c.tenant)
        .scalar_subquery()
    )
    return (
        select(tenants.c.tenant)
        .outerjoin(running, running.c.tenant == tenants.c.tenant)
        .where(tenants.c.tenant.is_not(None))
        .order_by(func.coalesce(running.c.n, 0), oldest)
    )


def claim_statement(
    which: ColumnElement[bool], order: Sequence[Any], runner_id: str, lease_seconds: float
) -> Any:
    """Return the UPDATE that claims the first job which nobody else is claiming now."""
    found = select(JobRow.id).where(which, JobRow.algo_version == ALGO_VERSION)
    first = found.order_by(*order).limit(1).with_for_update(skip_locked=True)
    return (
        update(JobRow)
        .where(JobRow.id == first.scalar_subquery(), which)
        .values(
            status=JobStatus.RUNNING,
            runner_id=runner_id,
            lease_token=JobRow.lease_token + 1,
            lease_expires_at=now() + microseconds(lease_seconds),
            fruitless_claims=JobRow.fruitless_claims + 1,
            started_at=func.coalesce(JobRow.started_at, now()),
            version=JobRow.version + 1,
        )
        .returning(JobRow)
        .execution_options(synchronize_session=False)
    )


async def claim_job(
    session: AsyncSession,
    *,
    runner_id: str,
    lease_seconds: float,
    job_id: str | None = None,
    take_over: bool = False,
) -> Claim | None:
    """Claim a job whose lease ran out, or else a queued one; None if there is none.

    Queued jobs are claimed fairly: of the tenant with the fewest running jobs, the oldest.

    `job_id` claims that one only. `take_over` ignores unexpired leases: for the one process that
    holds the lock on an embedded database, whose other runners are therefore dead.
    """
    claimed_at = time.monotonic()
    orphan, queued = _is_orphan(runner_id, take_over=take_over), _has(JobStatus.QUEUED)

    async def take(which: ColumnElement[bool], *order: Any) -> JobRow | None:
        statement = claim_statement(which, order, runner_id, lease_seconds)
        found: JobRow | None = await session.scalar(statement)
        return found

    if job_id is not None:
        row = await take(and_(or_(orphan, queued), JobRow.id == job_id), JobRow.id)
    else:
        row = await take(orphan, JobRow.lease_expires_at)
        tenants = [] if row else (await session.scalars(waiting_tenants())).all()
        for tenant in tenants:
            row = await take(and_(queued, JobRow.tenant == tenant), JobRow.created_at, JobRow.id)
            if row is not None:
                break
    return None if row is None else await _as_claim(session, row, claimed_at)


async def _as_claim(session: AsyncSession, row: JobRow, claimed_at: float) -> Claim | None:
    """Return the claim; a job whose stored spec this version cannot read fails here and now."""
    data = {"runner": row.runner_id, "lease_token": row.lease_token}
    await store.add_event(session, row, "claimed", data)
    try:
        spec = JobSpec.model_validate(row.spec)
    except ValidationError as error:
        reason = {
            "code": "spec_unreadable",
            "message": f"the stored spec does not fit this version ({error.error_count()} fields); "
            "send the job again",
        }
        row.status, row.status_reason = JobStatus.FAILED, reason
        row.runner_id = row.lease_expires_at = None
        row.finished_at = await session.scalar(select(now()))
        await store.add_event(session, row, "failed", {"reason": reason["code"]})
        return None
    return Claim(row.id, row.lease_token, spec, row.fruitless_claims, claimed_at)


def renew_statement(claim: Claim, lease_seconds: float) -> Any:
    """Return the UPDATE that renews a lease; it returns the cancel and pause flags, or no row."""
    return (
        update(JobRow)
        .where(
            JobRow.id == claim.job_id,
            JobRow.lease_token == claim.lease_token,
            JobRow.status == JobStatus.RUNNING,
        )
        .values(lease_expires_at=now() + microseconds(lease_seconds))
        .returning(JobRow.cancel_requested, JobRow.pause_requested)
    )
