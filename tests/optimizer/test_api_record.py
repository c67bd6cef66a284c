"""What a job left, over REST: trials, result, events, export; and what a job may name."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from instructzero.contracts import (
    EventPage,
    Job,
    MetricSpec,
    Result,
    StrategyView,
    TrialDetail,
    TrialPage,
)
from services.optimizer.catalogue import METRICS
from services.optimizer.reads import Tried
from services.optimizer.search.registry import check_options
from services.optimizer.tables import ArmRow, JobRow, PointRow, StepRow
from services.optimizer.views import trial_view
from services.scorer.metrics import score_answer
from tests.optimizer.apis import Api, body, problem, serving


async def trials_text(api: Api, job_id: str) -> bytes:
    """Return the exact bytes of a job's trials."""
    return (await api.http.get(f"/jobs/{job_id}/trials?limit=1000")).content


# --- trials ---------------------------------------------------------------------------------------


async def test_two_runs_of_one_spec_have_byte_identical_trials(api: Api) -> None:
    spec: dict[str, Any] = {"strategy": "default", "budget": {"calls": 60}}
    first, second = await api.finished(**spec), await api.finished(**spec)
    other = await api.finished(**spec, seed=1)
    assert await trials_text(api, first) == await trials_text(api, second)
    assert await trials_text(api, first) != await trials_text(api, other)


async def test_trials_are_paged_in_the_order_they_were_tried(api: Api) -> None:
    job_id = await api.finished(strategy="default", budget={"calls": 60})
    path = f"/jobs/{job_id}/trials"
    whole = TrialPage.model_validate(await api.get(path))
    assert [trial.trial for trial in whole.data] == sorted(trial.trial for trial in whole.data)
    paged: list[Any] = []
    cursor: dict[str, str] = {}
    while True:
        page = TrialPage.model_validate(await api.get(path, limit=4, **cursor))
        assert len(page.data) == 4 or not page.has_more
        paged += page.data
        if page.next_cursor is None:
            break
        cursor = {"cursor": page.next_cursor}
    assert tuple(paged) == whole.data


async def test_a_trial_agrees_with_its_answers_and_with_the_job(api: Api) -> None:
    job_id = await api.finished(strategy="default", budget={"calls": 80})
    page = TrialPage.model_validate(await api.get(f"/jobs/{job_id}/trials"))
    job = Job.model_validate(await api.get(f"/jobs/{job_id}"))
    result = Result.model_validate(await api.get(f"/jobs/{job_id}/result"))
    assert len(page.data) == result.trials
    baseline = page.data[0]
    assert (baseline.source, baseline.z, baseline.n_points) == ("baseline", None, 0)
    search_calls = 0
    for trial in page.data:
        detail = TrialDetail.model_validate(await api.get(f"/jobs/{job_id}/trials/{trial.trial}"))
        scores = [example.score for example in detail.examples]
        assert len(scores) == trial.n_examples
        assert trial.score == pytest.approx(sum(scores) / len(scores))
        assert trial.interval[0] <= trial.score <= trial.interval[1]
        assert (trial.status == "completed") == (len(scores) == len(job.spec.task.validation))
        assert detail.started_at is not None
        assert detail.finished_at is not None
        assert detail.started_at <= detail.finished_at
        search_calls += detail.usage.calls
        if trial.source == "soft_prompt":
            assert trial.z is not None
            assert len(trial.z) == job.spec.generator.intrinsic_dim
            assert trial.n_points >= 1
    assert result.best is not None
    winner = next(trial for trial in page.data if trial.trial == result.best.trial)
    assert result.best.validation is not None
    assert winner.score == result.best.validation.score
    assert search_calls < job.usage.calls


def test_the_surrogate_figures_of_a_proposed_point_are_shown() -> None:
    arm = ArmRow(
        n=3, text="Rule 3.", source="soft_prompt", trial=2, trial_step=4, point=9, n_points=2
    )
    note = {"acquisition": -1.5, "mean": 0.7, "sd": 0.1}
    point = PointRow(n=9, z=[0.25, -0.5], note=note)
    shown = trial_view(Tried(arm, point), [1.0, 0.0, 1.0, 1.0], 4)
    assert (shown.acquisition, shown.gp_mean, shown.gp_sd) == (-1.5, 0.7, 0.1)
    assert (shown.z, shown.step, shown.n_points) == ((0.25, -0.5), 4, 2)
    assert (shown.score, shown.n_examples, shown.status) == (0.75, 4, "completed")
    plain = trial_view(Tried(arm, PointRow(n=9, z=[0.25, -0.5], note=None)), [1.0], 4)
    assert (plain.acquisition, plain.gp_mean, plain.gp_sd, plain.status) == (
        None,
        None,
        None,
        "partial",
    )


