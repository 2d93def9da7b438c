"""A kernel between training budgets."""

from __future__ import annotations

from typing import Any

import torch
from gpytorch.constraints import Interval
from gpytorch.kernels import Kernel
from gpytorch.priors import GammaPrior
from torch import Tensor, nn

from nas.kernels.learnt import learn_positive

__all__ = ["BudgetKernel"]


class BudgetKernel(Kernel):
    """(b / (b + t + t'))^a on training budgets t: curves that decay to what they end at.

    The mixture of exp(-l t) over a gamma law of the rate l (Swersky et al. 2014, 1406.3896,
    section 3.1), in the unit of the largest budget, times a learnt share beside a constant.

    Args:
        active_dims: Which column holds the budget, from 0 to 1.
    """

    def __init__(self, *, active_dims: Any = None) -> None:
        super().__init__(active_dims=active_dims)
        learn_positive(self, "shape", GammaPrior(2.0, 2.0), start=1.0)
        learn_positive(self, "scale", GammaPrior(2.0, 2.0), start=0.5)
        self.register_parameter("raw_share", nn.Parameter(torch.zeros(1)))
        self.register_constraint("raw_share", Interval(0.0, 1.0, initial_value=0.5))

    @property
    def shape(self) -> Tensor:
        """a, `[1]`."""
        return self.raw_shape_constraint.transform(self.raw_shape)

    @property
    def scale(self) -> Tensor:
        """b, `[1]`, in units of the largest budget."""
        return self.raw_scale_constraint.transform(self.raw_scale)

    @property
    def share(self) -> Tensor:
        """Of the variance, what the budget changes, `[1]`."""
        return self.raw_share_constraint.transform(self.raw_share)

    @property
    def is_stationary(self) -> bool:
        """The earlier, the larger are the changes."""
        return False

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Kernel between `x1` `[..., n1, 1]` and `x2` `[..., n2, 1]`: `[..., n1, n2]`."""
        one, two = x1[..., 0], x2[..., 0]
        sums = one + two if diag else one[..., :, None] + two[..., None, :]
        shape, scale, share = self.shape.to(x1), self.scale.to(x1), self.share.to(x1)
        return (1 - share) + share * (scale / (scale + sums)) ** shape
