from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from instructzero.contracts import ScoreCondition, ScoreExample, ScoreLine, ScoreRequest
from services.optimizer.clients import HttpScorer
from services.scorer.app import create_app
from services.scorer.scoring import Line, ScorerPool
from services.scorer.settings import Settings
from services.scorer.targets import Targets
from tests.scorer.fake_target import FakeTarget, serve_fake
from tests.scorer.redis_server import RedisServer

FAST = Settings(
    backoff_base_seconds=0.005,
    backoff_cap_seconds=0.05,
    breaker_open_seconds=0.05,
    patience_seconds=2.0,
    condition_after_seconds=0.1,
)
PoolMaker = Callable[..., ScorerPool]


@pytest.fixture
async def target() -> AsyncIterator[FakeTarget]:
    async with serve_fake(FakeTarget()) as fake:
        yield fake


@pytest.fixture(params=["embedded"])
async def make_pool(target: FakeTarget, request: pytest.FixtureRequest) -> AsyncIterator[PoolMaker]:
    """Make pools on the fake target; keyword arguments change the target's configuration.

    A module that asks for `over_http` too runs its tests on the service as the runner sees it.
    """
    made: list[ScorerPool] = []

    def make(
        settings: Settings = FAST,
        cache: Any = None,
        limiter: Any = None,
        more: dict[str, dict[str, Any]] | None = None,
        webhooks: dict[str, Any] | None = None,
        **config: Any,
    ) -> ScorerPool:
        targets = {
            name: target_config(**{"base_url": target.base_url, **changes})
            for name, changes in {"fake": config, **(more or {})}.items()
        }
        content = {"targets": targets, "webhooks": webhooks or {}}
        pool: Any = ScorerPool(Targets.of(content), settings=settings, cache=cache, limiter=limiter)
        if request.param == "over_http":
            pool = RemotePool(pool)
        made.append(pool)
        return pool

    yield make
    for pool in made:
        await pool.aclose()


class RemotePool:
    """A pool whose scores come over HTTP, from the service and through the runner's adapter."""

    def __init__(self, pool: ScorerPool) -> None:
        self._pool = pool
        self._stack = AsyncExitStack()
        self._lock = asyncio.Lock()
        self._remote: HttpScorer | None = None

    async def score(self, request: ScoreRequest) -> AsyncGenerator[Line, None]:
        self._pool.check(request)
        async with self._lock:
            if self._remote is None:
                url = await self._stack.enter_async_context(serve_scorer(self._pool))
                self._remote = HttpScorer(url)
                self._stack.push_async_callback(self._remote.aclose)
        async with aclosing(self._remote.score(request)) as lines:
            async for line in lines:
                yield line

    async def aclose(self) -> None:
        await self._stack.aclose()
        await self._pool.aclose()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)


@asynccontextmanager
async def serve_scorer(pool: ScorerPool, settings: Settings = FAST) -> AsyncIterator[str]:
    """Serve a pool on loopback; yields the address."""
    async with serve(create_app(settings, pool)) as url:
        yield url


@asynccontextmanager
async def serve(app: FastAPI) -> AsyncIterator[str]:
    """Serve an application on loopback; yields the address."""
    config = uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await serving


def target_config(base_url: str, **config: Any) -> dict[str, Any]:
    return {
        "base_url": base_url,
        "model": "fake",
        "price": {"input_per_million": 1.0, "output_per_million": 2.0},
        "timeout_seconds": 5,
        **config,
    }


def request_for(n_examples: int = 1, **fields: Any) -> ScoreRequest:
    """A request whose examples the fake target answers right: it repeats the input."""
    examples = fields.pop(
        "examples",
        tuple(
            ScoreExample(id=str(i), input=f"word {i}", outputs=(f"word {i}",))
            for i in range(n_examples)
        ),
    )
    values = {"job_id": "job", "target": "fake", "instruction": "Repeat.", "examples": examples}
    return ScoreRequest(**{**values, **fields})


async def collect(
    pool: ScorerPool, request: ScoreRequest
) -> tuple[dict[str, ScoreLine], list[str | None]]:
    """Run a request to its end: lines by example, and the conditions in order."""
    lines: dict[str, ScoreLine] = {}
    conditions: list[str | None] = []
    async for line in pool.score(request):
        if isinstance(line, ScoreCondition):
            conditions.append(line.condition)
        else:
            assert line.id not in lines
            lines[line.id] = line
    return lines, conditions


async def until(is_so: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for something that another task or process will bring about."""
    async with asyncio.timeout(seconds):
        while not is_so():  # noqa: ASYNC110 - nothing tells us
            await asyncio.sleep(0.01)


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """An empty Redis; a test that stops or pauses it starts its own."""
    shared_redis.flush()
    return shared_redis


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()
