"""The paper's step as one writes it with BoTorch and GPyTorch in an afternoon, to compare with.

Fit a `SingleTaskGP`, put the instruction-coupled kernel (Eq. 9) on its latent kernel, and maximise
expected improvement for 25 points, one after the other, with `optimize_acqf`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from botorch.acquisition.analytic import LogExpectedImprovement
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.optim import optimize_acqf
from gpytorch.mlls import ExactMarginalLogLikelihood

from services.optimizer.search.coupled import CoupledKernel
from services.optimizer.search.similarity import answer_similarity

DIM, EXAMPLES, BATCH = 10, 20, 25


def plain_step(n: int, seed: int) -> Callable[[], None]:
    """Return the paper's step on n scored instructions, written without further thought."""
    rng = np.random.default_rng(seed)
    points = torch.tensor(rng.uniform(0.0, 1.0, (n, DIM)))
    answers = [[str(rng.integers(3)) for _ in range(EXAMPLES)] for _ in range(n)]
    scores = torch.tensor(rng.uniform(size=(n, 1)))
    scores = (scores - scores.mean()) / scores.std()
    bounds = torch.tensor([[0.0] * DIM, [1.0] * DIM], dtype=torch.float64)

    def step() -> None:
        latent = SingleTaskGP(points, scores, outcome_transform=None)
        fit_gpytorch_mll(ExactMarginalLogLikelihood(latent.likelihood, latent))
        similarity = torch.tensor(answer_similarity(answers, "exact"))
        kernel = CoupledKernel(points, similarity, latent.covar_module.requires_grad_(False), 1.0)
        seen, values = points, scores
        noise = latent.likelihood.noise.detach().expand(n, 1)
        for _ in range(BATCH):
            model = SingleTaskGP(
                seen, values, train_Yvar=noise, covar_module=kernel, outcome_transform=None
            ).eval()
            acquisition = LogExpectedImprovement(model, best_f=values.max())
            found, _ = optimize_acqf(acquisition, bounds, q=1, num_restarts=10, raw_samples=256)
            with torch.no_grad():
                believed = model.posterior(found).mean
            seen, values = torch.cat([seen, found]), torch.cat([values, believed])
            noise = torch.cat([noise, noise[:1]])

    return step
