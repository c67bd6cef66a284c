"""`random`: uniform latent points, every instruction on the whole validation set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.optimizer.search.allowance import Allowance
from services.optimizer.search.observations import Observations
from services.optimizer.search.seeds import generator
from services.optimizer.search.strategy import (
    Decision,
    GeneratedText,
    Problem,
    Recommendation,
    Room,
    Scored,
)
from services.optimizer.search.whole_set import (
    evaluate_untried,
    n_points_to_propose,
    recommend_by_mean,
)


@dataclass(frozen=True)
class RandomOptions:
    """Options of `random`.

    Attributes:
        batch: points proposed at a time.
        examples: examples every instruction is tried on; None: the whole validation set.
    """

    batch: int = 25
    examples: int | None = None

    def __post_init__(self) -> None:
        if self.batch < 1 or (self.examples is not None and self.examples < 1):
            raise ValueError("batch and examples must be at least 1")


class RandomStrategy:
    """The yardstick that every other strategy must beat."""

    def __init__(self, problem: Problem, options: RandomOptions) -> None:
        self._problem, self._options = problem, options
        self._seen = Observations(problem)
        self._n_examples = min(problem.n_validation, options.examples or problem.n_validation)

    def propose(self, room: Room) -> Decision | None:
        """Buy what is untried, and ask for the next points."""
        seen = self._seen
        if seen.reached_stop_score(self._n_examples):
            return None
        allowance = Allowance(room, seen, self._n_examples)
        evaluations = evaluate_untried(seen, allowance, self._n_examples)
        count = n_points_to_propose(seen, allowance, self._n_examples, self._options.batch)
        points = generator(self._problem.seed, seen.step, "uniform points").uniform(
            -1.0, 1.0, (count, self._problem.dim)
        )
        if not count and not evaluations:
            return None
        return Decision(
            points=tuple(map(tuple, points.tolist())),
            evaluations=tuple(evaluations),
            reason="uniform",
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
