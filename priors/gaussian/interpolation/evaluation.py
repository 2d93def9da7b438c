"""Tables evaluated for matrices of pairs, tile by tile of what a cache holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from priors.gaussian.interpolation.tables import Factors, Stack

__all__ = ["evaluate"]

_TILE = {"cpu": 2**16}  # pairs
_TILE_ELSEWHERE = 2**24
_SMALL = 16  # pairs of a matrix, too few for products of matrices

Tile = tuple[int | slice, slice, slice]


def evaluate(
    stack: Stack, q1: Tensor, q2: Tensor, c: Tensor, *, upper: bool = False
) -> Iterator[tuple[Tile, list[Tensor]]]:
    """Values of several tables at the same pairs; no gradient.

    Args:
        stack: The tables; their range contains the variances.
        q1: `[b, n, 1]`, float64.
        q2: `[b, 1, m]`.
        c: `[b, n, m]`.
        upper: Leave out tiles below the diagonal.

    Yields:
        The place of a tile, and the value of each table there; the tensors are used again for the
        next tile.
    """
    inverse1, inverse2 = q1.rsqrt(), q2.rsqrt()
    batch, rows, columns = c.shape
    few = rows * columns < _SMALL
    sides = stack.functions(0, q1[..., 0]), stack.functions(1, q2[..., 0, :])
    sums = [_Sum(*one, few) for one in zip(stack.tables, *sides, strict=True)]
    size = _TILE.get(c.device.type, _TILE_ELSEWHERE)
    if few:
        size //= 8  # all products of a pair are held
    height = max(1, min(rows, size // columns))
    depth = max(1, size // (height * columns)) if height == rows else 1
    most = min(depth, batch) * height * columns
    doubles = [c.new_empty(most) for _ in range(5 + len(sums))]
    singles = [c.new_empty(most, dtype=torch.float32) for _ in range(3)]
    minus_two = c.new_tensor(-2.0)
    for i in range(0, batch, depth):
        for j in range(0, rows, height):
            # one matrix has no dimension of a batch
            first = 0 if batch == 1 else slice(i, i + depth)
            tile = first, slice(j, j + height), slice(j if upper else 0, columns)
            shape = c[tile].shape
            count = shape.numel()
            rho, x, twice, *spare = (t[:count].view(shape) for t in doubles)
            half, *small = (t[:count].view(shape) for t in singles)
            torch.mul(c[tile], inverse1[tile[:2]], out=rho)
            rho.mul_(inverse2[first][..., tile[2]]).clamp_(-1, 1)
            bend = math.nan
            for k, one in enumerate(sums):
                if one.table.bend != bend:
                    bend = one.table.bend
                    torch.mul(rho, bend, out=x).asin_().mul_(1 / math.asin(bend))
                    torch.addcmul(minus_two, x, x, value=4, out=twice)
                    half.copy_(twice)
                one.at(tile, rho, x, (twice, half), spare[2 + k], spare[:2], small)
            yield tile, spare[2:]


class _Sum:
    """The series of a table in the bent correlation, between given points of both sides.

    The even and the odd terms are summed apart by Clenshaw's recurrence in 2 T_2(x); the terms
    so small that single precision keeps them to 1e-12 of the whole in that.

    Args:
        table: Of which the functions are.
        left: Functions of the rows' variances.
        right: Of the columns'.
        few: Whether the matrices are too small for products.
    """

    def __init__(
        self, table: Factors, left: Sequence[Tensor], right: Sequence[Tensor], few: bool
    ) -> None:
        self.table = table
        *self._left, self._linear_left = left
        *self._right, self._linear_right = right
        self._few = few

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
        make = _Ready if self._few else _Products
        precise, rest = (
            make(left.mT[tile[:2]], right[tile[0]][..., tile[2]], widths)
            for left, right, widths in zip(self._left, self._right, self.table.widths, strict=True)
        )
        empty = True
        for odd, (leading, others) in zip((True, False), self.table.terms, strict=True):
            if not leading and not others:
                continue
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
            torch.mul(rho, self._linear_left.mT[tile[:2]], out=b)
            out.addcmul_(b, self._linear_right[tile[0]][..., tile[2]])


class _Products:
    """C_k of a tile as products of two matrices.

    Args:
        left: L of all k, `[..., n, functions]`.
        right: R, `[..., functions, m]`.
        widths: How many of these functions each k has whose C_k is not 0.
    """

    def __init__(self, left: Tensor, right: Tensor, widths: dict[int, int]) -> None:
        sizes = list(widths.values())
        pairs = zip(left.split(sizes, -1), right.split(sizes, -2), strict=True)
        self._factors = dict(zip(widths, pairs, strict=True))

    def minus(self, k: int, sign: int, b: Tensor) -> None:
        """C_k + sign b, for a sign of -1 or 0, in place."""
        factors = self._factors.get(k)
        if factors is None:
            b.neg_() if sign else b.zero_()
        elif b.dim() == 2:
            b.addmm_(*factors, beta=sign)
        else:
            b.baddbmm_(*factors, beta=sign)


class _Ready(_Products):
    """C_k for each pair of many matrices of few pairs."""

    def __init__(self, left: Tensor, right: Tensor, widths: dict[int, int]) -> None:
        number = torch.tensor(list(widths.values()), device=left.device, dtype=torch.int64)
        of = torch.arange(len(widths), device=left.device).repeat_interleave(number)
        sums = torch.nn.functional.one_hot(of, len(widths)).to(left)
        products = left[..., None, :] * right.mT[..., None, :, :]
        self._values = dict(zip(widths, (products @ sums).unbind(-1), strict=True))

    def minus(self, k: int, sign: int, b: Tensor) -> None:
        value = self._values.get(k)
        if value is None:
            b.neg_() if sign else b.zero_()
        elif sign:
            torch.sub(value, b, out=b)
        else:
            b.copy_(value)


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
