"""`instructzero`: the paper's method (arXiv 2306.03082), with the defects of its code corrected.

Each step: standardise the scores, fit the latent kernel, couple it with what the target answered
(Eqs. 8-9), propose a batch of points by expected improvement (Eqs. 6-7), try every new instruction
on the whole validation set. A point whose text is known shares that text's score and costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from botorch.utils.sampling import manual_seed
from numpy.typing import NDArray
from scipy.special import log_ndtr

from services.optimizer.search.allowance import Allowance
from services.optimizer.search.coupled import coupled_process, fit_length, improve
from services.optimizer.search.instructzero_options import InstructZeroOptions
from services.optimizer.search.observations import Observations
from services.optimizer.search.racing import condition, normal_gain
from services.optimizer.search.seeds import derive_seed, generator, sobol_points
from services.optimizer.search.similarity import answer_similarity, score_similarity
from services.optimizer.search.strategy import (
    Decision,
    FloatArray,
    GeneratedText,
    Problem,
    Recommendation,
    Room,
    Scored,
)
from services.optimizer.search.threads import one_thread
from services.optimizer.search.whole_set import (
    evaluate_untried,
    n_points_to_propose,
    recommend_by_mean,
)

MAX_POINTS_PER_ARM = 3
N_LEADERS = 20
MAX_FITTED_POINTS = 600
"""The surrogate uses the points of the best arms when there are more."""


class ScoredArms(NamedTuple):
    """The fully evaluated arms, as Eqs. 4-8 see them.

    Attributes:
        arms: m arm numbers.
        scores: m standardised scores.
        noise: m noise variances on the standardised scale, p (1 - p) / n.
        similarity: S, m x m.
        scale: prior variance s of the coupled kernel, by marginal likelihood.
        centre: what was subtracted from the scores.
        spread: what they were divided by.
    """

    arms: NDArray[np.intp]
    scores: FloatArray
    noise: FloatArray
    similarity: FloatArray
    scale: float
    centre: float
    spread: float


class InstructZeroStrategy:
    """Bayesian optimization of the soft prompt with the instruction-coupled kernel."""

    def __init__(self, problem: Problem, options: InstructZeroOptions) -> None:
        self._problem, self._options = problem, options
        self._seen = Observations(problem)
        self._seen.keep_answers = True
        self._n_examples = min(problem.n_validation, options.examples or problem.n_validation)

    def propose(self, room: Room) -> Decision | None:
        """Buy what is untried; propose the next batch once every text of the last is scored."""
        seen = self._seen
        if seen.reached_stop_score(self._n_examples):
            return None
        allowance = Allowance(room, seen, self._n_examples)
        evaluations = evaluate_untried(seen, allowance, self._n_examples)
        if evaluations:
            return Decision(evaluations=tuple(evaluations), reason="whole_validation_set")
        n_left = self._options.n_initial - len(seen.points)
        at_most = n_left if n_left > 0 else self._options.batch
        count = n_points_to_propose(seen, allowance, self._n_examples, at_most)
        if not count:
            return None
        # Where improvement was expected and the last batch wrote nothing new, look elsewhere.
        is_stuck = seen.barren() >= self._options.batch
        if n_left > 0 or is_stuck or not self._arms_with_points().any():
            points = sobol_points(self._problem.seed, self._problem.dim, len(seen.points), count)
            reason = "initial_design" if n_left > 0 else "exploration"
            return Decision(points=_as_tuples(points), reason=reason)
        with one_thread():
            return self._improve(count)

    def decided(self, decision: Decision) -> None:
        """Note a decision."""
        self._seen.decided(decision)

    def observe(self, texts: Sequence[GeneratedText], scores: Sequence[Scored]) -> None:
        """Take in results."""
        self._seen.observe(texts, scores)

    def recommend(self) -> Recommendation | None:
        """Return the fully evaluated arm with the best posterior mean under S."""
        if not self._full().any():
            return recommend_by_mean(self._seen)
        arms, mean, sd = self._posterior()
        best = int(np.argmax(mean))
        return Recommendation(
            int(arms[best]), float(np.clip(mean[best], 0.0, 1.0)), float(sd[best])
        )

    def state(self) -> Mapping[str, object]:
        """Return the leaders' posterior under S."""
        if not self._full().any():
            return {}
        arms, mean, sd = self._posterior()
        ranked = np.argsort(-mean, kind="stable")[:N_LEADERS]
        return {
            "leaders": [
                {"arm": int(arms[row]), "mean": float(mean[row]), "sd": float(sd[row])}
                for row in ranked
            ]
        }

    def _posterior(self) -> tuple[NDArray[np.intp], FloatArray, FloatArray]:
        """Return the fully evaluated arms with posterior mean and sd of their scores under S."""
        with one_thread():
            scored = self._scored_arms()
        prior = scored.scale * scored.similarity
        gain = np.linalg.solve(prior + np.diag(scored.noise), prior)
        mean = scored.centre + scored.spread * (gain.T @ scored.scores)
        variance = np.maximum(np.diag(prior) - (prior * gain).sum(axis=0), 0.0)
        return scored.arms, mean, scored.spread * np.sqrt(variance)

    def _full(self) -> NDArray[np.bool_]:
        return np.asarray(self._seen.n_observed() >= self._n_examples, dtype=np.bool_)

    def _arms_with_points(self) -> NDArray[np.bool_]:
        has_points = np.array([bool(numbers) for numbers in self._seen.arm_points], dtype=bool)
        both: NDArray[np.bool_] = self._full() & has_points
        return both

    def _scored_arms(self) -> ScoredArms:
        seen = self._seen
        arms = np.flatnonzero(self._full())
        examples = seen.order[: self._n_examples]
        table = seen.scores[np.ix_(arms, examples)]
        means = table.mean(axis=1)
        centre, spread = float(means.mean()), max(float(means.std()), 0.02)
        smoothed = (means * self._n_examples + 1.0) / (self._n_examples + 2.0)
        noise = smoothed * (1.0 - smoothed) / self._n_examples / spread**2
        if self._options.similarity == "scores":
            similarity = score_similarity(table)
        else:
            answers = [[seen.answers[arm][int(j)] for j in examples] for arm in arms]
            similarity = answer_similarity(answers, self._options.similarity)
        scores = (means - centre) / spread
        scale = _best_scale(similarity, scores, noise)
        return ScoredArms(arms, scores, noise, similarity, scale, centre, spread)

    def _improve(self, count: int) -> Decision:
        """Propose `count` points by expected improvement, each conditioned on those before it."""
        seen, dim = self._seen, self._problem.dim
        scored = self._scored_arms()
        rows, numbers = self._training_points(scored)
        points = torch.tensor(_unit(np.array([seen.points[n] for n in numbers])))
        repeats = np.bincount(rows, minlength=len(scored.arms))[rows]
        scores = torch.tensor(scored.scores[rows])
        noise = torch.tensor(scored.noise[rows] * repeats)  # one score shared, not one each
        similarity = torch.tensor(scored.similarity[np.ix_(rows, rows)])
        seed = derive_seed(self._problem.seed, seen.step, "acquisition")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            latent = fit_length(points, scores, noise)
            model = coupled_process(points, scores, noise, similarity, latent, scored.scale)
            with torch.no_grad():
                best = float(model.posterior(points).mean.max())
            with manual_seed(seed):
                optima = improve(model, best, dim)
            rng = generator(self._problem.seed, seen.step, "candidates")
            spread_out = torch.tensor(rng.uniform(0.0, 1.0, (256, dim)))
            pending = torch.tensor(
                _unit(np.array([seen.points[n] for n in seen.pending_points]).reshape(-1, dim))
            )
            candidates = torch.cat([pending, optima, spread_out])
            with torch.no_grad():
                posterior = model.posterior(candidates)
                mean = posterior.mean.squeeze(-1).numpy()
                covariance = posterior.distribution.covariance_matrix.numpy()
        finally:
            torch.set_num_threads(threads)
        typical_noise = float(np.median(scored.noise))
        picks, values = _pick(mean, covariance, best, len(pending), count, typical_noise)
        chosen = 2.0 * candidates[picks].numpy() - 1.0
        sd = np.sqrt(np.maximum(np.diag(covariance), 0.0))
        notes = tuple(
            {
                "acquisition": value,
                "mean": scored.centre + scored.spread * float(mean[pick]),
                "sd": scored.spread * float(sd[pick]),
            }
            for pick, value in zip(picks, values, strict=True)
        )
        return Decision(
            points=_as_tuples(chosen),
            reason="expected_improvement",
            point_notes=notes,
            snapshot={"length": float(latent.lengthscale), "scale": scored.scale},
        )

    def _training_points(self, scored: ScoredArms) -> tuple[NDArray[np.intp], list[int]]:
        rows, numbers = [], []
        for row in np.argsort(-scored.scores, kind="stable"):
            for number in self._seen.arm_points[scored.arms[row]][:MAX_POINTS_PER_ARM]:
                rows.append(int(row))
                numbers.append(number)
        return np.array(rows[:MAX_FITTED_POINTS], dtype=np.intp), numbers[:MAX_FITTED_POINTS]


