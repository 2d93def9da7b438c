"""What each row of an exact process was expected to be, given all the others.

With C the covariance of the outcomes y of all rows, noise included, row i given the other rows is
Gaussian with

    mean_i     = y_i - [C^-1 y]_i / [C^-1]_ii
    variance_i = 1 / [C^-1]_ii

(Rasmussen & Williams 2006, eq. 5.12), for all rows from the one factorisation of C.
"""

from __future__ import annotations

import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from linear_operator import to_dense
from linear_operator.operators import BlockDiagLinearOperator, DiagLinearOperator
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Tensor

__all__ = ["independent_rows", "left_out_moments"]


def left_out_moments(prior: MultivariateNormal, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances of each row given the others.

    Args:
        prior: Of the outcomes of all rows, mean zero, `[..., n]`.
        targets: The outcomes, `[..., n]`.

    Returns:
        Means and variances, `[..., n]`; O(n^3).
    """
    factor = psd_safe_cholesky(to_dense(prior.lazy_covariance_matrix))
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    root = torch.linalg.solve_triangular(factor, eye, upper=False)  # C^-1 = root' root
    variance = 1 / root.square().sum(-2)
    weights = (root.mT @ (root @ targets.unsqueeze(-1))).squeeze(-1)
    return targets - variance * weights, variance.expand_as(targets)


def independent_rows(mean: Tensor, variance: Tensor, num_outputs: int) -> MultivariateNormal:
    """A Gaussian of independent rows.

    Args:
        mean: `[..., n]`, of several outputs `[..., m, n]`.
        variance: Of the same shape.
        num_outputs: m.
    """
    covariance = DiagLinearOperator(variance)
    if num_outputs == 1:
        return MultivariateNormal(mean, covariance)
    joint = BlockDiagLinearOperator(covariance)
    return MultitaskMultivariateNormal(mean.mT, joint, interleaved=False)
