"""`POST /v1/scores` as a server calls it: slow readers, readers that go, ends, and bugs."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import REGISTRY

from instructzero.contracts import ScoreExample, ScoreRequest
from services import web
from services.scorer import stream
from services.scorer.app import create_app
from services.scorer.cache import CachedAnswer, MemoryCache
from services.scorer.lines import ScoreStream
from tests.scorer.conftest import FAST, PoolMaker, request_for, serve_scorer, until
from tests.scorer.fake_target import FakeTarget

WAITING_LONG = {"requests_per_minute": 1, "burst": 1, "in_flight": 4}
Message = MutableMapping[str, Any]


class Caller:
    """The server's side of one request; `pace` holds back what the caller has not read yet."""

    def __init__(self, app: FastAPI, request: ScoreRequest) -> None:
        self.sent: list[Message] = []
        self.n_sending = 0
        self.most_sending = 0
        self.pace = asyncio.Semaphore(0)
        self.is_gone = asyncio.Event()
        self._body = request.model_dump_json().encode()
        self._is_read = False
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/scores",
            "headers": [(b"content-type", b"application/json")],
        }
        self.serving = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> Message:
        if not self._is_read:
            self._is_read = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self.is_gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.n_sending += 1
        self.most_sending = max(self.most_sending, self.n_sending)
        try:
            await self.pace.acquire()
        finally:
            self.n_sending -= 1
        self.sent.append(message)
        if self.n_ends:
            # after its answer a request is at its end; not every server says so at once
            asyncio.get_running_loop().call_later(0.05, self.is_gone.set)

    def read(self, n: int) -> None:
        """Read so many messages more."""
        for _ in range(n):
            self.pace.release()

    @property
    def n_ends(self) -> int:
        bodies = [each for each in self.sent if each["type"] == "http.response.body"]
        return sum(not each.get("more_body", False) for each in bodies)

    @property
    def lines(self) -> list[dict[str, Any]]:
        text = b"".join(message.get("body", b"") for message in self.sent)
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quiet stream repeats its condition almost at once."""
    monkeypatch.setattr(stream, "QUIET_SECONDS", (0.01, 0.02))


@pytest.mark.parametrize("n_read_at_once", [1, 3, 100])
async def test_a_slow_reader_gets_every_line_and_one_end_and_nothing_after_it(
    make_pool: PoolMaker, target: FakeTarget, hasty: None, n_read_at_once: int
) -> None:
    caller = Caller(create_app(FAST, make_pool()), request_for(6))
    await until(lambda: target.n_requests == 6)
    await until(lambda: examples_in_hand() == 0)  # the end has come while nothing was read
    assert not caller.sent
    while not caller.serving.done():
        caller.read(n_read_at_once)
        await asyncio.sleep(0.001)
    await caller.serving
    await asyncio.sleep(0.1)  # longer than a quiet stream keeps quiet
    assert {line["id"] for line in caller.lines if "id" in line} == {str(i) for i in range(6)}
    assert caller.n_ends == 1
    assert not caller.sent[-1].get("more_body", False)
    assert caller.most_sending == 1, "no line is sent while the one before is not read"


async def test_a_quiet_stream_repeats_its_condition_and_never_before_it_is_read(
    make_pool: PoolMaker, hasty: None
) -> None:
    caller = Caller(create_app(FAST, make_pool(limits=WAITING_LONG)), request_for(2))
    caller.read(6)
    await until(lambda: len(caller.sent) == 6)
    await asyncio.sleep(0.3)
    assert len(caller.sent) == 6
    caller.read(3)
    await until(lambda: len(caller.sent) == 9)
    conditions = [line["condition"] for line in caller.lines if "condition" in line]
    assert conditions[-1] == "rate_limited"
    await asyncio.sleep(0.3)
    assert caller.most_sending == 1
    caller.is_gone.set()
    await caller.serving


async def test_for_a_caller_who_hangs_up_while_it_waits_nothing_is_bought(
    make_pool: PoolMaker, target: FakeTarget
) -> None:
    limits = {"requests_per_minute": 120, "burst": 1, "in_flight": 4}
    app = create_app(FAST, make_pool(limits=limits))
    callers = [Caller(app, request_for(1, job_id=f"job-{n}", cache=False)) for n in range(10)]
    for caller in callers:
        caller.read(100)
    await until(lambda: sum("condition" in str(caller.lines) for caller in callers) >= 3)
    for caller in callers:
        caller.is_gone.set()
    async with asyncio.timeout(5):
        for caller in callers:
            await caller.serving
    await asyncio.sleep(0.2)  # what was on the wire already has come
    n_bought, n_sent = target.n_requests, [len(caller.sent) for caller in callers]
    assert n_bought < len(callers)
    await asyncio.sleep(1.2)  # two more calls would have been allowed
    assert target.n_requests == n_bought
    assert [len(caller.sent) for caller in callers] == n_sent
    assert examples_in_hand() == 0


async def test_a_caller_who_neither_reads_nor_stays_leaves_nothing_behind(
    make_pool: PoolMaker, target: FakeTarget
) -> None:
    caller = Caller(create_app(FAST, make_pool()), request_for(6))
    caller.read(2)
    await until(lambda: len(caller.sent) == 2)
    await until(lambda: caller.n_sending == 1)
    caller.is_gone.set()
    async with asyncio.timeout(5):
        await caller.serving
    await until(lambda: caller.n_sending == 0 and examples_in_hand() == 0)


async def test_a_server_that_gives_a_request_up_ends_its_work(
    make_pool: PoolMaker, target: FakeTarget
) -> None:
    target.latency = 30
    caller = Caller(create_app(FAST, make_pool()), request_for(2))
    await until(lambda: target.n_requests == 2)
    caller.serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller.serving
    await until(lambda: examples_in_hand() == 0)


async def test_a_reader_slower_than_the_answers_gets_them_all_over_a_socket(
    make_pool: PoolMaker, target: FakeTarget
) -> None:
    long, n_examples = "word " * 3_900, 200
    examples = tuple(
        ScoreExample(id=str(i), input=f"{i} {long}", outputs=("word",)) for i in range(n_examples)
    )
    body = request_for(examples=examples).model_dump_json().encode()
    async with serve_scorer(make_pool()) as url:
        port = int(url.rpartition(":")[2])
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=connection, limit=1_000)
        writer.write(
            b"POST /v1/scores HTTP/1.1\r\nhost: scorer\r\nconnection: close\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        )
        await until(lambda: target.n_requests == n_examples and examples_in_hand() == 0)
        async with asyncio.timeout(20):
            said = await reader.read(-1)
        writer.close()
    assert said.count(b"\r\n0\r\n\r\n") == 1
    assert said.endswith(b"\r\n0\r\n\r\n")
    assert said.count(b'{"id":') == n_examples


class BrokenCache(MemoryCache):
    """A cache with a bug."""

    async def get(self, key: str) -> CachedAnswer | None:
        raise RuntimeError("a bug")


async def test_a_bug_breaks_the_stream_off_so_that_nobody_takes_it_for_whole(
    make_pool: PoolMaker, caplog: pytest.LogCaptureFixture
) -> None:
    cache = BrokenCache(ttl_seconds=60, max_entries=10)
    async with (
        serve_scorer(make_pool(cache=cache)) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post("/v1/scores", json=request_for(1).model_dump(mode="json"))
        assert (await client.get("/healthz")).status_code == 200
    assert "a bug" in caplog.text


class BrokenPool:
    """A pool with a bug."""

    def begin(self, request: ScoreRequest) -> ScoreStream:
        raise RuntimeError("a bug")


async def test_a_bug_before_the_first_line_is_a_problem_document(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool: Any = BrokenPool()
    async with client_of(create_app(FAST, pool)) as client:
        response = await client.post("/v1/scores", json=request_for(1).model_dump(mode="json"))
    assert response.status_code == 500
    problem = response.json()
    assert problem["code"] == "internal_error"
    assert "a bug" not in response.text
    assert problem["request_id"] == response.headers["x-request-id"]
    assert "a bug" in caplog.text


async def test_scores_have_a_request_id_safe_headers_and_figures_as_every_route_has(
    make_pool: PoolMaker,
) -> None:
    async with client_of(create_app(FAST, make_pool())) as client:
        n_before = answered("200"), answered("422"), answered("415")
        good = await client.post("/v1/scores", json=request_for(1).model_dump(mode="json"))
        bad = await client.post("/v1/scores", json={})
        form = await client.post("/v1/scores", data={"a": "b"})
        assert (await client.get("/v1/scores")).status_code in {404, 405}
    assert [good.status_code, bad.status_code, form.status_code] == [200, 422, 415]
    assert (answered("200"), answered("422"), answered("415")) == tuple(n + 1 for n in n_before)
    for response in (good, bad, form):
        assert len(response.headers["x-request-id"]) == 32
        for name, value in web.SECURITY_HEADERS:
            assert response.headers[name.decode()] == value.decode()


async def test_a_body_larger_than_the_bound_is_refused_declared_or_not(
    make_pool: PoolMaker,
) -> None:
    async def pieces() -> Any:
        for _ in range(3):
            yield b" " * (web.MAX_BODY_BYTES // 2)

    headers = {"content-type": "application/json"}
    async with client_of(create_app(FAST, make_pool())) as client:
        declared = await client.post(
            "/v1/scores",
            content=b"{}",
            headers={**headers, "content-length": str(web.MAX_BODY_BYTES + 1)},
        )
        streamed = await client.post("/v1/scores", content=pieces(), headers=headers)
    assert [declared.status_code, streamed.status_code] == [413, 413]
    assert declared.json()["code"] == streamed.json()["code"] == "payload_too_large"


@asynccontextmanager
async def client_of(app: FastAPI) -> Any:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://scorer") as client:
        yield client


def answered(status: str) -> float:
    labels = {"method": "POST", "route": "/v1/scores", "status": status}
    return REGISTRY.get_sample_value("instructzero_http_requests_total", labels) or 0.0


def examples_in_hand() -> float:
    return REGISTRY.get_sample_value("instructzero_examples_in_hand") or 0.0
