"""What jobs have cost, over REST: by job, target or label."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

from instructzero.contracts import UsageGroup, UsageReport
from instructzero.errors import FieldProblem, InvalidRequest
from services.optimizer import cursors, usage
from services.optimizer.intake import Reading
from services.optimizer.openapi import problems
from services.optimizer.usage import Period

router = APIRouter(tags=["usage"])


def _checked_group(group_by: str) -> str:
    if not usage.is_group(group_by):
        raise ValueError("write job, target or label.KEY, e.g. label.team")
    return group_by


GroupBy = Annotated[
    str,
    Query(description="`job`, `target`, or `label.KEY`: the values of one label"),
    AfterValidator(_checked_group),
    WithJsonSchema({"type": "string", "pattern": usage.GROUP_BY}),
]


def _read_moment(given: object) -> object:
    """Read a date (the beginning of its day, UTC) or a time with its offset."""
    if not isinstance(given, str):
        return given
    try:
        return datetime.combine(date.fromisoformat(given), time(), UTC)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(given)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError("write a date, 2026-11-01 (UTC), or a time, 2026-11-01T09:00:00Z")
    return moment


Moment = Annotated[
    datetime | None,
    BeforeValidator(_read_moment),
    WithJsonSchema({"type": "string", "anyOf": [{"format": "date"}, {"format": "date-time"}]}),
]
Since = Annotated[
    Moment,
    Query(description="jobs created then or later: a date (UTC), or a time with its offset"),
]
Until = Annotated[Moment, Query(description="jobs created before then")]


@router.get("/usage", responses=problems(401, 422, 500, 503))
async def show_usage(
    session: Reading,
    since: Since = None,
    until: Until = None,
    group_by: GroupBy = "job",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before")] = None,
) -> UsageReport:
    """Sum up calls, tokens and money of the jobs created in a period, in all and by group."""
    period = _period(since, until)
    whole = await usage.total(session, period)
    if group_by == "job":
        found, next_cursor = await _by_job(session, period, limit, cursor)
    else:
        found, next_cursor = await _by_group(session, period, group_by, limit, cursor)
    return UsageReport(
        since=period.since,
        until=period.until,
        group_by=group_by,
        jobs=whole.n_jobs,
        total=whole.usage,
        data=found,
        next_cursor=next_cursor,
        has_more=next_cursor is not None,
    )


async def _by_job(
    session: Reading, period: Period, limit: int, cursor: str | None
) -> tuple[tuple[UsageGroup, ...], str | None]:
    after = None if cursor is None else cursors.read_job_cursor(cursor)
    rows = await usage.list_job_sums(session, period, after=after, limit=limit + 1)
    shown = rows[:limit]
    groups = tuple(
        UsageGroup(group=row.sum.key, name=row.name, jobs=1, usage=row.sum.usage) for row in shown
    )
    if len(rows) <= limit:
        return groups, None
    last = shown[-1]
    return groups, cursors.after_job(last.created_at, last.sum.key or "")


async def _by_group(
    session: Reading, period: Period, group_by: str, limit: int, cursor: str | None
) -> tuple[tuple[UsageGroup, ...], str | None]:
    after = None if cursor is None else cursors.read_group_cursor(cursor)
    rows = await usage.list_groups(session, period, group_by, after=after, limit=limit + 1)
    groups = tuple(
        UsageGroup(group=row.key, jobs=row.n_jobs, usage=row.usage) for row in rows[:limit]
    )
    # what has no group comes last, so the end of a page that is followed by another has one
    return groups, None if len(rows) <= limit else cursors.after_group(groups[-1].group or "")


def _period(since: datetime | None, until: datetime | None) -> Period:
    """Return the period that was asked for.

    Raises:
        InvalidRequest: it ends before it begins.
    """
    if since is not None and until is not None and since >= until:
        detail = "must be later than `since`"
        raise InvalidRequest(f"until: {detail}", errors=[FieldProblem("/query/until", detail)])
    return Period(since, until)
