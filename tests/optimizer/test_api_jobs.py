"""Jobs over REST: created once, polled cheaply, listed, steered, deleted."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update

from instructzero.contracts import DryRun, Job, JobPage, Result
from services.optimizer.database import open_database
from services.optimizer.tables import Base, EventRow, JobRow
from tests.optimizer.apis import Api, body, problem

KEY = {"idempotency-key": "order-17"}


async def post(api: Api, headers: dict[str, str] | None = None, **changes: Any) -> httpx.Response:
    """Send a job."""
    return await api.http.post("/jobs", json=body(**changes), headers=headers)


async def events_of(api: Api, job_id: str) -> list[str]:
    """Return the types of a job's events."""
    return [event["type"] for event in (await api.get(f"/jobs/{job_id}/events"))["data"]]


async def set_columns(api: Api, job_id: str, **values: Any) -> None:
    """Change a job's row as a runner would."""
    async with api.database.writes.begin() as session:
        changed = values | {"version": JobRow.version + 1}
        await session.execute(update(JobRow).where(JobRow.id == job_id).values(changed))


# --- create ---------------------------------------------------------------------------------------


async def test_a_job_is_accepted_with_its_address_and_version(api: Api) -> None:
    response = await post(api, labels={"team": "search"}, seed=7)
    job = Job.model_validate_json(response.content)
    assert response.status_code == 202
    assert response.headers["location"] == f"/jobs/{job.id}"
    assert response.headers["etag"] == 'W/"1"'
    assert response.headers["retry-after"] == "2"
    assert (job.status, job.seed, job.labels, job.version) == ("queued", 7, {"team": "search"}, 1)
    shown = await api.http.get(response.headers["location"])
    assert shown.json() == response.json()
    assert await events_of(api, job.id) == ["queued"]


async def test_the_same_key_and_body_is_the_same_job(api: Api) -> None:
    first = await post(api, KEY)
    spaced = await api.http.post("/jobs", json=dict(reversed(body().items())), headers=KEY)
    assert spaced.status_code == 202
    assert spaced.json()["id"] == first.json()["id"]
    assert await api.count() == 1
    assert (await post(api, {"idempotency-key": "order-18"})).json()["id"] != first.json()["id"]


async def test_the_same_key_with_another_body_is_refused(api: Api) -> None:
    await post(api, KEY)
    document = problem(await post(api, KEY, seed=1))
    assert (document["status"], document["code"]) == (422, "idempotency_key_reused")
    assert await api.count() == 1


async def test_a_key_still_finds_its_job_when_the_target_is_gone(api: Api) -> None:
    first = await post(api, KEY)

    async def none() -> tuple[()]:
        return ()

    api.scorer.targets = none  # type: ignore[method-assign]
    assert (await post(api, KEY)).json()["id"] == first.json()["id"]
    assert problem(await post(api))["code"] == "unknown_target"


async def test_concurrent_requests_with_one_key_make_one_job(api: Api) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(post(api, KEY)) for _ in range(12)]
    assert {task.result().status_code for task in tasks} == {202}
    assert len({task.result().json()["id"] for task in tasks}) == 1
    assert await api.count() == 1


async def test_concurrent_requests_with_one_key_and_two_bodies_make_one_job(api: Api) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(post(api, KEY, seed=number % 2)) for number in range(10)]
    statuses = [task.result().status_code for task in tasks]
    assert sorted(statuses) == [202] * 5 + [422] * 5
    assert await api.count() == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "two words", "tab\tbed"])
async def test_a_key_that_is_none_is_refused(api: Api, key: str) -> None:
    document = problem(await post(api, {"idempotency-key": key}))
    assert document["errors"][0]["pointer"] == "/header/idempotency-key"
    assert await api.count() == 0


async def test_a_dry_run_estimates_and_stores_nothing(api: Api) -> None:
    api.scorer.price = {"input_per_million": 1.0, "output_per_million": 2.0}
    response = await api.http.post("/jobs?dry_run=true", json=body(), headers=KEY)
    assert response.status_code == 200
    answer = DryRun.model_validate_json(response.content)
    assert answer.estimate.calls == 200
    assert answer.estimate.final_check_calls == 40
    assert 0 < (answer.estimate.usd or 0) < (answer.estimate.usd_at_most or 0)
    async with api.database.reads() as session:
        for table in Base.metadata.sorted_tables:
            assert await session.scalar(select(func.count()).select_from(table)) == 0


