"""Formulas of the Gaussian processes: properties, and numbers worked by hand."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.optimizer.search import surrogate
from services.optimizer.search.coupled import CoupledKernel, coupled_process, latent_kernel
from services.optimizer.search.kernel import ArmPoints, arm_kernel, matern52, self_kernel
from services.optimizer.search.similarity import answer_similarity, nearest_psd, score_similarity
from services.optimizer.search.strategy import FloatArray
from services.optimizer.search.surrogate import Posterior, Scales, fit_scales, weigh


class Case(NamedTuple):
    """m scored points in the unit cube with a similarity of their instructions."""

    points: torch.Tensor
    similarity: torch.Tensor
    length: float
    scale: float


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    m, dim = draw(st.integers(2, 12)), draw(st.integers(3, 10))
    answers = [[str(rng.integers(3)) for _ in range(8)] for _ in range(m)]
    return Case(
        points=torch.tensor(rng.uniform(0, 1, (m, dim))),
        similarity=torch.tensor(answer_similarity(answers, "exact")),
        length=draw(st.floats(0.1, 0.6)),
        scale=draw(st.floats(0.1, 5.0)),
    )


def kernel_of(case: Case) -> CoupledKernel:
    latent = latent_kernel(case.points.shape[1])
    latent.lengthscale = case.length
    return CoupledKernel(case.points, case.similarity, latent.requires_grad_(False), case.scale)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases())
def test_scored_points_keep_their_instruction_similarity(case: Case) -> None:
    covariance = kernel_of(case)(case.points).to_dense()
    torch.testing.assert_close(covariance, case.scale * case.similarity, atol=2e-3, rtol=0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(cases(), st.integers(0, 2**32 - 1))
def test_the_coupled_kernel_is_positive_semi_definite_with_its_own_diagonal(
    case: Case, seed: int
) -> None:
    others = torch.tensor(np.random.default_rng(seed).uniform(0, 1, (7, case.points.shape[1])))
    points = torch.cat([case.points, others])
    kernel = kernel_of(case)
    covariance = kernel(points).to_dense()
    assert torch.linalg.eigvalsh((covariance + covariance.T) / 2).min() > -1e-4
    diagonal = kernel(points, diag=True)
    torch.testing.assert_close(diagonal, covariance.diagonal(), atol=1e-6, rtol=1e-6)


@st.composite
def awkward_points(draw: st.DrawFn) -> FloatArray:
    """Points of the box with repeats, near repeats, corners and the middle among them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dim = draw(st.integers(1, 10))
    rows = [rng.uniform(-1, 1, dim) for _ in range(draw(st.integers(1, 6)))]
    for kind in draw(st.lists(st.sampled_from("rncm"), max_size=8)):
        old = rows[rng.integers(len(rows))]
        rows.append(
            {
                "r": old,
                "n": np.clip(old + 1e-9, -1, 1),
                "c": rng.choice([-1.0, 1.0], dim),
                "m": np.zeros(dim),
            }[kind]
        )
    return np.array(rows)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(awkward_points(), st.sampled_from([0.03, 0.2, 1.5, 10.0]), st.integers(0, 9))
def test_kernels_are_positive_definite_for_repeated_and_extreme_points(
    points: FloatArray, length: float, seed: int
) -> None:
    arms = ArmPoints([[tuple(point)] for point in points], points.shape[1])
    prior = surrogate.prior_covariance(arms, Scales(length, 0.05, 0.01))
    assert np.linalg.eigvalsh(prior).min() > 0.0099
    rng = np.random.default_rng(seed)
    answers = [[str(rng.integers(3)) for _ in range(8)] for _ in points]
    case = Case(
        torch.tensor((points + 1) / 2), torch.tensor(answer_similarity(answers, "exact")), length, 1
    )
    kernel = kernel_of(case)
    corners = torch.tensor(rng.integers(0, 2, (4, points.shape[1])), dtype=torch.float64)
    covariance = kernel(torch.cat([case.points, corners, corners])).to_dense()
    assert torch.isfinite(covariance).all()
    assert torch.linalg.eigvalsh((covariance + covariance.T) / 2).min() > -1e-4


