"""What strategies share that try every instruction on the same examples, all of them at once."""

from __future__ import annotations

import numpy as np

from services.optimizer.search.allowance import Allowance
from services.optimizer.search.observations import Observations
from services.optimizer.search.strategy import Evaluation, Recommendation

BARREN_POINTS = 200
"""The search ends when this many points in a row gave no new text."""


def evaluate_untried(seen: Observations, allowance: Allowance, n_examples: int) -> list[Evaluation]:
    """Buy the common examples for every untried arm, in order of number, while they all fit.

    An arm that would get only part of its examples is left alone: its score could not be compared.
    The first arm of the job is the exception; a part of the examples beats knowing nothing.
    """
    bought: list[Evaluation] = []
    for arm in seen.untried():
        if allowance.calls < n_examples and (bought or seen.taken.any()):
            break
        bought += allowance.buy(seen.next_examples(arm, n_examples, limit=n_examples))
    return bought


def n_points_to_propose(
    seen: Observations, allowance: Allowance, n_examples: int, at_most: int
) -> int:
    """Return how many points are worth generating now: those whose texts could still be tried."""
    if seen.barren() >= BARREN_POINTS:
        return 0
    affordable = min(allowance.calls // n_examples, allowance.trials)
    if not affordable and not seen.taken.any() and allowance.calls and not seen.n_arms:
        affordable = 1
    return max(0, min(at_most, affordable, allowance.points))


def recommend_by_mean(seen: Observations) -> Recommendation | None:
    """Return the arm with the best mean, shrunk by two pseudo-examples; None without scores."""
    counts = seen.n_observed()
    if not counts.any():
        return None
    totals = np.nansum(seen.scores, axis=1)
    means = (totals + 1.0) / (counts + 2.0)
    arm = int(np.argmax(np.where(counts > 0, means, -np.inf)))
    mean = float(means[arm])
    return Recommendation(arm, mean, float(np.sqrt(mean * (1.0 - mean) / (counts[arm] + 3.0))))
