"""An instruction on examples: fan out, buy or find each answer, score it, stream the lines."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncGenerator, Sequence

from instructzero.contracts import (
    ScoreCondition,
    ScoreError,
    ScoreExample,
    ScoreLine,
    ScoreRequest,
    TargetView,
    render,
)
from instructzero.errors import FieldProblem, InstructZeroError, InvalidRequest, Overloaded
from services.scorer.answers import Answers
from services.scorer.breaker import Breaker
from services.scorer.cache import AnswerCache, CachedAnswer, MemoryCache, answer_key
from services.scorer.conditions import Waits
from services.scorer.connection import Connection, Message
from services.scorer.failures import Failure
from services.scorer.metrics import check_outputs, score_answer
from services.scorer.purchase import Bill, CallPool, Counter, Order
from services.scorer.rate_limit import LocalGate, RateLimiter
from services.scorer.settings import Settings
from services.scorer.targets import Target, Targets

Line = ScoreLine | ScoreCondition


class ScorerPool:
    """Scores instructions on registered targets, within their limits, buying no answer twice."""

    def __init__(
        self,
        targets: Targets,
        *,
        settings: Settings | None = None,
        limiter: RateLimiter | None = None,
        cache: AnswerCache | None = None,
    ) -> None:
        """Take the parts; by default limits and answers are this process's own."""
        self._targets = targets
        self._settings = settings or Settings()
        self._limiter = limiter or RateLimiter(LocalGate())
        self._answers = Answers(
            cache
            or MemoryCache(
                ttl_seconds=self._settings.answer_ttl_seconds,
                max_entries=self._settings.cache_entries,
            )
        )
        self._counters: dict[str, Counter] = {}
        self._n_waiting = 0

    async def score(self, request: ScoreRequest) -> AsyncGenerator[Line, None]:
        """Yield a line an example, as soon as its answer is known, and what is waited for.

        Each answer is in the cache before its line comes. Closing the iterator cancels what is in
        flight.

        Raises:
            InvalidRequest: an expected output is not valid for the metric; nothing was spent.
            UnknownTarget: the target is not registered.
            Overloaded: more examples are in hand than this process takes.
        """
        self.check(request)
        counter = self._counter(self._targets.get(request.target))
        lines: asyncio.Queue[Line | None] = asyncio.Queue()
        order = Order(
            job=request.job_id,
            weight=request.weight,
            pool=CallPool(request.calls),
            waits=Waits(
                lambda condition: lines.put_nowait(ScoreCondition(condition=condition)),
                self._settings.condition_after_seconds,
            ),
        )
        self._n_waiting += len(request.examples)
        work = asyncio.create_task(self._score_all(request, counter, order, lines))
        work.add_done_callback(lambda _: lines.put_nowait(None))
        try:
            while (line := await lines.get()) is not None:
                yield line
            await work
        finally:
            self._n_waiting -= len(request.examples)
            work.cancel()
            await asyncio.wait({work})

    def check(self, request: ScoreRequest) -> None:
        """Refuse what cannot be scored, before anything is spent; raises what `score` raises."""
        self._targets.get(request.target)
        problems = [
            FieldProblem(f"/examples/{index}/outputs", problem)
            for index, example in enumerate(request.examples)
            if (problem := check_outputs(request.metric, example.outputs)) is not None
        ]
        if len({example.id for example in request.examples}) < len(request.examples):
            problems.append(FieldProblem("/examples", "two examples have the same id"))
        if problems:
            first = problems[0]
            raise InvalidRequest(f"{first.pointer}: {first.detail}", errors=problems[:100])
        if self._n_waiting + len(request.examples) > self._settings.max_waiting:
            raise Overloaded("too many examples are waiting in this scorer", retry_after_seconds=5)

    async def targets(self) -> tuple[TargetView, ...]:
        """Return the registered targets that are not private."""
        return tuple(target.view() for target in self._targets if not target.config.private)

    async def probe(self, target: str) -> Failure | None:
        """Ask whether a target answers, without a paid call; None if it does.

        Raises:
            UnknownTarget: the target is not registered.
        """
        return await self._counter(self._targets.get(target)).connection.probe()

    async def ready(self) -> dict[str, str]:
        """Return {part: "ok" or what is wrong} of what this pool needs of its own."""
        return {"limiter": await self._limiter.ready()}

    async def aclose(self) -> None:
        """Close all connections."""
        for counter in self._counters.values():
            await counter.connection.aclose()
        await self._answers.aclose()
        await self._limiter.aclose()

    def _counter(self, target: Target) -> Counter:
        if target.name not in self._counters:
            self._counters[target.name] = Counter(
                connection=Connection(target, self._settings),
                limiter=self._limiter,
                breaker=Breaker(
                    failures=self._settings.breaker_failures,
                    pause_seconds=self._settings.breaker_open_seconds,
                ),
                settings=self._settings,
            )
        return self._counters[target.name]

    async def _score_all(
        self,
        request: ScoreRequest,
        counter: Counter,
        order: Order,
        lines: asyncio.Queue[Line | None],
    ) -> None:
        async with asyncio.TaskGroup() as group:
            for example in request.examples:
                group.create_task(self._score_one(request, example, counter, order, lines))

    async def _score_one(
        self,
        request: ScoreRequest,
        example: ScoreExample,
        counter: Counter,
        order: Order,
        lines: asyncio.Queue[Line | None],
    ) -> None:
        bill = Bill(usd=0.0 if counter.connection.target.config.price else None)
        messages = ask_of(request, example)
        answers: list[CachedAnswer] = []
        scores: list[float] = []
        error: ScoreError | None = None
        for repeat in range(request.repeats):
            key = self._key(request, counter.connection.target, messages, repeat)
            answer = await self._answer(counter, order, bill, messages, key)
            if isinstance(answer, ScoreError):
                error = answer
                break
            answers.append(answer)
            try:
                scores.append(self._score(request, example, answer))
            except InstructZeroError as problem:
                error = ScoreError(code=problem.reason, message=problem.detail)
                break
        lines.put_nowait(_line(example.id, bill, answers, scores, error))

    async def _answer(
        self, counter: Counter, order: Order, bill: Bill, messages: Sequence[Message], key: str
    ) -> CachedAnswer | ScoreError:
        async def buy() -> CachedAnswer | ScoreError:
            return await counter.buy(order, bill, messages)

        return await self._answers.get_or_buy(key, buy, order.waits)

    def _score(self, request: ScoreRequest, example: ScoreExample, answer: CachedAnswer) -> float:
        if answer.is_refused:
            return 0.0
        return score_answer(request.metric, answer.text, example.outputs)

    def _key(
        self, request: ScoreRequest, target: Target, messages: Sequence[Message], repeat: int
    ) -> str:
        return answer_key(
            base_url=target.config.base_url,
            body=target.config.body(),
            messages=messages,
            tenant=request.tenant,
            repeat=repeat,
            job_id=None if request.cache else request.job_id,
        )


def ask_of(request: ScoreRequest, example: ScoreExample) -> list[Message]:
    """Return the messages that put one example to the target."""
    text = render(request.template, instruction=request.instruction, text=example.input)
    return [{"role": "user", "content": text}]


def _line(
    example_id: str,
    bill: Bill,
    answers: Sequence[CachedAnswer],
    scores: Sequence[float],
    error: ScoreError | None,
) -> ScoreLine:
    return ScoreLine(
        id=example_id,
        answer=answers[0].text if answers else None,
        score=statistics.fmean(scores) if error is None else None,
        usage=bill.usage(),
        cached=error is None and bill.calls == 0,
        error=error,
        refused=any(answer.is_refused for answer in answers),
        calls=bill.calls,
        failed_calls=bill.failed_calls,
        usd=bill.usd,
        latency_ms=bill.seconds * 1000 if bill.calls else None,
    )
