"""Averages of Gaussians, one for each draw of an engine that samples parameters.

`GaussianMixturePosterior` adds each draw's Gaussian noise and so has a density; it is never
reduced to its mean and variance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from priors.posteriors.draws import beside, choose, log_average, normalised
from priors.posteriors.gaussian import gaussian_log_excess
from priors.posteriors.inversion import invert_cdf
from priors.posteriors.protocol import PredictivePosterior, leading, probabilities

__all__ = ["GaussianMixturePosterior"]

_NUMBERS_AT_ONCE = 2**22


class GaussianMixturePosterior(PredictivePosterior):
    """A weighted average of S Gaussians whose points are independent given the component.

    Args:
        means: Component means, `[S, ..., n, m]`.
        variances: Component variances, > 0, broadcasting with `means`.
        log_weights: Log probabilities of the components, `[S]`; equal if None. They are normalised
            here.

    Base samples are `[..., n * m + 1]`: the last one chooses the component, shared by all points.
    """

    def __init__(self, means: Tensor, variances: Tensor, log_weights: Tensor | None = None) -> None:
        self.means = means
        self.variances = variances.expand_as(means)
        self.log_weights = normalised(log_weights, means)

    @property
    def mean(self) -> Tensor:
        return torch.tensordot(self.log_weights.exp(), self.means, dims=1)

    @property
    def variance(self) -> Tensor:
        second = self.variances + (self.means - self.mean).square()
        return torch.tensordot(self.log_weights.exp(), second, dims=1)

    def _standardised(self, Y: Tensor) -> Tensor:
        return (Y - beside(self.means, Y)) / beside(self.variances, Y).sqrt()

    def log_prob(self, Y: Tensor) -> Tensor:
        return log_average(self._component_log_prob(Y), self.log_weights)

    def _component_log_prob(self, Y: Tensor) -> Tensor:
        square = self._standardised(Y).square()
        return -0.5 * (square + beside((2 * torch.pi * self.variances).log(), Y))

    def joint_log_prob(self, Y: Tensor) -> Tensor:
        return log_average(self._component_log_prob(Y).sum((-2, -1)), self.log_weights)

    def cdf(self, Y: Tensor) -> Tensor:
        each = torch.special.ndtr(self._standardised(Y))
        return torch.tensordot(self.log_weights.exp(), each, dims=1)

    def quantile(self, value: Tensor) -> Tensor:
        """Marginal quantiles to rounding, differentiable in the components.

        Args:
            value: Probabilities in (0, 1), any shape `[*p]`.

        Returns:
            `[*p, ..., n, m]`.
        """
        value = probabilities(value, self.means)
        # The search holds all components at all of them.
        parts = value.flatten().split(max(1, _NUMBERS_AT_ONCE // self.means.numel()))
        return torch.cat([self._quantile(part) for part in parts]).reshape(
            value.shape + self.means.shape[1:]
        )

    def _quantile(self, value: Tensor) -> Tensor:
        p = leading(value, self.means[0])
        each = beside(self.means, p) + beside(self.variances, p).sqrt() * torch.special.ndtri(p)
        return invert_cdf(self, p, each.amin(0), each.amax(0))

    def log_excess(self, threshold: Tensor | float, order: int, above: bool = True) -> Tensor:
        threshold = torch.as_tensor(threshold, dtype=self.means.dtype, device=self.means.device)
        means, variances = (beside(part, threshold) for part in (self.means, self.variances))
        std = variances.clamp_min(torch.finfo(variances.dtype).tiny ** 0.5).sqrt()
        u = (means - threshold if above else threshold - means) / std
        each = gaussian_log_excess(u, std, order)
        return log_average(each, self.log_weights)

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        both = torch.cat([self.means, self.variances.sqrt()], dim=-1)
        mean, std = choose(both, self.log_weights, base_samples[..., -1]).chunk(2, dim=-1)
        noise = base_samples[..., :-1].reshape(*base_samples.shape[:-1], *self.means.shape[-2:])
        return mean + std * noise

    @property
    def base_sample_shape(self) -> torch.Size:
        *batch, n, m = self.means.shape[1:]
        return torch.Size([*batch, n * m + 1])

    @property
    def batch_range(self) -> tuple[int, int]:
        return (0, -1)