async def test_an_absent_scorer_is_unavailable_and_nothing_is_stored(api: Api) -> None:
    from instructzero.errors import ScorerUnavailable

    async def fail() -> Any:
        raise ScorerUnavailable("the scorer does not answer (ConnectError)")

    api.scorer.targets = fail  # type: ignore[method-assign]
    response = await post(api)
    assert (response.status_code, response.json()["code"]) == (503, "scorer_unavailable")
    assert await api.count() == 0


async def test_the_smallest_budget_is_legal_and_ends_with_a_result(api: Api) -> None:
    job_id = await api.finished(budget={"calls": 1})
    result = Result.model_validate(await api.get(f"/jobs/{job_id}/result"))
    assert result.status == "succeeded"
    assert api.scorer.requests <= 1


# --- read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "job_id", ["job_none", "..", "a b", "x" * 200, "%00", "%FF", "job_1'--", "%F0%9F%92%A9"]
)
async def test_a_job_that_is_not_there_is_not_found(api: Api, job_id: str) -> None:
    for path in ("", "/trials", "/trials/1", "/result", "/events", "/events/stream", "/export"):
        response = await api.http.get(f"/jobs/{job_id}{path}")
        assert problem(response)["status"] == 404
    for action in ("cancel", "pause", "resume"):
        assert problem(await api.http.post(f"/jobs/{job_id}/{action}"))["status"] == 404
    assert problem(await api.http.delete(f"/jobs/{job_id}"))["status"] in {404, 405}


async def test_an_unchanged_job_is_not_sent_again(api: Api) -> None:
    job = await api.create()
    path = f"/jobs/{job['id']}"
    for tag in ('W/"1"', '"1"', '"0", W/"1"', "*"):
        response = await api.http.get(path, headers={"if-none-match": tag})
        assert response.status_code == 304
        assert response.content == b""
        assert response.headers["etag"] == 'W/"1"'
    assert (await api.http.get(path, headers={"if-none-match": '"0"'})).status_code == 200
    assert (await api.http.get(path, headers={"if-none-match": "nonsense"})).status_code == 200


async def test_every_visible_change_changes_the_tag(api: Api) -> None:
    job = await api.create()
    path, tags = f"/jobs/{job['id']}", [(await api.http.get(f"/jobs/{job['id']}")).headers["etag"]]
    for action in ("pause", "resume", "cancel"):
        await api.http.post(f"{path}/{action}")
        tags.append((await api.http.get(path)).headers["etag"])
    assert len(set(tags)) == 4


async def test_a_long_poll_returns_when_the_job_changes(api: Api) -> None:
    job = await api.create()
    path = f"/jobs/{job['id']}"
    begun = time.monotonic()
    async with asyncio.TaskGroup() as group:
        plain = group.create_task(api.http.get(f"{path}?wait=30"))
        tagged = group.create_task(
            api.http.get(f"{path}?wait=30", headers={"if-none-match": 'W/"1"'})
        )
        await asyncio.sleep(0.3)
        assert not plain.done()
        await api.http.post(f"{path}/pause")
    assert time.monotonic() - begun < 10
    assert plain.result().json()["status"] == tagged.result().json()["status"] == "paused"


async def test_a_long_poll_ends_when_its_time_is_over(api: Api) -> None:
    job = await api.create()
    path = f"/jobs/{job['id']}?wait=0.4"
    begun = time.monotonic()
    unchanged = await api.http.get(path, headers={"if-none-match": 'W/"1"'})
    assert unchanged.status_code == 304
    assert (await api.http.get(path)).status_code == 200
    assert time.monotonic() - begun > 0.7


async def test_a_long_poll_for_an_old_version_or_an_ended_job_answers_at_once(api: Api) -> None:
    job = await api.create()
    path = f"/jobs/{job['id']}"
    begun = time.monotonic()
    await api.http.get(f"{path}?wait=60", headers={"if-none-match": 'W/"0"'})
    ended = await api.http.post(f"{path}/cancel")
    shown = await api.http.get(f"{path}?wait=60", headers={"if-none-match": ended.headers["etag"]})
    assert shown.status_code == 304
    assert "retry-after" not in shown.headers
    assert time.monotonic() - begun < 20


async def test_waiting_requests_hold_no_connection(api: Api) -> None:
    job = await api.create()
    path = f"/jobs/{job['id']}"
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(api.http.get(f"{path}?wait=30")) for _ in range(60)]
        await asyncio.sleep(0.5)
        await api.http.post(f"{path}/cancel")
    assert {task.result().json()["status"] for task in waiting} == {"cancelled"}


