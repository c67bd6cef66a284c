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

from instructzero.errors import InstructZeroError, RateLimiterUnavailable
from services.scorer.limiter_state import Ask, Decision, Feedback, Pace, ScopeState

log = logging.getLogger(__name__)

Reason = Literal["rate_limited", "rate_limiter_unavailable"]
Notice = Callable[[Reason | None], None]
"""Told why a caller waits, and None when it goes on."""
RECHECK_SECONDS = (0.2, 2.0)
"""How soon, and how seldom, a gate that does not answer is asked again."""
WOKEN_BY_RELEASE = frozenset({"concurrency", "fairness", "tokens"})


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

    def on_release(self, wake: Callable[[str, str | None], None]) -> None:
        """Set what is called with the scope and the job for which a slot has become free."""
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
        self, scope: str, pace: Pace, *, job: str, weight: float, tokens: float, notice: Notice
    ) -> Permit:
        """Wait for a permit; the last notice is None."""
        ticket = f"{self._prefix}-{next(self._numbers)}"
        line = self._lines.get((scope, job))
        if line is None:
            line = self._lines[scope, job] = _Line(scope, job)
        line.n_present += 1
        try:
            if line.n_present > 1:
                turn = line.stand_in()
                notice("rate_limited")  # the wait goes on until the permit is there
                try:
                    await turn
                except asyncio.CancelledError:
                    if turn.done() and not turn.cancelled():
                        line.is_headless = True  # it was our turn; the next one takes it
                    raise
            ask = Ask(ticket, job, weight, tokens)
            return await self._ask_until_granted(line, ask, pace, notice)
        finally:
            notice(None)
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

    def _wake(self, scope: str, job: str | None) -> None:
        """Let the first caller of a job ask again; of every job for None."""
        if job is not None:
            if (line := self._lines.get((scope, job))) is not None:
                line.wake()
            return
        for line in self._lines.values():
            if line.scope == scope:
                line.wake()

    def _recheck_after(self, n_unanswered: int) -> float:
        low, high = RECHECK_SECONDS
        return self._random.uniform(low, min(high, low * 2**n_unanswered))

    async def _settle(self, permit: Permit, feedback: Feedback) -> None:
        try:
            await self._gate.settle(permit, feedback)
        except InstructZeroError:
            log.warning("a permit could not be given back; its slot is free when its lease ends")

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
    is_woken: bool = False
    sleeping: asyncio.Future[None] | None = None
    waits_for: str = ""

    def stand_in(self) -> asyncio.Future[None]:
        """Take the last place; the future is done when it is our turn to ask."""
        turn = asyncio.get_running_loop().create_future()
        self.turns.append(turn)
        return turn

    async def sleep(self, decision: Decision) -> None:
        if self.is_woken and decision.why in WOKEN_BY_RELEASE:  # while we were asking
            self.is_woken = False
            return
        loop = asyncio.get_running_loop()
        self.sleeping, self.waits_for = loop.create_future(), decision.why
        timer = loop.call_later(decision.wait_us / 1e6, _finish, self.sleeping)
        try:
            await self.sleeping
        finally:
            timer.cancel()
            self.sleeping, self.is_woken = None, False

    def wake(self) -> None:
        if self.sleeping is None:
            self.is_woken = True
        elif self.waits_for in WOKEN_BY_RELEASE:
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
        self._wake: Callable[[str, str | None], None] = lambda _scope, _job: None

    async def acquire(self, scope: str, ask: Ask, pace: Pace) -> Decision:
        """Decide now."""
        return self._state(scope).acquire(ask, pace, self._clock())

    async def settle(self, permit: Permit, feedback: Feedback) -> None:
        """Take a permit back."""
        settled = self._state(permit.scope).settle(
            permit.ticket, permit.pace, feedback, self._clock()
        )
        if settled.next_job is not None:
            self._wake(permit.scope, settled.next_job)

    async def leave(self, scope: str, job: str) -> None:
        """Forget that a job waits."""
        self._state(scope).leave(job)

    def on_release(self, wake: Callable[[str, str | None], None]) -> None:
        """Set what is called with the scope and the job for which a slot has become free."""
        self._wake = wake

    async def ready(self) -> str:
        """Return "ok": nothing else is needed."""
        return "ok"

    async def aclose(self) -> None:
        """Hold nothing."""

    def _state(self, scope: str) -> ScopeState:
        return self._scopes.setdefault(scope, ScopeState())


def _monotonic_us() -> float:
    return float(time.monotonic_ns() // 1000)
