"""Who is cancelled while Redis is asked has gone: nothing goes on for him, and nothing is paid."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from instructzero.errors import RateLimiterUnavailable
from services.scorer.limiter_state import Ask, Pace
from services.scorer.redis_cache import RedisCache
from services.scorer.redis_gate import RedisGate
from services.scorer.redis_link import answered, open_redis
from tests.scorer.redis_server import RedisServer

PACE = Pace(
    request_us=0.0,
    burst_requests=1.0,
    token_us=0.0,
    burst_tokens=1.0,
    in_flight=1,
    lease_us=60e6,
)
STEPS = 40
"""More turns of the loop than one call to Redis takes."""


async def cancelled_at_every_step(work: Callable[[], Awaitable[object]]) -> list[int]:
    """Return after how many turns of the loop a cancellation of endless work was lost."""

    async def endless() -> None:
        while True:
            await work()

    lost = []
    for n_steps in range(STEPS):
        task = asyncio.create_task(endless())
        for _ in range(n_steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=2)
        if not task.done():
            lost.append(n_steps)
            while not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=0.1)
    return lost


async def test_no_cancellation_is_lost_while_a_permit_is_asked_for(
    redis_server: RedisServer,
) -> None:
    redis = open_redis(redis_server.url)
    gate = RedisGate(redis, clock=lambda: 1e15)
    assert (
        await cancelled_at_every_step(lambda: gate.acquire("s", Ask("t", "a", 1.0, 1.0), PACE))
        == []
    )
    await gate.aclose()


async def test_no_cancellation_is_lost_while_an_answer_is_looked_for(
    redis_server: RedisServer,
) -> None:
    redis = open_redis(redis_server.url)
    cache = RedisCache(redis, ttl_seconds=60)
    assert await cancelled_at_every_step(lambda: cache.get("k")) == []
    await cache.aclose()
    await redis.aclose()


async def test_a_redis_that_does_not_answer_is_away_within_seconds(own_redis: RedisServer) -> None:
    redis = open_redis(own_redis.url)
    await answered(redis.ping())
    own_redis.pause()
    try:
        async with asyncio.timeout(10):
            with pytest.raises(RateLimiterUnavailable, match="no call is made until it is back"):
                await answered(redis.ping())
    finally:
        own_redis.resume()
    assert await answered(redis.ping())
    await redis.aclose()
