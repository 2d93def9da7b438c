"""E[phi^(m)(u) psi^(n)(v)] with gradients: from tables where they hold, else by quadrature.

By Price's theorem every derivative is such an expectation: in the covariance that of orders
(m + 1, n + 1), in the variance of u half that of (m + 2, n). Each has a table of its own, so
that a gradient is as accurate as a value, also at rho = +-1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from priors.gaussian.elementwise import Elementwise
from priors.gaussian.interpolation.evaluation import evaluate
from priors.gaussian.interpolation.store import HIGHEST, LOWEST, exponents
from priors.gaussian.quadrature import gaussian_expectation, gaussian_mean

if TYPE_CHECKING:
    from priors.gaussian.activations.base import Activation

__all__ = ["expectations", "mean"]

Orders = tuple[int, int]

_ROUNDING = 1e-14  # of inputs: sums in another order


def expectations(
    phi: Activation,
    psi: Activation,
    orders: tuple[Orders, ...],
    q1: Tensor,
    q2: Tensor,
    c: Tensor,
) -> tuple[Tensor, ...]:
    """E[phi^(m)(u) psi^(n)(v)] for each (m, n), without the deltas of derivatives at jumps.

    From tables, within 1e-10 of the root of E[phi^(m)(u)^2] E[psi^(n)(v)^2], where both functions
    are smooth, the variances lie between 2^-10 and 2^12, and enough pairs are asked for to pay for
    the tables; by quadrature of the activations otherwise.

    Args:
        phi: The function of u.
        psi: The function of v.
        orders: Of their derivatives.
        q1: Variances of u, >= 0; broadcasts with `q2` and `c`.
        q2: Variances of v, >= 0.
        c: Covariances.

    Returns:
        One of each order, of the shape to which q1, q2 and c broadcast, in the dtype of `c`.
    """
    shape = torch.broadcast_tensors(q1, q2, c)[0].shape
    if not _eligible(phi, psi, math.prod(shape)):
        return tuple(_by_quadrature(phi, psi, o, q1, q2, c) for o in orders)
    for function in {phi, psi}:
        phi.tables.check(function, c.device)
    arrange = _Arrangement(q1, q2, shape)
    values = _Interpolated.apply(*arrange.apart(q1, q2, c), phi, psi, orders)
    return tuple(arrange.together(v).to(c.dtype) for v in values)


def mean(phi: Activation, orders: tuple[int, ...], q: Tensor) -> Tensor:
    """E[phi^(m)(u)] for `orders` = (m,), or E[phi^(m)(u) phi^(n)(u)] for (m, n), u of variance q.

    From tables or by quadrature, as `expectation`.
    """
    tables = phi.tables
    if phi.kinks or not tables.worth_it("mean", q.numel(), single=True):
        return _mean_by_quadrature(phi, orders, q)
    tables.check(phi, q.device)
    return _Mean.apply(q, phi, orders)


def _eligible(phi: Activation, psi: Activation, number: int) -> bool:
    if phi.kinks or psi.kinks or not number:
        return False
    try:
        return phi.tables.worth_it(psi, number)
    except TypeError:  # not hashable
        return False


def _by_quadrature(
    phi: Activation, psi: Activation, orders: Orders, q1: Tensor, q2: Tensor, c: Tensor
) -> Tensor:
    f, g = phi.derivative_function(orders[0]), psi.derivative_function(orders[1])
    return gaussian_expectation(f, g, q1, q2, c, f_kinks=phi.kinks, g_kinks=psi.kinks)


def _mean_by_quadrature(phi: Activation, orders: tuple[int, ...], q: Tensor) -> Tensor:
    functions = [phi.derivative_function(m) for m in orders]
    if len(functions) == 1:
        return gaussian_mean(functions[0], q, kinks=phi.kinks)
    return gaussian_mean(lambda x: functions[0](x) * functions[1](x), q, kinks=phi.kinks)


def _matrices(
    phi: Activation, psi: Activation, orders: tuple[Orders, ...], q1: Tensor, q2: Tensor, c: Tensor
) -> tuple[Tensor, ...]:
    """The same for q1 `[b, n, 1]`, q2 `[b, 1, m]` and c `[b, n, m]`, float64, without gradient.

    Rows and columns whose variance no table covers are done by quadrature.
    """
    inside, least, largest = _range(q1, q2)
    if not inside:
        return tuple(_mixed(phi, psi, o, q1, q2, c) for o in orders)
    part = exponents(least, largest)
    stack = None if part is None else phi.tables.stack(phi, psi, orders, *part, c.device)
    if stack is None:
        return tuple(_by_quadrature(phi, psi, o, q1, q2, c) for o in orders)
    mirrored = _mirrored(phi, psi, orders, q1, q2, c)
    results = tuple(torch.empty_like(c) for _ in orders)
    for tile, values in evaluate(stack, q1, q2, c, upper=mirrored):
        batch, rows, _ = tile
        for result, value in zip(results, values, strict=True):
            if mirrored:  # exactly so, also where tables round
                height = value.shape[-2]
                square = value[..., :height]
                square.copy_((square + square.mT) / 2)
                result[batch, tile[2], rows] = value.mT
            result[tile] = value
    return results


def _range(q1: Tensor, q2: Tensor) -> tuple[bool, float, float]:
    """Whether tables may cover all variances, and the least and the largest."""
    least, largest = (
        torch.stack(list(ends)) for ends in zip(*(torch.aminmax(q) for q in (q1, q2)), strict=True)
    )
    low, high = torch.stack([least.min(), largest.max()]).tolist()
    return 2.0**LOWEST <= low and high <= 2.0**HIGHEST, low, high


def _mixed(
    phi: Activation, psi: Activation, orders: Orders, q1: Tensor, q2: Tensor, c: Tensor
) -> Tensor:
    """One of `_matrices` where only some rows and columns are covered."""
    covered = [(q >= 2.0**LOWEST) & (q <= 2.0**HIGHEST) for q in (q1, q2)]
    rows, columns = covered[0].all(2).all(0), covered[1].all(1).all(0)
    inside, outside = rows.nonzero()[:, 0], (~rows).nonzero()[:, 0]
    right, wrong = columns.nonzero()[:, 0], (~columns).nonzero()[:, 0]
    if 2 * len(inside) < len(rows) or 2 * len(right) < len(columns):
        return _by_quadrature(phi, psi, orders, q1, q2, c)
    own = q1[:, inside]
    kept = c[:, inside]
    (known,) = _matrices(phi, psi, (orders,), own, q2[..., right], kept[..., right])
    value = torch.zeros_like(kept).index_copy(2, right, known)
    if len(wrong):
        rest = _by_quadrature(phi, psi, orders, own, q2[..., wrong], kept[..., wrong])
        value = value.index_copy(2, wrong, rest)
    if not len(outside):
        return value
    rest = _by_quadrature(phi, psi, orders, q1[:, outside], q2, c[:, outside])
    return torch.zeros_like(c).index_copy(1, inside, value).index_copy(1, outside, rest)


class _Interpolated(Elementwise):
    @staticmethod
    def forward(q1, q2, c, phi, psi, orders):  # type: ignore[no-untyped-def]
        # `torch.func` may add dimensions of a batch, to some of the three only
        batch = torch.broadcast_shapes(*(t.shape[:-2] for t in (q1, q2, c)))
        every = (t.expand(*batch, *t.shape[-2:]).flatten(0, -3) for t in (q1, q2, c))
        return tuple(v.unflatten(0, batch) for v in _matrices(phi, psi, orders, *every))

    @staticmethod
    def slopes(inputs, outputs, needed):  # type: ignore[no-untyped-def]
        q1, q2, c, phi, psi, orders = inputs
        shifted = [(m + a, n + b) for m, n in orders for a, b in _SHIFTS]
        wanted = [o for i, o in enumerate(shifted) if needed[i % 3]]
        every = tuple(dict.fromkeys(wanted))
        found = dict(zip(every, _Interpolated.apply(q1, q2, c, phi, psi, every), strict=True))
        slopes = [found.get(o) if needed[i % 3] else None for i, o in enumerate(shifted)]
        halved = [s / 2 if s is not None and i % 3 < 2 else s for i, s in enumerate(slopes)]
        return [halved[i : i + 3] for i in range(0, len(halved), 3)]

    @staticmethod
    def gradients(inputs, outputs, needed, grad_outputs):  # type: ignore[no-untyped-def]
        *tensors, phi, psi, orders = inputs
        q1, q2, c = tensors
        if c.dim() != 3:
            return None
        inside, least, largest = _range(q1, q2)
        part = exponents(least, largest) if inside else None
        if part is None:
            return None
        wanted = [k for k in range(3) if needed[k]]
        known = dict(zip(orders, outputs, strict=True))
        totals: list[Any] = [
            torch.zeros_like(t) if k in wanted else None for k, t in enumerate(tensors)
        ]
        mirrored = _mirrored(phi, psi, orders, *tensors)
        # (input, orders of the slope in it, gradient of the value)
        slopes = [
            (k, (m + _SHIFTS[k][0], n + _SHIFTS[k][1]), grad)
            for (m, n), grad in zip(orders, grad_outputs, strict=True)
            if grad is not None
            for k in wanted
            # the slope in q2 is the transposed one in q1
            if not (mirrored and k == 1 and 0 in wanted)
        ]
        missing = [s for s in slopes if not (s[0] == 2 and s[1] in known)]
        shifted = tuple(own for _, own, _ in missing)
        stack = phi.tables.stack(phi, psi, shifted, *part, c.device) if missing else None
        if missing and stack is None:
            return None
        for k, own, grad in slopes:
            if k == 2 and own in known:
                totals[2].addcmul_(grad, known[own])
        if stack is not None:
            for tile, values in evaluate(stack, *tensors):
                for (k, _, grad), value in zip(missing, values, strict=True):
                    if k == 2:
                        totals[2][tile].addcmul_(grad[tile], value)
                        continue
                    if k == 0 and mirrored and 1 in wanted:
                        other = (value * grad.mT[tile]).sum(-1)
                        totals[1][tile[0], :, tile[1]] += other[..., None, :]
                    value.mul_(grad[tile])
                    if k == 0:
                        totals[0][tile[:2]] += value.sum(-1, keepdim=True)
                    else:
                        totals[1][tile[0]] += value.sum(-2, keepdim=True)
        return *(None if t is None else t / 2 for t in totals[:2]), totals[2]


# What a derivative in q1, in q2 and in c adds to the orders; those in q1 and q2 are halved.
_SHIFTS = ((2, 0), (0, 2), (1, 1))


def _mirrored(
    phi: Activation, psi: Activation, orders: Sequence[Orders], q1: Tensor, q2: Tensor, c: Tensor
) -> bool:
    """Whether exchanging rows and columns changes nothing but for rounding."""
    if phi != psi or any(m != n for m, n in orders) or c.shape[-1] != c.shape[-2]:
        return False
    pairs = ((q1, q2.mT), (c, c.mT))
    return all(torch.allclose(a, b, rtol=_ROUNDING, atol=_ROUNDING) for a, b in pairs)


class _Mean(Elementwise):
    @staticmethod
    def forward(q, phi, orders):  # type: ignore[no-untyped-def]
        flat = q.flatten()
        inside = (flat >= 2.0**LOWEST) & (flat <= 2.0**HIGHEST)
        known = flat[inside].double()
        if not len(known):
            return _mean_by_quadrature(phi, orders, q)
        part = exponents(*torch.stack(torch.aminmax(known)).tolist())
        table = None if part is None else phi.tables.mean(phi, orders, *part, q.device)
        if table is None:
            return _mean_by_quadrature(phi, orders, q)
        value = torch.empty_like(flat)
        value[inside] = table(known).to(q.dtype)
        if len(known) < len(flat):
            value[~inside] = _mean_by_quadrature(phi, orders, flat[~inside])
        return value.view(q.shape)

    @staticmethod
    def slopes(inputs, outputs, needed):  # type: ignore[no-untyped-def]
        q, phi, orders = inputs
        if len(orders) == 1:
            terms: list[tuple[tuple[int, ...], float]] = [((orders[0] + 2,), 0.5)]
        else:
            m, n = orders
            terms = [((m + 1, n + 1), 1.0), ((m + 2, n), 1.0 if m == n else 0.5)]
            if m != n:
                terms.append(((m, n + 2), 0.5))
        return [[sum(share * mean(phi, own, q) for own, share in terms)]]


class _Arrangement:
    """Dimensions of pairs as batch, rows (of u) and columns (of v): what varies in q1, in q2.

    Args:
        q1: Variances of u.
        q2: Variances of v.
        shape: To which they and the covariances broadcast.
    """

    def __init__(self, q1: Tensor, q2: Tensor, shape: Sequence[int]) -> None:
        one = [1] * (len(shape) - q1.dim()) + list(q1.shape)
        two = [1] * (len(shape) - q2.dim()) + list(q2.shape)
        rows = [i for i in range(len(shape)) if one[i] > 1 and two[i] == 1]
        columns = [i for i in range(len(shape)) if two[i] > 1 and one[i] == 1]
        batch = [i for i in range(len(shape)) if i not in rows and i not in columns]
        self._shape = shape
        self._order = [*batch, *rows, *columns]
        self._sizes = [math.prod(shape[i] for i in part) for part in (batch, rows, columns)]
        self._cut = len(batch), len(batch) + len(rows)

    def apart(self, q1: Tensor, q2: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[b, n, 1]`, `[b, 1, m]` and `[b, n, m]`, float64."""
        b, n, m = self._sizes
        first, second = self._cut
        shape = self._shape
        ones = [1] * len(shape)
        # a variance is spread over the batch, and over nothing else
        of_rows, of_columns = list(shape), list(shape)
        for place, i in enumerate(self._order):
            if place >= second:
                of_rows[i] = ones[i]
            elif place >= first:
                of_columns[i] = ones[i]
        q1 = q1.double().expand(of_rows).permute(self._order).reshape(b, n, 1)
        q2 = q2.double().expand(of_columns).permute(self._order).reshape(b, 1, m)
        return q1, q2, c.double().expand(shape).permute(self._order).reshape(b, n, m)

    def together(self, value: Tensor) -> Tensor:
        """A value `[b, n, m]` in the shape of the pairs."""
        moved = value.view([self._shape[i] for i in self._order])
        back = sorted(range(len(self._order)), key=self._order.__getitem__)
        return moved.permute(back)
