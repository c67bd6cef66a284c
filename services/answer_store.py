"""Answers in the job database: the cache of the all-in-one process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from services.optimizer import store
from services.optimizer.database import Database
from services.scorer.cache import CachedAnswer

Sent = TypeVar("Sent")
Got = TypeVar("Got")


class DatabaseCache:
    """Answers in the job database, so that a paid answer outlives the process."""

    def __init__(self, database: Database, *, ttl_seconds: float) -> None:
        self._database = database
        self._ttl_seconds = ttl_seconds
        self._reads: _Gathered[None, Any] = _Gathered(self._read)
        self._writes: _Gathered[dict[str, Any], None] = _Gathered(self._write)

    async def get(self, key: str) -> CachedAnswer | None:
        """Return a stored answer."""
        found = await self._reads.ask(key, None)
        return None if found is None else CachedAnswer(**found)

    async def put(self, key: str, answer: CachedAnswer) -> None:
        """Store an answer; it is on disk when this returns."""
        await self._writes.ask(key, answer._asdict())

    def _read(self, wanted: Mapping[str, None]) -> Mapping[str, Any]:
        return store.transact_in_thread(
            self._database.thread_reads,
            lambda session: store.read_answers(session, list(wanted), self._ttl_seconds),
        )

    def _write(self, answers: Mapping[str, dict[str, Any]]) -> Mapping[str, None]:
        store.transact_in_thread(
            self._database.thread_writes, lambda session: store.write_answers(session, answers)
        )
        return {}


class _Gathered(Generic[Sent, Got]):
    """Asks of many callers, carried out together by a thread; who comes meanwhile is next."""

    def __init__(self, work: Callable[[Mapping[str, Sent]], Mapping[str, Got]]) -> None:
        self._work = work
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
