"""Counter-based randomness: a seed depends on (job seed, step, purpose) and on nothing else."""

from __future__ import annotations

import hashlib

import numpy as np

from services.optimizer.search.strategy import FloatArray


def derive_seed(job_seed: int, step: int, purpose: str) -> int:
    """Return the seed for one purpose at one step of a job, in [0, 2^63).

    Two different triples give independent seeds; the same triple gives the same seed on every
    machine and in every process, however often a job is resumed.
    """
    digest = hashlib.sha256(f"{job_seed}/{step}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(job_seed: int, step: int, purpose: str) -> np.random.Generator:
    """Return a NumPy generator for one purpose at one step."""
    return np.random.default_rng(derive_seed(job_seed, step, purpose))


def sobol_points(job_seed: int, dim: int, first: int, count: int) -> FloatArray:
    """Return points first, first + 1, ... of the job's scrambled Sobol sequence.

    Args:
        job_seed: the job's seed; it fixes the scrambling.
        dim: d.
        first: number of the first point wanted.
        count: how many.

    Returns:
        count x d, in [-1, 1]^d: the same box that every acquisition searches.
    """
    from scipy.stats import qmc  # takes a second to import; most processes draw no points

    sequence = qmc.Sobol(dim, scramble=True, rng=generator(job_seed, 0, "sobol"))
    # A power of two at a time keeps the sequence balanced, and SciPy from warning that it is not.
    drawn = sequence.random_base2(int(first + count - 1).bit_length())
    return np.asarray(2.0 * drawn[first : first + count] - 1.0, dtype=np.float64)
