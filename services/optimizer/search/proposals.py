"""Where in the box to generate next: expected improvement times the chance of a new text."""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from services.optimizer.search.kernel import ArmPoints, distances
from services.optimizer.search.racing import condition, normal_gain
from services.optimizer.search.strategy import FloatArray
from services.optimizer.search.surrogate import Posterior


def candidate_points(leaders: FloatArray, rng: np.random.Generator, n_each: int) -> FloatArray:
    """Return 2 n_each candidates: uniform ones, and ones around the leaders' points.

    Args:
        leaders: k x d points of the leading arms, k >= 1.
        rng: source of randomness.
        n_each: number of candidates of either kind.

    The local ones move a distance 10^U(-1.2, -0.1) from a random leader, half of them in about 30 %
    of the coordinates only, and are reflected at the walls of the box.
    """
    dim = leaders.shape[1]
    uniform = rng.uniform(-1.0, 1.0, (n_each, dim))
    radius = 10.0 ** rng.uniform(-1.2, -0.1, (n_each, 1))
    direction = rng.standard_normal((n_each, dim))
    is_sparse = np.arange(n_each)[:, None] % 2 == 0
    direction *= np.where(is_sparse, rng.uniform(size=(n_each, dim)) < 0.3, 1.0)
    direction /= np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-12)
    local = leaders[rng.integers(len(leaders), size=n_each)] + radius * direction
    return np.vstack([uniform, reflect(local)])


def reflect(points: FloatArray) -> FloatArray:
    """Reflect points at the walls of [-1, 1]^d; for points within 2 of the box."""
    folded = np.where(points > 1.0, 2.0 - points, points)
    folded = np.where(folded < -1.0, -2.0 - folded, folded)
    return np.clip(folded, -1.0, 1.0)


def fit_novelty(nearest: FloatArray, is_new: FloatArray) -> FloatArray:
    """Fit P(text is new | distance to the nearest generated point), logistic in its log.

    Args:
        nearest: for past points, the distance to the nearest earlier one.
        is_new: whether the point gave a text not seen before.

    Returns:
        Intercept and slope; the slope is never negative. A N(0, 2) prior on both keeps them finite.
    """
    design = np.stack([np.ones(len(nearest)), np.log(np.maximum(nearest, 1e-6))], axis=1)
    weights = np.zeros(2)
    for _ in range(12):
        chance = expit(design @ weights)
        gradient = design.T @ (is_new - chance) - weights / 4.0
        curvature = (design * (chance * (1.0 - chance))[:, None]).T @ design + np.eye(2) / 4.0
        weights = weights + np.linalg.solve(curvature, gradient)
    weights[1] = max(weights[1], 0.0)
    return weights


def novelty(nearest: FloatArray, weights: FloatArray) -> FloatArray:
    """P(text is new) at these distances."""
    return np.asarray(
        expit(weights[0] + weights[1] * np.log(np.maximum(nearest, 1e-6))), dtype=np.float64
    )


def choose_points(
    posterior: Posterior,
    best: float,
    candidates: FloatArray,
    generated: FloatArray,
    weights: FloatArray,
    count: int,
) -> tuple[list[int], FloatArray, FloatArray, FloatArray]:
    """Pick candidates greedily, conditioning the covariance on each pick.

    Args:
        posterior: of the arms evaluated so far.
        best: posterior mean of the best evaluated arm.
        candidates: m x d.
        generated: every point generated so far.
        weights: of the novelty curve.
        count: how many to pick.

    Returns:
        Indices of the picks; mean, standard deviation and value of every candidate at first.
    """
    arms = ArmPoints([[tuple(point)] for point in candidates.tolist()], candidates.shape[1])
    cross = posterior.cross(arms)
    mean = posterior.mean_of(cross)
    explained = posterior.explained(cross)
    scales = posterior.scales
    between = distances(candidates, candidates)
    covariance = posterior.point_covariance(between) - explained.T @ explained
    nearest = distances(candidates, generated).min(axis=1)
    picks: list[int] = []
    first_sd = first_value = np.zeros(0)
    for _ in range(min(count, len(candidates))):
        sd = np.sqrt(np.maximum(np.diag(covariance), 1e-12))
        value = sd * normal_gain((mean - best) / sd) * novelty(nearest, weights)
        if not picks:
            first_sd, first_value = sd, value
        value[picks] = -1.0
        pick = int(np.argmax(value))
        picks.append(pick)
        covariance = condition(covariance, pick, scales.own + 0.02)
        nearest = np.minimum(nearest, between[pick])
    return picks, mean, first_sd, first_value
