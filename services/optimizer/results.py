"""The result document, from what the database holds: pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from instructzero.contracts import (
    Best,
    ChangedExample,
    Comparison,
    Example,
    Measured,
    ResultEntry,
    Verdict,
)
from services.optimizer.search import report
from services.optimizer.search.report import score_interval

LEVEL = 0.90


@dataclass(frozen=True)
class Answered:
    """A stored evaluation that has a score."""

    score: float
    answer: str


Answers = Mapping[int, Answered]
"""By example number."""


def measured(answers: Answers) -> Measured | None:
    """Return the mean score over all answers with its interval, None without answers."""
    if not answers:
        return None
    found = score_interval([answers[key].score for key in sorted(answers)], LEVEL)
    return Measured(score=found.mean, interval=(found.low, found.high), n=len(answers))


def leader(instruction: str, trial: int, answers: Answers) -> Best | None:
    """Return the leader as a running job shows it."""
    found = measured(answers)
    if found is None:
        return None
    return Best(
        instruction=instruction,
        trial=trial,
        score=found.score,
        interval=found.interval,
        n_examples=found.n,
    )


def entry(
    instruction: str, *, trial: int | None, validation: Answers, test: Answers
) -> ResultEntry:
    """Return what was measured of one instruction."""
    return ResultEntry(
        instruction=instruction,
        trial=trial,
        validation=measured(validation),
        test=measured(test),
    )


def compare(
    *,
    reference: Literal["baseline", "empty"],
    is_same_text: bool,
    winner: Answers,
    other: Answers,
    examples: Sequence[Example],
) -> Comparison:
    """Compare the winner with its reference on the test examples that both answered."""
    shared = sorted(set(winner) & set(other))
    pairs = [(number, winner[number], other[number]) for number in shared]
    difference = (
        report.paired_difference([w.score for _, w, _ in pairs], [o.score for _, _, o in pairs])
        if pairs
        else None
    )
    found = Verdict(report.verdict(difference, len(pairs), is_same_text))

    def changed(number: int, mine: Answered, theirs: Answered) -> ChangedExample:
        return ChangedExample(
            example=number,
            input=examples[number].input,
            expected=examples[number].output,
            winner_answer=mine.answer,
            reference_answer=theirs.answer,
            winner_score=mine.score,
            reference_score=theirs.score,
        )

    return Comparison(
        reference=reference,
        difference=difference.difference if difference else None,
        interval=(difference.low, difference.high) if difference else None,
        n=len(pairs),
        fixed=tuple(changed(*pair) for pair in pairs if pair[1].score > pair[2].score),
        broken=tuple(changed(*pair) for pair in pairs if pair[1].score < pair[2].score),
        verdict=found,
        explanation=_explain(found, reference, len(pairs), is_same_text=is_same_text),
    )


def _explain(verdict: Verdict, reference: str, n: int, *, is_same_text: bool) -> str:
    name = "the baseline" if reference == "baseline" else "the empty instruction"
    if is_same_text:
        return f"The search found nothing it prefers to {name}: the winner is the same text."
    if verdict is Verdict.BETTER:
        return (
            f"On {n} fresh examples the winner beats {name}: "
            "the 90 % interval of the paired difference lies above zero."
        )
    if verdict is Verdict.NOT_BETTER:
        return (
            f"On {n} fresh examples the winner is not better than {name} by more than "
            f"{report.WORTH_HAVING:.2f}: the 90 % interval ends below that."
        )
    if n < report.MIN_PAIRS:
        return (
            f"Only {n} fresh examples were measured under both instructions; a verdict needs "
            f"{report.MIN_PAIRS}. Give more test examples or a larger budget."
        )
    return (
        f"{n} fresh examples do not tell the winner from {name}: "
        "the 90 % interval of the paired difference holds both zero and a gain worth having."
    )


def digest(trials: Sequence[Mapping[str, object]]) -> str:
    """Return the SHA-256 of what was tried: equal for two runs of one spec, seed and target."""
    canonical = json.dumps(trials, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
