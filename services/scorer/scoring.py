"""An instruction on examples: fan out, buy or find each answer, score it, stream the lines."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from functools import partial

from instructzero.contracts import (
    MetricName,
    ScoreError,
    ScoreLine,
    ScoreRequest,
    TargetView,
    render,
)
from instructzero.errors import FieldProblem, InstructZeroError, InvalidRequest, Overloaded
from services.scorer import meters
from services.scorer.answers import Answers
from services.scorer.bill import Bill
from services.scorer.breaker import Breaker
from services.scorer.cache import AnswerCache, CachedAnswer, MemoryCache, answer_key
from services.scorer.conditions import Waits
from services.scorer.connection import Connection, Message
from services.scorer.failures import Failure
from services.scorer.judge import judge_messages, read_grade
from services.scorer.lines import Line, Put, ScoreStream
from services.scorer.metrics import check_outputs, score_answer
from services.scorer.purchase import CallPool, Counter, Order
from services.scorer.rate_limit import LocalGate, RateLimiter
from services.scorer.settings import Settings
from services.scorer.targets import Target, Targets
from services.scorer.wanted import Case, Terms, TermsInUse, cases_of
from services.scorer.webhook import ScoringWebhook


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
        self._webhooks: dict[str, ScoringWebhook] = {}
        self._terms = TermsInUse()
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
        stream = self.begin(request)
        try:
            while (line := await stream.next()) is not None:
                yield line
        finally:
            stream.cancel()
            await stream.ended()

    def begin(self, request: ScoreRequest) -> ScoreStream:
        """Start to score; raises what `score` raises."""
        self.check(request)
        stream = ScoreStream()
        within = request.send_within_seconds
        order = Order(
            job=request.job_id,
            weight=request.weight,
            pool=CallPool(request.calls),
            waits=Waits(stream.put_condition, self._settings.condition_after_seconds),
            send_until=None if within is None else asyncio.get_running_loop().time() + within,
        )
        terms, cases = self._terms.of(request), cases_of(request)
        self._n_waiting += len(cases)
        meters.EXAMPLES.inc(len(cases))
        if len(cases) == 1:  # no second task for it
            work = self._score_one(terms, cases[0], order, stream.put)
        else:
            work = self._score_all(terms, cases, order, stream.put)
        stream.run(work, partial(self._end, len(cases)))
        return stream

    def check(self, request: ScoreRequest) -> None:
        """Refuse what cannot be scored, before anything is spent; raises what `score` raises."""
        self._targets.get(request.target)
        if request.metric.name is MetricName.JUDGE:
            self._targets.get(request.metric.target or "", pointer="/metric/target")
        if request.metric.name is MetricName.WEBHOOK:
            self._targets.webhook(request.metric.webhook or "")
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
        """Return the registered targets."""
        return tuple(target.view() for target in self._targets)

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
        for webhook in self._webhooks.values():
            await webhook.aclose()
        await self._answers.aclose()
        await self._limiter.aclose()

    def _end(self, n_examples: int) -> None:
        self._n_waiting -= n_examples
        meters.EXAMPLES.dec(n_examples)

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

    def _webhook(self, name: str) -> ScoringWebhook:
        if name not in self._webhooks:
            self._webhooks[name] = ScoringWebhook(self._targets.webhook(name), self._settings)
        return self._webhooks[name]

    async def _score_all(self, terms: Terms, cases: list[Case], order: Order, put: Put) -> None:
        async with asyncio.TaskGroup() as group:
            for case in cases:
                group.create_task(self._score_one(terms, case, order, put))

    async def _score_one(self, terms: Terms, case: Case, order: Order, put: Put) -> None:
        bill, judging = self._bill(terms.target), None
        if terms.metric.name is MetricName.JUDGE:
            judging = self._bill(terms.metric.target or "")
        outcome = Outcome(bill, judging)
        for repeat in range(terms.repeats):
            answer = await self._answer(
                terms, terms.target, ask_of(terms, case), repeat, order, bill
            )
            if isinstance(answer, ScoreError):
                outcome.error = answer
                break
            outcome.answers.append(answer)
            score = await self._score(terms, case, answer, order, judging)
            if isinstance(score, ScoreError):
                outcome.error = score
                if score.stops_job:
                    order.stop = score  # no answer is bought that nobody can score
                break
            outcome.scores.append(score)
        put(outcome.line(case.id))

    async def _answer(
        self,
        terms: Terms,
        name: str,
        messages: Sequence[Message],
        repeat: int,
        order: Order,
        bill: Bill,
    ) -> CachedAnswer | ScoreError:
        """Find or buy what one target answers to some messages."""
        counter = self._counter(self._targets.get(name))
        connection = counter.connection
        key = answer_key(
            base_url=connection.target.config.base_url,
            body=connection.body,
            messages=messages,
            tenant=terms.tenant,
            repeat=repeat,
            job_id=None if terms.cache else terms.job_id,
        )
        n_calls = bill.calls
        buy = partial(counter.buy, order, bill, messages)
        answer = await self._answers.get_or_buy(key, buy, order.waits)
        if isinstance(answer, CachedAnswer) and bill.calls == n_calls:
            meters.CACHED.labels(name).inc()
        return answer

    async def _score(
        self,
        terms: Terms,
        case: Case,
        answer: CachedAnswer,
        order: Order,
        judging: Bill | None,
    ) -> float | ScoreError:
        if answer.is_refused:
            return 0.0
        if judging is not None:
            return await self._judge(terms, case, answer, order, judging)
        if terms.metric.name is MetricName.WEBHOOK:
            webhook = self._webhook(terms.metric.webhook or "")
            return await webhook.score(terms, case, answer.text, order.waits)
        try:
            return score_answer(terms.metric, answer.text, case.outputs)
        except InstructZeroError as problem:
            return ScoreError(code=problem.reason, message=problem.detail)

    async def _judge(
        self,
        terms: Terms,
        case: Case,
        answer: CachedAnswer,
        order: Order,
        bill: Bill,
    ) -> float | ScoreError:
        """Buy a grade; one that cannot be read is asked for once more."""
        name, rubric = terms.metric.target or "", terms.metric.rubric or ""
        sampling = self._targets.get(terms.target).config.sampling
        messages = judge_messages(rubric, case, answer.text, max_tokens=sampling.max_tokens)
        for attempt in range(2):
            reply = await self._answer(terms, name, messages, attempt, order, bill)
            if isinstance(reply, ScoreError):
                return reply
            if not reply.is_refused and (grade := read_grade(reply.text)) is not None:
                return grade
        return ScoreError(
            code="judge_unreadable",
            message=f"the judge {name} gave no grade from 0 to 10; if its replies are cut off, "
            "raise max_tokens of that target",
        )

    def _bill(self, target: str) -> Bill:
        return Bill(usd=0.0 if self._targets.get(target).config.price else None)


@dataclass(slots=True)
class Outcome:
    """What is known of one example: its answers, their scores, and what both have cost."""

    bill: Bill
    judging: Bill | None
    answers: list[CachedAnswer] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    error: ScoreError | None = None

    def line(self, example_id: str) -> ScoreLine:
        """Return the line; its cost is the judge's too."""
        judging, error = self.judging, self.error
        total = self.bill if judging is None else self.bill.plus(judging)
        return ScoreLine(
            id=example_id,
            answer=self.answers[0].text if self.answers else None,
            score=statistics.fmean(self.scores) if error is None else None,
            usage=total.usage(),
            cached=error is None and total.calls == 0,
            error=error,
            refused=any(answer.is_refused for answer in self.answers),
            calls=total.calls,
            failed_calls=total.failed_calls,
            usd=total.usd,
            latency_ms=self.bill.seconds * 1000 if self.bill.calls else None,
            judge=None if judging is None else judging.spend(),
        )


def ask_of(terms: Terms, case: Case) -> list[Message]:
    """Return the messages that put one example to the target."""
    text = render(terms.template, instruction=terms.instruction, text=case.input)
    return [{"role": "user", "content": text}]
