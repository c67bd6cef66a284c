"""What a request is waiting for, as its reader is told: only waits that last, and only changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import compress
from typing import Literal

from services.scorer import meters

Condition = Literal["rate_limited", "rate_limiter_unavailable", "target_unavailable"]
WORST_FIRST: tuple[Condition, ...] = (
    "rate_limiter_unavailable",
    "target_unavailable",
    "rate_limited",
)


class Waits:
    """Counts the waits of one request that have lasted a while, and reports the worst reason."""

    __slots__ = ("_after_seconds", "_long", "_report", "_reported")

    def __init__(self, report: Callable[[Condition | None], None], after_seconds: float) -> None:
        self._report = report
        self._after_seconds = after_seconds
        self._long = [0] * len(WORST_FIRST)
        self._reported: Condition | None = None

    def begin(self, reason: Condition) -> Wait:
        """Wait for one reason within a `with` block."""
        wait = Wait(self)
        wait.notice(reason)
        return wait

    def noticed(self) -> Wait:
        """Give, to a `with` block, a function that is told the reason whenever it changes."""
        return Wait(self)

    def add(self, reason: Condition, n: int) -> None:
        """Count one more, or one less, of the long waits."""
        self._long[WORST_FIRST.index(reason)] += n
        worst = next(compress(WORST_FIRST, self._long), None)
        if worst != self._reported:
            self._reported = worst
            self._report(worst)

    def later(self, call: Callable[[], None]) -> asyncio.TimerHandle:
        """Call when a wait has lasted long enough to be told."""
        return asyncio.get_running_loop().call_later(self._after_seconds, call)


class Wait:
    """One caller's wait, timed per reason; a context manager, since thousands are open at once."""

    __slots__ = ("_began", "_is_long", "_reason", "_timer", "_waits")

    def __init__(self, waits: Waits) -> None:
        self._waits = waits
        self._reason: Condition | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_long = False
        self._began = 0.0

    def __enter__(self) -> Callable[[Condition | None], None]:
        return self.notice

    def __exit__(self, *_: object) -> None:
        self.notice(None)

    def notice(self, reason: Condition | None) -> None:
        """Take in why the caller waits; None: it does not."""
        if reason == self._reason:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._is_long and self._reason is not None:
            self._waits.add(self._reason, -1)
        self._measure(reason)
        self._reason, self._is_long = reason, False
        if reason is not None:
            self._timer = self._waits.later(self._lasted)

    def _measure(self, reason: Condition | None) -> None:
        now = time.monotonic()
        if self._reason is not None:
            meters.WAITING.labels(self._reason).dec()
            meters.WAIT_SECONDS.labels(self._reason).observe(now - self._began)
        if reason is not None:
            meters.WAITING.labels(reason).inc()
            self._began = now

    def _lasted(self) -> None:
        self._timer = None
        if self._reason is not None:
            self._is_long = True
            self._waits.add(self._reason, 1)
