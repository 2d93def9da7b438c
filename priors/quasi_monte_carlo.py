"""Gaussian expectations over many variables at once, by quasi-Monte Carlo.

Products of two nonlinearities have the quadrature of `priors.quadrature`; a softmax over the
tokens of a sequence or a normalisation over channels does not. For those, E[f(u_1, ..., u_k)] is
the mean of f over a scrambled Sobol net, mapped to the Gaussian by the inverse normal distribution
function and a square root of the covariance (Owen 1998; L'Ecuyer 2018). For smooth f the error
falls nearly as 1 / num_samples, and the same seed gives the same points for all covariances, so
that a kernel made of such expectations is positive semi-definite where the exact one is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["QuasiMonteCarlo"]

_BUDGET = 2**24  # numbers held at once, 128 MB in float64


@dataclass(frozen=True)
class QuasiMonteCarlo:
    """A scrambled Sobol net.

    Args:
        num_samples: Points of the net, a power of two (other numbers lose its balance).
        seed: Of the scrambling; the spread over seeds is an estimate of the error.

    Raises:
        ValueError: `num_samples` is not a power of two.
    """

    num_samples: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.num_samples & (self.num_samples - 1):
            raise ValueError(f"num_samples must be a power of two, got {self.num_samples}.")

    def gaussian_expectation_multivariate(
        self, f: Callable[[Sequence[Tensor]], Tensor], covariance: Tensor
    ) -> Tensor:
        """E[f(u_1, ..., u_k)] for centred Gaussian u.

        Differentiable through the points. Singular covariances are allowed, duplicates and
        variables of variance 0 included; there the gradient is one-sided: it leaves out that a
        variable determined by those before it could vary on its own.

        Args:
            f: Takes the k variables, each `[*batch, num_samples]`, to `[*batch, num_samples]`.
                It may see the batch flattened, and a part of it at a time.
            covariance: `[..., k, k]`, symmetric positive semi-definite; its lower half is read.

        Returns:
            The batch shape of `covariance`.

        Raises:
            ValueError: `covariance` is not square.
        """
        if covariance.ndim < 2 or covariance.shape[-1] != covariance.shape[-2]:
            raise ValueError(
                f"covariance must be [..., k, k], got {tuple(covariance.shape)}: pass the joint "
                "covariance of the arguments of f."
            )
        batch, k = covariance.shape[:-2], covariance.shape[-1]
        points = _points(k, self.num_samples, self.seed).to(covariance)
        flat = covariance.reshape(-1, k, k)
        size = max(1, _BUDGET // (self.num_samples * k))
        means = []
        for part in flat.split(size):
            variables = [
                sum((entry[:, None] * z for entry, z in zip(row, points, strict=False)))
                for row in _square_root(part)
            ]
            means.append(f(variables).mean(-1))
        return torch.cat(means).view(batch)


@functools.lru_cache(maxsize=16)
def _points(k: int, num_samples: int, seed: int) -> Tensor:
    """Standard normal points, `[k, num_samples]`, float64."""
    engine = torch.quasirandom.SobolEngine(k, scramble=True, seed=seed)
    uniform = engine.draw(num_samples, dtype=torch.float64)
    # the points are multiples of 2^-30, 0 among them: to the middle of their cells
    return torch.special.ndtri(uniform.clamp_max(1 - 2**-30) + 2**-31).T.contiguous()


def _square_root(covariance: Tensor) -> list[list[Tensor]]:
    """Rows of a lower triangular root of `[b, k, k]`, the entries `[b]`.

    Cholesky's algorithm, by hand: a pivot that is rounding noise is 0, with its column and its
    gradient, where the library's would fail.
    """
    noise = 16 * torch.finfo(covariance.dtype).eps
    rows: list[list[Tensor]] = []
    inverses: list[Tensor] = []
    for i in range(covariance.shape[-1]):
        row: list[Tensor] = []
        for j in range(i):
            rest = covariance[:, i, j]
            for a, b in zip(row, rows[j], strict=False):
                rest = rest - a * b
            row.append(rest * inverses[j])
        pivot = covariance[:, i, i]
        for a in row:
            pivot = pivot - a * a
        safe = pivot > noise * covariance[:, i, i].abs()
        root = torch.where(safe, pivot, 1.0).sqrt()
        row.append(torch.where(safe, root, 0.0))
        inverses.append(torch.where(safe, 1 / root, 0.0))
        rows.append(row)
    return rows
