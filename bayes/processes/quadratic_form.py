"""Quadratic form and log determinant of a covariance, with a gradient of one inverse.

Differentiated step by step, a Cholesky factorisation costs two triangular solves with n right-hand
sides and a product on the way back. The derivatives are known (Rasmussen & Williams 2006, eq. 5.9),

    d(y' C^-1 y) = -a' dC a + 2 a' dy,   d log|C| = tr(C^-1 dC),   a = C^-1 y,

and the inverse from the factor costs a third of that. What reads the inverse P itself has
d P = -P dC P.
"""

from __future__ import annotations

from typing import Any

import torch
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["quadratic_and_log_det", "quadratic_log_det_and_inverse"]


def quadratic_and_log_det(covariance: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """y' C^-1 y and log |C|, each `[...]`, once differentiable.

    Args:
        covariance: C, `[..., n, n]`, symmetric.
        targets: y, `[..., n]`; batch dimensions broadcast.

    Raises:
        linear_operator.utils.errors.NotPSDError: C is not positive definite.
    """
    n = targets.shape[-1]
    batch = torch.broadcast_shapes(covariance.shape[:-2], targets.shape[:-1])
    found: tuple[Tensor, Tensor] = _QuadraticAndLogDet.apply(
        covariance.expand(*batch, n, n), targets.expand(*batch, n)
    )
    return found


def quadratic_log_det_and_inverse(
    covariance: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`quadratic_and_log_det`, and C^-1 `[..., n, n]`, once differentiable.

    Args:
        covariance: C, `[..., n, n]`, symmetric.
        targets: y, `[..., n]`, of the same batch.

    Raises:
        linear_operator.utils.errors.NotPSDError: C is not positive definite.
    """
    found: tuple[Tensor, Tensor, Tensor] = _WithInverse.apply(covariance, targets)
    return found


class _QuadraticAndLogDet(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, covariance: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        factor = psd_safe_cholesky(covariance)
        weights = torch.cholesky_solve(targets.unsqueeze(-1), factor).squeeze(-1)
        ctx.save_for_backward(factor, weights)
        quadratic = (targets * weights).sum(-1)
        return quadratic, 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, Tensor | None]:
        factor, weights = ctx.saved_tensors
        of_quadratic, of_log_det = slopes
        of_covariance = of_targets = None
        if ctx.needs_input_grad[0]:
            of_covariance = torch.cholesky_inverse(factor).mul_(of_log_det[..., None, None])
            scaled = of_quadratic[..., None] * weights
            of_covariance -= scaled.unsqueeze(-1) * weights.unsqueeze(-2)
        if ctx.needs_input_grad[1]:
            of_targets = 2 * of_quadratic[..., None] * weights
        return of_covariance, of_targets


class _WithInverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, covariance: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        factor = psd_safe_cholesky(covariance)
        weights = torch.cholesky_solve(targets.unsqueeze(-1), factor).squeeze(-1)
        inverse = torch.cholesky_inverse(factor)
        ctx.save_for_backward(inverse, weights)
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return (targets * weights).sum(-1), log_det, inverse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor]:
        inverse, weights = ctx.saved_tensors
        of_quadratic, of_log_det, of_inverse = slopes
        of_covariance = of_log_det[..., None, None] * inverse - inverse @ of_inverse @ inverse
        scaled = of_quadratic[..., None] * weights
        of_covariance -= scaled.unsqueeze(-1) * weights.unsqueeze(-2)
        return of_covariance, 2 * scaled
