"""Statistics of the final report: intervals, the paired comparison, the verdict, the plan.

Everything here is about examples the winner was *not* selected on. Scores lie in [0, 1] and may
be fractional; the intervals are the usual ones for 0/1 scores and shrink with their variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np

Verdict = Literal["better", "not_better", "not_enough_data"]
Measured = Literal["winner", "baseline", "empty"]

WORTH_HAVING = 0.10
"""A difference below this is not worth a new instruction: `not_better` must exclude more."""
MIN_PAIRS = 20
"""With fewer paired examples there is no verdict."""
MAX_EXAMPLES = 100
"""More examples per arm than this narrow the interval too little to be worth their price."""
MIN_EXAMPLES = 5
"""Fewer examples than this say nothing worth a call."""
LEAST_RATIO = 0.2
"""Scores that happen to be all the same fraction are not free of noise."""
RESERVED_SHARE = 0.20
"""Share of the calls the final check aims at; the rest buys the search."""
LARGEST_SHARE = 0.25
"""Share of the calls the final check never exceeds."""
THIRD_ARM_EXAMPLES = 60
"""The empty instruction is measured beside a baseline if every arm still gets this many."""


class Interval(NamedTuple):
    """A mean score with its two-sided interval."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """Mean paired difference, winner minus reference, with its two-sided interval."""

    difference: float
    low: float
    high: float


class FinalCheckPlan(NamedTuple):
    """What the final check will buy.

    Attributes:
        n_examples: fresh examples for each measured arm, the same for all.
        arms: which arms are measured, in the order in which they are bought.
        reserved_calls: n_examples x number of arms.
    """

    n_examples: int
    arms: tuple[Measured, ...]
    reserved_calls: int


def score_interval(scores: Sequence[float], level: float = 0.90) -> Interval:
    """Interval for the mean of scores in [0, 1].

    Wilson's interval on an effective number of examples: fractional scores vary less than 0/1
    scores of the same mean, n_eff = n x (Bernoulli variance) / (their variance); for 0/1 scores
    n_eff = n, and the same for scores that are all 0 or all 1.

    Args:
        scores: n values in [0, 1], n >= 1.
        level: two-sided confidence level.
    """
    values = np.asarray(scores, dtype=np.float64)
    n, mean = len(values), float(values.mean())
    bernoulli = mean * (1.0 - mean)
    ratio = float(values.var(ddof=1)) / bernoulli if n > 1 and bernoulli > 0.0 else 1.0
    n_effective = n / min(max(ratio, LEAST_RATIO / n), 1.0)
    z = _quantile(level)
    centre = (mean + z * z / (2 * n_effective)) / (1 + z * z / n_effective)
    spread = mean * (1.0 - mean) / n_effective + z * z / (4 * n_effective**2)
    half = z * math.sqrt(spread) / (1 + z * z / n_effective)
    low, high = min(centre - half, mean), max(centre + half, mean)  # rounding aside
    return Interval(mean, max(0.0, low), min(1.0, high))


def paired_difference(
    winner: Sequence[float], reference: Sequence[float], level: float = 0.90
) -> Difference:
    """Interval for the mean difference of two arms measured on the same examples.

    Agresti and Min (2005): half a pseudo-example in each of the four cells (both right, one right,
    the other right, none right), then Wald. Without them the interval collapses to a point as soon
    as the two arms agree everywhere.

    Args:
        winner: n scores in [0, 1], n >= 1.
        reference: n scores of the same examples in the same order.
        level: two-sided confidence level.

    Raises:
        ValueError: the lengths differ.
    """
    if len(winner) != len(reference):
        raise ValueError("paired scores must have equal lengths")
    differences = np.asarray(winner, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    n = len(differences) + 2.0
    centre = float(differences.sum()) / n
    variance = (float((differences**2).sum()) + 1.0) / n - centre**2
    half = _quantile(level) * math.sqrt(variance / n)
    return Difference(float(differences.mean()), max(-1.0, centre - half), min(1.0, centre + half))


def verdict(difference: Difference | None, n_pairs: int, is_same_text: bool = False) -> Verdict:
    """Say whether the winner beats the reference.

    Args:
        difference: the paired difference; None when it was not measured.
        n_pairs: number of paired examples behind it.
        is_same_text: the winner is the reference, nothing need be measured.
    """
    if is_same_text:
        return "not_better"
    if difference is None or n_pairs < MIN_PAIRS:
        return "not_enough_data"
    if difference.low > 0.0:
        return "better"
    if difference.high <= WORTH_HAVING:
        return "not_better"
    return "not_enough_data"


def plan_final_check(budget_calls: int | None, n_test: int, has_baseline: bool) -> FinalCheckPlan:
    """Decide how many calls to set aside and for which arms.

    The winner first, then the reference of the comparison (the baseline when there is one, else the
    empty instruction), then the empty instruction if that leaves enough examples for all three. A
    fifth of the calls, up to a quarter where that makes the smallest comparison possible.

    Args:
        budget_calls: the job's budget of calls; None when not bounded.
        n_test: number of examples that the search does not use.
        has_baseline: the job gave its current instruction.
    """
    if budget_calls is None:
        share = most = 3 * MAX_EXAMPLES
    else:
        share = math.floor(RESERVED_SHARE * budget_calls)
        most = math.floor(LARGEST_SHARE * budget_calls)
    wanted = min(MAX_EXAMPLES, n_test)
    reference: Measured = "baseline" if has_baseline else "empty"
    three: tuple[Measured, ...] = ("winner", "baseline", "empty")
    if has_baseline and min(wanted, share // 3) >= min(wanted, THIRD_ARM_EXAMPLES):
        return _plan(min(wanted, share // 3), three)
    pairs = min(wanted, max(share // 2, min(most // 2, MIN_PAIRS)))
    if pairs >= min(wanted, MIN_PAIRS):
        return _plan(pairs, ("winner", reference))
    return _plan(min(wanted, share), ("winner",))


def _plan(n_examples: int, arms: tuple[Measured, ...]) -> FinalCheckPlan:
    if n_examples < MIN_EXAMPLES:
        return FinalCheckPlan(0, (), 0)
    return FinalCheckPlan(n_examples, arms, n_examples * len(arms))


def _quantile(level: float) -> float:
    return NormalDist().inv_cdf(0.5 + level / 2)
