"""SQL of the usage document: what jobs have cost, summed by job, target or label.

Sums run over the job rows' own totals, found by the time the jobs were created; no evaluation is
read. A judge's calls count for the judge's target, calls in doubt for the job's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, Subquery, and_, func, literal, or_, select, union_all
from sqlalchemy.ext.asyncio import AsyncSession

from instructzero.contracts import Usage
from services.optimizer.tables import JobRow

GROUP_BY = r"^(job|target|label\.[a-z0-9][a-z0-9_.-]{0,62})$"
LABEL = "label."
JUDGED = ("calls", "failed_calls", "prompt_tokens", "completion_tokens", "usd")
"""What of a job's numbers may be the judge's."""


@dataclass(frozen=True)
class Period:
    """Jobs created at `since` or later and before `until`; None: not bounded."""

    since: datetime | None
    until: datetime | None

    def holds(self) -> list[ColumnElement[bool]]:
        """Return the conditions on a job."""
        found = []
        if self.since is not None:
            found.append(JobRow.created_at >= self.since)
        if self.until is not None:
            found.append(JobRow.created_at < self.until)
        return found


class Sum(NamedTuple):
    """What the jobs of one group have cost; `key` None: jobs without the label."""

    key: str | None
    n_jobs: int
    usage: Usage


class JobSum(NamedTuple):
    """What one job has cost, and where it stands in the order of the list."""

    created_at: datetime
    name: str
    sum: Sum


def is_group(group_by: str) -> bool:
    """Whether jobs can be grouped by this: `job`, `target` or `label.KEY`."""
    return re.fullmatch(GROUP_BY, group_by) is not None


def _numbers(row: type[JobRow]) -> dict[str, ColumnElement[Any]]:
    """Return a job's whole cost, column by column; money in doubt counts as spent."""
    names = (
        "calls", "cached_calls", "failed_calls", "in_doubt_calls", "refused_answers",
        "prompt_tokens", "completion_tokens",
    )  # fmt: skip
    return {name: getattr(row, name) for name in names} | {"usd": row.usd + row.in_doubt_usd}


def _usage(numbers: Sequence[Any]) -> Usage:
    """Return a sum as the API shows it; without any money nothing had a price."""
    found = dict(zip(_numbers(JobRow), numbers, strict=True))
    usd = round(float(found.pop("usd") or 0), 9)
    counts = {name: int(value or 0) for name, value in found.items()}
    return Usage(**counts, usd=usd if usd > 0 else None)


def _parts(period: Period, group_by: str) -> Subquery:
    """Return a row for every job (and every judge, by target) with its group and its cost."""
    numbers = _numbers(JobRow)
    if group_by != "target":
        key = JobRow.labels[group_by.removeprefix(LABEL)].as_string()
        labelled = [column.label(name) for name, column in numbers.items()]
        return select(key.label("key"), JobRow.id, *labelled).where(*period.holds()).subquery()
    graded = {name: getattr(JobRow, f"judge_{name}") for name in JUDGED}
    own = [(number - graded.get(name, 0)).label(name) for name, number in numbers.items()]
    theirs = [graded.get(name, literal(0)).label(name) for name in numbers]
    target = func.coalesce(JobRow.target, JobRow.spec["target"].as_string())
    judge = func.coalesce(JobRow.judge, JobRow.spec["metric"]["target"].as_string())
    called = select(target.label("key"), JobRow.id, *own).where(*period.holds())
    grading = select(judge.label("key"), JobRow.id, *theirs).where(
        *period.holds(), JobRow.judge_calls > 0
    )
    return union_all(called, grading).subquery()


async def total(session: AsyncSession, period: Period) -> Sum:
    """Return what all jobs of a period have cost."""
    sums = [func.sum(column) for column in _numbers(JobRow).values()]
    query = select(func.count(), *sums).select_from(JobRow).where(*period.holds())
    n_jobs, *numbers = (await session.execute(query)).one()
    return Sum(None, n_jobs, _usage(numbers))


async def list_groups(
    session: AsyncSession, period: Period, group_by: str, *, after: str | None, limit: int
) -> Sequence[Sum]:
    """Return the cost by target or label, ordered by group, from after a group on.

    Jobs without the label come last, as one group.
    """
    parts = _parts(period, group_by)
    sums = [func.sum(parts.c[name]) for name in _numbers(JobRow)]
    query: Select[Any] = (
        select(parts.c.key, func.count(parts.c.id.distinct()), *sums)
        .group_by(parts.c.key)
        .order_by(parts.c.key.is_(None), parts.c.key)
        .limit(limit)
    )
    if after is not None:
        query = query.where(or_(parts.c.key > after, parts.c.key.is_(None)))
    rows = await session.execute(query)
    return [Sum(key, n_jobs, _usage(numbers)) for key, n_jobs, *numbers in rows]


async def list_job_sums(
    session: AsyncSession, period: Period, *, after: tuple[datetime, str] | None, limit: int
) -> Sequence[JobSum]:
    """Return the cost by job, newest first, from after a (created_at, id) on."""
    query = (
        select(JobRow.created_at, JobRow.name, JobRow.id, *_numbers(JobRow).values())
        .where(*period.holds())
        .order_by(JobRow.created_at.desc(), JobRow.id.desc())
        .limit(limit)
    )
    if after is not None:
        at, job_id = after
        query = query.where(
            or_(JobRow.created_at < at, and_(JobRow.created_at == at, JobRow.id < job_id))
        )
    rows = await session.execute(query)
    return [
        JobSum(created_at, name, Sum(job_id, 1, _usage(numbers)))
        for created_at, name, job_id, *numbers in rows
    ]
