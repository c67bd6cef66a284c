"""Answers in the job database: the cache of the all-in-one process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.gathered import Gathered
from services.optimizer import store
from services.optimizer.database import Database
from services.scorer.cache import CachedAnswer

WRITE_PAUSE_SECONDS = 0.05
"""Nobody waits for an answer's line while others are handed over: a commit serves several."""


class DatabaseCache:
    """Answers in the job database, so that a paid answer outlives the process."""

    def __init__(self, database: Database, *, ttl_seconds: float) -> None:
        self._database = database
        self._ttl_seconds = ttl_seconds
        self._reads: Gathered[None, Any] = Gathered(self._read)
        self._writes: Gathered[dict[str, Any], None] = Gathered(
            self._write, pause_seconds=WRITE_PAUSE_SECONDS
        )

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
