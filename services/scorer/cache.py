"""Answers that were paid for, and who is buying which one right now."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol


class CachedAnswer(NamedTuple):
    """One answer of a target with what it cost when it was bought."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    is_refused: bool = False


class AnswerCache(Protocol):
    """Keeps answers. A `put` that has returned is there for the next `get`."""

    async def get(self, key: str) -> CachedAnswer | None:
        """Return the answer, or None."""
        ...

    async def put(self, key: str, answer: CachedAnswer) -> None:
        """Keep the answer."""
        ...


class SharedAnswerCache(AnswerCache, Protocol):
    """A cache of several processes, which also agree on who buys."""

    async def claim(self, key: str) -> CachedAnswer | bool:
        """Return the answer; else True if the caller is to buy it, False if another does."""
        ...

    async def release(self, key: str) -> None:
        """Give up a claim; who waits for the answer may buy it now."""
        ...


def answer_key(
    *,
    base_url: str,
    body: Mapping[str, Any],
    messages: Sequence[Mapping[str, str]],
    tenant: str,
    repeat: int,
    job_id: str | None = None,
) -> str:
    """Return the SHA-256 of everything that changes an answer.

    Args:
        base_url: of the target.
        body: model and sampling as sent.
        messages: as sent.
        tenant: answers are never shared between tenants.
        repeat: 0 for the first answer to these messages, 1 for the second.
        job_id: given when the answer may serve this job only.
    """
    content = {
        "base_url": base_url,
        "body": body,
        "messages": list(messages),
        "tenant": tenant,
        "repeat": repeat,
    }
    if job_id is not None:
        content["job_id"] = job_id
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


class MemoryCache:
    """Answers of this process, the least recently used dropped first."""

    def __init__(self, *, ttl_seconds: float, max_entries: int) -> None:
        self._ttl_seconds = ttl_seconds
        self._max_entries = max_entries
        self._answers: OrderedDict[str, tuple[float, CachedAnswer]] = OrderedDict()

    async def get(self, key: str) -> CachedAnswer | None:
        """Return the answer unless it is too old."""
        found = self._answers.get(key)
        if found is None:
            return None
        expires, answer = found
        if expires < time.monotonic():
            del self._answers[key]
            return None
        self._answers.move_to_end(key)
        return answer

    async def put(self, key: str, answer: CachedAnswer) -> None:
        """Keep the answer."""
        self._answers[key] = (time.monotonic() + self._ttl_seconds, answer)
        self._answers.move_to_end(key)
        while len(self._answers) > self._max_entries:
            self._answers.popitem(last=False)


class Flights:
    """Single flight: of several callers that need the same answer, one buys it."""

    def __init__(self) -> None:
        self._flying: dict[str, asyncio.Future[None] | None] = {}

    async def take(self, key: str) -> None:
        """Hold the key; who comes second waits, and then looks for the answer first."""
        while key in self._flying:
            landed = self._flying[key]
            if landed is None:  # the first who waits for it
                landed = self._flying[key] = asyncio.get_running_loop().create_future()
            await asyncio.shield(landed)
        self._flying[key] = None

    def land(self, key: str) -> None:
        """Let the key go."""
        landed = self._flying.pop(key)
        if landed is not None:
            landed.set_result(None)
