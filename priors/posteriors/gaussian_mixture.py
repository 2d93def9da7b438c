"""Averages of Gaussians, one for each draw of an engine that samples parameters.

`GaussianMixturePosterior` adds each draw's Gaussian noise and so has a density; it is never
reduced to its mean and variance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from priors.posteriors.draws import choose, log_average, normalised
from priors.posteriors.gaussian import (
    gaussian_log_expected_improvement,
    gaussian_log_probability_of_improvement,
)
from priors.posteriors.protocol import PredictivePosterior, probabilities

__all__ = ["GaussianMixturePosterior"]


class GaussianMixturePosterior(PredictivePosterior):
    """A weighted average of S Gaussians whose points are independent given the component.

    Args:
        means: Component means, `[S, ..., n, m]`.
        variances: Component variances, > 0, broadcasting with `means`.
        log_weights: Log probabilities of the components, `[S]`; equal without them. Normalised
            here.

    Base samples are `[..., n * m + 1]`: the last one chooses the component, shared by all points.
    """

    _bisections = {torch.float32: 40, torch.float64: 80}

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
        return (Y - self.means) / self.variances.sqrt()

    def log_prob(self, Y: Tensor) -> Tensor:
        return log_average(self._component_log_prob(Y), self.log_weights)

    def _component_log_prob(self, Y: Tensor) -> Tensor:
        square = self._standardised(Y).square()
        return -0.5 * (square + (2 * torch.pi * self.variances).log())

    def joint_log_prob(self, Y: Tensor) -> Tensor:
        return log_average(self._component_log_prob(Y).sum((-2, -1)), self.log_weights)

    def cdf(self, Y: Tensor) -> Tensor:
        each = torch.special.ndtr(self._standardised(Y))
        return torch.tensordot(self.log_weights.exp(), each, dims=1)

    def quantile(self, value: Tensor) -> Tensor:
        """Marginal quantiles by bisection, to rounding; differentiable in the components.

        Args:
            value: Probabilities in (0, 1), any shape `[*p]`.

        Returns:
            `[*p, ..., n, m]`.
        """
        value = probabilities(value, self.means)
        return torch.stack([self._quantile(p) for p in value.flatten()]).reshape(
            value.shape + self.means.shape[1:]
        )

    def _quantile(self, p: Tensor) -> Tensor:
        with torch.no_grad():
            each = self.means + self.variances.sqrt() * torch.special.ndtri(p)
            lower, upper = each.amin(0), each.amax(0)
            for _ in range(self._bisections[self.means.dtype]):
                middle = (lower + upper) / 2
                below = self.cdf(middle) < p
                lower = torch.where(below, middle, lower)
                upper = torch.where(below, upper, middle)
            found = (lower + upper) / 2
            density = self.log_prob(found).exp()
        # Implicit differentiation of cdf(q) = p; the value stays that of the bisection.
        residual = self.cdf(found) - p
        return found - (residual - residual.detach()) / density

    def log_expected_improvement(self, best_f: Tensor | float, maximize: bool = True) -> Tensor:
        sign = 1.0 if maximize else -1.0
        best = sign * torch.as_tensor(best_f, dtype=self.means.dtype, device=self.means.device)
        each = gaussian_log_expected_improvement(sign * self.means, self.variances, best)
        return log_average(each, self.log_weights)

    def log_probability_of_improvement(
        self, best_f: Tensor | float, maximize: bool = True
    ) -> Tensor:
        sign = 1.0 if maximize else -1.0
        best = sign * torch.as_tensor(best_f, dtype=self.means.dtype, device=self.means.device)
        each = gaussian_log_probability_of_improvement(sign * self.means, self.variances, best)
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
