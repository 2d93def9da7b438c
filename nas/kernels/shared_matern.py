"""A kernel of hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from gpytorch.kernels import Kernel
from gpytorch.priors import LogNormalPrior
from torch import Tensor

from nas.kernels.learnt import learn_positive

__all__ = ["SharedMaternKernel"]


class SharedMaternKernel(Kernel):
    """Matern-5/2 of columns of which some share a length scale.

    Args:
        sizes: How many neighbouring columns share each.
        active_dims: Which columns.
    """

    def __init__(self, sizes: Sequence[int], *, active_dims: Any = None) -> None:
        super().__init__(active_dims=active_dims)
        self.sizes = tuple(sizes)
        prior = LogNormalPrior(2**0.5 + 0.5 * math.log(len(sizes)), 3**0.5)
        learn_positive(self, "lengths", prior, start=float(prior.mode), size=len(sizes))

    @property
    def lengths(self) -> Tensor:
        """Length scales, `[len(sizes)]`."""
        return self.raw_lengths_constraint.transform(self.raw_lengths)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Kernel between `x1` `[..., n1, d]` and `x2` `[..., n2, d]`: `[..., n1, n2]`."""
        sizes = torch.tensor(self.sizes, device=x1.device)
        lengths = self.lengths.to(x1).repeat_interleave(sizes)
        one, two = 5**0.5 * x1 / lengths, 5**0.5 * x2 / lengths
        if diag:
            distance = (one - two).square().sum(-1).clamp_min(1e-30).sqrt()
        else:  # exact, and with gradient 0, between equal rows
            distance = torch.cdist(one, two, compute_mode="donot_use_mm_for_euclid_dist")
        return (1 + distance + distance.square() / 3) * (-distance).exp()
