"""What is promised where: expected improvement over a slice of the box, for a picture."""

from __future__ import annotations

import numpy as np

from services.optimizer.search.kernel import ArmPoints
from services.optimizer.search.racing import normal_gain
from services.optimizer.search.strategy import FloatArray
from services.optimizer.search.surrogate import Posterior

GRID = tuple(float(x) for x in np.linspace(-1.0, 1.0, 21).round(2))


def expected_improvement(posterior: Posterior, best: float, points: FloatArray) -> FloatArray:
    """Expected improvement (Eq. 6) over a score `best` at m new points, m x d."""
    arms = ArmPoints([[tuple(point)] for point in points.tolist()], points.shape[1])
    cross = posterior.cross(arms)
    variance = posterior.prior_variance(arms) - (posterior.explained(cross) ** 2).sum(axis=0)
    sd = np.sqrt(np.maximum(variance, 1e-12))
    mean = posterior.mean_of(cross)
    return np.asarray(sd * normal_gain((mean - best) / sd), dtype=np.float64)


def improvement_slice(posterior: Posterior, best: float, leader: FloatArray) -> dict[str, object]:
    """Expected improvement on the plane through the leader in which it varies most.

    Args:
        posterior: of the arms evaluated so far.
        best: posterior mean of the best of them.
        leader: d, a point of the leading arm; d >= 2.

    Returns:
        `axes`, the two coordinates of the plane; `grid`, the values they take; `value`, row by row
        of the second coordinate; `leader`, where it lies on the plane.
    """
    dim = len(leader)
    sweeps = np.repeat(leader[None, :], dim * len(GRID), axis=0)
    for axis in range(dim):
        sweeps[axis * len(GRID) : (axis + 1) * len(GRID), axis] = GRID
    along = expected_improvement(posterior, best, sweeps).reshape(dim, len(GRID))
    first, second = np.sort(np.argsort(-np.ptp(along, axis=1), kind="stable")[:2])
    plane = np.repeat(leader[None, :], len(GRID) ** 2, axis=0)
    across, up = np.meshgrid(GRID, GRID)
    plane[:, first], plane[:, second] = across.ravel(), up.ravel()
    value = expected_improvement(posterior, best, plane).reshape(len(GRID), len(GRID))
    return {
        "axes": [int(first), int(second)],
        "grid": list(GRID),
        "value": [[float(f"{x:.3g}") for x in row] for row in value],
        "leader": [float(leader[first]), float(leader[second])],
    }
