"""The usage document: what jobs have cost, by job, target and label, the judge's part apart."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from instructzero.contracts import (
    JudgeSpend,
    ScoreCondition,
    ScoreLine,
    ScoreRequest,
    TargetView,
    TokenUsage,
    Usage,
    UsageReport,
)
from services.optimizer.tables import JobRow
from tests.optimizer.apis import Api, problem
from tests.optimizer.worlds import PlainScorer

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
JUDGED = {"metric": {"name": "judge", "target": "grader", "rubric": "Be right."}}
GRADE = JudgeSpend(calls=1, usage=TokenUsage(prompt_tokens=500, completion_tokens=4), usd=0.0005)


class GradedScorer(PlainScorer):
    """What is judged is graded by another target."""

    async def targets(self) -> tuple[TargetView, ...]:
        """Return the target and the judge."""
        (world,) = await super().targets()
        return world, world.model_copy(update={"name": "grader"})

    async def score(self, request: ScoreRequest) -> AsyncIterator[ScoreLine | ScoreCondition]:
        """Yield lines whose cost holds the grade's."""
        async for line in super().score(request):
            assert isinstance(line, ScoreLine)
            if request.metric.target is None:
                yield line
                continue
            yield line.model_copy(
                update={
                    "judge": GRADE,
                    "calls": line.calls + 1,
                    "usage": TokenUsage(prompt_tokens=520, completion_tokens=6),
                    "usd": (line.usd or 0.0) + 0.0005,
                }
            )


async def spend(api: Api, n: int, *, days: int = 0, **changes: Any) -> str:
    """Store a job of some day that has cost n calls of 12 tokens and a hundredth of a dollar."""
    job_id: str = (await api.create(**changes))["id"]
    async with api.database.writes.begin() as session:
        await session.execute(
            update(JobRow)
            .where(JobRow.id == job_id)
            .values(
                calls=n,
                cached_calls=1,
                in_doubt_calls=2,
                prompt_tokens=10 * n,
                completion_tokens=2 * n,
                usd=n / 100,
                in_doubt_usd=0.02,
                created_at=BEGIN + timedelta(days=days, seconds=days * 0.25),
            )
        )
    return job_id


async def report(api: Api, **query: Any) -> UsageReport:
    """Return the usage document."""
    return UsageReport.model_validate(await api.get("/usage", **query))


async def test_each_job_is_a_line_newest_first_and_all_are_summed_up(api: Api) -> None:
    old = await spend(api, 5)
    new = await spend(api, 7, days=1, name="second")
    found = await report(api)
    assert [(group.group, group.name, group.jobs) for group in found.data] == [
        (new, "second", 1),
        (old, "world", 1),
    ]
    assert found.data[0].usage == Usage(
        calls=7, cached_calls=1, in_doubt_calls=2, prompt_tokens=70, completion_tokens=14, usd=0.09
    )
    assert (found.jobs, found.total.calls, found.total.usd) == (2, 12, pytest.approx(0.16))
    shown = await api.get(f"/jobs/{new}")
    assert Usage.model_validate(shown["usage"]) == found.data[0].usage


async def test_a_period_holds_its_beginning_and_not_its_end(api: Api) -> None:
    jobs = [await spend(api, 1, days=day) for day in range(4)]
    found = await report(api, since="2026-03-02", until="2026-03-04")
    assert {group.group for group in found.data} == set(jobs[1:3])
    assert (found.since, found.until) == (BEGIN + timedelta(days=1), BEGIN + timedelta(days=3))
    exact = {"since": "2026-03-02T01:00:00.250000+01:00"}
    assert {group.group for group in (await report(api, **exact)).data} == set(jobs[1:])
    none = await report(api, since="2030-01-01T00:00:00Z")
    assert (none.jobs, none.data, none.total) == (0, (), Usage())


