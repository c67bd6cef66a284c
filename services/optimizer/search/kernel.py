"""Matern-5/2 between arms: an arm is a set of latent points that all gave the same text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.optimizer.search.strategy import FloatArray

_ROWS = 256
_FAR = 1024.0


class ArmPoints:
    """The latent points of some arms, stacked; every arm has at least one row.

    An arm that came from no point (the user's own text) gets one far outside the box and far from
    any other: its kernel with itself is 1 and with every other arm exactly 0.

    Attributes:
        points: p x d, grouped by arm.
        starts: n, row of each arm's first point.
        counts: n, number of points of each arm.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Sequence[float]]],
        dim: int,
        numbers: Sequence[int] | None = None,
    ) -> None:
        """Stack.

        Args:
            groups: for each arm, its points.
            dim: d.
            numbers: what tells arms without a point apart, across different `ArmPoints` too.
        """
        rows: list[Sequence[float]] = []
        counts = []
        for number, group in zip(numbers or range(len(groups)), groups, strict=True):
            # Powers of two: squared distances are exact, so the arm's distance to itself is 0.
            far = (_FAR * (number + 1),) + (0.0,) * (dim - 1)
            rows.extend(group or [far])
            counts.append(max(1, len(group)))
        self.points: FloatArray = np.array(rows, dtype=np.float64).reshape(len(rows), dim)
        self.counts: NDArray[np.intp] = np.array(counts, dtype=np.intp)
        self.starts: NDArray[np.intp] = np.concatenate([[0], np.cumsum(self.counts)[:-1]]).astype(
            np.intp
        )

    def __len__(self) -> int:
        return len(self.counts)


def distances(a: FloatArray, b: FloatArray) -> FloatArray:
    """Euclidean distances, p x r, between the rows of a (p x d) and b (r x d)."""
    squared = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None, :] - 2.0 * (a @ b.T)
    return np.asarray(np.sqrt(np.maximum(squared, 0.0)), dtype=np.float64)


def matern52(distance: FloatArray, length: float) -> FloatArray:
    """Matern-5/2, (1 + t + t^2/3) exp(-t) with t = sqrt(5) distance / length."""
    t = distance * (np.sqrt(5.0) / length)
    return np.asarray((1.0 + t * (1.0 + t / 3.0)) * np.exp(-t), dtype=np.float64)


def matern52_and_slope(distance: FloatArray, length: float) -> tuple[FloatArray, FloatArray]:
    """Matern-5/2 and its derivative with respect to log(length), t^2 (1 + t) exp(-t) / 3."""
    t = distance * (np.sqrt(5.0) / length)
    decay = np.exp(-t)
    return (1.0 + t * (1.0 + t / 3.0)) * decay, t * t * (1.0 + t) * decay / 3.0


def average(matrix: FloatArray, rows: ArmPoints, columns: ArmPoints) -> FloatArray:
    """Average a point-by-point matrix over the points of each pair of arms."""
    if len(matrix) > len(rows):
        matrix = np.add.reduceat(matrix, rows.starts, axis=0) / rows.counts[:, None]
    if matrix.shape[1] > len(columns):
        matrix = np.add.reduceat(matrix, columns.starts, axis=1) / columns.counts[None, :]
    return matrix


def arm_kernel(rows: ArmPoints, columns: ArmPoints, length: float) -> FloatArray:
    """Correlation of two arms, for every pair of arms: cosine of the arms' mean embeddings.

    That is the mean Matern-5/2 over the pairs of their points, divided by the root of what it is
    for each arm with itself: an arm's variance does not shrink with the number of its points.

    Returns:
        len(rows) x len(columns). A block of rows at a time, so that memory stays small.
    """
    result = np.empty((len(rows), len(columns)))
    for first in range(0, len(rows), _ROWS):
        block = _slice(rows, first, min(first + _ROWS, len(rows)))
        between = matern52(distances(block.points, columns.points), length)
        result[first : first + len(block)] = average(between, block, columns)
    own = np.sqrt(self_kernel(rows, length))
    theirs = own if columns is rows else np.sqrt(self_kernel(columns, length))
    result /= own[:, None]
    result /= theirs[None, :]
    return result


def normalise(near: FloatArray, slope: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Turn a kernel matrix, n x n, into correlations, and its derivative into theirs."""
    root = np.sqrt(np.diag(near))
    near = near / np.outer(root, root)
    relative = 0.5 * np.diag(slope) / root**2
    slope = slope / np.outer(root, root) - near * (relative[:, None] + relative[None, :])
    return near, slope


def self_kernel(arms: ArmPoints, length: float) -> FloatArray:
    """Mean Matern-5/2 over the pairs of points of each arm: n."""
    result = np.ones(len(arms))
    for count in set(arms.counts.tolist()) - {1}:
        numbers = np.flatnonzero(arms.counts == count)
        own = arms.points[arms.starts[numbers][:, None] + np.arange(count)]
        apart = np.linalg.norm(own[:, :, None] - own[:, None], axis=3)
        result[numbers] = matern52(apart, length).mean(axis=(1, 2))
    return result


def _slice(arms: ArmPoints, first: int, last: int) -> ArmPoints:
    part = ArmPoints.__new__(ArmPoints)
    part.counts = arms.counts[first:last]
    part.starts = arms.starts[first:last] - arms.starts[first]
    part.points = arms.points[arms.starts[first] : arms.starts[first] + int(part.counts.sum())]
    return part
