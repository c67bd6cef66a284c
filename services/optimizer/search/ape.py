"""`ape`: a pool of sampled instructions, then rounds of upper confidence bounds (Zhou et al. 2022).

APE samples its instructions from a language model without a soft prompt. Here every instruction
comes from a latent point, so the pool is a uniform sample of the box; what is APE's is that nothing
but scores guides the search, and how they are bought.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from services.optimizer.search.allowance import Allowance, total_calls
from services.optimizer.search.observations import Observations
from services.optimizer.search.seeds import generator
from services.optimizer.search.strategy import (
    Decision,
    Evaluation,
    FloatArray,
    GeneratedText,
    Problem,
    Recommendation,
    Room,
    Scored,
)
from services.optimizer.search.whole_set import BARREN_POINTS, recommend_by_mean


@dataclass(frozen=True)
class ApeOptions:
    """Options of `ape`.

    Attributes:
        pool: points in the pool; fewer when the calls would not pay for a first look at each.
        examples_per_turn: examples an arm gets each time it is chosen.
        confidence: width of the bound, mean + confidence sqrt(log N / n).
    """

    pool: int = 100
    examples_per_turn: int = 5
    confidence: float = 0.5

    def __post_init__(self) -> None:
        if self.pool < 1 or self.examples_per_turn < 1 or self.confidence < 0:
            raise ValueError("pool and examples_per_turn must be at least 1, confidence 0")


class ApeStrategy:
    """Sampled instructions, racing by upper confidence bound."""

    def __init__(self, problem: Problem, options: ApeOptions) -> None:
        self._problem, self._options = problem, options
        self._seen = Observations(problem)
        self._turn = min(options.examples_per_turn, problem.n_validation)
        affordable = max(1, total_calls(problem) // (2 * self._turn))
        self._pool = min(options.pool, affordable, problem.trials or options.pool)

    def propose(self, room: Room) -> Decision | None:
        """Ask for the pool once, then buy round after round."""
        seen = self._seen
        if seen.reached_stop_score(self._problem.n_validation):
            return None
        allowance = Allowance(room, seen, min(20, self._problem.n_validation))
        points: FloatArray = np.zeros((0, self._problem.dim))
        texts = sum(1 for numbers in seen.arm_points if numbers) + len(seen.pending_points)
        if texts < self._pool and seen.barren() < BARREN_POINTS and allowance.calls:
            count = min(self._pool - texts, allowance.points)
            points = generator(self._problem.seed, seen.step, "uniform points").uniform(
                -1.0, 1.0, (count, self._problem.dim)
            )
        evaluations = self._choose(allowance)
        if not len(points) and not evaluations:
            return None
        return Decision(
            points=tuple(map(tuple, points.tolist())),
            evaluations=tuple(evaluations),
            reason="upper_confidence_bound",
        )

    def decided(self, decision: Decision) -> None:
        """Note a decision."""
        self._seen.decided(decision)

    def observe(self, texts: Sequence[GeneratedText], scores: Sequence[Scored]) -> None:
        """Take in results."""
        self._seen.observe(texts, scores)

    def recommend(self) -> Recommendation | None:
        """Return the arm with the best shrunk mean."""
        return recommend_by_mean(self._seen)

    def state(self) -> Mapping[str, object]:
        """Return nothing: there is no surrogate to show."""
        return {}

    def _choose(self, allowance: Allowance) -> list[Evaluation]:
        arms_per_round = max(1, self._problem.calls_per_round // self._turn)
        chosen: list[Evaluation] = []
        n_chosen = 0
        for arm in np.argsort(-self._upper_bounds(), kind="stable"):
            if n_chosen == arms_per_round:
                break
            bought = allowance.buy(self._seen.next_examples(int(arm), self._turn))
            n_chosen += bool(bought)
            chosen += bought
        return chosen

    def _upper_bounds(self) -> FloatArray:
        taken, counts = self._seen.n_taken(), self._seen.n_observed()
        if not len(taken):
            return np.zeros(0)
        means = np.nansum(self._seen.scores, axis=1) / np.maximum(counts, 1)
        log_total = math.log(max(2, int(taken.sum())))
        bounds = means + self._options.confidence * np.sqrt(log_total / np.maximum(taken, 1))
        return np.asarray(np.where(taken > 0, bounds, np.inf), dtype=np.float64)