async def test_labels_group_jobs_and_those_without_come_last(api: Api) -> None:
    for n, labels in ((1, {"team": "b"}), (2, {"team": "a"}), (4, {"team": "a"}), (8, {})):
        await spend(api, n, labels=labels)
    found = await report(api, group_by="label.team")
    lines = [(group.group, group.jobs, group.usage.calls) for group in found.data]
    assert lines == [("a", 2, 6), ("b", 1, 1), (None, 1, 8)]
    assert (found.jobs, found.total.calls) == (4, 15)


@pytest.mark.parametrize("group_by", ["job", "label.team"])
async def test_pages_hold_every_group_once(api: Api, group_by: str) -> None:
    for n in range(7):
        team = {"team": f"\u20ac\n{n}" + "x" * 190} if n else {}
        await spend(api, 1, days=n // 2, labels=team)
    seen: list[str | None] = []
    query: dict[str, Any] = {"group_by": group_by, "limit": 2}
    while True:
        page = await report(api, **query)
        seen += [group.group for group in page.data]
        assert page.jobs == 7
        assert page.has_more == (page.next_cursor is not None)
        if page.next_cursor is None:
            break
        query["cursor"] = page.next_cursor
    assert len(seen) == len(set(seen)) == 7


async def test_what_a_judge_has_cost_is_its_own_targets(api: Api) -> None:
    api.scorer = GradedScorer()
    object.__setattr__(api.app.state.deps, "scorer", api.scorer)
    await api.finished(budget={"calls": 60}, **JUDGED)
    plain = await api.finished(budget={"calls": 10})
    found = await report(api, group_by="target")
    by_target = {group.group: group for group in found.data}
    grader, world = by_target["grader"], by_target["world"]
    n_graded = grader.usage.calls
    assert n_graded >= 20
    assert (grader.jobs, world.jobs) == (1, 2)
    assert grader.usage.prompt_tokens == 500 * n_graded
    assert grader.usage.usd == pytest.approx(0.0005 * n_graded)
    assert world.usage.prompt_tokens == 20 * world.usage.calls
    for name in ("calls", "prompt_tokens", "completion_tokens", "usd", "cached_calls"):
        parts = [getattr(group.usage, name) or 0 for group in found.data]
        assert sum(parts) == pytest.approx(getattr(found.total, name))
    assert plain in {group.group for group in (await report(api)).data}


async def test_a_job_of_an_older_version_is_counted_for_its_target(api: Api) -> None:
    job_id = await spend(api, 3)
    async with api.database.writes.begin() as session:
        await session.execute(
            update(JobRow).where(JobRow.id == job_id).values(target=None, judge=None)
        )
    (group,) = (await report(api, group_by="target")).data
    assert (group.group, group.usage.calls) == ("world", 3)


@pytest.mark.parametrize(
    ("query", "name", "words"),
    [
        ("group_by=tenant", "group_by", "job, target or label.KEY"),
        ("group_by=label.", "group_by", "job, target or label.KEY"),
        ("group_by=label.Team", "group_by", "job, target or label.KEY"),
        ("group_by=job%0A", "group_by", "job, target or label.KEY"),
        ("since=yesterday", "since", "write a date"),
        ("since=2026-03-01T00:00:00", "since", "write a date"),
        ("until=2026-13-01", "until", "write a date"),
        ("until=%00", "until", "write a date"),
        ("since=2026-03-02&until=2026-03-02", "until", "later than"),
        ("limit=0", "limit", "greater than"),
        ("cursor=abc", "cursor", "next_cursor"),
        ("group_by=target&cursor=WzFd", "cursor", "next_cursor"),
        ("group_by=target&cursor=WyJcdTAwMDAiXQ", "cursor", "next_cursor"),
        ("group_by=target&cursor=" + "A" * 5000, "cursor", "next_cursor"),
    ],
)
async def test_a_bad_question_is_refused_by_name(
    api: Api, query: str, name: str, words: str
) -> None:
    document = problem(await api.http.get(f"/usage?{query}"))
    assert document["status"] == 422
    assert document["errors"][0]["pointer"] == f"/query/{name}"
    assert words in document["detail"]
