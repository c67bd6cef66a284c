"""The demo target's own rate limits, and the headers in which it tells of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Clock = Callable[[], float]
_ROUNDING_SECONDS = 1e-6


@dataclass(frozen=True)
class Refusal:
    """Why a request is over a limit, and when it can succeed."""

    message: str
    retry_after_seconds: float | None
    """None when waiting does not help."""


class Bucket:
    """A minute's worth of units that fills up continuously."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._at = clock()

    @property
    def remaining(self) -> int:
        """Whole units that could be taken now."""
        self._fill()
        return int(self._level)

    @property
    def reset_seconds(self) -> float:
        """Time until the bucket is full again."""
        self._fill()
        return (self.per_minute - self._level) * 60 / self.per_minute

    def wait_seconds(self, units: int) -> float:
        """Time until `units` can be taken; 0 when they can now."""
        self._fill()
        wait = (units - self._level) * 60 / self.per_minute
        return wait if wait > _ROUNDING_SECONDS else 0.0

    def take(self, units: int) -> None:
        """Take units, which must be there."""
        self._level -= units

    def _fill(self) -> None:
        now = self._clock()
        grown = self._level + (now - self._at) * self.per_minute / 60
        self._level, self._at = min(self.per_minute, grown), now


class Limits:
    """Requests and tokens a minute and requests in flight; each may be absent."""

    def __init__(
        self,
        *,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        in_flight: int | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """Start with full buckets."""
        given = {"requests": requests_per_minute, "tokens": tokens_per_minute}
        self._buckets = {name: Bucket(rate, clock) for name, rate in given.items() if rate}
        self._max_in_flight = in_flight
        self._in_flight = 0

    def enter(self, n_tokens: int) -> Refusal | None:
        """Take a place for a request that may use `n_tokens`, or say why there is none."""
        if self._max_in_flight is not None and self._in_flight >= self._max_in_flight:
            return Refusal(f"{self._max_in_flight} requests are in flight, as many as allowed", 1.0)
        costs = {"requests": 1, "tokens": n_tokens}
        for name, bucket in self._buckets.items():
            if costs[name] > bucket.per_minute:
                message = (
                    f"the request asks for {costs[name]} {name}, and the limit per minute is "
                    f"{bucket.per_minute}: shorten the messages or lower max_tokens"
                )
                return Refusal(message, None)
        waits = {name: bucket.wait_seconds(costs[name]) for name, bucket in self._buckets.items()}
        if waits and max(waits.values()) > 0:
            name = max(waits, key=lambda name: waits[name])
            bucket = self._buckets[name]
            message = (
                f"limit of {bucket.per_minute} {name} per minute reached: {bucket.remaining} left, "
                f"{costs[name]} asked for; try again in {go_duration(waits[name])}"
            )
            return Refusal(message, waits[name])
        for name, bucket in self._buckets.items():
            bucket.take(costs[name])
        self._in_flight += 1
        return None

    def leave(self) -> None:
        """Give back a place that `enter` gave."""
        self._in_flight -= 1

    def headers(self) -> Mapping[str, str]:
        """Return the x-ratelimit-* headers of the limits there are."""
        told: dict[str, str] = {}
        for name, bucket in self._buckets.items():
            told[f"x-ratelimit-limit-{name}"] = str(bucket.per_minute)
            told[f"x-ratelimit-remaining-{name}"] = str(bucket.remaining)
            told[f"x-ratelimit-reset-{name}"] = go_duration(bucket.reset_seconds)
        return told


def go_duration(seconds: float) -> str:
    """Write a duration as Go does, to the millisecond and rounded up: 1h2m3.5s, 6m0s, 120ms."""
    milliseconds = math.ceil(seconds * 1000 - 1e-6)
    if milliseconds <= 0:
        return "0s"
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text
