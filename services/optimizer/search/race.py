"""One round of the default strategy: model, calls by knowledge gradient, points by improvement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from services.optimizer.search.allowance import Allowance, total_calls
from services.optimizer.search.box import improvement_slice
from services.optimizer.search.kernel import ArmPoints, distances
from services.optimizer.search.observations import Observations
from services.optimizer.search.proposals import (
    candidate_points,
    choose_points,
    fit_novelty,
)
from services.optimizer.search.racing import condition, knowledge_gradient
from services.optimizer.search.seeds import generator
from services.optimizer.search.strategy import Decision, Evaluation, FloatArray, Recommendation
from services.optimizer.search.surrogate import (
    Posterior,
    Scales,
    fit_scales,
    noise_variance,
    weigh,
)

MAX_POINTS_PER_ARM = 3
"""Further points of the same text add cost to the kernel and next to nothing to what is known."""
MAX_FITTED_ARMS = 300
"""Hyper-parameters are fitted on this many arms, the most promising; the posterior uses all."""
MAX_RACING_ARMS = 250
"""Calls are allocated among this many arms of largest mean + 2 sd."""
REFIT_GROWTH = 1.2
"""Hyper-parameters are fitted again when the scores have grown by this factor."""
FIRST_BLOCK = 6
"""Arms begin at different ones of this many examples: one hard example in common would cost all
wordings of a good instruction their first look."""
BETTER_BY = 0.01
"""A better arm than the leader is one that is better by more than this. The recommendation moves
only to such an arm while calls are left: else one wording of a good instruction would follow
another with every few answers, none of them better."""
N_CANDIDATES = 250
"""Candidate points of either kind."""


class RaceOptions(NamedTuple):
    """What a round buys; see `DefaultOptions`."""

    guided_points: int
    uniform_points: int
    first_examples: int
    next_examples: int
    stop_chance: float


class Standing(NamedTuple):
    """Posterior over all known arms.

    Attributes:
        posterior: of the evaluated arms.
        evaluated: numbers of the evaluated arms.
        mean: n_arms, posterior means.
        sd: n_arms, posterior standard deviations.
    """

    posterior: Posterior
    evaluated: NDArray[np.intp]
    mean: FloatArray
    sd: FloatArray


class Race:
    """Rounds of buying and generating, over the observations of one job."""

    def __init__(self, seen: Observations, options: RaceOptions) -> None:
        self._seen, self._options = seen, options

    def propose(self, allowance: Allowance, n_points: int) -> Decision | None:
        """Buy one round of calls and propose up to `n_points` points."""
        memo = self._memo_after_fit()
        standing = self._standing(_scales(memo))
        if self._options.stop_chance and chance_of_better(standing) < self._options.stop_chance:
            return None
        leader = standing.evaluated[_leading_row(standing, self._seen.memo)]
        memo = {**memo, "leader": int(leader)}
        evaluations = self._allocate(standing, allowance)
        n_points = min(n_points, self._options.guided_points + self._options.uniform_points)
        points, notes = self._points(standing, n_points) if allowance.calls else ((), ())
        if not points and not evaluations:
            return None
        return Decision(
            points=points,
            evaluations=tuple(evaluations),
            reason="race",
            point_notes=notes,
            memo=memo,
            snapshot={"scales": memo["scales"], **_leaders(standing)},
        )

    def recommend(self) -> Recommendation | None:
        """Return the last leader or a better arm; in the end, the best posterior mean."""
        seen, memo = self._seen, self._seen.memo
        n_observed = int(seen.n_observed().sum())
        if not n_observed:
            return None
        standing = self._standing(_scales(memo))
        is_over = n_observed >= total_calls(seen.problem)
        arm = int(standing.evaluated[_leading_row(standing, {} if is_over else memo)])
        return Recommendation(arm, float(standing.mean[arm]), float(standing.sd[arm]))

    def figures(self) -> Mapping[str, object]:
        """Return what `Strategy.state` tells of the posterior."""
        if not self._seen.n_observed().any():
            return {}
        seen, standing = self._seen, self._standing(_scales(self._seen.memo))
        found = {**_leaders(standing), "chance_of_better": chance_of_better(standing)}
        ranked = standing.evaluated[np.argsort(-standing.mean[standing.evaluated], kind="stable")]
        written = [arm for arm in ranked if seen.arm_points[arm]]
        if written and seen.problem.dim > 1:
            leader = np.array(seen.points[seen.arm_points[written[0]][0]])
            best = float(standing.mean[ranked[0]])
            found["slice"] = improvement_slice(standing.posterior, best, leader)
        return found

    def _arm_points(self, arms: NDArray[np.intp]) -> ArmPoints:
        seen = self._seen
        groups = [
            [seen.points[number] for number in seen.arm_points[arm][:MAX_POINTS_PER_ARM]]
            for arm in arms
        ]
        return ArmPoints(groups, seen.problem.dim, [int(arm) for arm in arms])

    def _standing(self, scales: Scales) -> Standing:
        scores, counts = self._seen.scores, self._seen.n_observed()
        evaluated = np.flatnonzero(counts)
        untried = np.flatnonzero(counts == 0)
        posterior = Posterior(self._arm_points(evaluated), weigh(scores[evaluated]), scales)
        mean, variance = np.empty(len(counts)), np.empty(len(counts))
        mean[evaluated] = posterior.mean
        variance[evaluated] = np.diag(posterior.covariance)
        if len(untried):
            others = self._arm_points(untried)
            cross = posterior.cross(others)
            explained = posterior.explained(cross)
            mean[untried] = posterior.mean_of(cross)
            variance[untried] = posterior.prior_variance(others) - (explained**2).sum(axis=0)
        return Standing(posterior, evaluated, mean, np.sqrt(np.maximum(variance, 1e-12)))

    def _memo_after_fit(self) -> dict[str, Any]:
        """Fit the hyper-parameters if the scores have grown enough; return what to remember."""
        counts = self._seen.n_observed()
        total = int(counts.sum())
        memo = self._seen.memo
        fitted_at = memo.get("fitted_at")
        if isinstance(fitted_at, int) and total < REFIT_GROWTH * fitted_at:
            return memo
        totals = np.nansum(self._seen.scores, axis=1)
        hopes = (totals + 1.0) / (counts + 2.0) + 2.0 * np.sqrt(0.25 / (counts + 2.0))
        evaluated = np.flatnonzero(counts)
        keep = evaluated[np.argsort(-hopes[evaluated], kind="stable")[:MAX_FITTED_ARMS]]
        keep.sort()
        scales = fit_scales(self._arm_points(keep), weigh(self._seen.scores[keep]), _scales(memo))
        return {"scales": list(scales), "fitted_at": total}

    def _allocate(self, standing: Standing, allowance: Allowance) -> list[Evaluation]:
        seen = self._seen
        taken = seen.n_taken()
        is_open = taken < seen.problem.n_validation
        if not allowance.trials:
            is_open &= taken > 0
        hopes = np.where(is_open, standing.mean + 2.0 * standing.sd, -np.inf)
        field = np.argsort(-hopes, kind="stable")[:MAX_RACING_ARMS]
        leader = standing.evaluated[np.argmax(standing.mean[standing.evaluated])]
        field = np.unique(np.append(field[np.isfinite(hopes[field])], leader))
        covariance = self._covariance(standing, field)
        noise = noise_variance(standing.mean[field], standing.posterior.evidence.shrink)
        for row in np.flatnonzero(taken[field] > seen.n_observed()[field]):
            pending = taken[field[row]] - seen.n_observed()[field[row]]
            covariance = condition(covariance, int(row), float(noise[row] / pending))
        quota = min(seen.problem.calls_per_round, allowance.calls)
        chosen: dict[int, int] = {}
        bought = 0
        while bought < quota:
            counts = taken[field] + np.array([chosen.get(int(arm), 0) for arm in field])
            value = knowledge_gradient(
                standing.mean[field],
                covariance,
                noise,
                seen.n_observed()[field] > 0,
                counts,
            )
            value = np.where(is_open[field] & (counts < seen.problem.n_validation), value, -1.0)
            pick = int(np.argmax(value))
            if value[pick] < 0:
                break
            size = self._options.next_examples if counts[pick] else self._options.first_examples
            size = min(size, quota - bought, seen.problem.n_validation - int(counts[pick]))
            arm = int(field[pick])
            chosen[arm] = chosen.get(arm, 0) + size
            bought += size
            covariance = condition(covariance, pick, float(noise[pick] / size))
        evaluations: list[Evaluation] = []
        for arm, size in chosen.items():
            evaluations += allowance.buy(self.next_look(arm, size))
        return evaluations

    def next_look(self, arm: int, size: int) -> list[Evaluation]:
        """Return the next examples of an arm."""
        return self._seen.next_examples(arm, size, block=FIRST_BLOCK)

    def _covariance(self, standing: Standing, arms: NDArray[np.intp]) -> FloatArray:
        posterior = standing.posterior
        points = self._arm_points(arms)
        explained = posterior.explained(self._cross(posterior, standing, arms, points))
        return posterior.prior_of(points) - explained.T @ explained

    def _cross(
        self, posterior: Posterior, standing: Standing, arms: NDArray[np.intp], points: ArmPoints
    ) -> FloatArray:
        cross = posterior.cross(points)
        rows = np.searchsorted(standing.evaluated, arms)
        rows = np.minimum(rows, len(standing.evaluated) - 1)
        is_same = standing.evaluated[rows] == arms
        columns = np.flatnonzero(is_same)
        cross[rows[columns], columns] = posterior.own_prior_variance()[rows[columns]]
        return cross

    def _points(
        self, standing: Standing, count: int
    ) -> tuple[tuple[tuple[float, ...], ...], tuple[Mapping[str, float], ...]]:
        if count <= 0:
            return (), ()
        seen = self._seen
        rng = generator(seen.problem.seed, seen.step, "proposals")
        n_uniform = min(self._options.uniform_points, count)
        uniform = rng.uniform(-1.0, 1.0, (n_uniform, seen.problem.dim))
        points = [tuple(point) for point in uniform.tolist()]
        notes: list[Mapping[str, float]] = [{} for _ in points]
        ranked = standing.evaluated[np.argsort(-standing.mean[standing.evaluated], kind="stable")]
        leaders = [seen.points[n] for arm in ranked[:5] for n in seen.arm_points[arm]]
        if count == n_uniform or not leaders:
            return tuple(points), tuple(notes)
        candidates = candidate_points(np.array(leaders), rng, N_CANDIDATES)
        generated = np.array(seen.points)
        picks, mean, sd, value = choose_points(
            standing.posterior,
            float(standing.mean[standing.evaluated].max()),
            candidates,
            generated,
            self._novelty_weights(generated),
            count - n_uniform,
        )
        points += [tuple(candidates[pick].tolist()) for pick in picks]
        notes += [
            {"acquisition": float(value[i]), "mean": float(mean[i]), "sd": float(sd[i])}
            for i in picks
        ]
        return tuple(points), tuple(notes)

    def _novelty_weights(self, generated: FloatArray) -> FloatArray:
        seen = self._seen
        newest = {numbers[0] for numbers in seen.arm_points if numbers}
        is_new = np.array([float(number in newest) for number in range(len(generated))])
        apart = distances(generated, generated)
        apart[np.triu_indices(len(apart))] = np.inf
        nearest = apart[1:].min(axis=1)
        return fit_novelty(nearest, is_new[1:]) if len(nearest) else np.zeros(2)


def chance_of_better(standing: Standing) -> float:
    """Bound the chance that some known arm is better than the leader by more than `BETTER_BY`.

    The sum of the chances of each arm alone, which is at least that of any of them. It takes the
    model at its word, and knows nothing of texts that were not generated.
    """
    row = int(np.argmax(standing.mean[standing.evaluated]))
    leader = standing.evaluated[row]
    behind = standing.mean[leader] + BETTER_BY - standing.mean
    variance = standing.sd**2 + standing.sd[leader] ** 2
    variance[standing.evaluated] -= 2.0 * standing.posterior.covariance[row]
    chances = ndtr(-behind / np.sqrt(np.maximum(variance, 1e-12)))
    chances[leader] = 0.0
    return float(min(1.0, chances.sum()))


def _leading_row(standing: Standing, memo: Mapping[str, Any]) -> int:
    """Row, among the evaluated arms, of the one to recommend: the last leader or a better one."""
    means, leader = standing.posterior.mean, memo.get("leader")
    best = int(np.argmax(means))
    row = int(np.searchsorted(standing.evaluated, -1 if leader is None else leader))
    if row == len(means) or standing.evaluated[row] != leader:
        return best
    return best if means[best] - means[row] > BETTER_BY else row


def _scales(memo: Mapping[str, Any]) -> Scales:
    return Scales(*memo["scales"]) if "scales" in memo else Scales()


def _leaders(standing: Standing) -> dict[str, object]:
    ranked = standing.evaluated[np.argsort(-standing.mean[standing.evaluated], kind="stable")]
    return {
        "leaders": [
            {"arm": int(arm), "mean": float(standing.mean[arm]), "sd": float(standing.sd[arm])}
            for arm in ranked[:20]
        ]
    }