async def test_a_trial_that_is_not_there_is_not_found(api: Api) -> None:
    job_id = await api.finished(budget={"calls": 30, "trials": 2})
    for number in ("999", "2147483647"):
        assert problem(await api.http.get(f"/jobs/{job_id}/trials/{number}"))["status"] == 404
    for number in ("0", "-1", "99999999999", "one", "1.5"):
        document = problem(await api.http.get(f"/jobs/{job_id}/trials/{number}"))
        assert document["errors"][0]["pointer"] == "/path/trial"
    for query in ("limit=0", "limit=1001", "cursor=x", "cursor=W3RydWVd", "cursor=WzEuNV0"):
        assert problem(await api.http.get(f"/jobs/{job_id}/trials?{query}"))["status"] == 422


# --- result ---------------------------------------------------------------------------------------


async def test_a_result_is_there_when_the_job_has_ended_and_not_before(api: Api) -> None:
    job = await api.create(budget={"calls": 30, "trials": 3})
    path = f"/jobs/{job['id']}/result"
    document = problem(await api.http.get(path))
    assert (document["status"], document["code"]) == (409, "not_finished")
    await api.run(job["id"])
    result = Result.model_validate(await api.get(path))
    assert result.status == "succeeded"
    assert result.comparison is not None
    assert result.finished_at is not None
    assert (await api.http.get(path)).content == (await api.http.get(path)).content


async def test_a_job_that_failed_before_it_began_has_a_result(api: Api) -> None:
    job = await api.create()
    targets = api.scorer.targets

    async def none() -> tuple[()]:
        return ()

    api.scorer.targets = none  # type: ignore[method-assign]
    await api.run(job["id"])
    for listing in (none, targets):
        api.scorer.targets = listing  # type: ignore[method-assign]
        result = Result.model_validate(await api.get(f"/jobs/{job['id']}/result"))
        assert (result.status, result.best) == ("failed", None)
        assert result.status_reason is not None
        assert result.status_reason.code == "unknown_target"


async def test_a_damaged_journal_does_not_break_the_result(api: Api) -> None:
    job_id = await api.finished(budget={"calls": 30, "trials": 3})
    async with api.database.writes.begin() as session:
        await session.execute(update(JobRow).values(status="failed", result=None))
        await session.execute(update(StepRow).values(checksum="0" * 64))
    result = Result.model_validate(await api.get(f"/jobs/{job_id}/result"))
    assert (result.status, result.best, result.trials) == ("failed", None, 0)


# --- events ---------------------------------------------------------------------------------------


async def test_events_are_paged_by_sequence_number(api: Api) -> None:
    job_id = await api.finished(budget={"calls": 30, "trials": 3})
    path = f"/jobs/{job_id}/events"
    whole = EventPage.model_validate(await api.get(path))
    assert [event.seq for event in whole.data] == list(range(1, len(whole.data) + 1))
    assert whole.data[0].type == "queued"
    assert whole.data[-1].type == "succeeded"
    first = EventPage.model_validate(await api.get(path, limit=2))
    rest = EventPage.model_validate(await api.get(path, after=first.data[-1].seq))
    assert (first.has_more, rest.has_more) == (True, False)
    assert first.data + rest.data == whole.data
    for query in ("after=-1", "after=x", "after=99999999999", "limit=0"):
        assert problem(await api.http.get(f"{path}?{query}"))["status"] == 422


def read_stream(text: str) -> list[tuple[int, str]]:
    """Return the (id, event) pairs of a stream of server-sent events."""
    found = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "id" in fields:
            assert json.loads(fields["data"])["seq"] == int(fields["id"])
            found.append((int(fields["id"]), fields["event"]))
    return found


def test_a_stream_follows_a_job_to_its_end_and_resumes(server: str) -> None:
    with httpx.Client(base_url=server, timeout=60) as http:
        job_id = http.post("/jobs", json=body(budget={"calls": 30, "trials": 4})).json()["id"]
        streamed = http.get(f"/jobs/{job_id}/events/stream")
        assert streamed.headers["content-type"].startswith("text/event-stream")
        events = read_stream(streamed.text)
        assert events[0] == (1, "queued")
        assert events[-1][1] == "succeeded"
        assert [number for number, _ in events] == list(range(1, len(events) + 1))
        resumed = http.get(f"/jobs/{job_id}/events/stream", headers={"last-event-id": "2"})
        assert read_stream(resumed.text) == events[2:]
        after = http.get(f"/jobs/{job_id}/events/stream?after={len(events) - 1}")
        assert read_stream(after.text) == events[-1:]
        done = http.get(f"/jobs/{job_id}/events/stream?after={len(events)}")
        assert read_stream(done.text) == []


