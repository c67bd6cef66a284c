"""Which arms get the next paid calls: knowledge gradient per call, one pick conditioned on another.

Buying r examples of arm i moves its posterior mean by a normal amount of standard deviation

    s~ = s_i^2 / sqrt(s_i^2 + v_i / r).

What that is worth is the expected gain of the recommendation, s~ h(-|gap_i| / s~) with
h(x) = phi(x) + x Phi(x): the chance that the arm overtakes the leader, or for the leader itself
that it falls behind the second, times by how much. Most instructions are poor and one is much
better, which a normal belief holds for next to impossible; so h is that of Student's t, whose tails
become normal as the arm's answers come in.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, ndtr, stdtr

from services.optimizer.search.strategy import FloatArray

LOOK_AHEAD = (5, 10, 20, 40)
"""Numbers of examples r whose worth per call is compared."""
TAIL = 6.0
"""Degrees of freedom of the belief about an arm without answers; each answer adds one."""


def normal_gain(x: FloatArray) -> FloatArray:
    """h(x) = phi(x) + x Phi(x): expected positive part of a unit normal with mean x."""
    return np.asarray(np.exp(-0.5 * x * x) / np.sqrt(2.0 * np.pi) + x * ndtr(x), dtype=np.float64)


def student_gain(x: FloatArray, freedom: FloatArray) -> FloatArray:
    """Expected positive part of x + t, t Student's with these degrees of freedom (above 1)."""
    log_density = (
        gammaln((freedom + 1.0) / 2.0)
        - gammaln(freedom / 2.0)
        - 0.5 * np.log(freedom * np.pi)
        - (freedom + 1.0) / 2.0 * np.log1p(x * x / freedom)
    )
    above = np.exp(log_density) * (freedom + x * x) / (freedom - 1.0)
    return np.asarray(x * stdtr(freedom, x) + above, dtype=np.float64)


def knowledge_gradient(
    mean: FloatArray,
    covariance: FloatArray,
    noise: FloatArray,
    is_tried: NDArray[np.bool_],
    n_examples: NDArray[np.intp],
) -> FloatArray:
    """Value per call of more examples, m, for the best number of them.

    Args:
        mean: m posterior means.
        covariance: m x m, posterior; what arms have in common is not weighed here, which is worth
            nothing (benchmarks/ablation.py, "gain on the difference").
        noise: m variances of one score.
        is_tried: m, True where the arm may be recommended now.
        n_examples: m numbers of examples, observed or to come.
    """
    tried = np.where(is_tried, mean, -np.inf)
    leader = int(np.argmax(tried))
    gap = mean - tried[leader]
    tried[leader] = -np.inf
    others = np.where(is_tried, tried, mean)
    others[leader] = -np.inf
    second = float(others.max()) if len(mean) > 1 else -np.inf
    gap[leader] = mean[leader] - second if np.isfinite(second) else 1.0
    distance = np.abs(gap)
    variance = np.maximum(np.diag(covariance), 1e-12)
    freedom = np.asarray(TAIL + n_examples, dtype=np.float64)
    best = np.zeros(len(mean))
    for r in LOOK_AHEAD:
        moved = variance / np.sqrt(variance + noise / r)
        gain = moved * student_gain(-distance / np.maximum(moved, 1e-12), freedom)
        best = np.maximum(best, gain / r)
    return best


def condition(covariance: FloatArray, arm: int, noise: float) -> FloatArray:
    """Covariance after an observation of one arm with this noise variance."""
    column = covariance[:, arm]
    return covariance - np.outer(column, column / (column[arm] + noise))
