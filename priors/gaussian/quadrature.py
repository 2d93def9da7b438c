"""Gaussian expectations of functions without a closed form.

E[f(u) g(v)] for a centred Gaussian pair (u, v) with variances q1, q2 and covariance c, by Mehler's
expansion: with Hermite coefficients a_k(q) = E[f(sqrt(q) Z) h_k(Z)], h_k orthonormal,

    E[f(u) g(v)] = sum_k a_k(q1) b_k(q2) rho^k,   rho = c / sqrt(q1 q2),

which costs one-dimensional integrals per point and a polynomial per pair. Its error after K terms
is at most |rho|^K (sum_(k >= K) a_k^2 sum_(k >= K) b_k^2)^(1/2), and the two sums are known from
E[f^2] and E[g^2]: K is taken as small as that allows. Pairs which the longest series does not
reach (a kinked or steep function and |rho| near 1) are integrated in two dimensions,

    E[f(sqrt(q1) z) E[g(sqrt(q2) (rho z + s w)) | z]],   s = sqrt(1 - rho^2),

by Gauss-Legendre panels that end at the kinks of f and of g, and are as narrow as s around those
of g, which the inner expectation smooths over that width. At rho = +-1 the inner one disappears.

Gradients are expectations again, by Price's theorem: dE/dc = E[f' g'], dE/dq1 = E[f'' g] / 2,
with the deltas that f' and f'' have at a jump or kink t taken by hand from E[delta(u - t) g(v)] =
density(t) E[g(v) | u = t]. They stay finite where differentiating rho would not (q = 0, rho = 1);
a slope that is infinite (two jumps that meet at rho = 1, a jump at q = 0) is set to 0.

Everything is computed in float64 and returned in the dtype of its arguments.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["derivative_of", "detect_kinks", "gaussian_expectation", "gaussian_mean", "jumps"]

Function = Callable[..., Tensor]
Kinks = Sequence[float | Tensor]
Pairs = tuple[Tensor, ...]


def gaussian_mean(
    f: Function, q: Tensor, *, parameters: Sequence[Tensor] = (), kinks: Kinks = ()
) -> Tensor:
    """E[f(u)] for u of variance `q`.

    Args:
        f: `f(x, *parameters)`, elementwise; x has the nodes as last dimension after those of q.
        q: Variances, any shape, >= 0.
        parameters: Tensors that broadcast with `q`, given to f with a last dimension of 1.
        kinks: Where f or a derivative jumps, in units of u; floats, or tensors that broadcast
            with `q`, NaN for none. No gradient goes through their position, which is exact
            wherever f is continuous.

    Returns:
        The shape of `q`.
    """
    return _Mean.apply(_Elementwise(f, tuple(kinks)), q, *parameters)


def gaussian_expectation(
    f: Function,
    g: Function,
    q1: Tensor,
    q2: Tensor,
    c: Tensor,
    *,
    f_parameters: Sequence[Tensor] = (),
    g_parameters: Sequence[Tensor] = (),
    f_kinks: Kinks = (),
    g_kinks: Kinks = (),
) -> Tensor:
    """E[f(u) g(v)].

    Accurate to about 1e-10 of the root of E[f^2] E[g^2] for smooth functions and 1e-7 for kinked
    ones, whose kinks are given; variances up to about 1e4 for functions that vary on a scale of
    one and within |u| < 64, beyond that more slowly.

    A table of pairs costs some hundred operations a pair; pairs of kinked functions with |rho|
    above about 0.95 some ten thousand, about 50 microseconds of one processor core each.

    Args:
        f: `f(x, *f_parameters)`, elementwise; x has the nodes as last dimension.
        g: Likewise with `g_parameters`.
        q1: Variances of u, >= 0; broadcasts with `q2` and `c`.
        q2: Variances of v, >= 0.
        c: Covariances.
        f_parameters: Tensors that broadcast with `q1`, given to f with a last dimension of 1.
        g_parameters: Likewise with `q2`.
        f_kinks: Where f or a derivative jumps, in units of u; floats, or tensors that broadcast
            with `q1`, NaN for none. No gradient goes through their position.
        g_kinks: Likewise for g and `q2`.

    Returns:
        The shape to which q1, q2 and c broadcast, in the dtype of `c`.
    """
    first = _Elementwise(f, tuple(f_kinks), len(f_parameters))
    second = _Elementwise(g, tuple(g_kinks), len(g_parameters))
    return _Expectation.apply(first, second, q1, q2, c, *f_parameters, *g_parameters)


def derivative_of(function: Function) -> Function:
    """The elementwise derivative of `function(x, *parameters)` in x, by autograd."""
    return _Partial(function, 0)


def jumps(function: Function, kinks: Sequence[float]) -> list[float]:
    """The jump f(t+) - f(t-) at each kink t; below 1e-9 of the values there, exactly 0."""
    if not kinks:
        return []
    t = torch.tensor(kinks, dtype=torch.float64, device="cpu")[:, None]
    left, right = (x[:, 0] for x in _sides(function, t))
    size = torch.where((right - left).abs() > 1e-9 * (1 + right.abs() + left.abs()), 1.0, 0.0)
    return [float(x) for x in (right - left) * size]


def detect_kinks(function: Function, reach: float = 16.0) -> tuple[float, ...]:
    """Where an elementwise function or one of its first two derivatives jumps, by bisection.

    An interval on which a Chebyshev interpolant of degree 16 is accurate has no kink; any other is
    halved. Its error falls 2^m-fold with each halving around a jump of the m-th derivative, but
    a thousandfold where the function is smooth: that tells one from the other where the error
    falls below the rounding.

    Jumps and kinks are located to 1e-9 of `reach`, jumps of the second derivative to about 1e-4,
    where their exact place matters as little; a multiple of 1/1000 that near is taken for it.

    Limits: nothing is seen beyond `reach` or below 1e-12 of the function's size, kinks closer
    than the accuracy above count as one, and so does a smooth step as narrow. A steep smooth
    function may be given kinks that it has not, which costs time but no accuracy.

    Args:
        function: Maps float64 to float64, elementwise.
        reach: Half width of the interval searched, in units of the argument.

    Raises:
        ValueError: there are more than 64 kinks.
    """
    width = 2 * reach / 37
    low = -reach + width * torch.arange(37, dtype=torch.float64, device="cpu")
    degree = torch.arange(17, dtype=torch.float64, device="cpu")
    nodes = torch.cos(math.pi * (degree + 0.5) / 17)
    to_series = torch.cos(degree[:, None] * torch.acos(nodes)) * 2 / 17
    parent: Tensor | None = None
    found: list[tuple[float, float]] = []
    while True:
        # an interval and a tenth: a kink on its end is inside one of its neighbours
        x = low[..., None] + width * (0.5 + 0.55 * nodes)
        with torch.no_grad():
            y = function(x)
        error = (y @ to_series.T)[..., -4:].abs().amax(-1) / (1 + y.abs().amax(-1))
        unresolved = error > 4e-12
        if parent is not None:  # rows of `low` are the halves of intervals
            lost = ~unresolved.any(0) & (error.amax(0) > parent / 512)
            middle = low.gather(0, error.argmax(0)[None])[0, lost] + width / 2
            found += [(t, width) for t in middle.tolist()]
        low, parent = low[unresolved], error[unresolved]
        if len(low) + len(found) > 256:
            raise ValueError(_TOO_MANY)
        if not len(low) or width <= 1e-9 * reach:
            break
        width = width / 2
        low = torch.stack([low, low + width])
    found += [(t, width) for t in (low + width / 2).tolist()]
    positions: list[float] = []
    for t, accuracy in sorted(found):
        rounded = round(t, 3) + 0.0  # no negative zero
        t = rounded if abs(t - rounded) <= 2 * accuracy else t
        if not positions or t - positions[-1] > 4 * accuracy:
            positions.append(t)
    if len(positions) > 64:
        raise ValueError(_TOO_MANY)
    return tuple(positions)


_TOO_MANY = (
    "the function has more than 64 kinks: it is not piecewise smooth in a way that the "
    "quadrature can follow. Narrow the reach, or pass its kinks."
)


# Elementwise functions ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Elementwise:
    """A function of x and `num_parameters` parameters with its kinks."""

    function: Function
    kinks: tuple[float | Tensor, ...] = ()
    num_parameters: int = 0

    def __call__(self, x: Tensor, *parameters: Tensor) -> Tensor:
        return self.function(x, *parameters)

    def same_as(self, other: _Elementwise) -> bool:
        """Whether both are certainly the same function; without parameters, which may differ."""
        if self.num_parameters or other.num_parameters:
            return False
        if any(isinstance(t, Tensor) for t in self.kinks + other.kinks):
            return False
        return self.kinks == other.kinks and bool(self.function == other.function)

    def partial(self, index: int) -> _Elementwise:
        """The partial derivative in x (index 0) or in a parameter."""
        return _Elementwise(_Partial(self.function, index), self.kinks, self.num_parameters)

    def kinks_like(self, q: Tensor) -> Tensor:
        """Positions in float64, `[*q.shape, num_kinks]`."""
        positions = [torch.as_tensor(t, dtype=torch.float64, device=q.device) for t in self.kinks]
        if not positions:
            return q.new_zeros((*q.shape, 0), dtype=torch.float64)
        return torch.stack([t.detach().expand(q.shape) for t in positions], -1)


@dataclass(frozen=True)
class _Partial:
    """The derivative of `function(x, *parameters)` in its argument number `index`, elementwise.

    Equal for equal functions, so that expectations of it can be known to be symmetric.
    """

    function: Function
    index: int

    def __call__(self, *arguments: Tensor) -> Tensor:
        index = self.index
        with torch.enable_grad():
            # expanded, so that a parameter's derivative stays one per node
            shape = torch.broadcast_shapes(*(t.shape for t in arguments))
            chosen = arguments[index].expand(shape)
            if not chosen.requires_grad:
                chosen = chosen.detach().requires_grad_()
            value = self.function(*arguments[:index], chosen, *arguments[index + 1 :])
            if not value.requires_grad:
                return torch.zeros_like(value)
            (slope,) = torch.autograd.grad(
                value.sum(), chosen, create_graph=True, allow_unused=True, materialize_grads=True
            )
        followed = torch.is_grad_enabled() and any(t.requires_grad for t in arguments)
        return slope if followed else slope.detach()


def _sides(function: Function, t: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Limits of the function from the left and from the right at t, by extrapolation."""
    step = 1e-6 * t.abs().clamp_min(1.0)

    def limit(sign: int) -> Tensor:
        near, far = (function(t + sign * k * step, *parameters) for k in (1, 2))
        return 2 * near - far

    return limit(-1), limit(1)