async def test_a_server_that_stops_lets_everybody_go(api: Api) -> None:
    path = f"/jobs/{(await api.create())['id']}"
    begun = time.monotonic()
    async with asyncio.TaskGroup() as group:
        polled = group.create_task(api.http.get(f"{path}?wait=60"))
        streamed = group.create_task(api.http.get(f"{path}/events/stream"))
        await asyncio.sleep(0.3)
        assert not polled.done()
        assert not streamed.done()
        api.app.state.end_waits()
    assert time.monotonic() - begun < 20
    assert polled.result().json()["status"] == "queued"
    assert "event: queued" in streamed.result().text


@pytest.mark.parametrize("wait", ["-1", "61", "nan", "soon"])
async def test_a_wait_out_of_range_is_refused(api: Api, wait: str) -> None:
    job = await api.create()
    document = problem(await api.http.get(f"/jobs/{job['id']}?wait={wait}"))
    assert document["errors"][0]["pointer"] == "/query/wait"


# --- list -----------------------------------------------------------------------------------------


async def test_pages_hold_every_job_once_newest_first(api: Api) -> None:
    made = [(await api.create())["id"] for _ in range(7)]
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = JobPage.model_validate(await api.get("/jobs", limit=3, **cursor))
        seen += [job.id for job in page.data]
        assert page.has_more == (page.next_cursor is not None)
        if page.next_cursor is None:
            break
        cursor = {"cursor": page.next_cursor}
        await api.create()  # a newer job does not shift later pages
    assert seen == made[::-1]


async def test_lists_filter_by_status_and_labels(api: Api) -> None:
    search = (await api.create(labels={"team": "search", "tier.x": "a"}))["id"]
    ads = (await api.create(labels={"team": "ads"}))["id"]
    await api.http.post(f"/jobs/{ads}/pause")

    async def listed(query: str) -> list[str]:
        response = await api.http.get(f"/jobs?{query}")
        return [job["id"] for job in response.json()["data"]]

    assert await listed("label.team=search") == [search]
    assert await listed("label.tier.x=a&label.team=search") == [search]
    assert await listed("label.team=search&label.tier.x=b") == []
    assert await listed("label.none=x") == []
    assert await listed("status=paused") == [ads]
    assert await listed("status=queued&label.team=ads") == []


@pytest.mark.parametrize(
    "query",
    [
        "cursor=abc",
        "cursor=W10",
        "cursor=WzEsMl0",
        "cursor=WyJhIiwiYiJd",
        "cursor=WzFlMzAwLCJhIl0",
        "cursor=WzEsIlx1MDAwMCJd",
        "cursor=%00",
        "cursor=%F0%9F%92%A9",
        "cursor=" + "A" * 300,
        "limit=0",
        "limit=201",
        "limit=ten",
        "status=done",
        "label.Team=x",
        "label.team=%00",
        "label.=x",
    ],
)
async def test_a_bad_query_is_refused_by_name(api: Api, query: str) -> None:
    await api.create()
    document = problem(await api.http.get(f"/jobs?{query}"))
    assert document["status"] == 422
    name = query.partition("=")[0].partition(".")[0]
    assert document["errors"][0]["pointer"] == f"/query/{name}"


# --- steer ----------------------------------------------------------------------------------------


async def test_a_queued_job_is_cancelled_with_a_result(api: Api) -> None:
    job = await api.create()
    path = f"/jobs/{job['id']}"
    for _ in range(2):
        response = await api.http.post(f"{path}/cancel")
        assert response.status_code == 200
        assert response.json()["status"] == "cancelled"
        assert response.json()["finished_at"] is not None
    result = Result.model_validate(await api.get(f"{path}/result"))
    assert (result.status, result.best, result.usage.calls) == ("cancelled", None, 0)
    assert result.finished_at is not None
    assert await events_of(api, job["id"]) == ["queued", "cancelled"]
    assert problem(await api.http.post(f"{path}/pause"))["status"] == 409
    assert problem(await api.http.post(f"{path}/resume"))["status"] == 409


async def test_a_paused_job_is_cancelled_with_what_it_knew(api: Api) -> None:
    job_id = await api.finished(budget={"calls": 30, "trials": 6})
    undisturbed = await api.get(f"/jobs/{job_id}/result")
    await set_columns(api, job_id, status="paused", result=None, finished_at=None)
    response = await api.http.post(f"/jobs/{job_id}/cancel")
    assert response.json()["status"] == "cancelled"
    result = await api.get(f"/jobs/{job_id}/result")
    assert result["best"] == undisturbed["best"]
    assert result["trials"] == undisturbed["trials"]


