"""Buying one answer: permits, attempts, retries, and the pool of calls that bounds them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field

from instructzero.contracts import ScoreError
from instructzero.errors import InvalidRequest
from services.scorer import meters
from services.scorer.bill import Bill
from services.scorer.breaker import Breaker, Entry
from services.scorer.cache import CachedAnswer
from services.scorer.conditions import Condition, Waits
from services.scorer.connection import Attempt, Connection, Message, Reply
from services.scorer.failures import Failure, Kind
from services.scorer.limiter_state import MINUTE_US, Feedback, Pace
from services.scorer.rate_limit import Permit, RateLimiter
from services.scorer.settings import Settings
from services.scorer.targets import Target

OUTAGE = frozenset(
    {
        "target_error",
        "target_timeout",
        "target_unreachable",
        "connection_lost",
        "target_certificate",
    }
)
"""Failures that say the target is down."""
LEASE_MARGIN_SECONDS = 5.0
JITTER_SECONDS = 0.25
"""Permitted calls reach the target at an uneven pace; so much of the rate is kept back for that."""
NO_BUDGET = ScoreError(
    code="budget_exhausted", message="no call is left for this example", retryable=True
)


TOO_LATE = ScoreError(
    code="not_sent_in_time",
    message="the example was not sent within the time that its caller gave",
    retryable=True,
)


class CallPool:
    """The calls that one request may make, retries and a judge's included."""

    __slots__ = ("_left",)

    def __init__(self, calls: int | None) -> None:
        self._left = calls

    def take(self) -> bool:
        """Take one call, if one is left."""
        if self._left is None:
            return True
        if self._left <= 0:
            return False
        self._left -= 1
        return True

    def give_back(self) -> None:
        """Return a call that was not made."""
        if self._left is not None:
            self._left += 1


@dataclass(slots=True)
class Order:
    """Whom a request buys for: shared by all its examples."""

    job: str
    weight: float
    pool: CallPool
    waits: Waits
    send_until: float | None = None
    """On the event loop's clock; nothing is sent after that."""
    stop: ScoreError | None = None
    """Set when no example of the job can succeed; nothing is sent after that."""

    def is_late(self) -> bool:
        """Whether the time to send is over."""
        return self.send_until is not None and _now() >= self.send_until


class TokenGuess:
    """How many tokens a text will be, learned from the answers: prompts first, then the rest."""

    def __init__(self) -> None:
        self._per_character = 0.4
        self._overhead = 12.0

    def prompt(self, messages: Sequence[Message]) -> float:
        """Return the expected number of prompt tokens."""
        return self._overhead + self._per_character * _length(messages)

    def learn(self, messages: Sequence[Message], prompt_tokens: int) -> None:
        """Take in a real count."""
        length = max(1, _length(messages))
        share = max(0.0, prompt_tokens - self._overhead) / length
        self._per_character += 0.05 * (min(4.0, share) - self._per_character)


