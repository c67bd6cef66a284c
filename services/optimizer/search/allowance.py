"""How much one decision may ask for: never more than the room that is left."""

from __future__ import annotations

from collections.abc import Iterable

from services.optimizer.search.observations import Observations
from services.optimizer.search.strategy import Evaluation, Problem, Room

UNBOUNDED_TRIALS = 150
"""Instructions tried when neither calls nor trials are bounded: the paper's number."""
CALLS_PER_TRIAL = 20
"""Calls per instruction when only trials are bounded: the paper's validation set."""


class Allowance:
    """Counts down what one decision may still buy.

    Attributes:
        calls: evaluations left for this decision.
        trials: arms left that may get their first evaluation.
        points: latent points left.
    """

    def __init__(self, room: Room, seen: Observations, calls_per_trial: int) -> None:
        problem = seen.problem
        spent = int(seen.taken.sum())
        total = total_calls(problem, calls_per_trial)
        bounds = [total - spent, room.calls, _left(problem.calls, spent)]
        self.calls = max(0, min(bound for bound in bounds if bound is not None))
        tried = int(seen.taken.any(axis=1).sum())
        trials = [room.trials, _left(total_trials(problem), tried)]
        self.trials = max(0, min((bound for bound in trials if bound is not None), default=10**9))
        self.points = 10**9 if room.points is None else max(0, room.points)
        self._seen = seen

    def buy(self, evaluations: Iterable[Evaluation]) -> list[Evaluation]:
        """Return as many of one arm's evaluations as may be bought, and count them down."""
        bought = list(evaluations)[: self.calls]
        if not bought:
            return []
        if not self._seen.taken[bought[0].arm].any():
            if not self.trials:
                return []
            self.trials -= 1
        self.calls -= len(bought)
        return bought


def total_calls(problem: Problem, calls_per_trial: int = CALLS_PER_TRIAL) -> int:
    """Evaluations the whole search may buy, also when only trials bound the job or nothing does."""
    if problem.calls is not None:
        return problem.calls
    trials = total_trials(problem)
    return (UNBOUNDED_TRIALS if trials is None else trials) * calls_per_trial


def total_trials(problem: Problem) -> int | None:
    """Instructions the whole search may try; None when calls are the bound."""
    if problem.trials is None and problem.calls is None:
        return UNBOUNDED_TRIALS
    return problem.trials


def _left(bound: int | None, used: int) -> int | None:
    return None if bound is None else bound - used
