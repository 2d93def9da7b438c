"""Chebyshev tables of E[f(u) g(v)] over two variances and the angle of the correlation.

On a <= Var u, Var v <= b the expectation, divided by the roots of E[f(u)^2] and E[g(v)^2], is

    sum_k C_k(x, y) T_k(2 asin(rho) / pi),

where x and y are the logarithms of the variances mapped to [-1, 1], C_k a polynomial in them and
T_k Chebyshev's polynomials; the coefficients are interpolated from quadrature at Chebyshev nodes
(Trefethen 2013, Approximation Theory and Approximation Practice, chapters 3 and 4). A singular
value decomposition C_k(x, y) = sum_r L_kr(x) R_kr(y) makes every coefficient of a whole matrix of
pairs a product of two thin ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["RESOLVED", "Factors", "Series", "Table", "chebyshev", "nodes", "variances"]

RESOLVED = 1e-12  # coefficients below this share of the expectation's scale are left out
_SINGLE = 1e-6  # terms that are together below this share may be summed in single precision


@dataclass(frozen=True)
class Series:
    """A Chebyshev series in the logarithm of a variance.

    Attributes:
        low: Binary logarithm of the smallest variance.
        high: Of the largest.
        coefficients: `[..., degree + 1]`.
    """

    low: float
    high: float
    coefficients: Tensor

    def __call__(self, q: Tensor) -> Tensor:
        """Values at the variances `q`, `[*q.shape, ...]` with the leading shape of the series."""
        basis = chebyshev(q, self.low, self.high, self.coefficients.shape[-1])
        return basis @ self.coefficients.movedim(-1, 0)


@dataclass(frozen=True)
class Factors:
    """A table as products of functions of one variance, for pairs within its range.

    Attributes:
        low: Binary logarithm of the smallest variance.
        high: Of the largest.
        sides: Coefficients of the functions of Var u and of Var v, `[degree + 1, ranks + 2]`: all
            L_kr or R_kr, the logarithm of a scale that multiplies them, and a last function whose
            product with its like times rho is added.
        ends: Where the columns of C_0, C_1, ... end; the last C_k does not vanish.
        head: From which k on single precision suffices.
        linear: Whether that product is not 0.
    """

    low: float
    high: float
    sides: tuple[Tensor, Tensor]
    ends: tuple[int, ...]
    head: int
    linear: bool

    def functions(self, q: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """Scaled L (`side` 0) or R (1) at `q`, `[*q.shape, ranks]`, and the last, `[*q.shape, 1]`."""
        rows = self.sides[side]
        values = chebyshev(q, self.low, self.high, len(rows)) @ rows
        scale = values[..., -2:-1].exp()
        return values[..., :-2] * scale, values[..., -1:] * scale


@dataclass(frozen=True)
class Table:
    """Coefficients of E[f(u) g(v)] on a range of variances.

    Attributes:
        low: Binary logarithm of the smallest variance.
        high: Of the largest.
        scales: As those of `Factors`.
        coefficients: `[angles, degree + 1, degree + 1]`.
        linear: As that of `Factors`.
    """

    low: float
    high: float
    scales: tuple[Series, Series] | None
    coefficients: Tensor
    linear: Tensor | None

    def covers(self, low: float, high: float) -> bool:
        """Whether the table holds for variances from 2^low to 2^high."""
        return self.low <= low and high <= self.high

    def swapped(self) -> Table:
        """The table of E[g(u) f(v)]."""
        return Table(
            self.low,
            self.high,
            None if self.scales is None else (self.scales[1], self.scales[0]),
            self.coefficients.mT,
            None if self.linear is None else self.linear.flip(0),
        )

    def factors(self, low: float, high: float) -> Factors:
        """The same on a part of its range, where fewer products suffice."""
        if self.scales is None:
            nothing = self.coefficients.new_zeros(1, 2)
            return Factors(low, high, (nothing, nothing), (), 0, False)
        degree = self.coefficients.shape[-1]
        number = max(degree, *(len(s.coefficients) for s in self.scales))
        x, to_series = nodes(number, self.coefficients.device)
        q = variances(x, low, high)
        part = to_series @ chebyshev(q, self.low, self.high, degree)
        u, s, vh = torch.linalg.svd(part @ self.coefficients @ part.T)
        ranks = [int(r) for r in (s > 3 * RESOLVED).sum(-1).tolist()]
        while ranks and ranks[-1] == 0:
            ranks.pop()
        root = s.sqrt()[:, None]
        sides = []
        for side, factor in enumerate((u * root, vh.mT * root)):
            columns = [factor[k, :, :r] for k, r in enumerate(ranks)]
            columns.append((to_series @ self.scales[side](q))[:, None])
            last = torch.zeros_like(x) if self.linear is None else part @ self.linear[side]
            rows = torch.cat([*columns, last[:, None]], -1)
            kept = int((rows.abs().amax(-1) > 1e-3 * RESOLVED).nonzero().max()) + 1
            sides.append(rows[:kept].contiguous())
        ends = tuple(sum(ranks[: k + 1]) for k in range(len(ranks)))
        # what the terms from k on add up to at most, by the norm of each
        tail = s.sum(-1).flip(0).cumsum(0).flip(0)
        head = int((tail > _SINGLE).sum())
        largest = max(float(s(q).abs().max()) for s in self.scales)
        if largest > 20:  # of e: products might leave the range of single precision
            head = len(ranks)
        return Factors(low, high, (sides[0], sides[1]), ends, head, self.linear is not None)


def chebyshev(q: Tensor, low: float, high: float, number: int) -> Tensor:
    """T_0, ..., T_(number - 1) of the logarithm of `q` mapped from the range, `[*q.shape, number]`."""
    x = (2 * torch.log2(q) - (low + high)) / (high - low)
    order = torch.arange(number, dtype=q.dtype, device=q.device)
    return torch.cos(order * torch.acos(x.clamp(-1, 1))[..., None])


def nodes(number: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Chebyshev nodes in [-1, 1] and the matrix from values there to coefficients."""
    order = torch.arange(number, dtype=torch.float64, device=device)
    angle = math.pi * (order + 0.5) / number
    rows = torch.cos(order[:, None] * angle) * (2 / number)
    rows[0] /= 2
    return torch.cos(angle), rows


def variances(x: Tensor, low: float, high: float) -> Tensor:
    """The variances whose logarithms are at `x` in the range."""
    return 2 ** ((low + high + (high - low) * x) / 2)
