"""Expectations without gradient: Hermite coefficients and Mehler's series in the correlation."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from priors.gaussian.quadrature.functions import Elementwise
from priors.gaussian.quadrature.panels import direct
from priors.gaussian.quadrature.rules import (
    PER_PANEL,
    REACH,
    edges,
    legendre,
    panels,
    resolution_of,
    standard_density,
)

if TYPE_CHECKING:
    from jaxtyping import Float

    from priors.shapes import Part, Whole

__all__ = ["expectation_without_gradient", "mean_without_gradient", "rest_of"]

Pairs = tuple[Tensor, ...]

_LADDER = (32, 48, 64, 96, 128, 192, 256, 384, 512)
_TOLERANCE = 1e-12  # of the series, relative to the largest sqrt(E[f^2] E[g^2])


@functools.cache
def _rule(resolution: int) -> tuple[Tensor, Tensor, Tensor]:
    """Panel ends `[p + 1]`, nodes `[p m]`, and weighted Hermite polynomials `[K, p m]`."""
    ends = edges(REACH, 0.5, resolution)
    z, weights = panels(ends)
    return ends, z, _hermite(z, weights, _LADDER[-1])


def _hermite(
    z: Float[Tensor, "*z"], weights: Float[Tensor, "*z"], order: int
) -> Float[Tensor, "order ..."]:
    """Rows h_k(z) density(z) weight, `[order, *z.shape]`."""
    rows = [weights * standard_density(z)]
    rows.append(z * rows[0])
    for k in range(2, order):
        rows.append((z * rows[-1] - math.sqrt(k - 1) * rows[-2]) / math.sqrt(k))
    return torch.stack(rows[:order])


class _Projection:
    """Values of f at the nodes for each point, from which its Hermite coefficients are sums.

    The panels of the common rule that hold a kink are replaced by panels that end there.
    """

    def __init__(self, f: Elementwise, q: Tensor, parameters: Sequence[Tensor]) -> None:
        self._ends, z, self._rows = (t.to(q.device) for t in _rule(resolution_of(q)))
        root = q.double().clamp_min(0).sqrt()[..., None]
        kinks = f.kinks_like(q, parameters)
        parameters = [p.double()[..., None] for p in parameters]
        self._values = _evaluate(f, root * z, parameters)
        self._extra: tuple[Tensor, Tensor, Tensor] | None = None
        if f.kinks:
            z, weights, whole = self._split(kinks, root)
            self._values = self._values * whole
            self._extra = z, weights, _evaluate(f, root * z, parameters)

    def _split(self, kinks: Tensor, root: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Nodes and weights of the panels that end at kinks, and the mask of the others' nodes."""
        ends = self._ends
        t = (kinks / root).nan_to_num(REACH, REACH, -REACH).clamp(-REACH, REACH)
        t = t.sort(-1).values
        panel = torch.bucketize(t, ends[1:-1].contiguous())
        count = len(ends) - 1
        whole = (panel[..., None] != torch.arange(count, device=t.device)).all(-2)
        low, high = ends[panel], ends[panel + 1]
        # left of each kink to its predecessor, right of the last of a panel to the panel's end
        low = torch.cat([low[..., :1], torch.maximum(low[..., 1:], t[..., :-1])], -1)
        same = torch.cat(
            [panel[..., 1:] == panel[..., :-1], torch.zeros_like(panel[..., :1]) > 0], -1
        )
        high = torch.where(same, t, high)
        start, stop = torch.cat([low, t], -1), torch.cat([t, high], -1)
        nodes, weights = (x.to(t.device) for x in legendre(PER_PANEL))
        width = (stop - start)[..., None]
        z, weights = start[..., None] + width * nodes, width * weights
        mask = whole.double().repeat_interleave(PER_PANEL, -1)
        return z.flatten(-2), weights.flatten(-2), mask

    def coefficients(self, order: int) -> Float[Tensor, "*q order"]:
        """a_0, ..., a_(order - 1), `[*q.shape, order]`."""
        total = self._values @ self._rows[:order].T
        if self._extra is not None:
            z, weights, values = self._extra
            total = total + (_hermite(z, weights, order) * values).sum(-1).movedim(0, -1)
        return total

    def square(self) -> Tensor:
        """E[f^2], `[*q.shape]`."""
        total = self._values**2 @ self._rows[0]
        if self._extra is not None:
            z, weights, values = self._extra
            total = total + (_hermite(z, weights, 1)[0] * values**2).sum(-1)
        return total


