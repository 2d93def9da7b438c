"""Functions at queries under q: Gaussian marginals, and their joint where it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from linear_operator.operators import (
    BlockDiagLinearOperator,
    DiagLinearOperator,
    LinearOperator,
)
from torch import Tensor

from priors.posteriors.gaussian import GaussianPosterior

__all__ = ["Latent"]


@dataclass(frozen=True)
class Latent:
    """k independent functions at q queries, on the model's scale.

    Attributes:
        mean: `[..., q, k]`.
        variance: `[..., q, k]`, > 0.
        covariance: Of each function, `[..., k, q, q]`, which may be deferred.
    """

    mean: Tensor
    variance: Tensor
    covariance: LinearOperator

    def of_functions(self, functions: Sequence[int]) -> Latent:
        """Some of the functions."""
        if list(functions) == list(range(self.mean.shape[-1])):
            return self
        index = list(functions)
        return Latent(
            self.mean[..., index], self.variance[..., index], self.covariance[..., index, :, :]
        )

    def posterior(self, noise: Tensor | None = None) -> GaussianPosterior:
        """The Gaussian posterior of the functions, `[..., q, k]`.

        Args:
            noise: Variances of independent noise, broadcasting with `[..., q, k]`.
        """
        mean, covariance = self.mean.mT, self.covariance
        if noise is not None:
            added = noise.expand(torch.broadcast_shapes(noise.shape, self.mean.shape)).mT
            mean = mean.expand(added.shape)
            covariance = covariance.expand(*added.shape, added.shape[-1])
            covariance = covariance + DiagLinearOperator(added.contiguous())
        if mean.shape[-2] == 1:
            return GaussianPosterior(MultivariateNormal(mean.squeeze(-2), covariance[..., 0, :, :]))
        joint = BlockDiagLinearOperator(covariance)
        return GaussianPosterior(MultitaskMultivariateNormal(mean.mT, joint, interleaved=False))
