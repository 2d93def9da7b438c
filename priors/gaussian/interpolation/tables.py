"""Chebyshev tables of E[f(u) g(v)] over two variances and a bent correlation.

On a <= Var u, Var v <= b the expectation, divided by the roots of E[f(u)^2] and E[g(v)^2], is

    sum_k C_k(x, y) T_k(asin(bend rho) / asin(bend)),

where x and y are the logarithms of the variances mapped to [-1, 1], C_k a polynomial in them and
T_k Chebyshev's polynomials; the coefficients are interpolated from quadrature at Chebyshev nodes
(Trefethen 2013, Approximation Theory and Approximation Practice, chapters 3 and 4). The bend
between 0, the correlation itself, and 1, its angle, moves nodes to |rho| = 1, where steep
functions need them, and halves the terms of the better of these two. A singular value
decomposition C_k(x, y) = sum_r L_kr(x) R_kr(y) makes every coefficient of a whole matrix of pairs
a product of two thin ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["RESOLVED", "Factors", "Series", "Side", "Table", "chebyshev", "nodes", "variances"]

RESOLVED = 1e-12  # coefficients below this share of the expectation's scale are left out
_SINGLE = 3e-5  # terms that are together below this share may be summed in single precision


@dataclass(frozen=True)
class Series:
    """A Chebyshev series in the logarithm of a variance.

    Attributes:
        low: Binary logarithm of the smallest variance.
        high: Of the largest.
        coefficients: `[degree + 1]`.
    """

    low: float
    high: float
    coefficients: Tensor

    def __call__(self, q: Tensor) -> Tensor:
        """Values at the variances `q`, `[..., n]`."""
        basis = chebyshev(q, self.low, self.high, len(self.coefficients))
        return self.coefficients @ basis


@dataclass(frozen=True)
class Side:
    """The functions of one of the two variances, as coefficients of a Chebyshev series.

    Attributes:
        precise: L_kr or R_kr of the leading k, then the logarithm of a scale that multiplies all
            of them, then a function whose product with its like times rho is added,
            `[functions, degree + 1]`.
        rest: Of the other k, in single precision.
    """

    precise: Tensor
    rest: Tensor

    def __call__(self, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Those of leading k, the others, and the last, `[b, functions, n]`.

        Args:
            basis: Chebyshev polynomials at the variances, `[b, degree + 1, n]`.
        """
        basis = basis[:, : self.precise.shape[-1]]
        values = self.precise @ basis
        scale = values[:, -2:-1].exp()
        rest = self.rest @ basis.float()
        return values[:, :-2].mul_(scale), rest.mul_(scale), values[:, -1:].mul_(scale)


@dataclass(frozen=True)
class Factors:
    """A table as products of functions of one variance, for pairs within its range.

    Attributes:
        low: Binary logarithm of the smallest variance.
        high: Of the largest.
        bend: How the correlation is bent.
        sides: The functions of Var u and of Var v.
        ranks: How many products there are of C_0, C_1, ...
        head: How many of these k are the leading ones.
        linear: Whether the product with rho is not 0.
    """

    low: float
    high: float
    bend: float
    sides: tuple[Side, Side]
    ranks: tuple[int, ...]
    head: int
    linear: bool

    @property
    def degree(self) -> int:
        """Of the series in the logarithm of a variance, plus one."""
        return max(s.precise.shape[-1] for s in self.sides)


@dataclass(frozen=True)
class Table:
    """Coefficients of E[f(u) g(v)] on a range of variances.

    Attributes:
        low: Binary logarithm of the smallest variance.
        high: Of the largest.
        bend: How the correlation is bent.
        scales: Logarithms of the roots of E[f^2] and of E[g^2]; None if one of them vanishes.
        coefficients: `[terms, degree + 1, degree + 1]`.
        linear: Coefficients of two more functions, `[2, degree + 1]`, whose product times rho is
            added; None if nothing is.
    """

    low: float
    high: float
    bend: float
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
            self.bend,
            None if self.scales is None else (self.scales[1], self.scales[0]),
            self.coefficients.mT,
            None if self.linear is None else self.linear.flip(0),
        )

    def factors(self, low: float, high: float) -> Factors:
        """The same on a part of its range, where fewer products suffice."""
        if self.scales is None:
            rows = self.coefficients.new_zeros(2, 1)
            side = Side(rows, rows[:0].float())
            return Factors(low, high, self.bend, (side, side), (), 0, False)
        degree = self.coefficients.shape[-1]
        number = max(degree, *(len(s.coefficients) for s in self.scales))
        x, to_series = nodes(number, self.coefficients.device)
        q = variances(x, low, high)
        part = to_series @ chebyshev(q, self.low, self.high, degree).mT
        u, s, vh = torch.linalg.svd(part @ self.coefficients @ part.T)
        # a product is left out if small for all variances: its functions are up to sqrt(degree)
        cut = 3 * RESOLVED * min(1.0, 20 / degree)
        ranks = [int(r) for r in (s > cut).sum(-1).tolist()]
        while ranks and ranks[-1] == 0:
            ranks.pop()
        # from where on all terms together are small; products must stay in range, too
        tail = s.sum(-1).flip(0).cumsum(0).flip(0)
        single = _SINGLE * min(1.0, (30 / max(1, len(ranks))) ** 2)
        head = min(len(ranks), int((tail > single).sum()))
        if max(float(scale(q).abs().max()) for scale in self.scales) > 20:
            head = len(ranks)
        root = s.sqrt()[:, None]
        sides = []
        for place, factor in enumerate((u * root, vh.mT * root)):
            parts = [factor[k, :, :r].T for k, r in enumerate(ranks)]
            scale = (to_series @ self.scales[place](q))[None]
            last = torch.zeros_like(scale) if self.linear is None else self.linear[place] @ part.T
            precise = torch.cat([*parts[:head], scale, last.view_as(scale)])
            rest = torch.cat([*parts[head:], scale[:0]])
            size = torch.cat([precise, rest]).abs().amax(0)
            kept = int((size > 1e-2 * RESOLVED).nonzero().max()) + 1
            sides.append(Side(precise[:, :kept].contiguous(), rest[:, :kept].float()))
        both = sides[0], sides[1]
        return Factors(low, high, self.bend, both, tuple(ranks), head, self.linear is not None)


def chebyshev(q: Tensor, low: float, high: float, number: int) -> Tensor:
    """T_0, T_1, ... of the logarithm of `q` mapped from the range, `[..., number, n]`."""
    x = (2 * torch.log2(q) - (low + high)) / (high - low)
    order = torch.arange(number, dtype=q.dtype, device=q.device)[:, None]
    return torch.cos(order * torch.acos(x.clamp(-1, 1))[..., None, :])


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
