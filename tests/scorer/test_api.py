from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from pydantic import SecretStr

from instructzero.errors import InvalidRequest
from services.scorer.app import create_app, create_pool
from services.scorer.settings import Settings
from services.web import check_exposure
from tests.scorer.conftest import FAST, PoolMaker, request_for, serve_scorer, until
from tests.scorer.fake_target import FakeTarget

ANYWHERE = "0.0.0.0"  # noqa: S104 - the tests see it refused


@pytest.fixture
async def http(make_pool: PoolMaker) -> AsyncIterator[httpx.AsyncClient]:
    settings = FAST.model_copy(update={"token": SecretStr("t0ken")})
    app = create_app(settings, make_pool(settings))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://scorer", headers={"authorization": "Bearer t0ken"}
    ) as client:
        yield client


async def test_scores_come_as_one_json_object_a_line(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/scores", json=request_for(3).model_dump(mode="json"))
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("application/x-ndjson")
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert {line["id"] for line in lines} == {"0", "1", "2"}
    assert {"id", "answer", "score", "usage", "cached", "error"} <= lines[0].keys()


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"target": "nowhere"}, "/target"),
        ({"examples": []}, "/examples"),
        ({"surprise": 1}, "/surprise"),
        ({"metric": {"name": "numeric"}}, "/examples/0/outputs"),
    ],
)
async def test_a_wrong_request_is_a_problem_document(
    http: httpx.AsyncClient, target: FakeTarget, change: dict[str, object], pointer: str
) -> None:
    body = {**request_for(2).model_dump(mode="json"), **change}
    response = await http.post("/v1/scores", json=body)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert pointer in [error["pointer"] for error in response.json()["errors"]]
    assert target.n_requests == 0


async def test_every_route_but_the_health_checks_wants_the_token(http: httpx.AsyncClient) -> None:
    del http.headers["authorization"]
    for method, path in (
        ("POST", "/v1/scores"),
        ("GET", "/v1/targets"),
        ("GET", "/v1/targets/fake/status"),
    ):
        response = await http.request(method, path)
        assert response.status_code == 401, path
    assert (
        await http.get("/v1/targets", headers={"authorization": "Bearer no"})
    ).status_code == 401
    for path in ("/healthz", "/readyz", "/version"):
        assert (await http.get(path)).status_code == 200
    for path in ("/docs", "/openapi.json", "/redoc"):
        assert (await http.get(path)).status_code == 404


async def test_a_reader_that_hangs_up_cancels_its_calls_and_leaves_no_error_behind(
    make_pool: PoolMaker, target: FakeTarget, caplog: pytest.LogCaptureFixture
) -> None:
    target.latency = 30
    pool = make_pool(limits={"in_flight": 2})
    async with serve_scorer(pool) as url, httpx.AsyncClient(base_url=url) as client:
        for _ in range(3):
            body = request_for(6).model_dump(mode="json")
            reading = asyncio.create_task(client.post("/v1/scores", json=body))
            n_before = target.n_requests
            await until(lambda n=n_before: target.n_requests == n + 2)
            reading.cancel()
            await asyncio.wait({reading})
        target.latency = 0
        async with asyncio.timeout(5):
            response = await client.post("/v1/scores", json=request_for(6).model_dump(mode="json"))
        lines = [json.loads(line) for line in response.text.splitlines()]
        # on a busy machine the request is told as well what it waits for
        assert sorted(line["id"] for line in lines if "condition" not in line) == list("012345")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_targets_show_limits_and_prices_but_no_address(http: httpx.AsyncClient) -> None:
    (view,) = (await http.get("/v1/targets")).json()
    assert view["name"] == "fake"
    assert view["price"] == {"input_per_million": 1.0, "output_per_million": 2.0}
    assert "base_url" not in view
    assert (await http.get("/v1/targets/fake/status")).json()["is_up"] is True


async def test_more_examples_than_the_process_takes_are_refused(make_pool: PoolMaker) -> None:
    settings = FAST.model_copy(update={"max_waiting": 2})
    app = create_app(settings, make_pool(settings))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://scorer"
    ) as client:
        response = await client.post("/v1/scores", json=request_for(3).model_dump(mode="json"))
    assert response.status_code == 429
    assert response.headers["retry-after"] == "5"


@pytest.mark.parametrize(
    ("host", "token", "is_refused"),
    [
        ("127.0.0.1", None, False),
        ("::1", None, False),
        ("localhost", None, False),
        (ANYWHERE, None, True),
        (ANYWHERE, "", True),
        ("scorer.internal", None, True),
        (ANYWHERE, "t0ken", False),
    ],
)
def test_listening_beyond_this_machine_needs_a_token(
    host: str, token: str | None, is_refused: bool
) -> None:
    secret = None if token is None else SecretStr(token)
    for service in ("scorer", "generator"):
        if not is_refused:
            check_exposure(service, host, secret)
            continue
        needed = f"IZ_{service.upper()}_TOKEN.*IZ_OPTIMIZER_{service.upper()}_TOKEN"
        with pytest.raises(InvalidRequest, match=needed):
            check_exposure(service, host, secret)


def test_a_scorer_without_a_targets_file_says_how_to_give_one() -> None:
    with pytest.raises(InvalidRequest, match="--targets"):
        create_pool(Settings())
