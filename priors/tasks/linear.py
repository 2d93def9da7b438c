"""Random linear functions as tasks, with their exact posterior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from priors.posteriors.gaussian import GaussianPosterior
from priors.randomness import RandomSource
from priors.tasks.base import LatentTaskPrior, relevance
from priors.tasks.oracles import gaussian_oracle
from priors.tasks.task import Task
from priors.tasks.validation import check_probabilities

__all__ = ["LinearTaskPrior"]


@dataclass(frozen=True)
class LinearTaskPrior(LatentTaskPrior):
    """Linear functions: f = sum_j w_j x_j + c, w_j ~ N(0, v_j), c ~ N(0, v_0).

    The variances v sum to 1, so that f has variance 1 at inputs of unit variance.

    Attributes:
        size: How large tasks are.
        inputs: How inputs are drawn.
        noise: Noise of the targets; see `LatentTaskPrior`.
        sparse: Probability that weights differ in their variance, some 0; see
            `priors.tasks.base.relevance`. Where they do not, all v_j are equal.
        intercept: Largest share of v_0, which is uniform from 0.
    """

    sparse: float = 0.5
    intercept: float = 0.5

    def __post_init__(self) -> None:
        check_probabilities(self, "sparse")
        if not 0 <= self.intercept < 1:
            raise ValueError(f"intercept must be a share in [0, 1), got {self.intercept}.")

    @property
    def description(self) -> str:
        """One line for a checkpoint."""
        return f"linear functions, {self.size.description} (priors.LinearTaskPrior)"

    def draw(
        self, draws: RandomSource, batch: int, points: int, features: int, outputs: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Inputs, linear functions and the variances of their coefficients."""
        X = self.inputs.draw(draws, batch, points, features)
        weights = relevance(draws, batch, features, uneven=self.sparse)
        weights = weights / weights.sum(-1, keepdim=True)
        bias_var = self.intercept * draws.uniform(batch)
        weight_var = weights * (1 - bias_var)[:, None]
        w = weight_var.sqrt()[..., None] * draws.normal(batch, features, outputs)
        c = bias_var.sqrt()[:, None, None] * draws.normal(batch, 1, outputs)
        latents = {"weight_var": weight_var, "bias_var": bias_var}
        return X, torch.baddbmm(c, X, w), latents

    def covariance(self, X: Tensor, latents: dict[str, Tensor]) -> Tensor:
        """Covariance of f at `X` `[B, N, d]` given the variances, `[B, N, N]`."""
        products = (X * latents["weight_var"].to(X)[:, None]) @ X.mT
        return products + latents["bias_var"].to(X)[:, None, None]

    def oracle(self, task: Task) -> GaussianPosterior:
        """Posterior of y at the queries of `task` given its context and the variances.

        With `sparse` and `intercept` 0, only the noise variance is given that a network has to
        infer.
        """
        return gaussian_oracle(task, self.covariance(task.X.double(), task.latents))
