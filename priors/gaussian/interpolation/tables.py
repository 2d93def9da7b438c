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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["RESOLVED", "Factors", "Series", "Stack", "Table", "chebyshev", "nodes", "variances"]

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
class Factors:
    """A table as products of functions of one variance, for pairs within its range.

    Attributes:
        low: Binary logarithm of the smallest variance.
        high: Of the largest.
        bend: How the correlation is bent.
        rows: The functions of Var u and those of Var v as coefficients of Chebyshev series: L_kr
            or R_kr of all k, then the logarithm of a scale that multiplies all of them, then a
            function whose product with its like times rho is added, `[functions, degree + 1]`.
        ranks: How many products there are of C_0, C_1, ...
        head: How many of these k are the leading ones; the others are summed in single precision.
        linear: Whether the product with rho is not 0.
    """

    low: float
    high: float
    bend: float
    rows: tuple[Tensor, Tensor]
    ranks: tuple[int, ...]
    head: int
    linear: bool

    @cached_property
    def widths(self) -> tuple[dict[int, int], dict[int, int]]:
        """How many products a k has that has any, of the leading k and of the others."""
        widths = {k: rank for k, rank in enumerate(self.ranks) if rank}
        leading = {k: rank for k, rank in widths.items() if k < self.head}
        return leading, {k: rank for k, rank in widths.items() if k >= self.head}

    @cached_property
    def terms(self) -> tuple[tuple[range, range], tuple[range, range]]:
        """The leading k and the others, of the odd ones and of the even ones."""
        found = []
        for parity in (1, 0):
            last = max((k for k, r in enumerate(self.ranks) if r and k % 2 == parity), default=-1)
            first = self.head + (self.head + parity) % 2
            leading = range(parity, min(self.head, last + 1), 2)
            found.append((leading, range(first, last + 1, 2)))
        return found[0], found[1]


@dataclass(frozen=True)
class Stack:
    """Several tables of one range, to be evaluated at the same pairs.

    Attributes:
        tables: At least one.
        rows: The functions of all of them, first the products of each, then the scales, then
            the functions that rho multiplies, `[functions, degree + 1]` for either side.
    """

    tables: tuple[Factors, ...]
    rows: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, tables: Sequence[Factors]) -> Stack:
        """One product of matrices for all functions of a side."""
        degree = max(rows.shape[-1] for t in tables for rows in t.rows)
        sides = []
        for side in (0, 1):
            every = [pad(t.rows[side], (0, degree - t.rows[side].shape[-1])) for t in tables]
            products = [rows[:-2] for rows in every]
            sides.append(
                torch.cat([*products, *(r[-2:-1] for r in every), *(r[-1:] for r in every)])
            )
        return cls(tuple(tables), (sides[0], sides[1]))

    @property
    def low(self) -> float:
        """Binary logarithm of the smallest variance."""
        return self.tables[0].low

    @property
    def high(self) -> float:
        """Binary logarithm of the largest variance."""
        return self.tables[0].high

    def functions(self, side: int, q: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each table those of the leading k, the others in single precision, and the last.

        Args:
            side: 0 for Var u, 1 for Var v.
            q: Variances, `[b, n]`.

        Returns:
            Each `[b, functions, n]`.
        """
        rows = self.rows[side]
        basis = chebyshev(q, self.low, self.high, rows.shape[-1])
        values = (rows @ basis[0])[None] if len(basis) == 1 else rows @ basis
        sizes = [sum(w.values()) for t in self.tables for w in t.widths]
        number = len(self.tables)
        *parts, scales, last = values.split([*sizes, number, number], -2)
        scales = scales.exp()
        last = last * scales
        found = []
        for i in range(number):
            scale = scales[:, i : i + 1]
            precise, rest = (part.mul_(scale) for part in parts[2 * i : 2 * i + 2])
            found.append((precise, rest.float(), last[:, i : i + 1]))
        return found


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

    @cached_property
    def symmetric(self) -> bool:
        """Whether exchanging the variances changes nothing."""
        same = torch.equal(self.coefficients, self.coefficients.mT)
        return same and (self.linear is None or torch.equal(self.linear[0], self.linear[1]))

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
            return Factors(low, high, self.bend, (rows, rows), (), 0, False)
        degree = self.coefficients.shape[-1]
        number = max(degree, *(len(s.coefficients) for s in self.scales))
        x, to_series = nodes(number, self.coefficients.device)
        q = variances(x, low, high)
        part = to_series @ chebyshev(q, self.low, self.high, degree).mT
        u, s, v = _factored(part @ self.coefficients @ part.T, self.symmetric)
        # a product is left out if small for all variances: its functions are up to sqrt(degree),
        # and what is left out of each term adds up
        cut = 3 * RESOLVED * min(1.0, 20 / degree) * min(1.0, 40 / len(s))
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
        for place, factor in enumerate((u * root, v * root)):
            parts = [factor[k, :, :r].T for k, r in enumerate(ranks)]
            scale = (to_series @ self.scales[place](q))[None]
            last = torch.zeros_like(scale) if self.linear is None else self.linear[place] @ part.T
            rows = torch.cat([*parts, scale, last.view_as(scale)])
            kept = int((rows.abs().amax(0) > 1e-2 * RESOLVED).nonzero().max()) + 1
            sides.append(rows[:, :kept])
        both = sides[0], sides[1]
        return Factors(low, high, self.bend, both, tuple(ranks), head, self.linear is not None)


def _factored(matrices: Tensor, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """U, s and V of U diag(s) V^T, largest first; of symmetric ones U is V but for signs."""
    if not symmetric:
        u, s, vh = torch.linalg.svd(matrices)
        return u, s, vh.mT
    values, vectors = torch.linalg.eigh((matrices + matrices.mT) / 2)
    order = values.abs().argsort(-1, descending=True)
    values = values.gather(-1, order)
    vectors = vectors.gather(-1, order[..., None, :].expand_as(vectors))
    return vectors, values.abs(), vectors * values.sign()[..., None, :]


def chebyshev(q: Tensor, low: float, high: float, number: int) -> Tensor:
    """T_0, T_1, ... of the logarithm of `q` mapped from the range, `[..., number, n]`."""
    x = ((2 * torch.log2(q) - (low + high)) / (high - low)).clamp(-1, 1)
    basis = x.new_empty(*x.shape[:-1], number, x.shape[-1])
    basis[..., 0, :] = 1
    if number > 1:
        basis[..., 1, :] = x
    last = 1
    while last < number - 1:  # T_(m+k) = 2 T_m T_k - T_(m-k) for all k up to m at once
        more = min(last, number - 1 - last)
        new = basis[..., last + 1 : last + 1 + more, :]
        torch.mul(2 * basis[..., last : last + 1, :], basis[..., 1 : 1 + more, :], out=new)
        new.sub_(basis[..., last - more : last, :].flip(-2))
        last += more
    return basis


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
