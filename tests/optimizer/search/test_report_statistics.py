"""The statistics of the final report: by hand, and by coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from services.optimizer.search.racing import (
    LOOK_AHEAD,
    TAIL,
    knowledge_gradient,
    normal_gain,
    student_gain,
)
from services.optimizer.search.report import (
    Difference,
    paired_difference,
    plan_final_check,
    score_interval,
    verdict,
)


def test_wilson_interval_by_hand() -> None:
    found = score_interval([1.0] * 8 + [0.0] * 2, level=0.90)
    z = 1.6448536
    centre = (0.8 + z * z / 20) / (1 + z * z / 10)
    half = z * math.sqrt(0.16 / 10 + z * z / 400) / (1 + z * z / 10)
    assert found.mean == pytest.approx(0.8)
    assert found.low == pytest.approx(centre - half, abs=1e-3)
    assert found.high == pytest.approx(centre + half, abs=1e-3)


@pytest.mark.parametrize("p", [0.3, 0.7, 0.95])
def test_intervals_cover_what_they_say(p: float) -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(2000):
        found = score_interval((rng.uniform(size=60) < p).astype(float).tolist())
        covered += found.low <= p <= found.high
    assert 0.86 <= covered / 2000 <= 0.95


def test_graded_scores_have_narrower_intervals() -> None:
    graded = score_interval([0.4, 0.6] * 20)
    binary = score_interval([0.0, 1.0] * 20)
    assert graded.high - graded.low < 0.5 * (binary.high - binary.low)


def test_paired_differences_cover_what_they_say() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(2000):
        hard = rng.normal(size=80)
        winner = (rng.normal(size=80) + 1.2 > hard).astype(float)
        reference = (rng.normal(size=80) + 0.4 > hard).astype(float)
        truth = 0.8019 - 0.6114  # P(N(0, 2) < 1.2) - P(N(0, 2) < 0.4)
        found = paired_difference(winner.tolist(), reference.tolist())
        covered += found.low <= truth <= found.high
    assert 0.86 <= covered / 2000 <= 0.95


def test_paired_scores_must_have_equal_lengths() -> None:
    with pytest.raises(ValueError, match="equal lengths"):
        paired_difference([1.0], [1.0, 0.0])


@pytest.mark.parametrize(
    ("difference", "n", "is_same", "expected"),
    [
        (Difference(0.2, 0.05, 0.35), 60, False, "better"),
        (Difference(0.2, 0.05, 0.35), 19, False, "not_enough_data"),
        (Difference(0.0, -0.1, 0.09), 60, False, "not_better"),
        (Difference(0.05, -0.1, 0.2), 60, False, "not_enough_data"),
        (Difference(-0.3, -0.5, -0.1), 60, False, "not_better"),
        (None, 0, False, "not_enough_data"),
        (None, 0, True, "not_better"),
    ],
)
def test_a_verdict_needs_an_interval_that_says_so(
    difference: Difference | None, n: int, is_same: bool, expected: str
) -> None:
    assert verdict(difference, n, is_same) == expected


@pytest.mark.parametrize("calls", [1, 5, 7, 19, 20, 50, 100, 300, 1000, 10_000])
@pytest.mark.parametrize("n_test", [0, 5, 40, 100, 5000])
@pytest.mark.parametrize("has_baseline", [True, False])
def test_the_final_check_takes_at_most_a_quarter(
    calls: int, n_test: int, has_baseline: bool
) -> None:
    plan = plan_final_check(calls, n_test, has_baseline)
    assert plan.reserved_calls <= calls / 4
    assert plan.reserved_calls == plan.n_examples * len(plan.arms)
    assert plan.n_examples <= min(n_test, 100)


def test_a_large_budget_measures_all_three_instructions_on_a_hundred_examples() -> None:
    plan = plan_final_check(2000, 500, True)
    assert plan == (100, ("winner", "baseline", "empty"), 300)


def test_the_knowledge_gradient_is_the_expected_gain_of_the_recommendation() -> None:
    rng = np.random.default_rng(3)
    mean = np.array([0.70, 0.69, 0.30])
    variance = np.array([0.005, 0.01, 0.02])
    noise = np.array([0.2, 0.2, 0.2])
    n_examples = np.array([30, 1, 1])
    is_tried = np.array([True, True, True])
    found = knowledge_gradient(mean, np.diag(variance), noise, is_tried, n_examples)
    for arm in (0, 1):
        best = 0.0
        for r in LOOK_AHEAD:
            moved = variance[arm] / math.sqrt(variance[arm] + noise[arm] / r)
            draws = mean[arm] + moved * rng.standard_t(TAIL + n_examples[arm], 400_000)
            other = np.delete(mean, arm).max()
            gain = np.maximum(draws, other).mean() - mean.max()
            best = max(best, gain / r)
        assert found[arm] == pytest.approx(best, rel=0.05)
    assert found[2] < found[1]


def test_a_long_shot_is_worth_more_under_students_belief_and_as_much_with_many_answers() -> None:
    far = np.array([-4.0, -4.0])
    few, many = student_gain(far, np.array([3.0, 1e7]))
    assert few > 100 * many
    assert many == pytest.approx(normal_gain(far)[0], rel=1e-3)


def test_normal_gain_by_hand() -> None:
    assert normal_gain(np.array([0.0]))[0] == pytest.approx(1 / math.sqrt(2 * math.pi))
    assert normal_gain(np.array([3.0]))[0] == pytest.approx(3.0003822)
