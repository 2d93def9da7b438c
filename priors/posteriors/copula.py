"""Many samples of points that depend on each other, from a few joint ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from botorch.sampling.base import MCSampler
from botorch.sampling.normal import SobolQMCNormalSampler
from botorch.utils.sampling import draw_sobol_normal_samples
from torch import Tensor

if TYPE_CHECKING:
    from priors.posteriors.protocol import PredictivePosterior

__all__ = ["CopulaSampler"]


class CopulaSampler(MCSampler):
    """Exact marginals, with the dependence of a Gaussian copula fitted to joint samples.

    The joint samples' normal scores, Phi^-1 of their marginal distribution functions, have the
    correlations of the copula, with standard errors of (1 - rho^2) / sqrt(num_joint). Sums of them
    with random normal weights have these correlations too, and are mapped back by the marginals'
    quantiles. Outputs are independent.

    Args:
        sample_shape: Of the samples.
        num_joint: Joint samples.
        seed: Of both.
    """

    def __init__(
        self, sample_shape: torch.Size, *, num_joint: int = 128, seed: int | None = None
    ) -> None:
        super().__init__(sample_shape=sample_shape, seed=seed)
        self.num_joint = num_joint

    def forward(  # type: ignore[override]  # its own posteriors only, as BoTorch's other samplers
        self, posterior: PredictivePosterior
    ) -> Tensor:
        """Samples `[*sample_shape, ..., n, m]`, without a gradient.

        Args:
            posterior: One with a form of independent points, `posterior.independent()`.
        """
        independent = posterior.independent()
        if independent is None:
            raise ValueError(
                "CopulaSampler needs a posterior that has a form with independent points; "
                "take SobolQMCNormalSampler for others, whose joint samples are cheap."
            )
        few = SobolQMCNormalSampler(torch.Size([self.num_joint]), seed=self.seed)
        with torch.no_grad():
            p = posterior.cdf(few(posterior))
            eps = torch.finfo(p.dtype).eps
            scores = torch.special.ndtri(p.clamp(eps, 1 - eps))  # [k, ..., n, m]
            scores = scores / scores.square().sum(0).sqrt().clamp_min(eps)
            k, m = len(scores), scores.shape[-1]
            weights = draw_sobol_normal_samples(
                k * m,
                self.sample_shape.numel(),
                device=p.device,
                dtype=p.dtype,
                seed=self.seed,
            )
            z = torch.einsum("skm,k...m->s...m", weights.unflatten(-1, (k, m)), scores)
            z = z.unflatten(0, self.sample_shape)
            return independent.rsample_from_base_samples(self.sample_shape, z)
