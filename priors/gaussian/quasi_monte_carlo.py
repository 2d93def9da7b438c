"""Gaussian expectations over many variables by randomised quasi-Monte Carlo.

Scrambled Sobol points (Owen 1998), mapped to normal variables by the inverse distribution
function. The points depend on the seed alone, so a kernel is a deterministic and differentiable
function of its inputs; other seeds are independent replicates, from which the error is estimated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

__all__ = ["QuasiMonteCarlo", "cholesky"]

# Most numbers held at a time.
_CHUNK = 2**22


@dataclass(frozen=True)
class QuasiMonteCarlo:
    """A scrambled Sobol net.

    Attributes:
        num_samples: Points of the net, a power of two (other numbers lose its balance).
        seed: Of the scrambling; the spread over seeds estimates the error.

    Raises:
        ValueError: `num_samples` is no power of two.
    """

    num_samples: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_samples < 2 or self.num_samples & (self.num_samples - 1):
            raise ValueError(f"num_samples must be a power of two, got {self.num_samples}.")

    def normals(self, dimension: int, like: Tensor) -> Tensor:
        """Standard normal points `[num_samples, dimension]`, float64, on the device of `like`.

        Raises:
            ValueError: more dimensions than Sobol sequences are tabulated for.
        """
        if dimension > SobolEngine.MAXDIM:
            raise ValueError(
                f"An expectation over {dimension} variables exceeds the {SobolEngine.MAXDIM} "
                "dimensions of Sobol sequences; shorten the sequence."
            )
        return _points(self.num_samples, dimension, self.seed).to(like.device)

    def gaussian_expectation_multivariate(
        self, function: Callable[[Sequence[Tensor]], Tensor], covariance: Tensor
    ) -> Tensor:
        """E f(u_1, .., u_k) for a centred Gaussian vector u.

        Args:
            function: Of k tensors `[..., m]`, gives `[..., m]`, elementwise.
            covariance: `[..., k, k]`, positive semi-definite.

        Returns:
            `[...]` in the dtype of the covariance; computed in float64.

        Raises:
            ValueError: `covariance` is not square, or far from positive semi-definite.
        """
        if covariance.dim() < 2 or covariance.shape[-1] != covariance.shape[-2]:
            raise ValueError(
                f"covariance must be [..., k, k], got {tuple(covariance.shape)}: pass the joint "
                "covariance of the arguments."
            )
        root = cholesky(covariance.double())
        variables = covariance.shape[-1]
        points = self.normals(variables, covariance)
        size = max(1, _CHUNK // max(1, covariance[..., 0, 0].numel() * variables))
        total: Tensor | None = None
        for part in points.split(size):
            u = torch.einsum("...kj,mj->...km", root, part)
            values = function(u.unbind(-2)).sum(-1)
            total = values if total is None else total + values
        assert total is not None
        return (total / len(points)).to(covariance.dtype)


@functools.lru_cache(maxsize=16)
def _points(num_samples: int, dimension: int, seed: int) -> Tensor:
    uniform = SobolEngine(dimension, scramble=True, seed=seed).draw(
        num_samples, dtype=torch.float64
    )
    # the centre of the cell: scrambled points can be exactly 0
    return torch.special.ndtri((uniform + 2.0**-32).clamp(max=1 - 2.0**-33))


def cholesky(covariance: Tensor) -> Tensor:
    """Lower triangular root of a positive semi-definite matrix `[..., k, k]`.

    Rank deficiency, as from two equal data points, is met by adding as little as needed to the
    diagonal, matrix by matrix. So is the slight indefiniteness of moments that were themselves
    estimated.

    Raises:
        ValueError: the matrix is far from positive semi-definite, or not finite.
    """
    scale = covariance.diagonal(dim1=-2, dim2=-1).mean(-1).detach().clamp_min(1e-300)
    eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    jitter = torch.full_like(scale, 1e-13)
    while bool((jitter < 0.1).all()):
        padded = covariance + (jitter * scale)[..., None, None] * eye
        root, info = torch.linalg.cholesky_ex(padded)
        if not bool(info.any()):
            return _Root.apply(padded, root) if padded.requires_grad else root
        jitter = torch.where(info > 0, 20 * jitter, jitter)
    raise ValueError("A covariance of hidden units is not positive semi-definite, or not finite.")


class _Root(torch.autograd.Function):
    """A triangular root with a gradient that stays finite.

    A variable that those before it determine but for rounding has a column of noise, whose
    gradient would be the inverse of the noise: it is left out. Column j of the root is
    r / sqrt(r_j), r = matrix_j - sum_c<j L_c L_jc; the backward pass goes through the columns from
    the last one, and holds matrices instead of the graph of all these products.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, root: Tensor) -> Tensor:
        ctx.save_for_backward(matrix, root)
        return root.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        matrix, root = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of the gradient is wanted
            (result,) = torch.autograd.grad(_by_columns(matrix), matrix, grad, create_graph=True)
            return result, None
        total, left = torch.zeros_like(matrix), grad.clone()
        for j in reversed(range(matrix.shape[-1])):
            column, own = root[..., j:, j], left[..., j:, j]
            pivot = root[..., j, j]
            slope = own / pivot[..., None]
            slope[..., 0] -= (own * column).sum(-1) / (2 * pivot**2)
            noise = _is_noise(pivot**2, matrix[..., j, j])
            slope = torch.where(noise[..., None], 0.0, slope)
            total[..., j:, j] = slope
            before = root[..., j:, :j]
            left[..., j:, :j] -= slope[..., None] * root[..., j, None, :j]
            left[..., j, :j] -= (slope[..., None, :] @ before)[..., 0, :]
        return total, None


def _is_noise(pivot: Tensor, variance: Tensor) -> Tensor:
    return pivot < 1e-8 * variance


def _by_columns(matrix: Tensor) -> Tensor:
    """Cholesky's algorithm, to be differentiated as `_Root` is."""
    columns: list[Tensor] = []
    for j in range(matrix.shape[-1]):
        rest = matrix[..., j:, j]
        for column in columns:
            rest = rest - column[..., j:] * column[..., j, None]
        pivot = rest[..., :1]
        column = rest / pivot.sqrt()
        column = torch.where(_is_noise(pivot, matrix[..., j, j, None]), column.detach(), column)
        columns.append(torch.nn.functional.pad(column, (j, 0)))
    return torch.stack(columns, -1)
