"""Buy evaluations: hand examples to the scorer, a bounded number at a time, and store each answer.

At most `in_flight` examples are handed over at any moment, each under a reservation that was
committed before; what a crash can repeat is therefore at most the calls in flight.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from instructzero.contracts import (
    ScoreCondition,
    ScoreExample,
    ScoreLine,
    ScoreRequest,
    TargetView,
)
from instructzero.errors import JobStopped, ScorerUnavailable, TargetRefused
from services.optimizer.failpoints import fail_point
from services.optimizer.jobs import Cost, worst_call
from services.optimizer.ledger import Handover, Ledger
from services.optimizer.results import Answered
from services.optimizer.state import JobState

log = logging.getLogger(__name__)
LARGEST_CHUNK = 8
PATIENCE_SECONDS = 1800.0
FEW = 10
MOST_UNANSWERABLE = 0.2


class Scorer(Protocol):
    """Tries an instruction on examples; in process or over HTTP."""

    def score(self, request: ScoreRequest) -> AsyncIterator[ScoreLine | ScoreCondition]:
        """Yield one line per example, as it arrives."""
        ...

    async def targets(self) -> tuple[TargetView, ...]:
        """Return the registered connections."""
        ...


@dataclass(frozen=True)
class Order:
    """What to buy: (arm, example) pairs of one split, for one step, leaving `keep` unspent."""

    step: int
    split: str
    pairs: Sequence[tuple[int, int]]
    keep: Cost = field(default_factory=Cost)


class Buyer:
    """Buys evaluations for one claimed job."""

    def __init__(
        self,
        state: JobState,
        ledger: Ledger,
        scorer: Scorer,
        *,
        may_go_on: Callable[[], bool],
    ) -> None:
        self._state = state
        self._ledger = ledger
        self._scorer = scorer
        self._may_go_on = may_go_on
        limits = state.target.limits or {}
        self._window = int(str(limits.get("in_flight") or 32))
        self._is_denied = False
        self._n_open = 0
        self._closed = asyncio.Event()
        self._refusal: TargetRefused | None = None
        self._waiting_for: dict[int, str] = {}
        self._last_success = time.monotonic()
        self._jitter = random.Random(0)  # noqa: S311 - spreads retries, decides nothing

    async def buy(self, order: Order) -> bool:
        """Buy what is missing of an order; False if the budget or a person ended it early.

        Raises:
            TargetRefused: the target gave a terminal answer.
            LeaseLost: the job is not ours any more.
        """
        self._is_denied = False
        self._last_success = time.monotonic()
        slots = asyncio.Semaphore(self._window)
        try:
            async with asyncio.TaskGroup() as group:
                for arm, examples in self._chunks(order):
                    for _ in examples:
                        await slots.acquire()
                    if self._is_denied or not self._may_go_on():
                        break
                    group.create_task(self._buy_chunk(order, arm, examples, slots))
        except* Exception as errors:
            raise first_error(errors) from errors
        return not self._state.missing(order.pairs, order.split)

    def _chunks(self, order: Order) -> list[tuple[int, list[int]]]:
        """Return (arm, examples) of at most a few examples each, arms in the order decided."""
        size = max(1, min(LARGEST_CHUNK, self._window // 2))
        by_arm: dict[int, list[int]] = {}
        chunks: list[tuple[int, list[int]]] = []
        for arm, example in self._state.missing(order.pairs, order.split):
            held = by_arm.get(arm)
            if held is None or len(held) >= size:
                held = by_arm[arm] = []
                chunks.append((arm, held))
            held.append(example)
        return chunks

    async def _buy_chunk(
        self, order: Order, arm: int, examples: list[int], slots: asyncio.Semaphore
    ) -> None:
        left, attempt = list(examples), 0
        held = len(left)
        try:
            while left and not self._is_denied and self._may_go_on():
                handover = await self._reserve(order, arm, left)
                if handover is None:
                    await self._wait_for_room()
                    continue
                before = len(left)
                await self._hand_over(order, arm, left, handover, slots)
                held -= before - len(left)
                if len(left) == before:
                    attempt += 1
                    await self._back_off(attempt)
        finally:
            for _ in range(held):
                slots.release()

    async def _wait_for_room(self) -> None:
        """Wait until another handover gives back what it did not use; with none open, give up."""
        if self._n_open == 0:
            self._is_denied = True
            return
        self._closed.clear()
        await self._closed.wait()

    async def _reserve(self, order: Order, arm: int, left: list[int]) -> Handover | None:
        text = self._state.arms[arm].text
        examples = self._state.examples(order.split)
        calls = [
            worst_call(self._state.spec, self._state.target, text, examples[number].input)
            for number in left
        ]
        each = self._state.calls_each
        one = Cost(each, max(c.tokens for c in calls) * each, max(c.usd for c in calls) * each)
        return await self._ledger.reserve(
            step=order.step, arm=arm, wanted=len(left), one=one, keep=order.keep
        )

    async def _hand_over(
        self, order: Order, arm: int, left: list[int], handover: Handover, slots: asyncio.Semaphore
    ) -> None:
        """Hand over as many examples as were granted; take those that are settled out of `left`."""
        fail_point("sent")
        if not self._may_go_on():  # asked to stop, or frozen for longer than the lease, meanwhile
            await self._ledger.close(handover)
            return
        request = self._request(order, arm, left[: handover.n], handover.calls)
        is_in_doubt = True
        self._n_open += 1
        try:
            async with aclosing(self._scorer.score(request)) as lines:  # type: ignore[type-var]
                async for line in lines:
                    if isinstance(line, ScoreCondition):
                        await self._show(handover.number, line.condition)
                        continue
                    if await self._take(order, arm, handover, line):
                        left.remove(int(line.id))
                        slots.release()
            is_in_doubt = False
        except ScorerUnavailable as error:
            log.warning("%s", error.detail, extra={"job_id": self._state.job_id})
            await self._show(handover.number, "scorer_unavailable")
        finally:
            try:
                await self._ledger.close(handover, is_in_doubt=is_in_doubt)
            finally:
                self._n_open -= 1
                self._closed.set()
        if self._refusal is not None:
            raise self._refusal
        if not is_in_doubt:
            await self._show(handover.number, None)

    def _request(self, order: Order, arm: int, numbers: list[int], calls: int) -> ScoreRequest:
        spec = self._state.spec
        examples = self._state.examples(order.split)
        return ScoreRequest(
            job_id=self._state.job_id,
            tenant=spec.tenant,
            weight=spec.weight,
            target=spec.target,
            template=spec.template,
            instruction=self._state.arms[arm].text,
            examples=tuple(
                ScoreExample(id=str(n), input=examples[n].input, outputs=examples[n].output)
                for n in numbers
            ),
            metric=spec.metric,
            repeats=spec.repeats,
            calls=calls,
            cache=spec.cache,
        )

    async def _take(self, order: Order, arm: int, handover: Handover, line: ScoreLine) -> bool:
        """Store one line; return whether its example is settled."""
        error = line.error
        if error is not None and error.stops_job:
            self._refusal = TargetRefused(error.message, reason=error.code)
            await self._ledger.charge_failure(handover, line)
            return False
        if error is not None and error.retryable:
            await self._ledger.charge_failure(handover, line)
            return False
        number = int(line.id)
        fail_point("answered")
        await self._ledger.record(
            handover, line, step=order.step, split=order.split, arm=arm, example=number
        )
        fail_point("recorded")
        answered = None if line.score is None else Answered(line.score, line.answer or "")
        usage = line.usage
        self._state.settle(
            (order.split, arm, number), answered, usage.prompt_tokens, usage.completion_tokens
        )
        if answered is None:
            self._check_unanswerable(line)
        else:
            self._last_success = time.monotonic()
        return True

    def _check_unanswerable(self, line: ScoreLine) -> None:
        failed = len(self._state.unanswerable)
        total = failed + sum(len(answers) for answers in self._state.answers.values())
        if failed >= FEW and failed > MOST_UNANSWERABLE * total and line.error is not None:
            self._refusal = TargetRefused(
                f"{failed} of {total} examples have no answer; the last: {line.error.message}",
                reason="examples_refused",
            )

    async def _back_off(self, attempt: int) -> None:
        if time.monotonic() - self._last_success > PATIENCE_SECONDS:
            raise JobStopped(
                f"the target gave no answer for {PATIENCE_SECONDS / 60:.0f} minutes",
                reason="target_unavailable",
            )
        await asyncio.sleep(self._jitter.uniform(0, min(0.25 * 2**attempt, 20.0)))

    async def _show(self, handover: int, condition: str | None) -> None:
        """Show the condition on the job while any handover is in it."""
        before = set(self._waiting_for.values())
        if condition is None:
            self._waiting_for.pop(handover, None)
        else:
            self._waiting_for[handover] = condition
        after = set(self._waiting_for.values())
        for name in sorted(after - before):
            await self._ledger.set_condition(name, is_on=True)
        for name in sorted(before - after):
            await self._ledger.set_condition(name, is_on=False)


def first_error(errors: BaseExceptionGroup[Exception]) -> Exception:
    """Return the error that ended the group: a stop of the job before anything else."""
    flat: list[Exception] = []
    for error in errors.exceptions:
        flat.append(first_error(error) if isinstance(error, BaseExceptionGroup) else error)
    return next((error for error in flat if isinstance(error, JobStopped)), flat[0])
