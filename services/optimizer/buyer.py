"""Buy evaluations: hand examples to the scorer, a bounded number at a time, and store each answer.

Half as many examples again as the target takes at once are handed over at any moment, each under a
reservation that was committed before; a crash leaves at most those in doubt, and can repeat at most
the calls in flight.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import logging
import random
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Protocol

from instructzero.contracts import (
    ScoreCondition,
    ScoreExample,
    ScoreLine,
    ScoreRequest,
    TargetView,
)
from instructzero.errors import (
    JobStopped,
    ScorerNotReached,
    ScorerRefused,
    ScorerUnavailable,
    TargetRefused,
)
from services.optimizer import meters
from services.optimizer.failpoints import fail_point
from services.optimizer.jobs import Cost, worst_call
from services.optimizer.ledger import Handover, Ledger
from services.optimizer.orders import Bought, Chunk, Order
from services.optimizer.permission import Permission
from services.optimizer.results import Answered
from services.optimizer.state import JobState

log = logging.getLogger(__name__)
LARGEST_CHUNK = 8
"""Smaller ones would cost a commit for next to every answer."""
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


class Buyer:
    """Buys evaluations for one claimed job."""

    def __init__(
        self,
        state: JobState,
        ledger: Ledger,
        scorer: Scorer,
        permission: Permission,
    ) -> None:
        self._state = state
        self._ledger = ledger
        self._scorer = scorer
        self._permission = permission
        self._slots = asyncio.Semaphore(state.handed_over)
        self._chunk_size = max(1, min(LARGEST_CHUNK, state.in_flight // 2))
        self._entrance = asyncio.Lock()
        self._denied: set[int] = set()
        self._n_open = 0
        self._queue: list[tuple[int, int]] = []
        self._arrivals = itertools.count()
        self._moved = asyncio.Event()
        self._refusal: TargetRefused | None = None
        self._waiting_for: dict[Chunk, str] = {}
        self._last_success = time.monotonic()
        self._jitter = random.Random(0)  # noqa: S311 - spreads retries, decides nothing

    async def buy(self, order: Order) -> None:
        """Buy what is missing of an order, or as much of it as budget and people allow.

        Raises:
            TargetRefused: the target gave a terminal answer.
            LeaseLost: the job is not ours any more.
        """
        self._last_success = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group, self._entrance:  # earlier orders first
                missing = self._state.missing(order.pairs, order.split)
                for chunk in order.chunks(missing, self._chunk_size):
                    await self._take_slots(len(chunk.left))
                    group.create_task(self._buy_chunk(chunk))
                    if not self._may_buy(order):
                        break
        except* Exception as errors:
            raise first_error(errors) from errors
        if self._refusal is not None:
            while self._n_open:  # what is in flight for other steps is to be stored too
                self._moved.clear()
                await self._moved.wait()
            raise self._refusal

    def _may_buy(self, order: Order) -> bool:
        return order.step not in self._denied and self._may_send()

    def _may_send(self) -> bool:
        return self._refusal is None and self._permission.may_buy()

    async def _take_slots(self, n: int) -> None:
        """Take `n` slots; meanwhile the target works on what is handed over beyond its limit."""
        n_taken = 0
        try:
            while n_taken < n:
                await self._slots.acquire()
                n_taken += 1
        except asyncio.CancelledError:
            self._give_slots(n_taken)
            raise

    def _give_slots(self, n: int) -> None:
        for _ in range(n):
            self._slots.release()

    async def _buy_chunk(self, chunk: Chunk) -> None:
        attempt = 0
        try:
            while chunk.left and self._may_buy(chunk.order):
                handover = await self._reserve_in_turn(chunk)
                if handover is None:
                    break
                n_before = len(chunk.left)
                await self._hand_over(chunk, handover)
                if len(chunk.left) == n_before:
                    attempt += 1
                    await self._back_off(attempt)
        finally:
            self._give_slots(len(chunk.left))
        await self._show(chunk, None)

    async def _reserve_in_turn(self, chunk: Chunk) -> Handover | None:
        """Reserve; where there is no room, wait until a handover gives back what it did not use.

        Earlier steps are served first, or it would depend on who waits when which step the last of
        the budget goes to. None: with no handover open there is no room, or nobody may buy.
        """
        if not self._queue and (handover := await self._reserve(chunk)) is not None:
            return handover
        place = (chunk.order.step, next(self._arrivals))
        bisect.insort(self._queue, place)
        try:
            while self._may_buy(chunk.order):
                if self._queue[0] == place:
                    if (handover := await self._reserve(chunk)) is not None:
                        return handover
                    if self._n_open == 0:
                        self._denied.add(chunk.order.step)
                        break
                self._moved.clear()
                await self._moved.wait()
            return None
        finally:
            self._queue.remove(place)
            self._moved.set()

    async def _reserve(self, chunk: Chunk) -> Handover | None:
        state, order = self._state, chunk.order
        text, examples = state.arms[chunk.arm].text, state.examples(order.split)
        worst = Cost()
        for number in chunk.left:
            worst = worst.at_least(
                worst_call(state.spec, state.connections, text, examples[number])
            )
        wanted = len(chunk.left)
        keep = Cost() if order.is_check else state.keep
        state.n_checking += order.is_check * wanted  # at once: what is asked next keeps less
        handover = await self._ledger.reserve(
            step=order.step,
            arm=chunk.arm,
            wanted=wanted,
            one=worst.times(state.calls_each),
            keep=keep,
        )
        state.n_checking -= order.is_check * (wanted - (handover.n if handover else 0))
        return handover

    async def _hand_over(self, chunk: Chunk, handover: Handover) -> None:
        """Hand over as many examples as were granted; those that are answered leave the chunk."""
        fail_point("sent")
        if not self._may_send():  # refused, asked to stop, or frozen, meanwhile
            await self._ledger.close(handover)
            self._state.n_checking -= chunk.order.is_check * handover.n
            return
        request = self._request(chunk, handover)
        bought: list[Bought] = []
        is_in_doubt = True
        self._n_open += 1
        try:
            async with aclosing(self._scorer.score(request)) as lines:  # type: ignore[type-var]
                async for line in lines:
                    if isinstance(line, ScoreCondition):
                        await self._show(chunk, line.condition)
                    else:
                        bought.append(self._take(chunk, handover, line))
            is_in_doubt = False
        except ScorerRefused:
            is_in_doubt = False
            raise
        except ScorerUnavailable as error:
            is_in_doubt = not isinstance(error, ScorerNotReached)
            log.warning("%s", error.detail, extra={"job_id": self._state.job_id})
            await self._show(chunk, "scorer_unavailable")
        else:
            await self._show(chunk, None)
        finally:
            try:
                await self._ledger.close(handover, is_in_doubt=is_in_doubt)
                for one in bought:  # stored by now: they were written before
                    if await asyncio.shield(one.stored):
                        meters.note_evaluation(one.line)
                    self._settle(chunk, one)
                answered = [one for one in bought if one.example is not None]
                self._give_slots(sum(not one.line.calls for one in answered))
                self._state.n_checking -= chunk.order.is_check * (handover.n - len(answered))
            finally:
                self._n_open -= 1
                self._moved.set()

    def _request(self, chunk: Chunk, handover: Handover) -> ScoreRequest:
        spec = self._state.spec
        examples = self._state.examples(chunk.order.split)
        return ScoreRequest(
            job_id=self._state.job_id,
            tenant=spec.tenant,
            weight=spec.weight,
            target=spec.target,
            template=spec.template,
            instruction=self._state.arms[chunk.arm].text,
            examples=tuple(
                ScoreExample(id=str(n), input=examples[n].input, outputs=examples[n].output)
                for n in chunk.left[: handover.n]
            ),
            metric=spec.metric,
            repeats=spec.repeats,
            calls=handover.calls,
            cache=spec.cache,
            send_within_seconds=self._permission.signals.lease_seconds(),
        )

    def _take(self, chunk: Chunk, handover: Handover, line: ScoreLine) -> Bought:
        """Have one line stored; the slot of an example that was bought is free at once.

        What is reserved next is committed after it, or together with it, and an answer that took no
        call keeps its slot until the handover ends, as its call stays reserved: at no moment does
        the ledger hold more unanswered examples than there are slots.
        """
        error = line.error
        if error is not None and error.stops_job:
            self._refusal = TargetRefused(error.message, reason=error.code)
        if error is not None and (error.stops_job or error.retryable):
            return Bought(self._ledger.charge_failure(handover, line), line, None)
        number, order = int(line.id), chunk.order
        fail_point("answered")
        stored = self._ledger.record(
            handover, line, step=order.step, split=order.split, arm=chunk.arm, example=number
        )
        chunk.left.remove(number)
        if line.calls:
            self._give_slots(1)
        return Bought(stored, line, number)

    def _settle(self, chunk: Chunk, bought: Bought) -> None:
        """Let the state know of a stored line."""
        fail_point("recorded")
        line, number = bought.line, bought.example
        if number is None:
            return
        answered = None if line.score is None else Answered(line.score, line.answer or "")
        cost = Cost(
            self._state.calls_each,
            line.usage.prompt_tokens + line.usage.completion_tokens,
            line.usd or 0.0,
        )
        self._state.settle((chunk.order.split, chunk.arm, number), answered, cost)
        if answered is None:
            self._check_unanswerable(line)
        else:
            self._last_success = time.monotonic()

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

    async def _show(self, chunk: Chunk, condition: str | None) -> None:
        """Show the condition on the job while any chunk is in it."""
        before = set(self._waiting_for.values())
        if condition is None:
            self._waiting_for.pop(chunk, None)
        else:
            self._waiting_for[chunk] = condition
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
