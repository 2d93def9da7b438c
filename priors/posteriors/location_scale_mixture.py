"""Averages of laws of one family, such as Gaussians: one for each draw of an engine's parameters.

Each component is a location plus a scale times a standard variable of the family. The average is
never reduced to its mean and variance.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from priors.posteriors.draws import average, beside, choose, log_average, normalised
from priors.posteriors.inversion import invert_cdf
from priors.posteriors.protocol import PredictivePosterior, leading, probabilities
from priors.representation import count

__all__ = ["LocationScaleMixture"]

_NUMBERS_AT_ONCE = 2**22
_FEW = 16


class LocationScaleMixture(PredictivePosterior):
    """A weighted average of S laws of a family whose points are independent given the component.

    Standard variables u of the family are asked about beside all components, `[S, *s, ..., n, m]`
    for values `[*s, ..., n, m]`.

    Args:
        locations: `[S, ..., n, m]`.
        scales: > 0, broadcasting with `locations`.
        log_weights: Log probabilities of the components, `[S]`; equal if None. They are normalised
            here.

    Base samples are `[..., n * m + 1]`: the last one chooses the component, shared by all points.
    """

    def __init__(
        self, locations: Tensor, scales: Tensor, log_weights: Tensor | None = None
    ) -> None:
        self.locations = locations
        self.scales = scales.expand_as(locations)
        self.log_weights = normalised(log_weights, locations)

    @abstractmethod
    def _log_density(self, u: Tensor) -> Tensor:
        """Of standard variables, nats."""

    @abstractmethod
    def _cdf(self, u: Tensor) -> Tensor:
        """Of standard variables."""

    @abstractmethod
    def _quantile(self, p: Tensor) -> Tensor:
        """Of standard variables, for probabilities `[1, *p, 1, ..., 1]`."""

    @abstractmethod
    def _log_excess(self, u: Tensor, scales: Tensor, order: int) -> Tensor:
        """log E[max(scale (T + u), 0)^order] of a standard variable T."""

    @property
    @abstractmethod
    def _component_variances(self) -> Tensor:
        """`[S, ..., n, m]`."""

    @property
    def _kind(self) -> Sequence[str]:
        return [count(len(self.locations), "component")]

    @property
    def mean(self) -> Tensor:
        return average(self.locations, self.log_weights)

    @property
    def variance(self) -> Tensor:
        second = self._component_variances + (self.locations - self.mean).square()
        return average(second, self.log_weights)

    def _standardised(self, Y: Tensor) -> Tensor:
        return (Y - beside(self.locations, Y)) / beside(self.scales, Y)

    def log_prob(self, Y: Tensor) -> Tensor:
        return log_average(self._component_log_prob(Y), self.log_weights)

    def _component_log_prob(self, Y: Tensor) -> Tensor:
        return self._log_density(self._standardised(Y)) - beside(self.scales, Y).log()

    def joint_log_prob(self, Y: Tensor) -> Tensor:
        return log_average(self._component_log_prob(Y).sum((-2, -1)), self.log_weights, 0)

    def cdf(self, Y: Tensor) -> Tensor:
        each = self._cdf(self._standardised(Y))
        return average(each, self.log_weights)

    def quantile(self, value: Tensor) -> Tensor:
        """Marginal quantiles to rounding, differentiable in the components.

        Args:
            value: Probabilities in (0, 1), any shape `[*p]`.

        Returns:
            `[*p, ..., n, m]`.
        """
        value = probabilities(value, self.locations)
        # The search holds all components at all of them.
        parts = value.flatten().split(max(1, _NUMBERS_AT_ONCE // self.locations.numel()))
        return torch.cat([self._quantiles(part) for part in parts]).reshape(
            value.shape + self.locations.shape[1:]
        )

    def _quantiles(self, value: Tensor) -> Tensor:
        p = leading(value, self.locations[0])
        each = beside(self.locations, p) + beside(self.scales, p) * self._quantile(p[None])
        return invert_cdf(self, p, each.amin(0), each.amax(0))

    def _knots(self, levels: Tensor) -> Tensor:
        if len(self.locations) > _FEW:
            return super()._knots(levels)
        # where the components bend, which those of the mixture may pass over
        p = leading(levels, self.locations[0])
        each = beside(self.locations, p) + beside(self.scales, p) * self._quantile(p[None])
        return each.flatten(0, 1).sort(0).values

    def log_excess(self, threshold: Tensor | float, order: int, above: bool = True) -> Tensor:
        like = self.locations
        threshold = torch.as_tensor(threshold, dtype=like.dtype, device=like.device)
        locations, scales = (beside(part, threshold) for part in (like, self.scales))
        scales = scales.clamp_min(torch.finfo(scales.dtype).tiny ** 0.25)
        u = (locations - threshold if above else threshold - locations) / scales
        return log_average(self._log_excess(u, scales, order), self.log_weights)

    def _noise(self, base_samples: Tensor) -> Tensor:
        """The standard normals of a sample's values, `[..., n, m]`."""
        return base_samples[..., :-1].reshape(*base_samples.shape[:-1], *self.locations.shape[-2:])

    def _chosen(self, parts: Sequence[Tensor], base_samples: Tensor) -> tuple[Tensor, ...]:
        """Of parameters `[S, ..., n, m]` those of the component that each sample has."""
        together = torch.cat([part.expand_as(self.locations) for part in parts], dim=-1)
        chosen = choose(together, self.log_weights, base_samples[..., -1])
        return chosen.chunk(len(parts), dim=-1)

    @property
    def base_sample_shape(self) -> torch.Size:
        *batch, n, m = self.locations.shape[1:]
        return torch.Size([*batch, n * m + 1])

    @property
    def batch_range(self) -> tuple[int, int]:
        return (0, -1)
