"""Gaussian expectations over many variables by randomised quasi-Monte Carlo.

Scrambled Sobol points (Owen 1998), mapped to normal variables by the inverse distribution
function. The points depend on the seed alone, so a kernel is a deterministic and differentiable
function of its inputs; other seeds are independent replicates, from which the error is estimated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

__all__ = ["QuasiMonteCarlo", "cholesky"]

# Most numbers held at a time.
_CHUNK = 2**22


@dataclass(frozen=True)
class QuasiMonteCarlo:
    """Rule with `num_samples` points, a power of 2 for best accuracy.

    Attributes:
        num_samples: Number of points.
        seed: Of the scrambling.
    """

    num_samples: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_samples < 2:
            raise ValueError(f"num_samples must be at least 2, got {self.num_samples}.")

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
        """
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
        root, info = torch.linalg.cholesky_ex(covariance + (jitter * scale)[..., None, None] * eye)
        if not bool(info.any()):
            return root
        jitter = torch.where(info > 0, 20 * jitter, jitter)
    raise ValueError("A covariance of hidden units is not positive semi-definite, or not finite.")
