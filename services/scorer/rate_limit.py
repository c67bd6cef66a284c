"""Permits: who may call a target when. Waiting callers sleep until their time; none polls.

The decisions are a `Gate`'s: `LocalGate` in one process, `RedisGate` (redis_gate.py) for all of
them. In each process only the first waiting caller of each job asks the gate; the rest stand behind
it in memory.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
import uuid
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from instructzero.errors import InstructZeroError, InvalidRequest, RateLimiterUnavailable
from services.scorer.limiter_state import MINUTE_US, Ask, Decision, Feedback, Pace, ScopeState
from services.scorer.targets import Target

log = logging.getLogger(__name__)

Reason = Literal["rate_limited", "rate_limiter_unavailable"]
Notice = Callable[[Reason | None], None]
"""Told why a caller waits, and None when it goes on."""
RECHECK_SECONDS = (0.2, 2.0)
"""How soon, and how seldom, a gate that does not answer is asked again."""
LEASE_MARGIN_SECONDS = 5.0


class Permit(NamedTuple):
    """The right to send one request now; must be settled."""

    scope: str
    ticket: str
    tokens: float
    pace: Pace


class Gate(Protocol):
    """Decides about permits."""

    async def acquire(self, scope: str, ask: Ask, pace: Pace) -> Decision:
        """Decide now. Raises RateLimiterUnavailable when it cannot know."""
        ...

    async def settle(self, permit: Permit, feedback: Feedback) -> None:
        """Take a permit back."""
        ...

    async def leave(self, scope: str, job: str) -> None:
        """Forget that a job waits."""
        ...

    def on_release(self, wake: Callable[[str], None]) -> None:
        """Set what is called with the scope in which a slot has become free."""
        ...

    async def ready(self) -> str:
        """Return "ok" or what is wrong."""
        ...

    async def aclose(self) -> None:
        """Give back what it holds."""
        ...


class RateLimiter:
    """Grants permits in fair order and keeps those who wait."""

    def __init__(self, gate: Gate, *, seed: int | None = None) -> None:
        self._gate = gate
        self._lines: dict[tuple[str, str], _Line] = {}
        self._prefix = uuid.uuid4().hex[:12]
        self._numbers = itertools.count()
        self._random = random.Random(seed)  # noqa: S311 - jitter
        self._background: set[asyncio.Task[None]] = set()
        gate.on_release(self._wake)

    async def acquire(
        self, target: Target, *, job: str, weight: float, tokens: float, notice: Notice
    ) -> Permit:
        """Wait for a permit.

        Raises:
            InvalidRequest: the request needs more tokens than the target's limit allows a minute.
        """
        pace = pace_of(target, tokens)
        ticket = f"{self._prefix}-{next(self._numbers)}"
        line = self._lines.setdefault((target.scope, job), _Line(target.scope, job))
        line.n_present += 1
        try:
            if line.n_present > 1:
                await self._stand_in(line, notice)
            ask = Ask(ticket, job, weight, tokens)
            return await self._ask_until_granted(line, ask, pace, notice)
        finally:
            line.n_present -= 1
            self._next(line)

    def settle(self, permit: Permit, feedback: Feedback) -> asyncio.Task[None]:
        """Take a permit back; the caller need not wait for it."""
        return self._spawn(self._settle(permit, feedback))

    async def ready(self) -> str:
        """Return "ok" or what is wrong."""
        return await self._gate.ready()

    async def aclose(self) -> None:
        """Settle what is open."""
        while self._background:
            await asyncio.wait(self._background, timeout=5)
        await self._gate.aclose()

    async def _stand_in(self, line: _Line, notice: Notice) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.turns.append(turn)
        notice("rate_limited")
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                line.is_headless = True  # it was our turn; the next one takes it
            raise
        finally:
            notice(None)

    async def _ask_until_granted(self, line: _Line, ask: Ask, pace: Pace, notice: Notice) -> Permit:
        line.is_headless = False
        n_unanswered = 0
        try:
            while True:
                ask = ask._replace(is_followed=line.n_present > 1)
                try:
                    decision = await self._gate.acquire(line.scope, ask, pace)
                except RateLimiterUnavailable:
                    n_unanswered += 1
                    notice("rate_limiter_unavailable")
                    await asyncio.sleep(self._recheck_after(n_unanswered))
                    continue
                n_unanswered = 0
                line.is_registered = ask.is_followed or not decision.is_granted
                if decision.is_granted:
                    return Permit(line.scope, ask.ticket, ask.tokens, pace)
                notice("rate_limited")
                await line.sleep(decision)
        finally:
            line.is_headless = True
            notice(None)

    def _next(self, line: _Line) -> None:
        """Let the next in line ask, or end the line."""
        if line.n_present == 0:
            self._lines.pop((line.scope, line.job), None)
            if line.is_registered:
                self._spawn(self._leave(line))
            return
        if not line.is_headless:
            return
        while line.turns:
            turn = line.turns.popleft()
            if not turn.done():
                line.is_headless = False
                turn.set_result(None)
                return

    def _wake(self, scope: str, *, with_tokens: bool = False) -> None:
        for line in self._lines.values():
            if line.scope == scope:
                line.wake(with_tokens=with_tokens)

    def _recheck_after(self, n_unanswered: int) -> float:
        low, high = RECHECK_SECONDS
        return self._random.uniform(low, min(high, low * 2**n_unanswered))

    async def _settle(self, permit: Permit, feedback: Feedback) -> None:
        try:
            await self._gate.settle(permit, feedback)
        except InstructZeroError:
            log.warning("a permit could not be given back; its slot is free when its lease ends")
        self._wake(permit.scope, with_tokens=feedback.token_difference < 0)

    async def _leave(self, line: _Line) -> None:
        try:
            await self._gate.leave(line.scope, line.job)
        except InstructZeroError:
            log.debug("a job could not be taken out of the queue; it expires by itself")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


@dataclass(slots=True)
class _Line:
    """The callers of one job that wait in one scope; only the first asks the gate."""

    scope: str
    job: str
    turns: deque[asyncio.Future[None]] = field(default_factory=deque)
    n_present: int = 0
    is_headless: bool = False
    is_registered: bool = False
    sleeping: asyncio.Future[None] | None = None
    waits_for: str = ""

    async def sleep(self, decision: Decision) -> None:
        loop = asyncio.get_running_loop()
        self.sleeping, self.waits_for = loop.create_future(), decision.why
        timer = loop.call_later(decision.wait_us / 1e6, _finish, self.sleeping)
        try:
            await self.sleeping
        finally:
            timer.cancel()
            self.sleeping = None

    def wake(self, *, with_tokens: bool) -> None:
        reasons = ("concurrency", "fairness", "tokens")[: 3 if with_tokens else 2]
        if self.sleeping is not None and self.waits_for in reasons:
            _finish(self.sleeping)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class LocalGate:
    """The algorithm in this process."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        """Take a clock in microseconds; the default is the monotonic one."""
        self._clock = clock or _monotonic_us
        self._scopes: dict[str, ScopeState] = {}

    async def acquire(self, scope: str, ask: Ask, pace: Pace) -> Decision:
        """Decide now."""
        return self._state(scope).acquire(ask, pace, self._clock())

    async def settle(self, permit: Permit, feedback: Feedback) -> None:
        """Take a permit back."""
        self._state(permit.scope).settle(permit.ticket, permit.pace, feedback, self._clock())

    async def leave(self, scope: str, job: str) -> None:
        """Forget that a job waits."""
        self._state(scope).leave(job)

    def on_release(self, wake: Callable[[str], None]) -> None:
        """Need nothing: every release is this process's own."""

    async def ready(self) -> str:
        """Return "ok": nothing else is needed."""
        return "ok"

    async def aclose(self) -> None:
        """Hold nothing."""

    def _state(self, scope: str) -> ScopeState:
        return self._scopes.setdefault(scope, ScopeState())


def pace_of(target: Target, tokens: float) -> Pace:
    """Return a target's limits as the gate takes them, for a request of so many tokens.

    Raises:
        InvalidRequest: it can never fit.
    """
    limits = target.config.limits
    per_minute, token_limit = limits.requests_per_minute, limits.tokens_per_minute
    if token_limit is not None and tokens > token_limit:
        raise InvalidRequest(
            f"one request needs about {tokens:.0f} tokens and target {target.name} allows "
            f"{token_limit:.0f} a minute; shorten the examples or max_tokens, or raise the limit",
            reason="request_too_large",
        )
    return Pace(
        request_us=MINUTE_US / per_minute if per_minute else 0.0,
        burst_requests=float(limits.burst or max(1, int((per_minute or 0) / 10))),
        token_us=MINUTE_US / token_limit if token_limit else 0.0,
        burst_tokens=max(tokens, token_limit / 10) if token_limit else 1e15,
        in_flight=limits.in_flight,
        lease_us=(target.config.timeout_seconds + LEASE_MARGIN_SECONDS) * 1e6,
    )


def _monotonic_us() -> float:
    return float(time.monotonic_ns() // 1000)
