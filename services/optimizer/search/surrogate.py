r"""The Gaussian process over arms, exact and in closed form.

The score of arm i on example j is

    y_ij = m0 + f_i + b_j + e_ij,    f ~ N(0, K),  b_j ~ N(0, tau2),  e_ij ~ N(0, v_i),

with K = sz Kz + u I + c: what the latent points explain, what is the arm's own, and the level all
arms share. The example effects b_j (some examples are hard for every arm) are integrated out, which
is what makes comparisons on common examples sharper than the scores' own noise.

With O the 0/1 matrix of what was observed, C = O / v and D_j = sum_i C_ij + 1 / tau2, the scores
enter only through

    Lam = diag(n_i / v_i) - C diag(1/D) C^T        (n x n)      precision of the data about f
    h   = R 1 - C (R^T 1 / D),  R = O (y - m0)/v    (n)          and its pull

and then W = (K + Lam^-1)^-1, alpha = (I + Lam K)^-1 h = h - W K h, E f = K alpha.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import cholesky, solve_triangular

from services.optimizer.search.kernel import (
    ArmPoints,
    arm_kernel,
    average,
    distances,
    matern52,
    matern52_and_slope,
    normalise,
)
from services.optimizer.search.strategy import FloatArray

EXAMPLE_VARIANCE = 0.03
"""tau2: variance of an example's difficulty."""
COMMON_VARIANCE = 0.03
"""c: prior variance of the level that all arms share."""
NOISE_RANGE = (0.06, 0.25)
"""p (1 - p) is kept inside: an arm that was right three times in a row is not noiseless."""


class Scales(NamedTuple):
    """Hyper-parameters: length-scale of Kz, variance sz of it, variance u of an arm's own part."""

    length: float = 1.5
    latent: float = 0.04
    own: float = 0.008


_PRIOR_MEAN = np.log(np.array(Scales()))
_PRIOR_SD = np.array([0.5, 0.8, 1.0])


class Evidence(NamedTuple):
    """All that the scores say, n arms.

    Attributes:
        level: m0, the mean of the arms' smoothed means.
        noise: n, v_i.
        shrink: variance of the scores relative to 0/1 scores of the same means, in (0, 1].
        precision: Lam, n x n.
        pull: h, n.
    """

    level: float
    noise: FloatArray
    shrink: float
    precision: FloatArray
    pull: FloatArray


def noise_variance(mean: FloatArray, shrink: float) -> FloatArray:
    """Variance of one score of an arm with this mean score."""
    low, high = NOISE_RANGE
    return np.asarray(shrink * np.clip(mean * (1.0 - mean), low, high), dtype=np.float64)


def weigh(scores: FloatArray) -> Evidence:
    """Summarise scores, n x n_examples with NaN where not observed; every row has one or more."""
    scores = scores[:, ~np.isnan(scores).all(axis=0)]
    observed = (~np.isnan(scores)).astype(np.float64)
    values = np.where(observed > 0, scores, 0.0)
    counts, totals = observed.sum(axis=1), values.sum(axis=1)
    level = float(((totals + 1.0) / (counts + 2.0)).mean())
    smoothed = (totals + 4.0 * np.clip(level, 0.2, 0.8)) / (counts + 4.0)
    bernoulli = float((counts * smoothed * (1.0 - smoothed)).sum())
    shrink = float(np.clip(1.0 - (values * (1.0 - values)).sum() / bernoulli, 0.05, 1.0))
    noise = noise_variance(smoothed, shrink)
    weights = observed / noise[:, None]
    totals_by_example = weights.sum(axis=0) + 1.0 / (EXAMPLE_VARIANCE * shrink)
    scaled = weights / np.sqrt(totals_by_example)
    precision = np.diag(counts / noise) - scaled @ scaled.T
    residual = (values - level * observed) / noise[:, None]
    pull = residual.sum(axis=1) - weights @ (residual.sum(axis=0) / totals_by_example)
    return Evidence(level, noise, shrink, precision, pull)


def prior_covariance(arms: ArmPoints, scales: Scales) -> FloatArray:
    """K for some arms, n x n."""
    covariance = scales.latent * arm_kernel(arms, arms, scales.length) + COMMON_VARIANCE
    covariance[np.diag_indices(len(arms))] += scales.own
    return covariance


