"""The Gaussian q(v) of whitened inducing variables, and its natural gradient.

k functions are independent under q, each with the precision P (M x M) of its covariance and a
linear term t. Where the prior is v | s ~ N(0, s I) with a random scale s, and q(v | s) =
N(m, s S), the bound is

    sum_i E[log p(y_i | f_i)] - 1/2 [tr S - log|S| - M + r m'm],   r = E[1/s],

(r = 1 without a scale) with S = P^-1 and (P + (r - 1) I) m = t. With g and h the derivatives of the
first sum in the means and the variances of f_i, it is stationary where

    P = I - 2 sum_i h_i a_i a_i',   t = sum_i (g_i - 2 h_i mean_i) a_i,

and for r = 1 a step towards these values is one along the natural gradient (Hensman et al. 2013,
1309.6835, eq. 17; Khan & Lin 2017, 1703.04265). For a Gaussian likelihood one full step reaches the
optimum, whose bound is the collapsed one of Titsias 2009.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayes.variational.projection import Projection

__all__ = ["Factorised", "WhitenedGaussian", "target"]


@dataclass(frozen=True)
class WhitenedGaussian:
    """q(v) of k independent functions, float64.

    Attributes:
        linear: t, `[k, M]`.
        precision: P, `[k, M, M]`.
    """

    linear: Tensor
    precision: Tensor

    @classmethod
    def prior(cls, shape: torch.Size, device: torch.device) -> WhitenedGaussian:
        """That of the prior, mean 0 and covariance I, for a shape `[k, M]`."""
        linear = torch.zeros(shape, dtype=torch.float64, device=device)
        eye = torch.eye(shape[-1], dtype=torch.float64, device=device)
        return cls(linear, eye.expand(*shape, shape[-1]).clone())

    def factorised(self, inverse_scale: float) -> Factorised | None:
        """Mean and covariance for r, None where the precision is not positive definite."""
        root, failed = torch.linalg.cholesky_ex(self.precision)
        if bool(failed.any()) or not bool(root.isfinite().all()):
            return None
        shifted = root
        if inverse_scale != 1:
            shift = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
            shifted, failed = torch.linalg.cholesky_ex(self.precision + (inverse_scale - 1) * shift)
            if bool(failed.any()):
                return None
        mean = torch.cholesky_solve(self.linear.unsqueeze(-1), shifted).squeeze(-1)
        # P^-1 = W W' with W = root^-T
        eye = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
        half = torch.linalg.solve_triangular(root.mT, eye.expand_as(root), upper=True)
        return Factorised(mean, half, 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1))

    def plus(self, other: WhitenedGaussian, factor: Tensor | float) -> WhitenedGaussian:
        """The natural parameters plus a factor times those of another."""
        return WhitenedGaussian(
            self.linear + factor * other.linear, self.precision + factor * other.precision
        )

    def towards(self, other: WhitenedGaussian, step: float) -> WhitenedGaussian:
        """A convex combination of the natural parameters."""
        return WhitenedGaussian(
            torch.lerp(self.linear, other.linear, step),
            torch.lerp(self.precision, other.precision, step),
        )


@dataclass(frozen=True)
class Factorised:
    """A q(v) with what is needed of it.

    Attributes:
        mean: m, `[k, M]`.
        half: W with S = W W', `[k, M, M]`.
        log_det: log |P|, `[k]`.
    """

    mean: Tensor
    half: Tensor
    log_det: Tensor

    def marginals(self, rows: Projection) -> tuple[Tensor, Tensor]:
        """Means and variances of the functions at rows, each `[n, k]`; variances for s = 1."""
        mean = rows.weights @ self.mean.mT
        spread = (rows.weights @ self.half).square().sum(-1).mT  # [n, k]
        return mean, rows.residual.unsqueeze(-1) + spread

    def divergence(self, inverse_scale: Tensor | float = 1.0) -> Tensor:
        """E KL(q(v | s) || p(v | s)) over s, a scalar in nats, differentiable in r."""
        points = self.mean.shape[-1]
        trace = self.half.square().sum((-2, -1))
        each = trace + self.log_det - points + inverse_scale * self.mean.square().sum(-1)
        return 0.5 * each.sum()


def target(rows: Projection, mean: Tensor, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The sums over rows of the stationary t and P - I, `[k, M]` and `[k, M, M]`.

    Args:
        rows: Of n rows.
        mean: Means of the functions there, `[n, k]`.
        g: Derivatives of the expected log likelihood in the means, `[n, k]`.
        h: And in the variances, `[n, k]`.
    """
    A = rows.weights
    linear = ((g - 2 * h * mean).mT) @ A
    precision = torch.stack([A.mT @ (-2 * column.unsqueeze(-1) * A) for column in h.unbind(-1)])
    return linear, precision