@dataclass(slots=True)
class Counter:
    """Where one target's answers are bought."""

    connection: Connection
    limiter: RateLimiter
    breaker: Breaker
    settings: Settings
    guess: TokenGuess = field(default_factory=TokenGuess)
    jitter: random.Random = field(default_factory=random.Random)
    refusal: ScoreError | None = None
    """The last answer that no call can mend (a wrong key, no quota left): a new object each time,
    so that whoever waited for a permit meanwhile knows it, and sends nothing."""

    async def buy(
        self, order: Order, bill: Bill, messages: Sequence[Message]
    ) -> CachedAnswer | ScoreError:
        """Send requests until one is answered; never more than the pool or the attempts allow."""
        deadline: float | None = None
        for n_tried in range(1, self.settings.max_attempts + 1):
            attempt: Attempt | ScoreError | None = None
            while attempt is None:  # None: the breaker opened while we waited for the permit
                entry: Entry | None = Entry.CLOSED
                if self.breaker.is_open:
                    deadline = deadline or time.monotonic() + self.settings.patience_seconds
                    with order.waits.begin("target_unavailable"):
                        entry = await self.breaker.enter(deadline)
                if entry is None:
                    return self._given_up()
                attempt = await self._attempt(order, bill, messages, entry)
            if isinstance(attempt, ScoreError):
                return attempt
            outcome = attempt.outcome
            if isinstance(outcome, Reply):
                return self._paid(bill, messages, outcome)
            if outcome.kind is Kind.REFUSED:
                return CachedAnswer("", is_refused=True)
            bill.failed_calls += outcome.is_sent
            if outcome.kind in {Kind.STOPS_JOB, Kind.STOPS_EXAMPLE} or (
                n_tried == self.settings.max_attempts
            ):
                return outcome.as_error()
            await self._back_off(order, n_tried, outcome)
        raise AssertionError("max_attempts is at least 1")

    async def _attempt(
        self, order: Order, bill: Bill, messages: Sequence[Message], entry: Entry
    ) -> Attempt | ScoreError | None:
        if order.stop is not None or not order.pool.take():
            self.breaker.record(entry, None)
            return order.stop or NO_BUDGET
        is_sent, is_up = False, None
        refusal = self.refusal
        try:
            permit = await self._permit(order, messages)
            if permit is None:
                return TOO_LATE
            if self.refusal is not refusal:
                order.stop = self.refusal
            is_late = order.is_late()  # this process may have been frozen
            if order.stop or is_late or (entry is Entry.CLOSED and self.breaker.is_open):
                self.limiter.settle(permit, Feedback(token_difference=-permit.tokens))
                return order.stop or (TOO_LATE if is_late else None)
            is_sent = True
            bill.calls += 1
            attempt = await self._send(order, permit, messages)
            bill.seconds += attempt.seconds
            if isinstance(attempt.outcome, Failure):
                is_sent = attempt.outcome.is_sent
                bill.calls -= not is_sent
                is_up = attempt.outcome.code not in OUTAGE
            else:
                is_up = True
            return attempt
        except InvalidRequest as error:
            return ScoreError(code=error.reason, message=error.detail)
        finally:
            self.breaker.record(entry, is_up)
            if not is_sent:
                order.pool.give_back()

    def _permit(self, order: Order, messages: Sequence[Message]) -> Awaitable[Permit | None]:
        target = self.connection.target
        tokens = float(round(self.guess.prompt(messages) + target.config.sampling.max_tokens))
        permit = self.limiter.acquire(
            target.scope,
            pace_of(target, tokens),
            job=order.job,
            weight=order.weight,
            tokens=tokens,
            notice=order.waits.noticed().notice,
        )
        return permit if order.send_until is None else _in_time(permit, order.send_until)

    async def _send(self, order: Order, permit: Permit, messages: Sequence[Message]) -> Attempt:
        feedback = Feedback()
        try:
            attempt = await self.connection.ask(messages)
            outcome = attempt.outcome
            self._measure(attempt)
            feedback = self._feedback(permit, attempt)
            if isinstance(outcome, Failure) and outcome.kind is Kind.STOPS_JOB:
                self.refusal = order.stop = outcome.as_error()  # before the slot is free
        finally:
            settling = self.limiter.settle(permit, feedback)
        if isinstance(outcome, Failure):  # the next permit must know of the cool-down
            await asyncio.wait({settling})
        return attempt

    def _measure(self, attempt: Attempt) -> None:
        outcome = attempt.outcome
        how = outcome.kind.name.lower() if isinstance(outcome, Failure) else "answered"
        name = self.connection.target.name
        meters.CALLS.labels(name, how).inc()
        meters.CALL_SECONDS.labels(name).observe(attempt.seconds)

    def _feedback(self, permit: Permit, attempt: Attempt) -> Feedback:
        outcome, left = attempt.outcome, attempt.remaining
        difference, wait, is_too_fast = 0.0, 0.0, False
        if isinstance(outcome, Reply):
            if outcome.prompt_tokens is not None and outcome.completion_tokens is not None:
                difference = outcome.prompt_tokens + outcome.completion_tokens - permit.tokens
        elif outcome.kind is Kind.WAIT:
            if outcome.retry_after_seconds is None:
                is_too_fast = True
            else:
                wait = min(outcome.retry_after_seconds, self.settings.max_retry_after_seconds)
        return Feedback(
            token_difference=difference,
            remaining_requests=-1.0 if left.requests is None else float(left.requests),
            remaining_tokens=-1.0 if left.tokens is None else float(left.tokens),
            retry_after_us=wait * 1e6,
            is_too_fast=is_too_fast,
        )

    def _paid(self, bill: Bill, messages: Sequence[Message], reply: Reply) -> CachedAnswer:
        prompt, completion = reply.prompt_tokens, reply.completion_tokens
        if prompt is not None and prompt > 0:
            self.guess.learn(messages, prompt)
        else:
            prompt = round(self.guess.prompt(messages))
        if completion is None:
            completion = -(-len(reply.text) // 4)
        bill.prompt_tokens += prompt
        bill.completion_tokens += completion
        price = self.connection.target.config.price
        name = self.connection.target.name
        meters.TOKENS.labels(name, "prompt").inc(prompt)
        meters.TOKENS.labels(name, "completion").inc(completion)
        if price is not None:
            usd = price.usd(prompt, completion)
            bill.usd = (bill.usd or 0.0) + usd
            meters.USD.labels(name).inc(usd)
        return CachedAnswer(reply.text, prompt, completion, reply.is_refused)

    async def _back_off(self, order: Order, n_tried: int, failure: Failure) -> None:
        """Sleep with full jitter. A cool-down that the target asked for is the gate's to keep."""
        if failure.kind is Kind.WAIT and failure.retry_after_seconds is not None:
            return
        ceiling = min(
            self.settings.backoff_cap_seconds,
            self.settings.backoff_base_seconds * 2**n_tried,
        )
        hint = min(failure.retry_after_seconds or 0.0, self.settings.max_retry_after_seconds)
        reason: Condition = "rate_limited" if failure.kind is Kind.WAIT else "target_unavailable"
        with order.waits.begin(reason):
            await asyncio.sleep(hint + self.jitter.uniform(0.0, ceiling))

    def _given_up(self) -> ScoreError:
        name, seconds = self.connection.target.name, self.settings.patience_seconds
        return ScoreError(
            code="target_unavailable",
            message=f"target {name} has not answered for {seconds:g} s",
            retryable=True,
        )


async def _in_time(permit: Awaitable[Permit], end: float) -> Permit | None:
    try:
        async with asyncio.timeout_at(end):
            return await permit
    except TimeoutError:
        return None


def _now() -> float:
    return asyncio.get_running_loop().time()


def _length(messages: Sequence[Message]) -> int:
    return sum(len(message["content"]) for message in messages)


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
    burst = limits.burst or max(1, int((per_minute or 0) / 10))
    return Pace(
        request_us=MINUTE_US / per_minute if per_minute else 0.0,
        burst_requests=max(1.0, burst - JITTER_SECONDS * (per_minute or 0.0) / 60),
        token_us=MINUTE_US / token_limit if token_limit else 0.0,
        burst_tokens=max(tokens, token_limit / 10) if token_limit else 1e15,
        in_flight=limits.in_flight,
        lease_us=(target.config.timeout_seconds + LEASE_MARGIN_SECONDS) * 1e6,
    )
