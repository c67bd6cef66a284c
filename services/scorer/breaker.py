"""A circuit breaker: a target that is down is probed now and then, not called for every example."""

from __future__ import annotations

import asyncio
import time
from enum import Enum, auto

LONGEST_PAUSE_SECONDS = 30.0


class Entry(Enum):
    """How a call got past the breaker."""

    CLOSED = auto()
    PROBE = auto()
    """The breaker is open and this one call finds out whether the target is back."""


class Breaker:
    """Opens after failures in a row; lets one probe through after each pause, doubling the pause.

    Counts failures that another moment may heal (5xx, time-outs, lost connections), never 429.
    """

    def __init__(self, *, failures: int, pause_seconds: float) -> None:
        self._threshold = failures
        self._first_pause = pause_seconds
        self._pause = pause_seconds
        self._n_failures = 0
        self._opens_at: float | None = None
        self._is_probing = False
        self._changed = asyncio.Event()

    @property
    def is_open(self) -> bool:
        """Whether calls are held back."""
        return self._opens_at is not None

    async def enter(self, deadline: float) -> Entry | None:
        """Wait until a call may go; None when the deadline comes first.

        Each entry must be recorded once, or repeated if it was CLOSED and is so no more.
        """
        while self._opens_at is not None:
            now = time.monotonic()
            if now >= deadline:
                return None
            if not self._is_probing and now >= self._opens_at:
                self._is_probing = True
                return Entry.PROBE
            until = deadline if self._is_probing else min(deadline, self._opens_at)
            try:
                async with asyncio.timeout(max(0.001, until - now)):
                    await self._changed.wait()
            except TimeoutError:
                continue
        return Entry.CLOSED

    def record(self, entry: Entry, is_up: bool | None) -> None:
        """Take in how a call ended; None when it says nothing about the target."""
        if is_up:
            self._n_failures, self._pause = 0, self._first_pause
            self._opens_at = None
        elif is_up is False and (entry is Entry.PROBE or self._opens_at is None):
            self._n_failures += 1
            if entry is Entry.PROBE:
                self._pause = min(LONGEST_PAUSE_SECONDS, self._pause * 2)
            if self._n_failures >= self._threshold:
                self._opens_at = time.monotonic() + self._pause
        if entry is Entry.PROBE:
            self._is_probing = False
        if entry is Entry.PROBE or is_up:
            self._changed.set()
            self._changed = asyncio.Event()
