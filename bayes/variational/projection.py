"""What rows see of the inducing variables, and where to put the inducing points.

With K_ZZ = L L', inducing variables f(Z) = L v and v ~ N(0, I) under the prior, a row x has

    f(x) = a(x)' v + e(x),  a(x) = L^-1 k(Z, x),  e(x) ~ N(0, k(x, x) - |a(x)|^2),

e independent of v, and independent between rows in what the bound needs (Titsias 2009).

Factorisations and solves are in float64, whatever the dtype of the kernel: M points cost little.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from gpytorch.kernels import Kernel
from linear_operator import to_dense
from linear_operator.utils.cholesky import psd_safe_cholesky
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor

from bayes.processes.marginal_likelihood import exact_solves, relative_jitter

__all__ = ["Projection", "chosen_rows", "factor", "project"]


@dataclass(frozen=True)
class Projection:
    """Rows `[n]` seen from the inducing variables, float64.

    Attributes:
        weights: a, `[n, M]`.
        residual: Variances of e, `[n]`, >= 0.
    """

    weights: Tensor
    residual: Tensor

    def __getitem__(self, rows: Tensor | slice) -> Projection:
        return Projection(self.weights[rows], self.residual[rows])

    def detach(self) -> Projection:
        """The same without a gradient."""
        return Projection(self.weights.detach(), self.residual.detach())


def factor(kernel: Kernel, Z: Tensor) -> Tensor:
    """L `[M, M]` in float64, of K_ZZ with a jitter of 1e-8 (float32: 1e-6) of its mean diagonal."""
    with exact_solves():
        covariance = to_dense(kernel(Z))
        diagonal = covariance.diagonal().double()
        jitter = 1e-8 if covariance.dtype == torch.float64 else 1e-6
        # always added: a factorisation that only just succeeds has gradients of rounding errors
        covariance = covariance.double() + torch.diag_embed(jitter * diagonal.mean() + 0 * diagonal)
        with relative_jitter(diagonal), warnings.catch_warnings():
            # distances of near duplicates are rounded by more than that: tell nobody of more jitter
            warnings.simplefilter("ignore", NumericalWarning)
            return psd_safe_cholesky(covariance)


def project(kernel: Kernel, Z: Tensor, root: Tensor, X: Tensor) -> Projection:
    """Rows `X` `[n, d]` seen from inducing points `Z` `[M, d]` with the factor `root`."""
    with exact_solves():
        cross = to_dense(kernel(Z, X)).double()
        variance = kernel(X, diag=True).double()
    weights = torch.linalg.solve_triangular(root, cross, upper=False).mT
    residual = variance - weights.square().sum(-1)
    return Projection(weights, residual.clamp_min(0))


def chosen_rows(kernel: Kernel, X: Tensor, number: int) -> Tensor:
    """Indices of rows that leave the others the least prior variance, one after the other.

    Pivoted Cholesky factorisation of the kernel matrix: the greedy choice of Burt et al. 2020
    (JMLR 21(131), section 4.2.2), O(n M^2) time and O(n M) memory. Fewer where no variance is left.

    Args:
        kernel: Prior covariance.
        X: Rows, `[n, d]`.
        number: M, at most.
    """
    with torch.no_grad(), exact_solves():
        left = kernel(X, diag=True).double()
        enough = 1e-10 * float(left.mean())
        columns = X.new_zeros(min(number, len(X)), len(X), dtype=torch.float64)
        chosen: list[int] = []
        for k in range(len(columns)):
            pivot = int(left.argmax())
            if not float(left[pivot]) > enough:
                break
            column = to_dense(kernel(X, X[pivot : pivot + 1])).double()[:, 0]
            column = column - columns[:k, pivot] @ columns[:k]
            columns[k] = column / left[pivot].sqrt()
            left = (left - columns[k].square()).clamp_min(0)
            left[pivot] = 0
            chosen.append(pivot)
    return torch.tensor(chosen, device=X.device)