def _evaluate(f: Elementwise, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    return f(x, *parameters).expand(x.shape)


def mean_without_gradient(f: Elementwise, q: Whole, *parameters: Tensor) -> Whole:
    """E[f(u)] in float64, without gradient."""
    return _Projection(f, q, parameters).coefficients(1)[..., 0]


_TILE = 2**15  # pairs, of which a tile fits the cache


def expectation_without_gradient(
    f: Elementwise,
    g: Elementwise,
    q1: Part,
    q2: Part,
    c: Part,
    f_parameters: Sequence[Tensor],
    g_parameters: Sequence[Tensor],
) -> Whole:
    """E[f(u) g(v)] in float64, without gradient."""
    q1, q2, c = (t.double() for t in (q1, q2, c))
    shape = torch.broadcast_shapes(q1.shape, q2.shape, c.shape)
    if not shape:  # a list of one pair
        one = q1[None], q2[None], c[None]
        return expectation_without_gradient(f, g, *one, f_parameters, g_parameters)[0]
    if 0 in shape:
        return torch.zeros(shape, dtype=c.dtype, device=c.device)
    r1, r2 = q1.clamp_min(0).sqrt(), q2.clamp_min(0).sqrt()
    root = r1 * r2
    safe = torch.where(root > 0, root, 1.0)
    rho = torch.where(root > 0, c / safe, 0.0).clamp(-1, 1).expand(shape)
    mirrored = f.same_as(g) and _symmetric(q1, q2, c)
    first = _Projection(f, q1, f_parameters)
    second = first if mirrored else _Projection(g, q2, g_parameters)
    square1 = first.square()
    square2 = square1.mT if mirrored else second.square()

    def coefficients(order: int) -> tuple[Tensor, Tensor]:
        a = first.coefficients(order)
        return a, a.transpose(-3, -2) if mirrored else second.coefficients(order)

    scale = (square1.max() * square2.max()).sqrt().clamp_min(1e-300)
    # in logarithms: of |rho|^K sqrt(sum of a_k^2 sum of b_k^2), and of what is tolerated
    decay, limit = rho.abs().log(), (_TOLERANCE * scale).log()

    def missed(order: int, a: Tensor, b: Tensor) -> Tensor:
        rests = rest_of(a, square1).log() + rest_of(b, square2).log()
        return torch.add(rests, decay, alpha=order) > limit

    def at(t: Tensor, pairs: Pairs) -> Tensor:
        return t.expand(shape)[pairs]

    def rows(t: Tensor, pairs: Pairs) -> Tensor:
        return t.expand(*shape, -1)[pairs]

    for order in _LADDER:
        a, b = coefficients(order)
        where = missed(order, a, b)
        if int(where.sum()) <= 0.01 * where.numel():
            break
    value = _power_series(a, b, rho)
    pairs: Pairs = where.nonzero(as_tuple=True)
    if len(pairs[0]) and order < _LADDER[-1]:
        # the few that need more terms than the others, as a list
        order = _LADDER[-1]
        a, b = coefficients(order)
        for part in zip(*(i.split(_TILE // 2) for i in pairs), strict=True):
            value[part] = _power_series(rows(a, part), rows(b, part), rho[part])
        still = missed(order, a, b)[pairs]
        pairs = tuple(i[still] for i in pairs)
    if not len(pairs[0]):
        return value

    if mirrored:
        upper = pairs[-2] <= pairs[-1]
        pairs = tuple(i[upper] for i in pairs)
    # 1 - |rho| from the factors of D: without cancellation, if c is exact
    gap = ((root - c.abs()) / safe).clamp_min(0)
    s = (gap * (2 - gap)).clamp_min(0).sqrt()
    kinks1 = rows(f.kinks_like(q1, f_parameters), pairs)
    kinks2 = rows(g.kinks_like(q2, g_parameters), pairs)
    value[pairs] = direct(
        f, g, at(r1, pairs), at(r2, pairs), rho[pairs], at(s, pairs), kinks1, kinks2,
        [at(p.double(), pairs) for p in f_parameters],
        [at(p.double(), pairs) for p in g_parameters],
    )  # fmt: skip
    if mirrored:
        value[(*pairs[:-2], pairs[-1], pairs[-2])] = value[pairs]
    return value


def _symmetric(q1: Tensor, q2: Tensor, c: Tensor) -> bool:
    """Whether exchanging the last two dimensions exchanges u and v."""
    if c.ndim < 2 or c.shape[-1] != c.shape[-2] or min(q1.ndim, q2.ndim) < 2:
        return False
    return torch.equal(c, c.mT) and torch.equal(q1, q2.mT)


def rest_of(
    coefficients: Float[Tensor, "*points k"], square: Float[Tensor, "*points"]
) -> Float[Tensor, "*points"]:
    """The norm of the coefficients not computed, from Parseval's identity.

    Where that is rounding noise, from the ratio of the last two quarters of those computed: a
    bound if they decay like those of a jump, k^(-3/4), or geometrically.
    """
    rest = square - (coefficients**2).sum(-1)
    quarter = coefficients.shape[-1] // 4
    before, last = (
        (coefficients[..., -2 * quarter :].unflatten(-1, (2, -1)) ** 2).sum(-1).unbind(-1)
    )
    ratio = (last / before.clamp_min(1e-300)).clamp_max(0.9)
    return torch.where(rest > 1e-12 * square, rest, 5 * last * ratio / (1 - ratio)).sqrt()


def _power_series(
    a: Float[Tensor, "*#pairs k"], b: Float[Tensor, "*#pairs k"], rho: Whole
) -> Whole:
    """sum_k a_k b_k rho^k for a, b whose shapes without k broadcast to that of rho.

    Horner's rule, over tiles of rows that fit the cache.
    """
    if rho.ndim < 2:
        a, b = (t.expand(*rho.shape, -1).reshape(1, rho.numel(), -1) for t in (a, b))
        return _power_series(a, b, rho.reshape(1, -1)).view(rho.shape)
    a, b = (
        t.reshape(*(1,) * (rho.ndim - t.ndim + 1), *t.shape).movedim(-1, 0).contiguous()
        for t in (a, b)
    )
    total = torch.zeros_like(rho)
    rows = max(1, _TILE * rho.shape[-2] // max(1, rho.numel()))
    for start in range(0, rho.shape[-2], rows):
        tile = slice(start, start + rows)
        left, right = (x if x.shape[-2] == 1 else x[..., tile, :] for x in (a, b))
        power, value = rho[..., tile, :].contiguous(), total[..., tile, :].contiguous()
        for k in range(len(a) - 1, -1, -1):
            value.mul_(power).addcmul_(left[k], right[k])
        total[..., tile, :] = value
    return total
