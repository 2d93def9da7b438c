"""Points for expectations over many normal variables: randomised quasi-Monte Carlo.

Scrambled Sobol points (Owen 1998), mapped to normal variables by the inverse distribution
function. The points depend on the seed alone, so a kernel is a deterministic and differentiable
function of its inputs. They are several nets with scramblings of their own, which are independent
replicates: what a kernel becomes without some of the nets in use tells its error (`variants`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

__all__ = ["QuasiMonteCarlo", "by_columns", "cholesky", "jackknife"]

# Most nets that the points are divided into.
_NETS = 8


@dataclass(frozen=True)
class QuasiMonteCarlo:
    """Scrambled Sobol nets.

    Attributes:
        num_samples: Points of all nets together, a power of two (other numbers lose a net's
            balance).
        seed: Seed of the scrambling.

    Raises:
        ValueError: `num_samples` is not a power of two.
    """

    num_samples: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_samples < 2 or self.num_samples & (self.num_samples - 1):
            raise ValueError(f"num_samples must be a power of two, got {self.num_samples}.")

    @property
    def nets(self) -> tuple[int, ...]:
        """The numbers of the nets in use."""
        return tuple(range(min(_NETS, self.num_samples // 2)))

    @property
    def coarsening(self) -> int:
        """How much lower than usual the degrees of expansions are."""
        return 0

    @property
    def net_size(self) -> int:
        """Points of one net."""
        return self.num_samples // min(_NETS, self.num_samples // 2)

    def normals(self, dimension: int, like: Tensor, *, multiple: float = 1) -> Tensor:
        """Standard normal points, float64, on the device of `like`.

        Args:
            dimension: Number of variables.
            like: A tensor on the device wanted.
            multiple: How many times as many points as usual, a power of two; each net keeps one.

        Returns:
            `[multiple * num_samples, dimension]`, fewer in a variant; net after net.

        Raises:
            ValueError: more dimensions than Sobol sequences are tabulated for.
        """
        if dimension > SobolEngine.MAXDIM:
            raise ValueError(
                f"An expectation over {dimension} variables exceeds the {SobolEngine.MAXDIM} "
                "dimensions of Sobol sequences; shorten the sequence."
            )
        size = max(1, int(multiple * self.net_size))
        nets = [_net(size, dimension, self.seed * _NETS + k) for k in self.nets]
        return torch.cat(nets).to(like.device)

    def signs(self, sets: int, dimension: int, like: Tensor) -> Tensor:
        """Random signs by which one set of points becomes several, `[sets, dimension]`.

        Each is as evenly spread as the points, and of the products of two or more different
        variables each makes its own error.
        """
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randint(0, 2, (sets, dimension), generator=generator, device="cpu")
        return (2.0 * drawn - 1).double().to(like.device)

    def variants(self, groups: int) -> tuple[list[QuasiMonteCarlo], QuasiMonteCarlo]:
        """The rules that tell this one's error.

        Args:
            groups: Into how many groups the nets are divided.

        Returns:
            The rule without each group of nets (for `jackknife`), and one with expansions of
            lower degree.
        """
        groups = min(groups, len(self.nets))
        left = [tuple(n for n in self.nets if n % groups != g) for g in range(groups)]
        return (
            [_Variant(self.num_samples, self.seed, nets) for nets in left],
            _Variant(self.num_samples, self.seed, self.nets, 1),
        )


@dataclass(frozen=True)
class _Variant(QuasiMonteCarlo):
    """Some of the nets of a rule, or lower degrees."""

    kept: tuple[int, ...] = ()
    lowered: int = 0

    @property
    def nets(self) -> tuple[int, ...]:
        return self.kept

    @property
    def coarsening(self) -> int:
        return self.lowered


def jackknife(values: Sequence[Tensor]) -> Tensor:
    """Half the width of a 99% interval from values that each leave out one of n groups.

    Student's quantile times the jackknife's standard error, sqrt((n - 1) / n sum (v - mean)^2).
    """
    n = len(values)
    stacked = torch.stack(list(values))
    return _student(n - 1) * (n - 1) / math.sqrt(n) * stacked.std(0)


def _student(degrees: int) -> float:
    """The 0.995 quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.995))


@functools.lru_cache(maxsize=64)
def _net(size: int, dimension: int, seed: int) -> Tensor:
    uniform = SobolEngine(dimension, scramble=True, seed=seed).draw(size, dtype=torch.float64)
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

    def column(rest: Tensor, j: int) -> Tensor:
        pivot = rest[..., :1]
        root = rest / pivot.sqrt()
        return torch.where(_is_noise(pivot, matrix[..., j, j, None]), root.detach(), root)

    return by_columns(matrix, column)


def by_columns(matrix: Tensor, column: Callable[[Tensor, int], Tensor]) -> Tensor:
    """A lower triangular root `[..., k, k]`, made column by column.

    Args:
        matrix: Symmetric.
        column: From what the columns before j leave of column j, from the diagonal down, and j to
            column j of the root.
    """
    columns: list[Tensor] = []
    for j in range(matrix.shape[-1]):
        rest = matrix[..., j:, j]
        for before in columns:
            rest = rest - before[..., j:] * before[..., j, None]
        columns.append(torch.nn.functional.pad(column(rest, j), (j, 0)))
    return torch.stack(columns, -1)
