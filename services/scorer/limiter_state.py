"""The limiter's algorithm in Python: the twin of limiter_acquire.lua and limiter_settle.lua.

One `ScopeState` is what Redis holds for one scope (address, key, model). All times are microseconds
of the caller's clock. Arithmetic is in doubles in the order of the scripts, so that both give the
same decisions on the same history (tests/scorer/test_limiter_twin.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

MINUTE_US = 60_000_000.0
POLL_US = 500_000.0
"""Longest sleep for a free slot. A release wakes who waits; this is for a lost wake-up call."""
YIELD_US = 5_000.0
"""Shortest sleep of a job that lets another go first."""
GRACE_US = 1_000_000.0
"""How much later than announced a waiting job may come back and still be waited for."""
SLOWER, FASTER, SLOWEST = 1.5, 0.95, 20.0
"""A 429 without a hint makes everything 1.5 times slower, a clean minute 5 % faster again."""
MAX_JOBS = 1_000
"""Virtual times that are kept."""


class Pace(NamedTuple):
    """The limits of one acquisition: microseconds per request and per token, bursts, slots."""

    request_us: float
    burst_requests: float
    token_us: float
    burst_tokens: float
    in_flight: int
    lease_us: float


class Ask(NamedTuple):
    """A wish for one permit. `is_followed`: the same job has more wishes in this process."""

    ticket: str
    job: str
    weight: float
    tokens: float
    is_followed: bool = False


class Feedback(NamedTuple):
    """What the attempt taught: tokens really used minus estimate, headers, 429."""

    token_difference: float = 0.0
    remaining_requests: float = -1.0
    remaining_tokens: float = -1.0
    retry_after_us: float = 0.0
    is_too_fast: bool = False


class Decision(NamedTuple):
    """Granted, or when to ask again and why."""

    is_granted: bool
    wait_us: float
    why: str


class Settled(NamedTuple):
    """Whether the ticket was held (else its tokens were corrected before), and who is next."""

    is_held: bool
    next_job: str | None


@dataclass(slots=True)
class ScopeState:
    """What is known about one scope; nothing in it depends on how many processes share it."""

    request_tat: float = 0.0
    token_tat: float = 0.0
    cooldown_until: float = 0.0
    slots: dict[str, float] = field(default_factory=dict)
    virtual: dict[str, float] = field(default_factory=dict)
    virtual_now: float = 0.0
    waiting: dict[str, float] = field(default_factory=dict)
    slowness: float = 1.0
    slowed_at: float = 0.0

    def acquire(self, ask: Ask, pace: Pace, now: float) -> Decision:
        """Grant everything at once, or change nothing but the place in the queue."""
        slow = self._slowness(now)
        request_us, token_us = pace.request_us * slow, pace.token_us * slow
        request_tat = max(now, min(self.request_tat, now + pace.burst_requests * request_us))
        token_tat = max(now, min(self.token_tat, now + 2 * pace.burst_tokens * token_us))
        request_tat += request_us
        token_tat += token_us * ask.tokens
        wait, why = 0.0, "ok"
        for us, name in (
            (self.cooldown_until - now, "cooldown"),
            (request_tat - pace.burst_requests * request_us - now, "requests"),
            (token_tat - pace.burst_tokens * token_us - now, "tokens"),
            (self._slot_wait(ask.ticket, pace, slow, now), "concurrency"),
        ):
            if us > wait:
                wait, why = us, name
        ahead, mine = self._queue(ask.job, now)
        if wait == 0 and ahead is not None and mine > ahead:
            wait, why = max(request_us, YIELD_US), "fairness"
        if wait > 0:
            wait = float(math.ceil(wait))
            self.virtual[ask.job] = mine
            self.waiting[ask.job] = float(round(now + wait + GRACE_US))
            return Decision(False, wait, why)
        self.request_tat, self.token_tat = float(round(request_tat)), float(round(token_tat))
        self.slots[ask.ticket] = float(round(now + pace.lease_us))
        self._charge(ask, mine, token_us, request_us, now)
        return Decision(True, 0.0, "ok")

    def settle(self, ticket: str, pace: Pace, feedback: Feedback, now: float) -> Settled:
        """Give the slot back, correct the tokens, take in what the target said."""
        is_held = self.slots.pop(ticket, None) is not None
        if feedback.is_too_fast:
            slow = self._slowness(now)
            if slow == 1.0 or now - self.slowed_at >= 1_000_000:
                self.slowness, self.slowed_at = min(SLOWEST, slow * SLOWER), now
        slow = self._slowness(now)
        request_us, token_us = pace.request_us * slow, pace.token_us * slow
        if is_held:
            self.token_tat = max(now, self.token_tat) + feedback.token_difference * token_us
        if feedback.remaining_requests >= 0:
            missing = pace.burst_requests - feedback.remaining_requests
            self.request_tat = max(self.request_tat, now + missing * request_us)
        if feedback.remaining_tokens >= 0:
            missing = pace.burst_tokens - feedback.remaining_tokens
            self.token_tat = max(self.token_tat, now + missing * token_us)
        self.request_tat = float(round(self.request_tat)) if self.request_tat > now else 0.0
        self.token_tat = float(round(self.token_tat)) if self.token_tat > now else 0.0
        if feedback.retry_after_us > 0:
            until = float(round(now + feedback.retry_after_us))
            self.cooldown_until = max(self.cooldown_until, until)
        queue = [(self.virtual.get(job, 0.0), job) for job in self.waiting]
        return Settled(is_held, min(queue)[1] if queue else None)

    def leave(self, job: str) -> None:
        """Forget that a job is waiting; its callers have gone."""
        self.waiting.pop(job, None)

    def _slot_wait(self, ticket: str, pace: Pace, slow: float, now: float) -> float:
        for expired in [held for held, end in self.slots.items() if end <= now]:
            del self.slots[expired]
        most = max(1, math.floor(pace.in_flight / slow))
        if ticket in self.slots or len(self.slots) < most:
            return 0.0
        return min(min(self.slots.values()) - now, POLL_US)

    def _queue(self, job: str, now: float) -> tuple[float | None, float]:
        """Return the smallest virtual time of the other waiting jobs, and this job's own."""
        for gone in [name for name, until in self.waiting.items() if until <= now]:
            del self.waiting[gone]
        others = [self.virtual.get(name, 0.0) for name in self.waiting if name != job]
        mine = self.virtual.get(job, 0.0)
        if job not in self.waiting:
            mine = max(mine, self.virtual_now)  # idle time earns no credit
        return (min(others) if others else None), mine

    def _charge(
        self, ask: Ask, mine: float, token_us: float, request_us: float, now: float
    ) -> None:
        cost = 1.0 + (ask.tokens * token_us / request_us if request_us > 0 else 0.0)
        self.virtual_now = max(self.virtual_now, mine)
        self.virtual[ask.job] = mine + cost / ask.weight
        if ask.is_followed:
            self.waiting[ask.job] = float(round(now + GRACE_US))
        else:
            self.waiting.pop(ask.job, None)
        if len(self.virtual) > MAX_JOBS:  # those below the present virtual time say nothing
            self.virtual = {j: v for j, v in self.virtual.items() if v >= self.virtual_now}

    def _slowness(self, now: float) -> float:
        slow = self.slowness
        n_minutes = max(0, min(100, math.floor((now - self.slowed_at) / MINUTE_US)))
        for _ in range(n_minutes):
            slow *= FASTER
        return max(1.0, slow)