@settings(max_examples=30, deadline=None, derandomize=True)
@given(cases(), st.integers(0, 2**32 - 1))
def test_a_batch_of_points_is_worth_what_they_are_worth_one_at_a_time(
    case: Case, seed: int
) -> None:
    dim = case.points.shape[1]
    rng = np.random.default_rng(seed)
    others = torch.tensor(rng.uniform(0, 1, (5, 1, dim)))
    scores = torch.tensor(rng.normal(size=len(case.points)))
    noise = torch.full_like(scores, 0.1)
    latent = latent_kernel(dim)
    latent.lengthscale = case.length
    model = coupled_process(
        case.points, scores, noise, case.similarity, latent.requires_grad_(False), case.scale
    )
    with torch.no_grad():
        batch = model.posterior(others)
        for row, point in enumerate(others):
            alone = model.posterior(point)
            torch.testing.assert_close(batch.mean[row], alone.mean, atol=1e-9, rtol=1e-9)
            torch.testing.assert_close(batch.variance[row], alone.variance, atol=1e-9, rtol=1e-9)
        together = model.posterior(others.squeeze(1))
    torch.testing.assert_close(together.mean, batch.mean.squeeze(1), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(together.variance, batch.variance.squeeze(1), atol=1e-9, rtol=1e-9)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
def test_the_closed_form_takes_other_arms_all_at_once_or_one_by_one(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    arms = ArmPoints([[tuple(p)] for p in rng.uniform(-1, 1, (n, 3))], 3)
    posterior = Posterior(arms, weigh(rng.integers(0, 2, (n, 6)).astype(float)), Scales())
    others = [[tuple(p) for p in rng.uniform(-1, 1, (rng.integers(1, 4), 3))] for _ in range(4)]
    stacked = ArmPoints(others, 3)
    cross = posterior.cross(stacked)
    mean, variance = posterior.mean_of(cross), posterior.prior_variance(stacked)
    for number, group in enumerate(others):
        one = ArmPoints([group], 3)
        np.testing.assert_allclose(posterior.cross(one)[:, 0], cross[:, number], atol=1e-12)
        assert posterior.mean_of(posterior.cross(one))[0] == pytest.approx(mean[number], abs=1e-12)
        assert posterior.prior_variance(one)[0] == pytest.approx(variance[number], abs=1e-12)


def test_far_from_scored_points_the_latent_variance_is_left() -> None:
    latent = latent_kernel(1)
    latent.lengthscale = 0.05
    scored = torch.tensor([[0.0]], dtype=torch.float64)
    similarity = torch.ones(1, 1, dtype=torch.float64)
    kernel = CoupledKernel(scored, similarity, latent.requires_grad_(False), 2.0)
    far = torch.tensor([[1.0]], dtype=torch.float64)
    assert kernel(far).to_dense().item() == pytest.approx(2.0, abs=1e-6)
    assert kernel(far, scored).to_dense().item() == pytest.approx(0.0, abs=1e-6)


def test_matern52_by_hand() -> None:
    t = math.sqrt(5.0) * 0.6 / 1.5
    by_hand = (1 + t + t * t / 3) * math.exp(-t)
    assert matern52(np.array([[0.6]]), 1.5)[0, 0] == pytest.approx(by_hand, rel=1e-12)
    assert by_hand == pytest.approx(0.8835, abs=1e-4)


def test_arms_without_a_point_depend_on_nothing_else() -> None:
    arms = ArmPoints([[], [(0.1, 0.2)], []], 2)
    kernel = arm_kernel(arms, arms, 1.0)
    np.testing.assert_allclose(kernel, np.eye(3), atol=1e-12)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_arms_correlate_as_the_mean_embeddings_of_their_points(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    groups = [rng.uniform(-1, 1, (rng.integers(1, 4), 3)) for _ in range(n)]
    arms = ArmPoints([[tuple(p) for p in group] for group in groups], 3)
    kernel = arm_kernel(arms, arms, 0.8)

    def mean_kernel(a: FloatArray, b: FloatArray) -> float:
        return float(matern52(np.linalg.norm(a[:, None] - b[None], axis=2), 0.8).mean())

    for i, a in enumerate(groups):
        assert self_kernel(arms, 0.8)[i] == pytest.approx(mean_kernel(a, a), abs=1e-7)
        for j, b in enumerate(groups):
            root = math.sqrt(mean_kernel(a, a) * mean_kernel(b, b))
            assert kernel[i, j] == pytest.approx(mean_kernel(a, b) / root, abs=1e-7)
    np.testing.assert_allclose(np.diag(kernel), 1.0, atol=1e-7)
    assert np.linalg.eigvalsh(kernel).min() > -1e-9


def test_similarity_counts_equal_answers_right_or_wrong() -> None:
    answers = [["Cold", "big", "x"], ["cold ", "small", "x"], ["hot", "small", "y"]]
    found = answer_similarity(answers, "exact")
    np.testing.assert_allclose(found, [[1, 2 / 3, 0], [2 / 3, 1, 1 / 3], [0, 1 / 3, 1]])


def test_f1_similarity_by_hand_and_always_positive_semi_definite() -> None:
    found = answer_similarity([["a b"], ["b c"], ["c d"]], "f1")
    raw = np.array([[1, 0.5, 0], [0.5, 1, 0.5], [0, 0.5, 1]])
    np.testing.assert_allclose(found, raw, atol=1e-12)
    indefinite = np.array([[1, 0.9, 0], [0.9, 1, 0.9], [0, 0.9, 1.0]])
    assert np.linalg.eigvalsh(indefinite).min() < 0
    mended = nearest_psd(indefinite)
    assert np.linalg.eigvalsh(mended).min() > -1e-12
    np.testing.assert_allclose(np.diag(mended), 1.0)


def test_score_similarity_sees_scores_and_not_answers() -> None:
    scores = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found = score_similarity(scores)
    assert found[0, 1] == pytest.approx(1.0)
    assert found[0, 2] < 0.2


def brute_force(
    arms: ArmPoints, scores: FloatArray, scales: Scales
) -> tuple[FloatArray, FloatArray]:
    """Posterior of f from the full covariance of all scores, one row per observed score."""
    evidence = weigh(scores)
    prior = surrogate.prior_covariance(arms, scales)
    rows, columns = np.nonzero(~np.isnan(scores))
    shared = columns[:, None] == columns[None, :]
    effect = surrogate.EXAMPLE_VARIANCE * evidence.shrink
    total = prior[np.ix_(rows, rows)] + effect * shared + np.diag(evidence.noise[rows])
    gain = np.linalg.solve(total, prior[rows]).T
    mean = evidence.level + gain @ (scores[rows, columns] - evidence.level)
    return mean, prior - gain @ prior[rows]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.integers(2, 8))
def test_the_closed_form_posterior_is_that_of_all_single_scores(
    seed: int, n_arms: int, n_examples: int
) -> None:
    rng = np.random.default_rng(seed)
    arms = ArmPoints([[tuple(p)] for p in rng.uniform(-1, 1, (n_arms, 3))], 3)
    scores = rng.integers(0, 2, (n_arms, n_examples)).astype(float)
    for row in scores:
        row[rng.integers(1, n_examples + 1) :] = np.nan
    posterior = Posterior(arms, weigh(scores), Scales(1.2, 0.05, 0.01))
    mean, covariance = brute_force(arms, scores, Scales(1.2, 0.05, 0.01))
    np.testing.assert_allclose(posterior.mean, mean, atol=1e-8)
    np.testing.assert_allclose(posterior.covariance, covariance, atol=1e-8)


def test_hyper_parameters_are_fitted_with_the_right_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(4)
    arms = ArmPoints([[tuple(p)] for p in rng.uniform(-1, 1, (15, 2))], 2)
    scores = (rng.uniform(size=(15, 10)) < 0.5).astype(float)
    seen = {}

    def check(objective, start, **_):
        _, gradient = objective(start)
        seen["numeric"] = scipy.optimize.approx_fprime(start, lambda logs: objective(logs)[0], 1e-6)
        seen["exact"] = gradient
        return type("Found", (), {"x": start})

    monkeypatch.setattr(scipy.optimize, "minimize", check)
    fit_scales(arms, weigh(scores), Scales())
    np.testing.assert_allclose(seen["exact"], seen["numeric"], rtol=1e-4, atol=1e-5)


def test_a_smooth_landscape_is_seen_as_such() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (60, 2))
    chance = 0.5 + 0.45 * points[:, :1]
    smooth = (rng.uniform(size=(60, 40)) < chance).astype(float)
    arms = ArmPoints([[tuple(p)] for p in points], 2)
    fitted = fit_scales(arms, weigh(smooth), Scales())
    shuffled = fit_scales(arms, weigh(rng.permutation(smooth)), Scales())
    assert fitted.latent > 2 * shuffled.latent
    assert fitted.own < shuffled.own
