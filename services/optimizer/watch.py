"""Waiting for a job to change: one cheap query serves everybody who waits in this process."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping

from services.optimizer.looks import Looks
from services.optimizer.reads import Mark

INTERVAL_SECONDS = 0.2


class Watch:
    """Looks at the watched jobs' marks at an interval, for as long as anybody waits."""

    def __init__(self, looks: Looks, *, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._looks = looks
        self._interval_seconds = interval_seconds
        self._watched: Counter[str] = Counter()
        self._round: asyncio.Task[Mapping[str, Mark]] | None = None
        self.is_closed = False

    def close(self) -> None:
        """Let everybody who waits go within an interval, so that the server can stop."""
        self.is_closed = True

    async def until(self, job_id: str, holds: Callable[[Mark], bool], seconds: float) -> None:
        """Return when a job's mark satisfies `holds`, it is gone, the time is over, or we close.

        Raises:
            StoreUnavailable: the database does not answer.
        """
        self._watched[job_id] += 1
        try:
            async with asyncio.timeout(seconds):
                while True:
                    mark = (await asyncio.shield(self._next_round())).get(job_id)
                    if mark is None or self.is_closed or holds(mark):
                        return
        except TimeoutError:
            return
        finally:
            self._watched[job_id] -= 1
            if not self._watched[job_id]:
                del self._watched[job_id]

    def _next_round(self) -> asyncio.Task[Mapping[str, Mark]]:
        """Return the look that begins next; all who wait share it."""
        if self._round is None or self._round.done():
            self._round = asyncio.create_task(self._look())
            # Whoever waited may be gone when it fails.
            self._round.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._round

    async def _look(self) -> Mapping[str, Mark]:
        await asyncio.sleep(self._interval_seconds)
        self._round = None
        return await self._looks.marks(list(self._watched))
