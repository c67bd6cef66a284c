"""Finding an answer or buying it once, over all processes that share a cache."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, cast

from instructzero.contracts import ScoreError
from instructzero.errors import Unavailable
from services.scorer.cache import AnswerCache, CachedAnswer, Flights, SharedAnswerCache
from services.scorer.conditions import Waits

Buy = Callable[[], Awaitable[CachedAnswer | ScoreError]]
FIRST_LOOK_SECONDS: Final = 0.02
LONGEST_LOOK_SECONDS: Final = 0.5


class Answers:
    """Looks before it buys; of all who need the same answer at the same time, one buys."""

    def __init__(self, cache: AnswerCache) -> None:
        self._cache = cache
        self._shared = (
            cast("SharedAnswerCache", cache) if callable(getattr(cache, "claim", None)) else None
        )
        self._flights = Flights()

    async def get_or_buy(self, key: str, buy: Buy, waits: Waits) -> CachedAnswer | ScoreError:
        """Return a kept answer, or buy and keep it. A cache that is away is waited for."""
        await self._flights.take(key)
        claimed: SharedAnswerCache | None = None
        try:
            found = await self._look(key, waits)
            if found is not None:
                return found
            claimed = self._shared
            answer = await buy()
            if isinstance(answer, CachedAnswer):
                await self._cache.put(key, answer)
                claimed = None
            return answer
        finally:
            try:
                if claimed is not None:
                    await claimed.release(key)
            finally:
                self._flights.land(key)

    async def aclose(self) -> None:
        """Close a cache that can be closed."""
        close = getattr(self._cache, "aclose", None)
        if close is not None:
            await close()

    async def _look(self, key: str, waits: Waits) -> CachedAnswer | None:
        """Return the answer, or None when it is ours to buy."""
        seconds = FIRST_LOOK_SECONDS
        with waits.noticed() as notice:
            while True:
                try:
                    if self._shared is None:
                        return await self._cache.get(key)
                    found = await self._shared.claim(key)
                except Unavailable:
                    notice("rate_limiter_unavailable")
                else:
                    notice(None)
                    if found is True:
                        return None
                    if found is not False:
                        return found
                await asyncio.sleep(seconds)
                seconds = min(LONGEST_LOOK_SECONDS, seconds * 2)
