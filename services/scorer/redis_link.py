"""The connection to Redis, and the one way in which it is asked: in time, or it is away."""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from instructzero.errors import RateLimiterUnavailable

ANSWER_SECONDS = 2.0
"""A Redis that takes longer is away."""


def open_redis(url: str) -> Redis:
    """Connect lazily; no call is retried behind our back, because its effect might come twice.

    The sockets have no time limit of their own: redis-py keeps it by `asyncio.wait_for`, which
    before Python 3.12 loses a cancellation that comes in the moment its work is done, and a caller
    who had gone was then waited and paid for. `answered` keeps the limit instead.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=64,
        timeout=ANSWER_SECONDS,
        socket_timeout=None,
        socket_connect_timeout=ANSWER_SECONDS,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
    )
    return Redis.from_pool(pool)


async def answered(work: Any) -> Any:
    """Return what Redis answers. Raises RateLimiterUnavailable when it does not, in time."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await work
    except (RedisError, OSError, TimeoutError) as error:
        raise RateLimiterUnavailable(
            "Redis does not answer, so no call is made until it is back"
        ) from error