# One dimension -----------------------------------------------------------------------------------

# Beyond |z| = 12 the standard normal density is below 1e-31 and every term negligible.
_REACH = 12.0
_PER_PANEL = 16
_LADDER = (32, 48, 64, 96, 128, 192, 256, 384, 512)
_TOLERANCE = 1e-12  # of the series, relative to the largest sqrt(E[f^2] E[g^2])


@functools.cache
def _legendre(order: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1], like everything that is kept here on the CPU."""
    import numpy

    nodes, weights = numpy.polynomial.legendre.leggauss(order)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


@functools.cache
def _edges(reach: float, widest: float, resolution: int) -> Tensor:
    """Ends of panels on [-reach, reach], no wider than `widest`, and than 4 / resolution where
    |z| < 64 / resolution; from there on they may grow with |z|."""
    ends = [0.0]
    while ends[-1] < reach:
        width = max(4.0, 0.25 * ends[-1] * resolution if ends[-1] * resolution >= 64 else 0.0)
        ends.append(min(reach, ends[-1] + min(widest, width / resolution)))
    half = torch.tensor(ends, dtype=torch.float64, device="cpu")
    return torch.cat([-half.flip(0), half[1:]])


def _resolution(q: Tensor) -> int:
    """The power of two at or above the largest standard deviation, at least 1."""
    largest = float(q.detach().max()) if q.numel() else 1.0
    # not finite, it is left for the result to show
    return 2 ** math.ceil(math.log2(max(1.0, min(largest, 2.0**60))) / 2)


@functools.cache
def _rule(resolution: int) -> tuple[Tensor, Tensor, Tensor]:
    """Panel ends `[p + 1]`, nodes `[p m]`, and weighted Hermite polynomials `[K, p m]`."""
    ends = _edges(_REACH, 0.5, resolution)
    nodes, weights = _legendre(_PER_PANEL)
    width = ends.diff()[:, None]
    z = (ends[:-1, None] + width * nodes).flatten()
    return ends, z, _hermite(z, (width * weights).flatten(), _LADDER[-1])


def _hermite(z: Tensor, weights: Tensor, order: int) -> Tensor:
    """Rows h_k(z) density(z) weight, `[order, *z.shape]`."""
    rows = [weights * _standard_density(z)]
    rows.append(z * rows[0])
    for k in range(2, order):
        rows.append((z * rows[-1] - math.sqrt(k - 1) * rows[-2]) / math.sqrt(k))
    return torch.stack(rows[:order])


class _Projection:
    """Values of f at the nodes for each point, from which its Hermite coefficients are sums.

    The panels of the common rule that hold a kink are replaced by panels that end there.
    """

    def __init__(self, f: _Elementwise, q: Tensor, parameters: Sequence[Tensor]) -> None:
        self._ends, z, self._rows = (t.to(q.device) for t in _rule(_resolution(q)))
        root = q.double().clamp_min(0).sqrt()[..., None]
        parameters = [p.double()[..., None] for p in parameters]
        self._values = _evaluate(f, root * z, parameters)
        self._extra: tuple[Tensor, Tensor, Tensor] | None = None
        if f.kinks:
            z, weights, whole = self._split(f.kinks_like(q), root)
            self._values = self._values * whole
            self._extra = z, weights, _evaluate(f, root * z, parameters)

    def _split(self, kinks: Tensor, root: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Nodes and weights of the panels that end at kinks, and the mask of the others' nodes."""
        ends = self._ends
        t = (kinks / root).nan_to_num(_REACH, _REACH, -_REACH).clamp(-_REACH, _REACH)
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
        nodes, weights = (x.to(t.device) for x in _legendre(_PER_PANEL))
        width = (stop - start)[..., None]
        z, weights = start[..., None] + width * nodes, width * weights
        mask = whole.double().repeat_interleave(_PER_PANEL, -1)
        return z.flatten(-2), weights.flatten(-2), mask

    def coefficients(self, order: int) -> Tensor:
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