async def test_a_running_job_is_asked_and_its_runner_obeys(api: Api) -> None:
    api.scorer.latency_seconds = 0.01
    job = await api.create(budget={"calls": 5000})
    path = f"/jobs/{job['id']}"
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(api.run(job["id"]))
        while (await api.get(path))["progress"]["calls"] < 20:  # noqa: ASYNC110 - has no event
            await asyncio.sleep(0.01)
        asked = await api.http.post(f"{path}/cancel")
        assert asked.json()["status"] == "cancelled" or asked.json()["cancel_requested"]
        assert (await api.http.post(f"{path}/cancel")).status_code == 200
    assert (await api.get(path))["status"] == "cancelled"
    assert (await api.get(f"{path}/result"))["usage"]["calls"] == api.scorer.requests
    assert (await events_of(api, job["id"]))[-1] == "cancelled"


async def test_pause_and_resume_are_idempotent(api: Api) -> None:
    job = await api.create()
    path = f"/jobs/{job['id']}"
    for action, status in (("pause", "paused"), ("resume", "queued")):
        first = await api.http.post(f"{path}/{action}")
        again = await api.http.post(f"{path}/{action}")
        assert first.json()["status"] == again.json()["status"] == status
        assert first.headers["etag"] == again.headers["etag"]
    assert await events_of(api, job["id"]) == ["queued", "paused", "queued"]


async def test_a_pause_that_no_runner_has_seen_is_taken_back(api: Api) -> None:
    job = await api.create()
    await set_columns(api, job["id"], status="running")
    path = f"/jobs/{job['id']}"
    assert (await api.http.post(f"{path}/pause")).json()["pause_requested"] is True
    shown = (await api.http.post(f"{path}/resume")).json()
    assert (shown["pause_requested"], shown["status"]) == (False, "running")
    assert await events_of(api, job["id"]) == ["queued", "pause_requested", "pause_withdrawn"]


async def test_a_resumed_job_goes_on_and_ends(api: Api) -> None:
    job = await api.create(budget={"calls": 30, "trials": 4})
    path = f"/jobs/{job['id']}"
    await api.http.post(f"{path}/pause")
    await set_columns(
        api, job["id"], status_reason={"code": "generator_unavailable", "message": "x"}
    )
    resumed = (await api.http.post(f"{path}/resume")).json()
    assert resumed["status_reason"] is None
    await api.run(job["id"])
    assert (await api.get(path))["status"] == "succeeded"


async def test_only_ended_jobs_are_deleted_and_wholly(api: Api) -> None:
    job_id = (await post(api, KEY, budget={"calls": 30, "trials": 3})).json()["id"]
    document = problem(await api.http.delete(f"/jobs/{job_id}"))
    assert (document["status"], document["code"]) == (409, "not_finished")
    await api.run(job_id)
    response = await api.http.delete(f"/jobs/{job_id}")
    assert (response.status_code, response.content) == (204, b"")
    assert problem(await api.http.delete(f"/jobs/{job_id}"))["status"] == 404
    async with api.database.reads() as session:
        for table in Base.metadata.sorted_tables:
            left = await session.scalar(select(func.count()).select_from(table))
            assert left == 0, table.name
    assert (await post(api, KEY, budget={"calls": 30, "trials": 3})).json()["id"] != job_id


async def test_two_cancels_at_once_end_the_job_once(api: Api) -> None:
    job = await api.create()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(api.http.post(f"/jobs/{job['id']}/cancel")) for _ in range(8)]
    assert {task.result().status_code for task in tasks} == {200}
    async with api.database.reads() as session:
        ended = await session.scalar(
            select(func.count()).select_from(EventRow).where(EventRow.type == "cancelled")
        )
    assert ended == 1


# --- outages --------------------------------------------------------------------------------------


async def test_an_absent_database_is_unavailable_and_no_fault() -> None:
    url = "postgresql://nobody@127.0.0.1:9/none"
    database = open_database(url)
    api = Api(database, url)
    for method, path in (
        ("POST", "/jobs"),
        ("GET", "/jobs"),
        ("GET", "/usage"),
        ("GET", "/jobs/job_1?wait=1"),
        ("POST", "/jobs/job_1/cancel"),
        ("POST", "/jobs/job_1/pause"),
        ("DELETE", "/jobs/job_1"),
        ("GET", "/jobs/job_1/trials"),
        ("GET", "/jobs/job_1/result"),
        ("GET", "/jobs/job_1/events/stream"),
        ("GET", "/jobs/job_1/export"),
    ):
        response = await api.http.request(method, path, json=body())
        assert response.status_code == 503, (method, path, response.text)
        assert response.json()["code"] == "store_unavailable"
        assert response.headers["retry-after"] == "2"
        assert "nobody" not in response.text
    assert (await api.http.get("/strategies")).status_code == 200
    await api.http.aclose()
    await database.close()
