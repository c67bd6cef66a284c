"""Answers shared by all scorers, in Redis, and the claims by which one of them buys."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from typing import Final, cast

from redis.asyncio import Redis

from instructzero.errors import RateLimiterUnavailable
from services.scorer.cache import CachedAnswer, MemoryCache
from services.scorer.redis_link import answered

log = logging.getLogger(__name__)
CLAIM_SECONDS: Final = 15.0
"""After a buyer's death another may buy; a living one renews its claims in time."""
RECENT_ENTRIES: Final = 10_000
RECENT_SECONDS: Final = 600.0

CLAIM = """
local answer = redis.call('GET', KEYS[1])
if answer then return answer end
if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
if redis.call('GET', KEYS[2]) == ARGV[1] then return 1 end
return 0
"""
RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""
RENEW = """
for _, key in ipairs(KEYS) do
  if redis.call('GET', key) == ARGV[1] then redis.call('PEXPIRE', key, ARGV[2]) end
end
return 1
"""


class RedisCache:
    """A shared cache with a few recent answers in memory.

    The memory also keeps what Redis could not take because it was away; it is written when Redis is
    back, as long as this process lives.
    """

    def __init__(self, redis: Redis, *, ttl_seconds: float) -> None:
        self._redis = redis
        self._ttl_ms = int(ttl_seconds * 1000)
        self._recent = MemoryCache(ttl_seconds=RECENT_SECONDS, max_entries=RECENT_ENTRIES)
        self._claim = redis.register_script(CLAIM)
        self._release = redis.register_script(RELEASE)
        self._renew = redis.register_script(RENEW)
        self._me = uuid.uuid4().hex
        self._claimed: set[str] = set()
        self._unsaved: dict[str, CachedAnswer] = {}
        self._keeper: asyncio.Task[None] | None = None

    async def get(self, key: str) -> CachedAnswer | None:
        """Return the answer. Raises RateLimiterUnavailable when Redis does not answer."""
        if (recent := await self._recent.get(key)) is not None:
            return recent
        return _decoded(await answered(self._redis.get(_answer(key))))

    async def put(self, key: str, answer: CachedAnswer) -> None:
        """Keep the answer; it has been paid for, so a Redis that is away is no error here."""
        await self._recent.put(key, answer)
        self._claimed.discard(key)
        try:
            await self._save(key, answer)
        except RateLimiterUnavailable:
            self._unsaved[key] = answer

    async def claim(self, key: str) -> CachedAnswer | bool:
        """Return the answer, True to buy it, False to wait. Raises RateLimiterUnavailable."""
        if (recent := await self._recent.get(key)) is not None:
            return recent
        said = await answered(
            self._claim(
                keys=[_answer(key), _buyer(key)], args=[self._me, int(CLAIM_SECONDS * 1000)]
            )
        )
        if isinstance(said, int):
            if said:
                self._claimed.add(key)
                self._keep()
            return bool(said)
        return _decoded(said) or True

    async def release(self, key: str) -> None:
        """Give up a claim; if Redis is away it runs out by itself."""
        self._claimed.discard(key)
        try:
            await answered(self._release(keys=[_buyer(key)], args=[self._me]))
        except RateLimiterUnavailable:
            log.debug("a claim was left to expire")

    async def aclose(self) -> None:
        """Stop renewing; the connection is its giver's to close."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})

    def _keep(self) -> None:
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep_on())

    async def _keep_on(self) -> None:
        """Renew the claims of this process and save what could not be saved."""
        while True:
            await asyncio.sleep(CLAIM_SECONDS / 5)
            try:
                for key, answer in list(self._unsaved.items()):
                    await self._save(key, answer)
                    self._unsaved.pop(key, None)
                if self._claimed:
                    await answered(
                        self._renew(
                            keys=[_buyer(key) for key in self._claimed],
                            args=[self._me, int(CLAIM_SECONDS * 1000)],
                        )
                    )
            except RateLimiterUnavailable:
                log.warning("redis does not answer; claims are not renewed")

    async def _save(self, key: str, answer: CachedAnswer) -> None:
        pipe = self._redis.pipeline(transaction=False)
        pipe.set(_answer(key), json.dumps(answer), px=self._ttl_ms)
        pipe.delete(_buyer(key))
        await answered(pipe.execute())


def _answer(key: str) -> str:
    return f"iz:{{{key}}}:answer"


def _buyer(key: str) -> str:
    return f"iz:{{{key}}}:buyer"


def _decoded(value: object) -> CachedAnswer | None:
    if not isinstance(value, str):
        return None
    try:
        text, prompt, completion, is_refused = json.loads(value)
    except ValueError:
        return None
    return CachedAnswer(str(text), int(prompt), int(completion), cast("bool", is_refused))
