"""Averages of Student's t distributions, one for each draw of an engine that samples parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from priors.posteriors.draws import beside
from priors.posteriors.location_scale_mixture import LocationScaleMixture
from priors.posteriors.protocol import check_order
from priors.posteriors.student_t import (
    log_expected_excess,
    t_cdf,
    t_log_cdf,
    t_log_density,
    t_quantile,
)

__all__ = ["StudentTMixturePosterior"]


class StudentTMixturePosterior(LocationScaleMixture):
    """A weighted average of S t distributions whose points are independent given the component.

    Args:
        locations: Component medians, `[S, ..., n, m]`.
        scales: Component scales (not standard deviations), > 0, broadcasting with `locations`.
        df: Degrees of freedom, > 1, broadcasting with `locations`.
        log_weights: Log probabilities of the components, `[S]`; equal if None. They are normalised
            here.

    The variance is infinite where a component's is: with df <= 2. Quantiles and samples have no
    gradient in `df`. Base samples are `[..., n * m + 1]`: the last one chooses the component,
    shared by all points.

    Raises:
        ValueError: some df is not above 1; there the mean does not exist.
    """

    def __init__(
        self, locations: Tensor, scales: Tensor, df: Tensor, log_weights: Tensor | None = None
    ) -> None:
        super().__init__(locations, scales, log_weights)
        if not bool((df > 1).all()):
            raise ValueError(
                f"StudentTMixturePosterior needs df > 1, got {float(df.min()):.4g}; a t "
                "distribution of fewer degrees of freedom has no mean."
            )
        self.df = df.expand_as(locations)

    @property
    def _component_variances(self) -> Tensor:
        exists = self.df > 2
        factor = torch.where(exists, self.df / torch.where(exists, self.df - 2, 1), math.inf)
        return self.scales.square() * factor

    def _log_density(self, u: Tensor) -> Tensor:
        return t_log_density(u, beside(self.df, u[0]))

    def _cdf(self, u: Tensor) -> Tensor:
        return t_cdf(u, beside(self.df, u[0]))

    def _quantile(self, p: Tensor) -> Tensor:
        return t_quantile(*torch.broadcast_tensors(p, beside(self.df, p[0])))

    def _log_excess(self, u: Tensor, scales: Tensor, order: int) -> Tensor:
        check_order(order)
        df = beside(self.df, u[0])
        return log_expected_excess(u, df) + scales.log() if order else t_log_cdf(u, df)

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        location, scale, df = self._chosen([self.locations, self.scales, self.df], base_samples)
        normal, df = torch.broadcast_tensors(self._noise(base_samples), df)
        # of the lower tail, where probabilities resolve, and its mirror image
        tail = -t_quantile(torch.special.ndtr(-normal.abs()), df)
        return location + scale * tail * normal.sign()
