from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from instructzero.contracts import ScoreCondition, ScoreExample, ScoreLine, ScoreRequest
from services.scorer.scoring import ScorerPool
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


@pytest.fixture
async def make_pool(target: FakeTarget) -> AsyncIterator[PoolMaker]:
    """Make pools on the fake target; keyword arguments change the target's configuration."""
    made: list[ScorerPool] = []

    def make(
        settings: Settings = FAST, cache: Any = None, limiter: Any = None, **config: Any
    ) -> ScorerPool:
        content = {"targets": {"fake": target_config(**{"base_url": target.base_url, **config})}}
        pool = ScorerPool(Targets.of(content), settings=settings, cache=cache, limiter=limiter)
        made.append(pool)
        return pool

    yield make
    for pool in made:
        await pool.aclose()


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