def _evaluate(f: _Elementwise, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    return f(x, *parameters).expand(x.shape)


def _mean(f: _Elementwise, q: Tensor, *parameters: Tensor) -> Tensor:
    """E[f(u)] in float64, without gradient."""
    return _Projection(f, q, parameters).coefficients(1)[..., 0]


# Two dimensions ----------------------------------------------------------------------------------

_TILE = 2**15  # pairs, of which a tile fits the cache
_EVALUATIONS = 2**19  # held at once by the two-dimensional rule
_DIRECT_REACH = 7.5  # of that rule, in standard deviations: 6e-14 is beyond


def _expectation(
    f: _Elementwise,
    g: _Elementwise,
    q1: Tensor,
    q2: Tensor,
    c: Tensor,
    f_parameters: Sequence[Tensor],
    g_parameters: Sequence[Tensor],
) -> Tensor:
    """E[f(u) g(v)] in float64, without gradient."""
    q1, q2, c = (t.double() for t in (q1, q2, c))
    shape = torch.broadcast_shapes(q1.shape, q2.shape, c.shape)
    if not shape:  # a list of one pair
        one = q1[None], q2[None], c[None]
        return _expectation(f, g, *one, f_parameters, g_parameters)[0]
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
        rests = _rest(a, square1).log() + _rest(b, square2).log()
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
    kinks1, kinks2 = rows(f.kinks_like(q1), pairs), rows(g.kinks_like(q2), pairs)
    value[pairs] = _direct(
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


def _rest(coefficients: Tensor, square: Tensor) -> Tensor:
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


def _power_series(a: Tensor, b: Tensor, rho: Tensor) -> Tensor:
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


def _direct(
    f: _Elementwise,
    g: _Elementwise,
    r1: Tensor,
    r2: Tensor,
    rho: Tensor,
    s: Tensor,
    kinks1: Tensor,
    kinks2: Tensor,
    f_parameters: Sequence[Tensor],
    g_parameters: Sequence[Tensor],
) -> Tensor:
    """E[f(u) g(v)] for a list of pairs `[p]`, by panels in two dimensions; kinks `[p, num]`."""
    fixed = _edges(_DIRECT_REACH, 1.5, _resolution(torch.maximum(r1, r2) ** 2)).to(rho.device)
    order = 12 if f.kinks or g.kinks else _PER_PANEL
    nodes, weights = (x.to(rho.device) for x in _legendre(order))
    graded = torch.tensor([-7, -3.5, 0, 3.5, 7], dtype=torch.float64, device=rho.device)
    num_outer = (len(fixed) - 1 + kinks1.shape[-1] + 5 * kinks2.shape[-1]) * len(nodes)
    size = max(1, _EVALUATIONS // (40 * num_outer))
    results = torch.empty_like(rho)
    # like widths together: the inner rule is the widest one's
    for pairs in (r2 * s).argsort().split(size):
        u, v, p, w = (t[pairs, None] for t in (r1, r2, rho, s))
        t2 = (kinks2[pairs] / v).sort(-1).values
        narrow = (t2 / p)[..., None] + w[..., None] * graded
        cuts = [fixed.expand(len(u), -1), _inside(kinks1[pairs] / u), _inside(narrow.flatten(1))]
        ends = torch.cat(cuts, -1).sort(-1).values
        width = ends.diff()[..., None]
        z = (ends[:, :-1, None] + width * nodes).flatten(1)
        outer = (width * weights).flatten(1) * _standard_density(z)
        outer = outer * f(u * z, *(x[pairs, None] for x in f_parameters))
        inner = _conditional(g, v, w, p * z, t2, [x[pairs, None] for x in g_parameters])
        results[pairs] = (outer * inner).sum(-1)
    return results


def _conditional(
    g: _Elementwise, r: Tensor, s: Tensor, centre: Tensor, t: Tensor, parameters: Sequence[Tensor]
) -> Tensor:
    """E[g(r (centre + s w))] over standard normal w.

    Args:
        g: The function.
        r: `[p, 1]`, as `s`.
        s: Standard deviation.
        centre: `[p, m]`.
        t: Sorted kinks of g in units of r, `[p, num_kinks]`.
        parameters: Of g, each `[p, 1]`.
    """
    spread = float((r * s).max())
    if spread < 0.3:  # g is nearly a polynomial over the spread
        steps, weights = (x.to(r.device) for x in _gauss_hermite(20))
    else:
        panels = max(2, min(64, math.ceil(spread * _DIRECT_REACH / 2)))
        steps, weights = (x.to(r.device) for x in _panels(panels))
        steps = _DIRECT_REACH * (2 * steps - 1)
        weights = 2 * _DIRECT_REACH * weights * _standard_density(steps)
    x = r[..., None] * (centre[..., None] + s[..., None] * steps)
    values = g(x.flatten(1), *parameters).expand(len(r), x[0].numel()).view(x.shape) @ weights
    # once more, panels between kinks, for the nodes that have one in reach
    distance = ((t[:, None, :] - centre[..., None]) / s[..., None]).nan_to_num(
        math.inf, math.inf, -math.inf
    )
    near = (distance.abs() < _DIRECT_REACH).sum(-1)
    row, node = near.nonzero(as_tuple=True)
    if not len(row):
        return values
    nearest = distance[row, node].abs().argsort(-1)[:, : int(near.max())]
    cuts = _inside(distance[row, node].gather(-1, nearest)).sort(-1).values
    panels = max(2, min(64, math.ceil(spread * _DIRECT_REACH / 2)))
    steps, weights = (x.to(r.device) for x in _panels(panels))
    r, s, centre = r[row], s[row], centre[row, node, None]
    parameters = [x[row] for x in parameters]
    end = torch.full_like(centre, _DIRECT_REACH)
    total = torch.zeros_like(centre[:, 0])
    for low, high in itertools.pairwise(torch.cat([-end, cuts, end], -1).split(1, -1)):
        w = low + (high - low) * steps
        mass = (high - low) * weights * _standard_density(w)
        total += (mass * g(r * (centre + s * w), *parameters)).sum(-1)
    values[row, node] = total
    return values


def _inside(z: Tensor) -> Tensor:
    """Ends of panels within the reach of the two-dimensional rule, a missing kink at its end."""
    reach = _DIRECT_REACH
    return z.nan_to_num(reach, reach, -reach).clamp(-reach, reach)


def _standard_density(z: Tensor) -> Tensor:
    return torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


@functools.cache
def _panels(number: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1] of equal panels of 20 nodes."""
    nodes, weights = _legendre(20)
    starts = torch.arange(number, dtype=torch.float64, device="cpu")[:, None]
    return ((starts + nodes) / number).flatten(), (weights / number).repeat(number)


@functools.cache
def _gauss_hermite(order: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights under the standard normal density."""
    import numpy

    nodes, weights = numpy.polynomial.hermite_e.hermegauss(order)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


# Gradients ---------------------------------------------------------------------------------------


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, f, q, *parameters):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(q, *parameters)
        ctx.function = f
        return _mean(f, q, *parameters).to(q.dtype)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        q, *parameters = ctx.saved_tensors
        f = ctx.function
        grads: list[Tensor | None] = [None] * (2 + len(parameters))
        if ctx.needs_input_grad[1]:
            slope = _Mean.apply(f.partial(0).partial(0), q, *parameters) / 2
            for t, jump, bend in _kinks(f, q, parameters):
                slope = slope + _density(t, q) * (bend + jump * t * _reciprocal(q)) / 2
            grads[1] = (grad * slope).sum_to_size(q.shape)
        for i, p in enumerate(parameters):
            if ctx.needs_input_grad[2 + i]:
                slope = _Mean.apply(f.partial(1 + i), q, *parameters)
                grads[2 + i] = (grad * slope).sum_to_size(p.shape).to(p.dtype)
        return tuple(grads)


class _Expectation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, f, g, q1, q2, c, *parameters):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(q1, q2, c, *parameters)
        ctx.functions = f, g
        n = f.num_parameters
        value = _expectation(f, g, q1, q2, c, parameters[:n], parameters[n:])
        return value.to(c.dtype)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        q1, q2, c, *parameters = ctx.saved_tensors
        f, g = ctx.functions
        n = f.num_parameters
        p1, p2 = parameters[:n], parameters[n:]
        grads: list[Tensor | None] = [None] * (5 + len(parameters))
        if ctx.needs_input_grad[2]:
            slope = _variance_slope(f, g, q1, q2, c, p1, p2)
            grads[2] = (grad * slope).sum_to_size(q1.shape)
        if ctx.needs_input_grad[3]:
            slope = _variance_slope(g, f, q2, q1, c, p2, p1)
            grads[3] = (grad * slope).sum_to_size(q2.shape)
        if ctx.needs_input_grad[4]:
            grads[4] = (grad * _covariance_slope(f, g, q1, q2, c, p1, p2)).sum_to_size(c.shape)
        for i, p in enumerate(parameters):
            if ctx.needs_input_grad[5 + i]:
                f_, g_ = (f.partial(1 + i), g) if i < n else (f, g.partial(1 + i - n))
                slope = _Expectation.apply(f_, g_, q1, q2, c, *parameters)
                grads[5 + i] = (grad * slope).sum_to_size(p.shape).to(p.dtype)
        return tuple(grads)


def _covariance_slope(
    f: _Elementwise,
    g: _Elementwise,
    q1: Tensor,
    q2: Tensor,
    c: Tensor,
    p1: Sequence[Tensor],
    p2: Sequence[Tensor],
) -> Tensor:
    """dE/dc = E[f' g'], deltas included."""
    slope = _Expectation.apply(f.partial(0), g.partial(0), q1, q2, c, *p1, *p2)
    jumps1 = [(t, jump) for t, jump, _ in _kinks(f, q1, p1) if bool((jump != 0).any())]
    jumps2 = [(t, jump) for t, jump, _ in _kinks(g, q2, p2) if bool((jump != 0).any())]
    for t, jump in jumps1:
        slope = slope + jump * _density(t, q1) * _given(g.partial(0), p2, t, q1, q2, c)
    for t, jump in jumps2:
        slope = slope + jump * _density(t, q2) * _given(f.partial(0), p1, t, q2, q1, c)
    for t1, jump1 in jumps1:
        for t2, jump2 in jumps2:
            joint = _density(t1, q1) * _density_given(t2, t1, q1, q2, c)
            slope = slope + jump1 * jump2 * joint
    return slope


def _variance_slope(
    f: _Elementwise,
    g: _Elementwise,
    q1: Tensor,
    q2: Tensor,
    c: Tensor,
    p1: Sequence[Tensor],
    p2: Sequence[Tensor],
) -> Tensor:
    """dE/dq1 = E[f'' g] / 2, where f'' has bend delta(u - t) + jump delta'(u - t) at a kink t."""
    slope = _Expectation.apply(f.partial(0).partial(0), g, q1, q2, c, *p1, *p2) / 2
    for t, jump, bend in _kinks(f, q1, p1):
        given = _given(g, p2, t, q1, q2, c)
        total = bend * given
        if bool((jump != 0).any()):
            # minus the derivative in t of density(t) E[g(v) | u = t]
            inner = _given(g.partial(0), p2, t, q1, q2, c)
            for t2, jump2, _ in _kinks(g, q2, p2):
                inner = inner + jump2 * _density_given(t2, t, q1, q2, c)
            total = total + jump * (t * given - c * inner) * _reciprocal(q1)
        slope = slope + _density(t, q1) * total / 2
    return slope


def _kinks(
    f: _Elementwise, q: Tensor, parameters: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(position, jump of f, jump of f') of each kink, each of the shape of `q`."""
    if not f.kinks:
        return []
    positions = f.kinks_like(q)
    arguments = [p.double()[..., None] for p in parameters]
    sizes = []
    safe = positions.nan_to_num(0.0)
    for function in (f, f.partial(0)):
        left, right = _sides(function, safe, *arguments)
        size = right - left
        noise = 1e-9 * (1 + left.abs() + right.abs())
        sizes.append(torch.where((size.abs() > noise) & ~positions.isnan(), size, 0.0).to(q.dtype))
    safe = safe.to(q.dtype)
    return [(safe[..., i], sizes[0][..., i], sizes[1][..., i]) for i in range(safe.shape[-1])]


def _given(
    g: _Elementwise, parameters: Sequence[Tensor], t: Tensor, q1: Tensor, q2: Tensor, c: Tensor
) -> Tensor:
    """E[g(v) | u = t]."""
    mean = c * t * _reciprocal(q1)
    variance = _determinant(q1, q2, c) * _reciprocal(q1)
    variance, mean = torch.broadcast_tensors(variance, mean)

    def moved(x: Tensor, mean: Tensor, *parameters: Tensor) -> Tensor:
        return g(x + mean, *parameters)

    kinks = tuple(torch.as_tensor(k, dtype=mean.dtype, device=mean.device) - mean for k in g.kinks)
    function = _Elementwise(moved, kinks, 1 + len(parameters))
    return _Mean.apply(function, variance, mean, *parameters)


def _density(t: Tensor, q: Tensor) -> Tensor:
    """Of N(0, q) at t; 0 at q = 0."""
    inverse = _reciprocal(q).clamp_min(0)
    root = torch.where(inverse > 0, torch.where(inverse > 0, inverse, 1.0).sqrt(), 0.0)
    return torch.exp(-(t**2) * inverse / 2) * root / math.sqrt(2 * math.pi)


def _density_given(t2: Tensor, t1: Tensor, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
    """The density of v at t2 given u = t1; 0 where v is determined by u."""
    det = _determinant(q1, q2, c)
    floor = 16 * torch.finfo(det.dtype).eps * q1 * q2
    variance = torch.where(det > floor, det, 0.0) * _reciprocal(q1)
    return _density(t2 - c * t1 * _reciprocal(q1), variance)


def _determinant(q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
    """q1 q2 - c^2 >= 0, factored to lose less where u and v are nearly parallel."""
    product = q1 * q2
    positive = product > 0
    root = torch.where(positive, torch.where(positive, product, 1.0).sqrt(), 0.0)
    return ((root - c) * (root + c)).clamp_min(0)


def _reciprocal(q: Tensor) -> Tensor:
    """1 / q, and 0 at q = 0."""
    safe = q > torch.finfo(q.dtype).tiny
    return torch.where(safe, 1 / torch.where(safe, q, 1.0), 0.0)