def test_a_server_stops_although_somebody_listens(sqlite_url: str) -> None:
    with serving(sqlite_url) as url, httpx.Client(base_url=url, timeout=30) as http:
        job_id = http.post("/jobs", json=body()).json()["id"]
        http.post(f"/jobs/{job_id}/pause")
        with http.stream("GET", f"/jobs/{job_id}/events/stream") as stream:
            assert next(stream.iter_lines()).startswith("id: 1")


# --- export ---------------------------------------------------------------------------------------


async def test_an_export_holds_every_evaluation_in_both_forms(api: Api) -> None:
    job_id = await api.finished(strategy="default", budget={"calls": 80})
    job = Job.model_validate(await api.get(f"/jobs/{job_id}"))
    lines = await api.http.get(f"/jobs/{job_id}/export")
    assert lines.headers["content-type"] == "application/x-ndjson"
    records = [json.loads(line) for line in lines.text.splitlines()]
    assert len(records) == job.progress.evaluations
    assert sum(record["calls"] for record in records) == job.usage.calls
    assert sum(record["usd"] for record in records) == pytest.approx(job.usage.usd)
    assert {record["split"] for record in records} == {"validation", "test"}
    page = TrialPage.model_validate(await api.get(f"/jobs/{job_id}/trials"))
    for trial in page.data:
        scores = [
            record["score"]
            for record in records
            if record["trial"] == trial.trial and record["split"] == "validation"
        ]
        assert sum(scores) / len(scores) == pytest.approx(trial.score)
    text = (await api.http.get(f"/jobs/{job_id}/export?format=csv")).text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["instruction"] for row in rows] == [record["instruction"] for record in records]
    assert [float(row["score"]) for row in rows] == [record["score"] for record in records]
    assert problem(await api.http.get(f"/jobs/{job_id}/export?format=xml"))["status"] == 422


async def test_an_export_in_chunks_repeats_and_misses_nothing(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await api.finished(budget={"calls": 30, "trials": 4})
    whole = (await api.http.get(f"/jobs/{job_id}/export")).text
    monkeypatch.setattr("services.optimizer.reads.CHUNK", 7)
    assert (await api.http.get(f"/jobs/{job_id}/export")).text == whole
    assert len(whole.splitlines()) > 21


# --- catalogue ------------------------------------------------------------------------------------


async def test_what_a_job_may_name_is_listed(api: Api) -> None:
    assert (await api.get("/targets"))["data"][0]["name"] == "world"
    assert [entry["name"] for entry in (await api.get("/generators"))["data"]] == [
        "default",
        "other",
    ]
    strategies = [
        StrategyView.model_validate(entry) for entry in (await api.get("/strategies"))["data"]
    ]
    assert {str(entry.name) for entry in strategies} >= {"default", "instructzero", "random", "ape"}
    for strategy in strategies:
        assert all(option.description for option in strategy.options), strategy.name
        defaults = {
            option.name: option.default for option in strategy.options if option.default is not None
        }
        check_options(str(strategy.name), defaults)


async def test_the_listed_metrics_are_those_that_can_be_computed(api: Api) -> None:
    names = [entry["name"] for entry in (await api.get("/metrics-catalog"))["data"]]
    assert names == [str(name) for name in METRICS]
    for name in set(names) - {"judge", "webhook"}:
        score = score_answer(MetricSpec.model_validate({"name": name}), "1", ["1"])
        assert score == 1.0, name


async def test_two_readers_and_a_runner_do_not_disturb_each_other(api: Api) -> None:
    job = await api.create(strategy="default", budget={"calls": 80})
    is_over = False

    async def read(path: str) -> None:
        while not is_over:
            response = await api.http.get(f"/jobs/{job['id']}{path}")
            assert response.status_code in {200, 409}, response.text

    async with asyncio.TaskGroup() as group:
        for path in ("", "/trials", "/events", "/result"):
            group.create_task(read(path))
        await api.run(job["id"])
        is_over = True
    assert (await api.get(f"/jobs/{job['id']}"))["status"] == "succeeded"
