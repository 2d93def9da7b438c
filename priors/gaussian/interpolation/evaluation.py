"""Tables evaluated for matrices of pairs, tile by tile of what a cache holds."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from priors.gaussian.interpolation.tables import Factors, chebyshev

__all__ = ["evaluate"]

_TILE = {"cpu": 2**15}  # pairs
_TILE_ELSEWHERE = 2**24
_SMALL = 16  # pairs of a matrix, too few for products of matrices

Tile = tuple[slice, slice]


def evaluate(
    tables: Sequence[Factors], q1: Tensor, q2: Tensor, c: Tensor
) -> Iterator[tuple[Tile, list[Tensor]]]:
    """Values of several tables at the same pairs; no gradient.

    Args:
        tables: Their ranges contain the variances.
        q1: `[b, n, 1]`, float64.
        q2: `[b, 1, m]`.
        c: `[b, n, m]`.

    Yields:
        The place of a tile in the first two dimensions, and the value of each table there; the
        tensors are used again for the next tile.
    """
    inverse1, inverse2 = q1.rsqrt(), q2.rsqrt()
    low, high = tables[0].low, tables[0].high
    number = max(t.degree for t in tables)
    bases = (
        chebyshev(q1[..., 0], low, high, number),
        chebyshev(q2[..., 0, :], low, high, number),
    )
    sums = [_Sum(t, *bases) for t in tables]
    batch, rows, columns = c.shape
    size = _TILE.get(c.device.type, _TILE_ELSEWHERE)
    if rows * columns < _SMALL:
        size //= 8  # all products of a pair are held
    height = max(1, min(rows, size // columns))
    depth = max(1, size // (height * columns)) if height == rows else 1
    most = min(depth, batch) * height * columns
    doubles = [c.new_empty(most) for _ in range(5 + len(tables))]
    singles = [c.new_empty(most, dtype=torch.float32) for _ in range(3)]
    for i in range(0, batch, depth):
        for j in range(0, rows, height):
            tile = slice(i, i + depth), slice(j, j + height)
            shape = (min(depth, batch - i), min(height, rows - j), columns)
            count = math.prod(shape)
            rho, x, twice, *spare = (t[:count].view(shape) for t in doubles)
            half, *small = (t[:count].view(shape) for t in singles)
            torch.mul(c[tile], inverse1[tile], out=rho)
            rho.mul_(inverse2[tile[0]]).clamp_(-1, 1)
            bend = math.nan
            for k, one in enumerate(sums):
                if one.table.bend != bend:
                    bend = one.table.bend
                    torch.mul(rho, bend, out=x).asin_().mul_(1 / math.asin(bend))
                    torch.mul(x, x, out=twice).mul_(4).sub_(2)
                    half.copy_(twice)
                one.at(tile, rho, x, (twice, half), spare[2 + k], spare[:2], small)
            yield tile, spare[2:]


class _Sum:
    """The series of a table in the bent correlation, between given points of both sides.

    The even and the odd terms are summed apart by Clenshaw's recurrence in 2 T_2(x); the terms
    so small that single precision keeps them to 1e-12 of the whole in that.
    """

    def __init__(self, table: Factors, basis1: Tensor, basis2: Tensor) -> None:
        self.table = table
        *left, self._linear_left = table.sides[0](basis1)
        *right, self._linear_right = table.sides[1](basis2)
        # the places of k with terms, and the widths of these, of the leading ones and the others
        self._parts = []
        few = basis1.shape[-1] * basis2.shape[-1] < _SMALL
        cut = table.head
        for start, stop, own, other in zip(
            (0, cut), (cut, len(table.ranks)), left, right, strict=True
        ):
            places = {k: i for i, k in enumerate(k for k in range(start, stop) if table.ranks[k])}
            widths = [table.ranks[k] for k in places]
            self._parts.append((_Ready if few else _Products)(own, other, places, widths))
        kinds = (range(1, len(table.ranks), 2), range(0, len(table.ranks), 2))
        self._terms = [
            list(kind)[: 1 + max(i for i, k in enumerate(kind) if table.ranks[k])]
            if any(table.ranks[k] for k in kind)
            else []
            for kind in kinds
        ]

    def at(
        self,
        tile: Tile,
        rho: Tensor,
        x: Tensor,
        twice: tuple[Tensor, Tensor],
        out: Tensor,
        spare: Sequence[Tensor],
        small: Sequence[Tensor],
    ) -> None:
        """Write the sum for a tile into `out`; x is the bent rho, `twice` is 2 T_2(x)."""
        b, d = spare
        precise, rest = (part.of(tile) for part in self._parts)
        empty = True
        for odd, terms in zip((True, False), self._terms, strict=True):
            if not terms:
                continue
            leading = [k for k in terms if k < self.table.head]
            others = terms[len(leading) :]
            new, old = (b, d) if len(leading) % 2 else (d, b)  # what is written last is `b`
            if others:
                found = _recur(rest, others, 0, twice[1], *small)
                old.copy_(found[0])
                new.copy_(found[1])
            _recur(precise, leading, len(others), twice[0], new, old)
            if odd:
                torch.sub(b, d, out=out).mul_(x)
            elif empty:
                torch.addcmul(b, d, twice[0], value=-0.5, out=out)
            else:
                out.add_(b).addcmul_(d, twice[0], value=-0.5)
            empty = False
        if empty:
            out.zero_()
        if self.table.linear:
            torch.mul(rho, self._linear_left.mT[tile], out=b)
            out.addcmul_(b, self._linear_right[tile[0]])


class _Products:
    """C_k as products of two matrices.

    Args:
        left: L of all k, `[b, functions, n]`.
        right: R.
        places: Where a k is among those whose C_k is not 0.
        widths: How many functions each of these has.
    """

    def __init__(
        self, left: Tensor, right: Tensor, places: dict[int, int], widths: list[int]
    ) -> None:
        self._left, self._places, self._widths = left, places, widths
        self._flat = len(left) == 1
        self._right = right if not self._flat else right[0]
        self._rights = self._right.split(widths, -2)
        # of a tile
        self._lefts: tuple[Tensor, ...] = ()
        self._values = left

    def of(self, tile: Tile) -> _Products:
        """Those of a tile."""
        part = copy.copy(self)
        left = self._left[tile[0], :, tile[1]].mT
        part._lefts = (left[0] if self._flat else left).split(self._widths, -1)
        if not self._flat:
            part._rights = self._right[tile[0]].split(self._widths, -2)
        return part

    def minus(self, k: int, sign: int, b: Tensor) -> None:
        """C_k + sign b, for a sign of -1 or 0, in place."""
        place = self._places.get(k)
        if place is None:
            b.neg_() if sign else b.zero_()
        elif self._flat:
            b[0].addmm_(self._lefts[place], self._rights[place], beta=sign)
        else:
            b.baddbmm_(self._lefts[place], self._rights[place], beta=sign)


class _Ready(_Products):
    """C_k for each pair of many matrices of few pairs."""

    def of(self, tile: Tile) -> _Ready:
        part = copy.copy(self)
        left = self._left[tile[0], :, tile[1]]
        right = self._right[None] if self._flat else self._right[tile[0]]
        of = torch.arange(len(self._widths), device=left.device)
        of = of.repeat_interleave(torch.tensor(self._widths, device=left.device, dtype=of.dtype))
        sums = torch.nn.functional.one_hot(of, len(self._widths)).to(left)
        products = left[..., None] * right[..., None, :]
        part._values = torch.einsum("brnm,rk->kbnm", products, sums)
        return part

    def minus(self, k: int, sign: int, b: Tensor) -> None:
        place = self._places.get(k)
        if place is None:
            b.neg_() if sign else b.zero_()
        elif sign:
            torch.sub(self._values[place], b, out=b)
        else:
            b.copy_(self._values[place])


def _recur(
    coefficients: _Products,
    terms: Sequence[int],
    done: int,
    twice: Tensor,
    new: Tensor,
    old: Tensor,
) -> tuple[Tensor, Tensor]:
    """b_k = C_k + 2 T_2(x) b_(k+1) - b_(k+2) down to the first of `terms`; b_k and b_(k+1) there.

    The `done` terms after those here left b_(k+1) in `old` and b_(k+2) in `new`; where there are
    none, the two may hold anything.
    """
    for k in reversed(terms):
        coefficients.minus(k, -1 if done > 1 else 0, new)
        if done:
            new.addcmul_(twice, old)
        new, old = old, new
        done += 1
    if done == 1:
        new.zero_()
    return old, new