def _pick(
    mean: FloatArray, covariance: FloatArray, best: float, n_pending: int, count: int, noise: float
) -> tuple[list[int], list[float]]:
    """Pick candidates greedily by log EI; the first `n_pending` are taken from the start."""
    for pending in range(n_pending):
        covariance = condition(covariance, pending, noise)
    picks: list[int] = []
    values: list[float] = []
    for _ in range(min(count, len(mean) - n_pending)):
        sd = np.sqrt(np.maximum(np.diag(covariance), 1e-12))
        u = (mean - best) / sd
        improvement = normal_gain(u)
        value = np.log(sd) + np.where(
            improvement > 1e-12, np.log(np.maximum(improvement, 1e-300)), log_ndtr(u) - 2.0
        )
        value[:n_pending] = -np.inf
        value[picks] = -np.inf
        pick = int(np.argmax(value))
        picks.append(pick)
        values.append(float(value[pick]))
        covariance = condition(covariance, pick, noise)
    return picks, values


def _best_scale(similarity: FloatArray, scores: FloatArray, noise: FloatArray) -> float:
    """Return the prior variance of largest marginal likelihood under N(0, s S + noise)."""
    best, best_value = 1.0, -np.inf
    for scale in np.exp(np.linspace(np.log(0.05), np.log(20.0), 13)):
        covariance = scale * similarity + np.diag(noise)
        sign, logdet = np.linalg.slogdet(covariance)
        value = -0.5 * logdet - 0.5 * float(scores @ np.linalg.solve(covariance, scores))
        if sign > 0 and value > best_value:
            best, best_value = float(scale), value
    return best


def _unit(points: FloatArray) -> FloatArray:
    return (points + 1.0) / 2.0


def _as_tuples(points: FloatArray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(point) for point in np.clip(points, -1.0, 1.0).tolist())
