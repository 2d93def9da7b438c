"""Tables evaluated for matrices of pairs, tile by tile of what a cache holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from priors.gaussian.interpolation.tables import Factors

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
    sums = [_Sum(t, q1, q2) for t in tables]
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
            rho, x, twice, b, d, *values = (t[:count].view(shape) for t in doubles)
            single = [t[:count].view(shape) for t in singles]
            torch.mul(c[tile], inverse1[tile], out=rho)
            rho.mul_(inverse2[tile[0]]).clamp_(-1, 1)
            torch.asin(rho, out=x).mul_(2 / math.pi)
            torch.mul(x, x, out=twice).mul_(4).sub_(2)
            single[0].copy_(twice)
            for one, value in zip(sums, values, strict=True):
                one.at(tile, rho, x, twice, value, (b, d), single)
            yield tile, values


class _Sum:
    """The series of a table in the angle, between given points of both sides.

    The even and the odd terms are summed apart by Clenshaw's recurrence in 2 T_2(x); the terms
    so small that single precision keeps them to 1e-12 of the whole in that.
    """

    def __init__(self, table: Factors, q1: Tensor, q2: Tensor) -> None:
        self._table = table
        left, self._linear_left = table.functions(q1[..., 0], 0)
        right, linear = table.functions(q2[..., 0, :], 1)
        self._left, self._right = left, right.mT.contiguous()
        self._linear_right = linear.mT
        self._single = self._left.float(), self._right.float()
        self._products = q1.shape[1] * q2.shape[2] < _SMALL

    def at(
        self,
        tile: Tile,
        rho: Tensor,
        x: Tensor,
        twice: Tensor,
        out: Tensor,
        spare: tuple[Tensor, Tensor],
        single: Sequence[Tensor],
    ) -> None:
        """Write the sum for a tile into `out`; x is 2 asin(rho) / pi, `twice` is 2 T_2(x)."""
        ready = self._coefficients(tile) if self._products else None
        b, d = spare
        out.zero_()
        if self._recur(slice(1, None, 2), tile, twice, b, d, single, ready):
            torch.sub(b, d, out=out).mul_(x)
        if self._recur(slice(0, None, 2), tile, twice, b, d, single, ready):
            out.add_(b).addcmul_(d, twice, value=-0.5)
        if self._table.linear is not None:
            torch.mul(rho, self._linear_left[tile], out=b)
            out.addcmul_(b, self._linear_right[tile[0]])

    def _coefficients(self, tile: Tile) -> Tensor:
        """C_k of each pair, `[terms, b, n, m]`: many matrices of few pairs."""
        ends = torch.tensor(self._table.ends, device=self._left.device)
        rank = torch.arange(self._left.shape[-1], device=ends.device)
        term = torch.bucketize(rank, ends, right=True)
        sums = torch.nn.functional.one_hot(term, len(ends)).to(self._left)
        products = self._left[tile][:, :, None] * self._right[tile[0]].mT[:, None]
        return (products @ sums).movedim(-1, 0).contiguous()

    def _recur(
        self,
        kind: slice,
        tile: Tile,
        twice: Tensor,
        b: Tensor,
        d: Tensor,
        single: Sequence[Tensor],
        ready: Tensor | None,
    ) -> bool:
        """b_0 and b_1 of b_k = C_k + 2 T_2(x) b_(k+1) - b_(k+2), in `b` and `d`."""
        ends = self._table.ends
        terms = list(zip((0, *ends[:-1]), ends, strict=True))[kind] if ends else []
        while terms and terms[-1][0] == terms[-1][1]:
            terms.pop()
        if not terms:
            return False
        if ready is not None:
            ready = ready[kind]
        # so many of these terms in double precision
        head = -(-(self._table.head - (kind.start or 0)) // 2)
        head = len(terms) if ready is not None else max(0, min(head, len(terms)))
        new, old = (b, d) if head % 2 else (d, b)  # what is written last is `b`
        if head < len(terms):
            left, right = (t[p] for t, p in zip(self._single, (tile, tile[0]), strict=True))
            order = range(len(terms) - 1, head - 1, -1)
            started = _steps(terms, order, left, right, *single, None)
            old.copy_(started[0])
            new.copy_(started[1])
        left, right = self._left[tile], self._right[tile[0]]
        _steps(terms, range(head - 1, -1, -1), left, right, twice, new, old, ready)
        return True


def _steps(
    terms: Sequence[tuple[int, int]],
    order: range,
    left: Tensor,
    right: Tensor,
    twice: Tensor,
    new: Tensor,
    old: Tensor,
    ready: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """b_k for the k of `order`, from b_(k+1) in `old` and b_(k+2) in `new`; the last two of them.

    At the last of all terms, where both are 0, the tensors may hold anything.
    """
    if order and order[0] == len(terms) - 1:
        old.zero_()
    for k in order:
        start, stop = terms[k]
        before = -1 if k < len(terms) - 2 else 0  # the sign of b_(k+2), or that it is 0
        if start == stop:
            new.mul_(-1) if before else new.zero_()
        elif ready is not None:
            torch.sub(ready[k], new, out=new) if before else new.copy_(ready[k])
        elif len(left) == 1:
            new[0].addmm_(left[0, :, start:stop], right[0, start:stop], beta=before)
        else:
            new.baddbmm_(left[..., start:stop], right[:, start:stop], beta=before)
        if k < len(terms) - 1:
            new.addcmul_(twice, old)
        new, old = old, new
    return old, new