class Posterior:
    """Posterior of f given the scores of n arms."""

    def __init__(self, arms: ArmPoints, evidence: Evidence, scales: Scales) -> None:
        self.arms, self.evidence, self.scales = arms, evidence, scales
        covariance = prior_covariance(arms, scales)
        self._prior_variance: FloatArray = np.diag(covariance).copy()
        root = _root(evidence.precision)
        inner = root.T @ covariance @ root
        inner[np.diag_indices(len(inner))] += 1.0
        self._half = solve_triangular(cholesky(inner, lower=True), root.T, lower=True)
        lifted = covariance @ evidence.pull
        self._alpha = evidence.pull - self._half.T @ (self._half @ lifted)
        projected = self._half @ covariance
        self.mean: FloatArray = evidence.level + covariance @ self._alpha
        self.covariance: FloatArray = covariance - projected.T @ projected

    def cross(self, others: ArmPoints) -> FloatArray:
        """Prior covariance of the n arms with m other arms or points, n x m."""
        between = arm_kernel(self.arms, others, self.scales.length)
        return self.scales.latent * between + COMMON_VARIANCE

    def mean_of(self, cross: FloatArray) -> FloatArray:
        """Posterior mean score of other arms, m, from their prior covariance with ours."""
        return np.asarray(self.evidence.level + self._alpha @ cross, dtype=np.float64)

    def explained(self, cross: FloatArray) -> FloatArray:
        """Matrix P, n x m: the data lower the covariance of two arms a, b by P_a . P_b."""
        return np.asarray(self._half @ cross, dtype=np.float64)

    def point_covariance(self, apart: FloatArray) -> FloatArray:
        """Prior covariance of points that would be new arms, from the distances between them."""
        between = self.scales.latent * matern52(apart, self.scales.length) + COMMON_VARIANCE
        between[np.diag_indices(len(between))] += self.scales.own
        return between

    def prior_of(self, others: ArmPoints) -> FloatArray:
        """Prior covariance of m arms, m x m."""
        return prior_covariance(others, self.scales)

    def own_prior_variance(self) -> FloatArray:
        """Prior variance of the n evaluated arms."""
        return self._prior_variance

    def prior_variance(self, others: ArmPoints) -> FloatArray:
        """Prior variance of other arms, m."""
        own = COMMON_VARIANCE + self.scales.own
        return np.full(len(others), self.scales.latent + own)


def fit_scales(arms: ArmPoints, evidence: Evidence, start: Scales) -> Scales:
    """Maximise the marginal likelihood times the prior, from a warm start.

    The objective, up to a constant, is

        1/2 logdet(I + Lam K) - 1/2 h^T K alpha - log prior(log ell, log sz, log u),

    and its derivative along dK is 1/2 tr((W - alpha alpha^T) dK).
    """
    apart = distances(arms.points, arms.points)
    root = _root(evidence.precision)

    def objective(logs: FloatArray) -> tuple[float, FloatArray]:
        scales = Scales(*np.exp(logs))
        near, slope = matern52_and_slope(apart, scales.length)
        near, slope = normalise(average(near, arms, arms), average(slope, arms, arms))
        covariance = scales.latent * near + COMMON_VARIANCE
        covariance[np.diag_indices(len(arms))] += scales.own
        inner = root.T @ covariance @ root
        inner[np.diag_indices(len(inner))] += 1.0
        lower = cholesky(inner, lower=True)
        half = solve_triangular(lower, root.T, lower=True)
        lifted = covariance @ evidence.pull
        alpha = evidence.pull - half.T @ (half @ lifted)
        sensitivity = half.T @ half - np.outer(alpha, alpha)
        deviation = (logs - _PRIOR_MEAN) / _PRIOR_SD
        value = np.log(np.diag(lower)).sum() - 0.5 * lifted @ alpha + 0.5 * deviation @ deviation
        gradient = 0.5 * np.array(
            [
                scales.latent * (sensitivity * slope).sum(),
                scales.latent * (sensitivity * near).sum(),
                scales.own * np.trace(sensitivity),
            ]
        )
        return float(value), gradient + deviation / _PRIOR_SD

    bounds = list(zip(_PRIOR_MEAN - 4 * _PRIOR_SD, _PRIOR_MEAN + 4 * _PRIOR_SD, strict=True))
    from scipy.optimize import minimize  # half a second to import; only fits need it

    found = minimize(
        objective,
        np.log(np.array(start)),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": 30, "ftol": 1e-6},
    )
    return Scales(*(float(value) for value in np.exp(found.x)))


def _root(precision: FloatArray) -> FloatArray:
    """Lower G with G G^T = Lam. Lam is positive definite for every tau2 > 0; rounding aside."""
    jitter = 1e-12 * float(np.trace(precision)) / len(precision)
    return np.asarray(
        cholesky(precision + jitter * np.eye(len(precision)), lower=True), dtype=np.float64
    )
