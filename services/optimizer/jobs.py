"""Status transitions, splits and budget arithmetic: pure functions of a job's spec and ledger."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from instructzero.contracts import (
    JUDGE_WORDING_BYTES,
    JUDGED_BYTES_PER_TOKEN,
    MIN_VALIDATION,
    Example,
    JobSpec,
    JobStatus,
    MetricName,
    TargetView,
    render,
)

NEXT: Mapping[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.PAUSED, JobStatus.CANCELLED}),
    JobStatus.PAUSED: frozenset({JobStatus.QUEUED, JobStatus.CANCELLED}),
    JobStatus.RUNNING: frozenset(
        {
            JobStatus.QUEUED,
            JobStatus.PAUSED,
            JobStatus.SUCCEEDED,
            JobStatus.FAILED,
            JobStatus.CANCELLED,
        }
    ),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
}

TOKENS_AROUND_A_MESSAGE = 64
"""Upper bound of what a chat protocol adds to the text of one message."""
GUESS_MARGIN = 4
"""Where only tokens or money bound a job, plan for calls this much cheaper than the guess."""
SEARCH_SHARE_OF_TIME = 0.8
"""Share of `budget.seconds` after which the search ends, so that the final check has time."""


@dataclass(frozen=True)
class Splits:
    """The examples the search may see, and those the winner is measured on."""

    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    test_set: Literal["given", "held_out", "none"]


def split_examples(spec: JobSpec) -> Splits:
    """Return validation and test examples.

    Without a test set a third of the validation examples is set aside, in an order that depends on
    the seed alone, as long as `MIN_VALIDATION` examples stay; with too few, there is no test.
    """
    validation = spec.task.validation
    if spec.task.test:
        return Splits(validation, spec.task.test, "given")
    held = min(len(validation) // 3, len(validation) - MIN_VALIDATION)
    if held <= 0:
        return Splits(validation, (), "none")

    def rank(index: int) -> bytes:
        return hashlib.sha256(f"{spec.seed}:held_out:{index}".encode()).digest()

    chosen = set(sorted(range(len(validation)), key=rank)[:held])
    return Splits(
        tuple(e for i, e in enumerate(validation) if i not in chosen),
        tuple(e for i, e in enumerate(validation) if i in chosen),
        "held_out",
    )


def calls_per_evaluation(spec: JobSpec) -> int:
    """Return how many requests one (instruction, example) needs when none fails."""
    return spec.repeats * (2 if spec.metric.name is MetricName.JUDGE else 1)


@dataclass(frozen=True)
class Connections:
    """What a job calls: its target, and the judge if one grades the answers."""

    target: TargetView
    judge: TargetView | None = None

    @classmethod
    def of(cls, spec: JobSpec, known: Mapping[str, TargetView]) -> Connections:
        """Return the connections that a spec names.

        Raises:
            KeyError: with the name of one that is not known.
        """
        is_judged = spec.metric.name is MetricName.JUDGE
        return cls(known[spec.target], known[spec.metric.target or ""] if is_judged else None)

    @property
    def has_price(self) -> bool:
        """Whether anything that the job calls has a price."""
        return any(one is not None and one.price is not None for one in (self.target, self.judge))


@dataclass(frozen=True)
class Cost:
    """Calls, tokens and money; of one call the most it can cost, of a job what it has cost."""

    calls: int = 0
    tokens: int = 0
    usd: float = 0.0

    def times(self, n: int) -> Cost:
        """Return the cost of n such calls."""
        return Cost(self.calls * n, self.tokens * n, self.usd * n)

    def plus(self, other: Cost) -> Cost:
        """Return the sum."""
        return Cost(self.calls + other.calls, self.tokens + other.tokens, self.usd + other.usd)

    def at_least(self, other: Cost) -> Cost:
        """Return the larger of each number."""
        return Cost(
            max(self.calls, other.calls),
            max(self.tokens, other.tokens),
            max(self.usd, other.usd),
        )


def money(target: TargetView, prompt_tokens: float, completion_tokens: float) -> float:
    """Return what some tokens cost in US dollars; 0 without a price."""
    price = target.price or {}
    into, out = (
        float(str(price.get(name) or 0)) for name in ("input_per_million", "output_per_million")
    )
    return (prompt_tokens * into + completion_tokens * out) / 1e6


def worst_call(spec: JobSpec, connections: Connections, instruction: str, example: Example) -> Cost:
    """Return the most that one call can cost, whether of the target or of the judge.

    A token holds at least one byte of UTF-8.
    """
    target, judge = connections.target, connections.judge
    rendered = render(spec.template, instruction=instruction, text=example.input)
    worst = _bounded_call(target, len(rendered.encode()))
    if judge is None:
        return worst
    read = (spec.metric.rubric or "", example.input, json.dumps(example.output, ensure_ascii=False))
    answer = JUDGED_BYTES_PER_TOKEN * target.max_tokens
    n_bytes = sum(len(text.encode()) for text in read) + answer + JUDGE_WORDING_BYTES
    return worst.at_least(_bounded_call(judge, n_bytes))


def _bounded_call(target: TargetView, n_bytes: int) -> Cost:
    prompt = n_bytes + TOKENS_AROUND_A_MESSAGE
    return Cost(1, prompt + target.max_tokens, money(target, prompt, target.max_tokens))


@dataclass(frozen=True)
class Texts:
    """What texts and answers are taken to be like before any was seen.

    Attributes:
        instruction_bytes: length of an instruction; None: all that the generator may write.
        bytes_per_token: of what is read.
        around: tokens that the protocol adds to a message.
        answer_share: of the tokens that an answer may have; at least one is written.
    """

    instruction_bytes: int | None
    bytes_per_token: float
    around: int
    answer_share: float


SHORT = Texts(20, 5.0, 0, 0.0)
TYPICAL = Texts(80, 4.0, 0, 0.5)
LONG = Texts(None, 2.5, 20, 1.0)


def typical_call(
    spec: JobSpec, connections: Connections, splits: Splits, texts: Texts = TYPICAL
) -> Cost:
    """Guess at an average call before any was made."""
    target, judge = connections.target, connections.judge
    examples = (*splits.validation, *splits.test)
    text = sum(len(example.input.encode()) for example in examples) / len(examples)
    instruction = texts.instruction_bytes or 4 * spec.generator.max_tokens
    per_token, around = texts.bytes_per_token, texts.around
    prompt = (len(spec.template.encode()) + instruction + text) / per_token + around
    answer = texts.answer_share * target.max_tokens or 1.0
    tokens, usd = prompt + answer, money(target, prompt, answer)
    if judge is not None:  # every other call is the judge's
        rubric = len((spec.metric.rubric or "").encode())
        prompt = (JUDGE_WORDING_BYTES + rubric + 2 * text) / per_token + answer + around
        grade = texts.answer_share * judge.max_tokens or 1.0
        tokens = (tokens + prompt + grade) / 2
        usd = (usd + money(judge, prompt, grade)) / 2
    return Cost(1, math.ceil(tokens), usd)


def affordable_calls(spec: JobSpec, call: Cost) -> int | None:
    """Return how many such calls the budget pays for; None when nothing bounds them."""
    bounds = []
    if spec.budget.calls is not None:
        bounds.append(spec.budget.calls)
    if spec.budget.tokens is not None:
        bounds.append(spec.budget.tokens // max(call.tokens, 1))
    if spec.budget.usd is not None and call.usd > 0:
        bounds.append(int(spec.budget.usd / call.usd))
    return min(bounds) if bounds else None


def fits(spec: JobSpec, spent: Cost, more: Cost) -> bool:
    """Return whether the budget still holds after `more` is spent on top of `spent`."""
    total, budget = spent.plus(more), spec.budget
    return (
        (budget.calls is None or total.calls <= budget.calls)
        and (budget.tokens is None or total.tokens <= budget.tokens)
        and (budget.usd is None or total.usd <= budget.usd + 1e-12)
    )


def how_many_fit(spec: JobSpec, spent: Cost, one: Cost, wanted: int) -> int:
    """Return the largest n <= wanted such that n times `one` still fits."""
    n = wanted
    while n > 0 and not fits(spec, spent, one.times(n)):
        n -= 1
    return n
