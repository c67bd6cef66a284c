"""Asks of many callers carried out together: what a batch costs once, none pays alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

Sent = TypeVar("Sent")
Got = TypeVar("Got")


class Gathered(Generic[Sent, Got]):
    """Asks of many callers, carried out together by a thread; who comes meanwhile is next.

    `pause_seconds`: how long an ask waits for others, where its caller can spare the time.
    """

    def __init__(
        self,
        work: Callable[[Mapping[str, Sent]], Mapping[str, Got]],
        *,
        pause_seconds: float = 0.0,
    ) -> None:
        self._work = work
        self._pause_seconds = pause_seconds
        self._waiting: dict[str, tuple[Sent, asyncio.Future[Got | None]]] = {}
        self._lock = asyncio.Lock()

    async def ask(self, key: str, sent: Sent) -> Got | None:
        """Return what the work gives for a key; of two askers for one key the first is answered."""
        if key in self._waiting:
            return await asyncio.shield(self._waiting[key][1])
        answered: asyncio.Future[Got | None] = asyncio.get_running_loop().create_future()
        self._waiting[key] = sent, answered
        carrying = asyncio.create_task(self._carry_out(answered))
        try:
            return await asyncio.shield(answered)
        finally:
            carrying.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _carry_out(self, answered: asyncio.Future[Got | None]) -> None:
        async with self._lock:
            if answered.done():
                return
            if self._pause_seconds:
                await asyncio.sleep(self._pause_seconds)
            batch, self._waiting = self._waiting, {}
            try:
                found = await asyncio.to_thread(
                    self._work, {key: sent for key, (sent, _) in batch.items()}
                )
            except BaseException as error:
                for _, future in batch.values():
                    future.set_exception(error)
                    future.exception()  # a caller may be gone
                raise
            for key, (_, future) in batch.items():
                future.set_result(found.get(key))
