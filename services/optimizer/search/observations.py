"""What a strategy was told: points, arms and scores, in an order that arrival cannot change."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.optimizer.search.seeds import generator
from services.optimizer.search.strategy import (
    Decision,
    Evaluation,
    FloatArray,
    GeneratedText,
    Problem,
    Scored,
)


class Observations:
    """The book every strategy keeps; rebuilt exactly by replaying `decided` and `observe`.

    Attributes:
        problem: the job as the strategy knows it.
        order: permutation of the validation set; every arm is tried along it, so that any two
            arms are compared on the same examples.
        points: every latent point proposed so far, each d floats.
        arm_of_point: the arm each point gave; None while pending and for rejected texts.
        arm_points: for each arm, the numbers of its points, ascending.
        scores: n_arms x n_validation, NaN where not observed.
        taken: n_arms x n_validation, True where observed or pending.
        step: how many decisions were taken.
        memo: what the last decision asked to be remembered.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.order: NDArray[np.intp] = generator(problem.seed, 0, "example order").permutation(
            problem.n_validation
        )
        self.points: list[tuple[float, ...]] = []
        self.arm_of_point: list[int | None] = []
        self.arm_points: list[list[int]] = []
        self.answers: list[dict[int, str]] = []
        self.step = 0
        self.memo: dict[str, object] = {}
        self._scores = np.full((0, problem.n_validation), np.nan)
        self._taken = np.zeros((0, problem.n_validation), dtype=bool)
        self._pending_points: set[int] = set()
        self.keep_answers = False
        self._add_arms(len(problem.given))

    @property
    def n_arms(self) -> int:
        """Number of distinct texts known, tried or not."""
        return len(self.arm_points)

    @property
    def scores(self) -> FloatArray:
        """n_arms x n_validation, NaN where not observed."""
        return self._scores[: self.n_arms]

    @property
    def taken(self) -> NDArray[np.bool_]:
        """n_arms x n_validation, True where observed or pending."""
        return self._taken[: self.n_arms]

    @property
    def pending_points(self) -> list[int]:
        """Numbers of the points whose text has not arrived."""
        return sorted(self._pending_points)

    def decided(self, decision: Decision) -> None:
        """Note a decision: its points and evaluations are pending from now on."""
        for point in decision.points:
            self._pending_points.add(len(self.points))
            self.points.append(tuple(point))
            self.arm_of_point.append(None)
        for evaluation in decision.evaluations:
            self._taken[evaluation.arm, evaluation.example] = True
        self.memo = dict(decision.memo)
        self.step += 1

    def observe(self, texts: Sequence[GeneratedText], scores: Sequence[Scored]) -> None:
        """Take in results in any order."""
        for text in texts:
            self._pending_points.discard(text.point)
            if text.arm is None:
                continue
            self._add_arms(text.arm + 1)
            if self.arm_of_point[text.point] is None:
                self.arm_of_point[text.point] = text.arm
                self.arm_points[text.arm].append(text.point)
                self.arm_points[text.arm].sort()
        for scored in scores:
            self._scores[scored.arm, scored.example] = scored.score
            self._taken[scored.arm, scored.example] = True
            if self.keep_answers:
                self.answers[scored.arm][scored.example] = scored.answer

    def n_observed(self) -> NDArray[np.intp]:
        """Number of observed examples of each arm."""
        return np.asarray((~np.isnan(self.scores)).sum(axis=1), dtype=np.intp)

    def n_taken(self) -> NDArray[np.intp]:
        """Number of observed or pending examples of each arm."""
        return np.asarray(self.taken.sum(axis=1), dtype=np.intp)

    def untried(self) -> list[int]:
        """Arms that have no evaluation, observed or pending, in order of number."""
        return [int(arm) for arm in np.flatnonzero(~self.taken.any(axis=1))]

    def next_examples(
        self, arm: int, count: int, limit: int | None = None, block: int = 1
    ) -> list[Evaluation]:
        """Return the arm's next `count` examples of the common order, within its first `limit`.

        Arms begin at different ones of the first `block` examples and go round it before going on.
        """
        order = self.order[:limit]
        order = np.append(np.roll(order[:block], -arm), order[block:])
        free = order[~self._taken[arm, order]][:count]
        return [Evaluation(arm, int(example)) for example in free]

    def barren(self) -> int:
        """Number of points at the end of the sequence that gave no new text."""
        first_points = [numbers[0] for numbers in self.arm_points if numbers]
        newest = max(first_points, default=-1)
        settled = [
            number
            for number in range(newest + 1, len(self.points))
            if number not in self._pending_points
        ]
        return len(settled)

    def reached_stop_score(self, n_examples: int) -> bool:
        """Whether an arm observed on `n_examples` or more has the score the job asked for."""
        stop_score = self.problem.stop_score
        if stop_score is None or not self.n_arms:
            return False
        full = self.n_observed() >= n_examples
        return bool(full.any()) and float(np.nanmean(self.scores[full], axis=1).max()) >= stop_score

    def _add_arms(self, n_arms: int) -> None:
        if n_arms > len(self._scores):
            room = max(2 * len(self._scores), n_arms, 16)
            scores = np.full((room, self.problem.n_validation), np.nan)
            taken = np.zeros((room, self.problem.n_validation), dtype=bool)
            scores[: len(self._scores)] = self._scores
            taken[: len(self._taken)] = self._taken
            self._scores, self._taken = scores, taken
        while self.n_arms < n_arms:
            self.arm_points.append([])
            self.answers.append({})
