"""The limiter shared by all scorers: two Lua scripts on Redis, and wake-up calls over pub/sub.

When Redis does not answer, nothing is granted: a limit that each process kept for itself would be
exceeded as many times as there are processes.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from contextlib import suppress
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from instructzero.errors import RateLimiterUnavailable
from services.scorer.limiter_state import Ask, Decision, Feedback, Pace
from services.scorer.rate_limit import Permit
from services.scorer.redis_link import ANSWER_SECONDS, answered

log = logging.getLogger(__name__)
PARTS = ("requests", "tokens", "slots", "cooldown", "virtual", "waiting", "pace")


class RedisGate:
    """Decides by the scripts in Redis, on Redis's clock."""

    def __init__(self, redis: Redis, *, clock: Callable[[], float] | None = None) -> None:
        """Take a connection; a clock (microseconds) replaces the server's, for tests."""
        self._redis = redis
        self._clock = clock
        source = files("services.scorer")
        self._acquire = redis.register_script((source / "limiter_acquire.lua").read_text())
        self._settle = redis.register_script((source / "limiter_settle.lua").read_text())
        self._me = uuid.uuid4().hex[:12]
        self._wake: Callable[[str, str | None], None] = lambda _scope, _job: None
        self._listener: asyncio.Task[None] | None = None

    async def acquire(self, scope: str, ask: Ask, pace: Pace) -> Decision:
        """Decide now. Raises RateLimiterUnavailable when Redis does not answer."""
        if self._listener is None and self._clock is None:
            self._listener = asyncio.create_task(self._listen())
        granted, wait, why = await self._run(
            self._acquire,
            scope,
            [
                ask.ticket,
                ask.job,
                repr(ask.weight),
                repr(ask.tokens),
                int(ask.is_followed),
                repr(pace.request_us),
                repr(pace.burst_requests),
                repr(pace.token_us),
                repr(pace.burst_tokens),
                pace.in_flight,
                repr(pace.lease_us),
                self._now(),
            ],
        )
        return Decision(int(granted) == 1, float(wait), str(why))

    async def settle(self, permit: Permit, feedback: Feedback) -> None:
        """Take a permit back. Raises RateLimiterUnavailable when Redis does not answer."""
        pace = permit.pace
        _, next_job = await self._run(
            self._settle,
            permit.scope,
            [
                permit.ticket,
                repr(pace.request_us),
                repr(pace.burst_requests),
                repr(pace.token_us),
                repr(pace.burst_tokens),
                repr(feedback.token_difference),
                repr(feedback.remaining_requests),
                repr(feedback.remaining_tokens),
                repr(feedback.retry_after_us),
                int(feedback.is_too_fast),
                self._now(),
                self._me if self._clock is None else "",
            ],
        )
        if next_job:
            self._wake(permit.scope, str(next_job))

    async def leave(self, scope: str, job: str) -> None:
        """Forget that a job waits. Raises RateLimiterUnavailable when Redis does not answer."""
        await answered(self._redis.zrem(_keys(scope)[5], job))

    def on_release(self, wake: Callable[[str, str | None], None]) -> None:
        """Set what is called with the scope and the job for which a slot has become free."""
        self._wake = wake

    async def ready(self) -> str:
        """Return "ok" or what is wrong."""
        try:
            await answered(self._redis.ping())
        except RateLimiterUnavailable:
            return "redis does not answer"
        return "ok"

    async def aclose(self) -> None:
        """Stop listening and close the connections."""
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait({self._listener})
        await self._redis.aclose()

    async def _run(self, script: Any, scope: str, arguments: list[Any]) -> Any:
        return await answered(script(keys=_keys(scope), args=arguments))

    def _now(self) -> str:
        return repr(self._clock()) if self._clock else "0"

    async def _listen(self) -> None:
        """Hear of slots that other processes give back; come back when Redis does."""
        while True:
            with suppress(RedisError, OSError, RateLimiterUnavailable):
                async with self._redis.pubsub(ignore_subscribe_messages=True) as calls:
                    await answered(calls.psubscribe(_keys("*")[5]))
                    while True:
                        call = await calls.get_message(timeout=ANSWER_SECONDS)
                        if call is not None:
                            self._hear(call)
            await asyncio.sleep(ANSWER_SECONDS / 4)

    def _hear(self, call: dict[str, Any]) -> None:
        who, _, job = str(call["data"]).partition(" ")
        scope = str(call["channel"]).partition("{")[2].partition("}")[0]
        if who != self._me:
            self._wake(scope, job)


def _keys(scope: str) -> list[str]:
    return [f"iz:{{{scope}}}:{part}" for part in PARTS]
