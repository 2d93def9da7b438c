"""Averages of Gaussians, one for each draw of an engine that samples parameters.

`GaussianMixturePosterior` adds each draw's Gaussian noise and so has a density.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from priors.posteriors.crps import crps_of_gaussians
from priors.posteriors.draws import beside
from priors.posteriors.gaussian import gaussian_log_excess
from priors.posteriors.location_scale_mixture import LocationScaleMixture

__all__ = ["GaussianMixturePosterior"]

_MOST = 64  # components whose pairs are summed


class GaussianMixturePosterior(LocationScaleMixture):
    """A weighted average of S Gaussians whose points are independent given the component.

    Args:
        means: Component means, `[S, ..., n, m]`.
        variances: Component variances, > 0, broadcasting with `means`.
        log_weights: Log probabilities of the components, `[S]`; equal if None. They are normalised
            here.

    Base samples are `[..., n * m + 1]`: the last one chooses the component, shared by all points.
    """

    def __init__(self, means: Tensor, variances: Tensor, log_weights: Tensor | None = None) -> None:
        super().__init__(means, variances.sqrt(), log_weights)
        self.variances = variances.expand_as(means)

    @property
    def means(self) -> Tensor:
        """Component means, `[S, ..., n, m]`."""
        return self.locations

    @property
    def _component_variances(self) -> Tensor:
        return self.variances

    def _log_density(self, u: Tensor) -> Tensor:
        return -0.5 * (u.square() + math.log(2 * math.pi))

    def crps(self, Y: Tensor) -> Tensor:
        if len(self.means) > _MOST:
            return super().crps(Y)
        means, variances = (beside(part, Y) for part in (self.means, self.variances))
        return crps_of_gaussians(means, variances, self.log_weights, Y)

    def _cdf(self, u: Tensor) -> Tensor:
        return torch.special.ndtr(u)

    def _quantile(self, p: Tensor) -> Tensor:
        return torch.special.ndtri(p)

    def _log_excess(self, u: Tensor, scales: Tensor, order: int) -> Tensor:
        return gaussian_log_excess(u, scales, order)

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        mean, std = self._chosen([self.means, self.scales], base_samples)
        return mean + std * self._noise(base_samples)
