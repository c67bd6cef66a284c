"""The instruction-coupled kernel (InstructZero, Eq. 9) and a Gaussian process with it, on BoTorch.

    k(z, z') = s [ l_z L^-1 S L^-1 l_z'^T  +  l(z, z') - l_z L^-1 l_z'^T ]

The first term is the paper's: S on scored points, interpolated by the latent kernel between them.
Away from scored points it has no variance of its own, and the paper's acquisition is flat; the
second term is what the latent kernel leaves unexplained. It is 0 on scored points.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from botorch.acquisition.analytic import LogExpectedImprovement
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.optim import optimize_acqf
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import Kernel, MaternKernel
from gpytorch.means import ZeroMean
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import LogNormalPrior
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Tensor

MAX_FIT_STEPS = 60
MAX_SEARCH_STEPS = 10
JITTER = 1e-6
"""Added to L: two scored points may be as good as equal and yet have given different texts."""
N_RESTARTS = 8
N_RAW = 256


class CoupledKernel(Kernel):  # type: ignore[misc]  # GPyTorch has no types
    """Eq. 9 with the residual, factorised once and evaluated in proper batches."""

    has_lengthscale = False

    def __init__(self, scored: Tensor, similarity: Tensor, latent: Kernel, scale: float) -> None:
        """Factorise.

        Args:
            scored: m x d, the scored points; repeated points are allowed.
            similarity: S, m x m, symmetric, positive semi-definite.
            latent: l, with a fixed length-scale.
            scale: s, prior variance.
        """
        super().__init__()
        self.latent, self.scale, self.scored, self._similarity = latent, scale, scored, similarity
        with torch.no_grad():
            gram = latent(scored).to_dense()
            eye = torch.eye(len(scored)).to(gram)
            lower = psd_safe_cholesky(gram + JITTER * eye)
            self._whiten = torch.linalg.solve_triangular(lower, eye, upper=False).mT
            self._of_scored = gram @ self._whiten

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Covariance, ... x p x r, of ... x p x d and ... x r x d points; or its diagonal."""
        white_1, white_2 = self._white(x1), self._white(x2)
        # Lifted rows a = l_z L^-1, so that the first term is a S a'^T: symmetric as it stands.
        lifted_1, lifted_2 = white_1 @ self._whiten.mT, white_2 @ self._whiten.mT
        if diag:
            coupled = ((lifted_1 @ self._similarity) * lifted_2).sum(-1)
            residual = self.latent(x1, x2, diag=True) - (white_1 * white_2).sum(-1)
            variance: Tensor = self.scale * (coupled + residual.clamp_min(0.0))
            return variance
        coupled = lifted_1 @ self._similarity @ lifted_2.mT
        residual = self.latent(x1, x2).to_dense() - white_1 @ white_2.mT
        covariance: Tensor = self.scale * (coupled + residual)
        return covariance

    def _white(self, points: Tensor) -> Tensor:
        """l_z L^-1/2; GPyTorch hands over the scored points in every batch."""
        if points.shape[-2:] == self.scored.shape and bool((points == self.scored).all()):
            known: Tensor = self._of_scored
            return known
        white: Tensor = self.latent(points, self.scored).to_dense() @ self._whiten
        return white


def latent_kernel(dim: int) -> MaternKernel:
    """Isotropic Matern-5/2 on [0, 1]^d whose length-scale prior grows with sqrt(d)."""
    prior = LogNormalPrior(loc=math.sqrt(2.0) + 0.5 * math.log(dim), scale=math.sqrt(3.0))
    return MaternKernel(
        nu=2.5,
        lengthscale_prior=prior,
        lengthscale_constraint=GreaterThan(2.5e-2, transform=None, initial_value=prior.mode),
    )


def fit_length(points: Tensor, scores: Tensor, noise: Tensor) -> MaternKernel:
    """Fit the latent kernel's length-scale to standardised scores by marginal likelihood.

    On scored points the coupled kernel is S whatever the length-scale, so that its own likelihood
    says nothing about it; the latent kernel's does.
    """
    model = _process(points, scores, noise, latent_kernel(points.shape[-1]))
    likelihood = ExactMarginalLogLikelihood(model.likelihood, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an early stop of the optimiser is no news
        fit_gpytorch_mll(likelihood, optimizer_kwargs={"options": {"maxiter": MAX_FIT_STEPS}})
    fitted = model.covar_module
    fitted.requires_grad_(False)
    return fitted


def coupled_process(
    points: Tensor, scores: Tensor, noise: Tensor, similarity: Tensor, latent: Kernel, scale: float
) -> SingleTaskGP:
    """The surrogate of Eqs. 4-5 with the kernel of Eq. 9, n points in [0, 1]^d."""
    kernel = CoupledKernel(points, similarity, latent, scale)
    model = _process(points, scores, noise, kernel)
    return model.eval()


def improve(model: SingleTaskGP, best: float, dim: int) -> Tensor:
    """Return local maxima of log expected improvement over [0, 1]^d, restarts x d."""
    acquisition = LogExpectedImprovement(model, best_f=best)
    bounds = torch.tensor([[0.0] * dim, [1.0] * dim], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, _ = optimize_acqf(
            acquisition,
            bounds,
            q=1,
            num_restarts=N_RESTARTS,
            raw_samples=N_RAW,
            return_best_only=False,
            options={"maxiter": MAX_SEARCH_STEPS, "batch_limit": N_RESTARTS},
        )
    optima: Tensor = found.reshape(-1, dim).clamp(0.0, 1.0)
    return optima


def _process(points: Tensor, scores: Tensor, noise: Tensor, kernel: Kernel) -> SingleTaskGP:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few points are rarely standardised to the last digit
        return SingleTaskGP(
            points,
            scores.unsqueeze(-1),
            train_Yvar=noise.unsqueeze(-1),
            covar_module=kernel,
            mean_module=ZeroMean(),
            outcome_transform=None,
        )
