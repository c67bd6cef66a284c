"""`default`: many instructions first, then a race in which each call is bought where it helps most.

1. A pool of instructions from Sobol points; meanwhile a first look at some of them.
2. Round after round: fit the Gaussian process over arms, buy calls by knowledge gradient per call,
   and generate more instructions where the model expects improvement.
3. Recommend by posterior mean, which is not biased by having been chosen; the arm recommended last
   stays until another is better by more than a point or the calls are spent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from services.optimizer.search.allowance import Allowance, total_calls
from services.optimizer.search.observations import Observations
from services.optimizer.search.race import Race, RaceOptions
from services.optimizer.search.seeds import sobol_points
from services.optimizer.search.strategy import (
    Decision,
    Evaluation,
    GeneratedText,
    Problem,
    Recommendation,
    Room,
    Scored,
)
from services.optimizer.search.threads import one_thread
from services.optimizer.search.whole_set import BARREN_POINTS


@dataclass(frozen=True)
class DefaultOptions:
    """Options of `default`.

    Attributes:
        pool: points generated before the race; None: two for every call, 100 to 800.
        chunk: points generated at a time while the pool is filled.
        initial_arms: arms that get a first look while the pool is filled.
        max_points: points generated in all.
        guided_points: points a round proposes by expected improvement.
        uniform_points: points a round proposes at random.
        first_examples: examples an arm gets at first.
        next_examples: examples an arm gets each time it is chosen again.
        stop_chance: ends the search when the chance that a known instruction is better than the
            leader by more than a point is below this; 0: never. The chance is the model's own,
            which is too sure of itself (benchmarks/stop_rule.py).
    """

    pool: int | None = None
    chunk: int = 200
    initial_arms: int = 30
    max_points: int = 2000
    guided_points: int = 28
    uniform_points: int = 4
    first_examples: int = 1
    next_examples: int = 2
    stop_chance: float = 0.0

    def __post_init__(self) -> None:
        if min(self.chunk, self.initial_arms, self.first_examples, self.next_examples) < 1:
            raise ValueError("chunk, initial_arms and the numbers of examples must be at least 1")
        if min(self.max_points, self.guided_points, self.uniform_points, self.pool or 1) < 0:
            raise ValueError("numbers of points must not be negative")
        if not 0.0 <= self.stop_chance < 1.0:
            raise ValueError("stop_chance must be at least 0 and below 1")


class DefaultStrategy:
    """Pool first, then a model-guided race."""

    def __init__(self, problem: Problem, options: DefaultOptions) -> None:
        self._problem, self._options = problem, options
        self._seen = Observations(problem)
        calls = total_calls(problem)
        pool = min(800, max(100, 2 * calls)) if options.pool is None else options.pool
        self._pool = min(pool, options.max_points)
        affordable = calls // (3 * options.first_examples)
        if problem.trials is not None:
            affordable = min(affordable, problem.trials // 3)
        self._n_initial = min(options.initial_arms, max(2, affordable))
        self._race = Race(
            self._seen,
            RaceOptions(
                options.guided_points,
                options.uniform_points,
                options.first_examples,
                options.next_examples,
                options.stop_chance,
            ),
        )

    def propose(self, room: Room) -> Decision | None:
        """Fill the pool, then race."""
        seen = self._seen
        if seen.reached_stop_score(self._problem.n_validation):
            return None
        allowance = Allowance(room, seen, min(20, self._problem.n_validation))
        if not allowance.calls:
            return None
        is_filling = len(seen.points) < self._pool and allowance.points > 0
        if seen.barren() >= BARREN_POINTS:
            is_filling = False
        if is_filling or not seen.n_observed().any():
            return self._open(allowance, is_filling)
        n_points = min(self._options.max_points - len(seen.points), allowance.points)
        if seen.barren() >= BARREN_POINTS or not allowance.trials:
            n_points = 0
        with one_thread():
            return self._race.propose(allowance, n_points)

    def decided(self, decision: Decision) -> None:
        """Note a decision."""
        self._seen.decided(decision)

    def observe(self, texts: Sequence[GeneratedText], scores: Sequence[Scored]) -> None:
        """Take in results."""
        self._seen.observe(texts, scores)

    def recommend(self) -> Recommendation | None:
        """Return the last leader or, if it is better, the arm with the best posterior mean."""
        with one_thread():
            return self._race.recommend()

    def state(self) -> Mapping[str, object]:
        """Return the leaders' posterior, and expected improvement over a slice of the box."""
        with one_thread():
            return self._race.figures()

    def _open(self, allowance: Allowance, is_filling: bool) -> Decision | None:
        """Generate the next chunk of the pool; look at the texts of the chunks before it."""
        seen, first = self._seen, len(self._seen.points)
        count = min(self._options.chunk, self._pool - first, allowance.points) if is_filling else 0
        points = np.zeros((0, self._problem.dim))
        if count:
            points = sobol_points(self._problem.seed, self._problem.dim, first, count)
        tried = int(seen.taken.any(axis=1).sum())
        evaluations: list[Evaluation] = []
        n_looks = max(self._n_initial - tried, 0)
        if is_filling:
            chunks_left = -(-(self._pool - first) // self._options.chunk)
            n_looks = -(-n_looks // chunks_left)
        for arm in seen.untried()[:n_looks]:
            look = self._race.next_look(arm, self._options.first_examples)
            evaluations += allowance.buy(look)
        if not count and not evaluations:
            return None
        return Decision(
            points=tuple(map(tuple, points.tolist())),
            evaluations=tuple(evaluations),
            reason="pool",
            memo=seen.memo,
        )
