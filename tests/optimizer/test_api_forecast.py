"""The forecast in the job document: before, while and after a real job runs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import select, update

from instructzero.contracts import Estimate, Job
from services.optimizer.learned import Learned
from services.optimizer.tables import JobRow
from tests.optimizer.apis import Api, body

PRICE = {"input_per_million": 0.4, "output_per_million": 1.0}


async def shown(api: Api, job_id: str) -> Job:
    """Return the job document."""
    return Job.model_validate(await api.get(f"/jobs/{job_id}"))


async def test_before_its_start_a_job_is_forecast_to_cost_what_was_estimated(api: Api) -> None:
    api.scorer.price = PRICE
    response = await api.http.post("/jobs?dry_run=true", json=body())
    estimate = Estimate.model_validate(response.json()["estimate"])
    forecast = (await shown(api, (await api.create())["id"])).forecast
    assert forecast is not None
    assert forecast.usd is not None
    tokens = estimate.prompt_tokens + estimate.completion_tokens
    assert (forecast.calls.expected, forecast.calls.interval) == (200, estimate.calls_interval)
    assert (forecast.tokens.expected, forecast.tokens.interval) == (
        tokens,
        estimate.tokens_interval,
    )
    assert forecast.usd.expected == pytest.approx(estimate.usd, abs=1e-6)
    assert forecast.seconds.expected == estimate.seconds


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": "random", "budget": {"calls": 200}},
        {"strategy": "default", "budget": {"calls": 200}},
        {"strategy": "random", "budget": {"trials": 9}},
        {"strategy": "ape", "budget": {"tokens": 4_000}},
    ],
    ids=lambda changes: "-".join([changes["strategy"], *changes["budget"]]),
)
async def test_every_forecast_of_a_running_job_holds_what_it_comes_to(
    api: Api, changes: dict[str, Any]
) -> None:
    api.scorer.latency_seconds = 0.005
    api.scorer.price = PRICE
    job_id = (await api.create(**changes))["id"]
    seen: list[Job] = []
    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        running = group.create_task(api.run(job_id))
        while not running.done():
            seen.append(await shown(api, job_id))
            await asyncio.sleep(0.05)
    ended = await shown(api, job_id)
    usage, last = ended.usage, ended.forecast
    assert last is not None
    assert last.calls.interval == (last.calls.expected,) * 2 == (usage.calls,) * 2
    assert last.tokens.expected == usage.prompt_tokens + usage.completion_tokens
    assert last.usd is not None
    assert last.usd.expected == usage.usd
    assert ended.progress.eta_seconds is None
    halfway = [job for job in seen if job.progress.evaluations > 30]
    assert halfway
    for job in halfway:
        found = job.forecast
        assert found is not None
        for name in ("calls", "tokens"):
            low, high = getattr(found, name).interval
            assert low <= getattr(last, name).expected <= high, (name, job.progress)
            assert high <= (getattr(job.spec.budget, name) or 10**9)
        if job.status == "running":
            assert job.progress.eta_seconds is not None


async def test_what_was_learned_is_stored_with_the_job(api: Api) -> None:
    job_id = await api.finished(budget={"calls": 120})
    async with api.database.reads() as session:
        row = await session.scalar(select(JobRow).where(JobRow.id == job_id))
    assert row is not None
    learned = Learned.of(row.learned)
    assert learned.steps > 2
    assert learned.arms > 2
    assert learned.tokens_variance == 0.0  # every answer of this world has 22 tokens
    assert learned.final_from == learned.evaluations
    assert learned.final_from + learned.final_evaluations == row.n_evaluations
    assert learned.seconds > 0


async def test_a_paused_job_is_forecast_as_if_it_went_on_now(api: Api) -> None:
    job_id = (await api.create())["id"]
    await api.http.post(f"/jobs/{job_id}/pause")
    forecast = (await shown(api, job_id)).forecast
    assert forecast is not None
    assert forecast.calls.expected == 200
    await api.http.post(f"/jobs/{job_id}/cancel")
    forecast = (await shown(api, job_id)).forecast
    assert forecast is not None
    assert forecast.calls.interval == (0, 0)


async def test_a_job_that_an_older_version_stored_has_no_forecast(api: Api) -> None:
    job_id = (await api.create())["id"]
    async with api.database.writes.begin() as session:
        await session.execute(update(JobRow).where(JobRow.id == job_id).values(outlook=None))
    assert (await shown(api, job_id)).forecast is None
    await api.run(job_id)
    assert (await shown(api, job_id)).forecast is not None  # what it cost is known
