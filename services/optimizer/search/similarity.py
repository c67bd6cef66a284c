"""Instruction similarity S (InstructZero, Eq. 8): do two instructions get the same answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from services.optimizer.search.kernel import distances, matern52
from services.optimizer.search.strategy import FloatArray

SCORE_LENGTH = 0.5
"""Length-scale of the score-vector kernel, for root mean squared differences of scores."""


def answer_similarity(answers: Sequence[Sequence[str]], kind: str) -> FloatArray:
    """S_ij = mean over examples of sim(answer of i, answer of j), projected to be PSD.

    Args:
        answers: m instructions x n examples, aligned.
        kind: `exact` (normalised exact match, PSD as it stands) or `f1` (of words, need not be).

    Returns:
        m x m, symmetric, positive semi-definite, ones on the diagonal.
    """
    m, total = len(answers), np.zeros((len(answers), len(answers)))
    for column in zip(*answers, strict=True):
        normal = [" ".join(answer.lower().split()) for answer in column]
        distinct = {answer: code for code, answer in enumerate(dict.fromkeys(normal))}
        codes = np.array([distinct[answer] for answer in normal])
        if kind == "exact":
            total += codes[:, None] == codes[None, :]
        else:
            total += _pairwise(list(distinct), word_f1)[np.ix_(codes, codes)]
    similarity = total / max(1, len(answers[0]) if m else 1)
    return similarity if kind == "exact" else nearest_psd(similarity)


def score_similarity(scores: FloatArray) -> FloatArray:
    """The authors' code: Matern-5/2 over score vectors, m x n, whether the answers agree or not."""
    return matern52(distances(scores, scores) / np.sqrt(scores.shape[1]), SCORE_LENGTH)


def nearest_psd(matrix: FloatArray) -> FloatArray:
    """Clip negative eigenvalues and restore the ones on the diagonal."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2.0)
    if values[0] >= 0.0:
        return matrix
    clipped = (vectors * np.maximum(values, 0.0)) @ vectors.T
    scale = np.sqrt(np.maximum(np.diag(clipped), 1e-12))
    return np.asarray(clipped / np.outer(scale, scale), dtype=np.float64)


@lru_cache(maxsize=200_000)
def word_f1(a: str, b: str) -> float:
    """F1 of the words two answers share; two empty answers agree."""
    words_a, words_b = a.split(), b.split()
    if not words_a or not words_b:
        return float(words_a == words_b)
    shared = sum((Counter(words_a) & Counter(words_b)).values())
    return 2.0 * shared / (len(words_a) + len(words_b))


def _pairwise(values: Sequence[str], compare: Callable[[str, str], float]) -> FloatArray:
    return np.array([[compare(a, b) for b in values] for a in values], dtype=np.float64)
