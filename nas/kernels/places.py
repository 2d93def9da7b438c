"""Kernels of a column of places: levels of fidelity, and studies."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from gpytorch.constraints import Interval
from gpytorch.kernels import Kernel
from gpytorch.priors import LogNormalPrior
from torch import Tensor, nn

from nas.kernels.budget import BudgetKernel
from nas.kernels.learnt import learn_positive

__all__ = ["FidelityKernel", "LevelKernel", "StudyKernel"]


class PlaceKernel(Kernel):
    """A kernel of a column of whole numbers from 0, which are names."""

    has_lengthscale = False

    @property
    def is_stationary(self) -> bool:
        """Differences of places mean nothing."""
        return False

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Kernel between `x1` `[..., n1, 1]` and `x2` `[..., n2, 1]`: `[..., n1, n2]`."""
        one, two = x1[..., 0].round().long(), x2[..., 0].round().long()
        if not diag:
            one, two = one[..., :, None], two[..., None, :]
        return self._entries(one, two, x1)

    @abstractmethod
    def _entries(self, one: Tensor, two: Tensor, like: Tensor) -> Tensor:
        """The kernel of places that broadcast against each other, as `like`."""


class FidelityKernel(PlaceKernel):
    """s_i c_ij s_j between levels of fidelity: how alike they are, and the scale of each.

    c is the correlation by a `BudgetKernel`, s is 1 for the full level and learnt for the others,
    as the values of each are standardised for themselves.

    Args:
        shares: Each level in units of the full one, which is first; X holds their places.
        active_dims: Which column holds the place.
    """

    def __init__(self, shares: Sequence[float], *, active_dims: Any = None) -> None:
        super().__init__(active_dims=active_dims)
        self.budget = BudgetKernel()
        self.register_buffer("shares", torch.tensor(shares, dtype=torch.float64), persistent=False)
        prior = LogNormalPrior(0.0, 1.0)
        learn_positive(self, "scales", prior, start=1.0, size=len(shares) - 1)

    @property
    def scales(self) -> Tensor:
        """Of the levels below the full one, `[levels - 1]`."""
        return self.raw_scales_constraint.transform(self.raw_scales)

    @property
    def covariance(self) -> Tensor:
        """Between the levels, `[levels, levels]`."""
        shares = self.shares.to(self.raw_scales)[:, None]
        decayed = self.budget.forward(shares, shares)
        scales = torch.cat([self.raw_scales.new_ones(1), self.scales])
        scales = scales / decayed.diagonal().sqrt()
        return scales[:, None] * decayed * scales

    def _entries(self, one: Tensor, two: Tensor, like: Tensor) -> Tensor:
        return self.covariance.to(like)[one, two]


class LevelKernel(PlaceKernel):
    """1 within a level of fidelity below the full one, else 0: a mean of its own for each.

    Few candidates are trained in full, and the better ones, so 0 is not the same value there.

    Args:
        active_dims: Which column holds the place of the level.
    """

    def _entries(self, one: Tensor, two: Tensor, like: Tensor) -> Tensor:
        return ((one == two) & (one > 0)).to(like)


class StudyKernel(PlaceKernel):
    """How alike the functions of several studies are: r_s r_t between two, 1 within each.

    r is 1 for the study that is searched, so r_s is its correlation with an earlier study s, learnt
    between 0 and 1; a coregionalisation of rank one (Bonilla et al. 2007, section 2).

    Args:
        num_earlier: Earlier studies, numbered from 1; 0 is the one that is searched.
        active_dims: Which column holds the number of the study.
    """

    def __init__(self, num_earlier: int, *, active_dims: Any = None) -> None:
        super().__init__(active_dims=active_dims)
        self.register_parameter("raw_correlation", nn.Parameter(torch.zeros(num_earlier)))
        self.register_constraint("raw_correlation", Interval(0.0, 1.0, initial_value=0.7))

    @property
    def correlation(self) -> Tensor:
        """Of each earlier study with the one that is searched, `[num_earlier]`."""
        return self.raw_correlation_constraint.transform(self.raw_correlation)

    def _entries(self, one: Tensor, two: Tensor, like: Tensor) -> Tensor:
        loadings = torch.cat([like.new_ones(1), self.correlation.to(like)])
        return torch.where(one == two, 1.0, loadings[one] * loadings[two])
