"""From a latent point to a soft prompt: the seeded projection A, its scale, and its fingerprint.

A soft prompt is A z (InstructZero, Eq. 3), cut into `n_tokens` rows of the model's hidden size. The
entries of A are drawn once per seed, U(-1, 1) or N(0, 1), and multiplied by

    c = scale * s / sqrt(d * Var(entry) * 1/3)

where 1/3 is the variance of a coordinate of z that is uniform in [-1, 1], and s is the spread of
the model's embedding table: the root mean square, over coordinates, of the standard deviation
across tokens. So at scale 1 a coordinate of a soft token varies over the box as much as the same
coordinate varies over the vocabulary, whatever d and the kind; z = 0 is the zero vector.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from instructzero.contracts import ProjectionSpec

Floats = NDArray[np.float32]
ALGORITHM = 1
"""Part of the fingerprint: raise it when the same seed gives another matrix."""
ENTRY_VARIANCE = {"uniform": 1 / 3, "normal": 1.0}
POINT_VARIANCE = 1 / 3


@dataclass(frozen=True)
class Projection:
    """A, scaled: (n_tokens * hidden_size) x d."""

    matrix: Floats
    n_tokens: int

    @classmethod
    def draw(cls, spec: ProjectionSpec, *, hidden_size: int, spread: float) -> Projection:
        """Draw A from its seed; `spread` is the embedding table's, see `table_spread`."""
        shape = (spec.n_tokens * hidden_size, spec.intrinsic_dim)
        # Raw bits of a named bit generator: NumPy keeps these the same from version to version,
        # which it does not promise for its distributions.
        bits = np.random.Philox(np.random.SeedSequence([ALGORITHM, spec.seed]))
        share = (bits.random_raw(math.prod(shape)) >> np.uint64(11)).astype(np.float64)
        share = (share + 0.5) * 2.0**-53
        entries = ndtri(share) if spec.kind == "normal" else 2 * share - 1
        variance = spec.intrinsic_dim * ENTRY_VARIANCE[spec.kind] * POINT_VARIANCE
        factor = spec.scale * spread / math.sqrt(variance)
        return cls((factor * entries).reshape(shape).astype(np.float32), spec.n_tokens)

    def soft_prompts(self, points: Iterable[Sequence[float]]) -> list[Floats]:
        """Return A z for each point, n_tokens x hidden_size."""
        # One product per point: a point's rows then do not depend on its neighbours.
        return [
            (self.matrix @ np.asarray(point, dtype=np.float32)).reshape(self.n_tokens, -1)
            for point in points
        ]


def table_spread(chunks: Iterable[Tensor]) -> float:
    """Return the spread of an embedding table, given as chunks of rows the model would read."""
    n, total, squares = 0, None, None
    for chunk in chunks:
        rows = chunk.double()
        n += rows.shape[0]
        total = rows.sum(0) if total is None else total + rows.sum(0)
        squares = (rows * rows).sum(0) if squares is None else squares + (rows * rows).sum(0)
    if total is None or squares is None:
        raise ValueError("an embedding table has at least one row")
    variance = (squares / n - (total / n) ** 2).clamp(min=0)
    return float(variance.mean().sqrt())


@dataclass(frozen=True)
class Space:
    """Everything about the generator that decides which text a soft prompt becomes.

    Attributes:
        weights: identity of the checkpoint's files.
        meta_prompt: the id of the meta-prompt.
        frame: its text, in the model's own chat format.
    """

    model: str
    revision: str
    weights: str
    engine: str
    engine_version: str
    dtype: str
    meta_prompt: str
    frame: str


def fingerprint(space: Space, projection: ProjectionSpec, soft_position: str) -> str:
    """Return the SHA-256 that names a search space: equal spaces, equal names."""
    content = {
        "algorithm": ALGORITHM,
        "space": asdict(space),
        "projection": projection.model_dump(mode="json"),
        "soft_position": soft_position,
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def draw_seed(seed: int, point: Sequence[float], repeat: int) -> int:
    """Return the seed for sampling one text: it depends on the point, not on its neighbours.

    Args:
        seed: the request's.
        point: z.
        repeat: how often the same point came before in the request.
    """
    content = np.asarray(point, dtype="<f8").tobytes() + f"/{seed}/{repeat}".encode()
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little")
