"""Gaussian expectations of functions of several variables, E[f(u) g(v)], as a kernel.

u = A z and v = B w with z, w standard normal and R = E[z w^T]. In Hermite polynomials of several
variables (Mehler's formula, Slepian 1972),

    E[f(u) g(v)] = sum_n <f_n, R^(x n) g_n>,    f_n the symmetric tensor of E[f(A z) He_n(z)],

so that all integrals are over one point's own variables, and a pair costs an inner product. The
low degrees are fitted by least squares at nodes common to all points, and what is left of f at
these nodes, the residual r_f, goes with s^n for the degrees beyond:

    <r_f, r_g> sum_(n > N) p_n s^n,    s = a_f^T R a_g,

with a the share of each variable in f and p_n a geometric law that continues the last degrees
known (even and odd ones apart). Each part is a positive semidefinite kernel of the points, hence
so is the sum; it is symmetric; and at coinciding points it is the same quadrature as beside them.

The nodes are mirrored, and wider than the normal law, with weights: otherwise high degrees could
not be fitted. Residuals are kept as random projections (`_SKETCH` numbers) of their exact length.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from priors.gaussian.quasi_monte_carlo import QuasiMonteCarlo, by_columns

__all__ = ["Expansion", "Whitening", "expand", "inner_product"]

# Highest degree of independent and of dependent variables, whose tensors are full, and fewest
# points of the rule per coefficient.
_DEGREE, _DEPENDENT_DEGREE, _POINTS_PER_TERM = 8, 5, 16
# Nodes per point of the rule, counted without their mirror images: they are for single points.
_MULTIPLE = 2
# Numbers kept of a residual, half of them of its even part.
_SKETCH = 128
# Most numbers of one step.
_CHUNK = 2**19
# A variable with less of its variance left, given those before it, is determined by them.
_DETERMINED = 1e-8

Place = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Whitening:
    """A root of the covariance of the variables of each point.

    Attributes:
        scales: Standard deviations, k of `[...]`.
        lower: Triangular root of the correlations, `[..., k, k]`; None if they are independent.
    """

    scales: tuple[Tensor, ...]
    lower: Tensor | None

    @classmethod
    def of(cls, covariance: Sequence[Sequence[Tensor | None]]) -> Whitening:
        """That of covariances `[...]`; None is 0."""
        k = len(covariance)
        scales = []
        for i in range(k):
            q = covariance[i][i]
            assert q is not None
            q = q.double()
            tiny = torch.finfo(q.dtype).tiny
            scales.append(torch.where(q > tiny, torch.where(q > tiny, q, 1.0).sqrt(), 0.0))
        rows = [[covariance[i][j] for j in range(i)] for i in range(k)]
        if all(c is None for row in rows for c in row):
            return cls(tuple(scales), None)
        one = torch.ones_like(scales[0])
        correlations = torch.stack(
            [
                torch.stack(
                    [
                        one if i == j else _scaled(covariance[i][j], scales[i], scales[j])
                        for j in range(k)
                    ],
                    -1,
                )
                for i in range(k)
            ],
            -2,
        )
        return cls(tuple(scales), _lower(correlations))

    def variables(self, nodes: Tensor) -> list[Tensor]:
        """u at standard normal nodes `[m, k]`, each `[..., m]`."""
        if self.lower is None:
            return [s[..., None] * nodes[:, i] for i, s in enumerate(self.scales)]
        return [
            s[..., None] * (self.lower[..., i, :] @ nodes.mT) for i, s in enumerate(self.scales)
        ]


def _scaled(c: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """c / (left right), 0 where either vanishes."""
    if c is None:
        return torch.zeros_like(left * right)
    both = left * right
    return torch.where(both > 0, c.double() / torch.where(both > 0, both, 1.0), 0.0)


def _lower(matrix: Tensor) -> Tensor:
    """Cholesky's root of correlations; variables that others determine get a column of 0."""

    def column(rest: Tensor, j: int) -> Tensor:
        pivot = rest[..., :1]
        known = pivot > _DETERMINED
        return torch.where(known, rest / torch.where(known, pivot, 1.0).sqrt(), 0.0)

    return by_columns(matrix, column)


def _solve_lower(lower: Tensor, right: Tensor) -> Tensor:
    """L^+ right for a triangular root whose columns may be 0, `[..., k, m]`."""
    rows: list[Tensor] = []
    for i in range(lower.shape[-1]):
        row = right[..., i, :]
        for j, done in enumerate(rows):
            row = row - lower[..., i, j, None] * done
        pivot = lower[..., i, i, None]
        rows.append(torch.where(pivot > 0, row / torch.where(pivot > 0, pivot, 1.0), 0.0))
    return torch.stack(rows, -2)


@dataclass(frozen=True)
class Expansion:
    """A function of the Gaussian variables of each point.

    Attributes:
        whitening: Whitening of its variables.
        degree: N.
        indices: Multi-indices of the coefficients.
        coefficients: In normalised Hermite polynomials of z, `[K, ...]`.
        residuals: Projections of the even and of the odd part of the rest, `[b, ...]` each.
        decays: Square roots of the ratios of their geometric laws, `[...]` each.
        shares: a, `[k, ...]`.
    """

    whitening: Whitening
    degree: int
    indices: tuple[tuple[int, ...], ...]
    coefficients: Tensor
    residuals: tuple[Tensor, Tensor]
    decays: tuple[Tensor, Tensor]
    shares: Tensor

    @property
    def mean(self) -> Tensor:
        """E f, `[...]`."""
        return self.coefficients[0]

    @property
    def slopes(self) -> list[Tensor]:
        """E[d f / d u_i], with deltas at jumps (Stein's lemma), each `[...]`; 0 at variance 0."""
        k = len(self.whitening.scales)
        linear = self.coefficients[1 : 1 + k]
        if self.whitening.lower is not None:
            linear = torch.stack(_solve_transposed(self.whitening.lower, linear))
        return [
            torch.where(s > 0, c / torch.where(s > 0, s, 1.0), 0.0)
            for c, s in zip(linear, self.whitening.scales, strict=True)
        ]


def _solve_transposed(lower: Tensor, right: Tensor) -> list[Tensor]:
    """L^(-T) right, of `right` `[k, ...]`; 0 for variables that others determine."""
    k = len(right)
    found: list[Tensor] = [right[0]] * k
    for i in reversed(range(k)):
        rest = right[i]
        for j in range(i + 1, k):
            rest = rest - lower[..., j, i] * found[j]
        pivot = lower[..., i, i]
        found[i] = torch.where(pivot > 0, rest / torch.where(pivot > 0, pivot, 1.0), 0.0)
    return found


@dataclass(frozen=True)
class _Nodes:
    """Nodes for k variables, and the linear maps that are applied to values there.

    The maps are for the even and the odd part of a function, of which only one half of the
    mirrored nodes need be known.
    """

    degree: int
    indices: tuple[tuple[int, ...], ...]
    points: Tensor  # [m, k]
    weights: Tensor  # [m], of sum 1
    # for each parity: numbers of its coefficients, [K_p]
    places: tuple[Tensor, Tensor]
    # rows: the coefficients, then the sketch of the values, [K_p + b, m]
    maps: tuple[Tensor, Tensor]
    # the sketch and the Gram matrix of the polynomials, [b, K_p] and [K_p, K_p]
    sketches: tuple[Tensor, Tensor]
    grams: tuple[Tensor, Tensor]


@functools.lru_cache(maxsize=32)
def _nodes(rule: QuasiMonteCarlo, k: int, highest: int, device: torch.device) -> _Nodes:
    degree = _degree(rule, k, highest)
    indices = tuple(a for n in range(degree + 1) for a in _of_degree(k, n))
    z = rule.normals(k, torch.empty(0), multiple=_MULTIPLE)
    width = 1 + min(1.0, 4 / k)
    z = z * math.sqrt(width)
    # the normal density divided by that of the wider nodes
    weights = (-z.square().sum(-1) / 2 * (1 - 1 / width)).exp()
    weights = weights / weights.sum()
    polynomials = _hermite(z, indices, degree)
    root = weights.sqrt()
    m = len(z)
    buckets = min(_SKETCH // 2, _MULTIPLE * rule.net_size)
    generator = torch.Generator().manual_seed(0)
    signs = 2.0 * torch.randint(0, 2, (m,), generator=generator) - 1
    sketch = torch.zeros(buckets, m, dtype=z.dtype)
    sketch[torch.arange(m) % buckets, torch.arange(m)] = signs * root
    places, maps, sketches, grams = [], [], [], []
    for parity in (0, 1):
        chosen = [i for i, a in enumerate(indices) if sum(a) % 2 == parity]
        weighted = polynomials[:, chosen] * root[:, None]
        q, r = torch.linalg.qr(weighted)
        fit = torch.linalg.solve_triangular(r, q.mT, upper=True) * root
        places.append(torch.tensor(chosen).to(device))
        maps.append(torch.cat([fit, sketch]).to(device))
        sketches.append((sketch @ polynomials[:, chosen]).to(device))
        grams.append((r.mT @ r).to(device))
    return _Nodes(
        degree,
        indices,
        z.to(device),
        weights.to(device),
        (places[0], places[1]),
        (maps[0], maps[1]),
        (sketches[0], sketches[1]),
        (grams[0], grams[1]),
    )


def _degree(rule: QuasiMonteCarlo, k: int, highest: int) -> int:
    degree = 1
    while degree < highest and math.comb(k + degree + 1, k) * _POINTS_PER_TERM <= rule.num_samples:
        degree += 1
    return max(1, degree - rule.coarsening)


def _of_degree(k: int, n: int) -> list[tuple[int, ...]]:
    found = []
    for chosen in itertools.combinations_with_replacement(range(k), n):
        found.append(tuple(chosen.count(i) for i in range(k)))
    return found


def _hermite(z: Tensor, indices: Sequence[Sequence[int]], degree: int) -> Tensor:
    """Normalised Hermite polynomials of several variables, `[m, K]`."""
    one = [torch.ones_like(z), z]
    for n in range(1, degree):
        one.append((z * one[n] - math.sqrt(n) * one[n - 1]) / math.sqrt(n + 1))
    powers = torch.stack(one)  # [N + 1, m, k]
    table = torch.tensor(indices)
    result = torch.ones(len(z), len(table), dtype=z.dtype)
    for i in range(z.shape[-1]):
        result = result * powers[table[:, i], :, i].mT
    return result


def expand(
    function: Callable[[Sequence[Tensor]], Tensor], whitening: Whitening, rule: QuasiMonteCarlo
) -> Expansion:
    """The expansion of an elementwise function.

    Args:
        function: Of k tensors `[..., m]`, gives `[..., m]`.
        whitening: Whitening of the variables of each point.
        rule: The points.
    """
    k = len(whitening.scales)
    highest = _DEGREE if whitening.lower is None else _DEPENDENT_DEGREE
    nodes = _nodes(rule, k, highest, whitening.scales[0].device)
    shape = torch.broadcast_shapes(*(s.shape for s in whitening.scales))

    def totals(part: slice) -> tuple[Tensor, ...]:
        z = nodes.points[part]
        values = function(whitening.variables(torch.cat([z, -z])))
        values = values.double().expand(*shape, 2 * len(z))
        plus, minus = values.split(len(z), -1)
        found = []
        for half, map_ in zip(((plus + minus) / 2, (plus - minus) / 2), nodes.maps, strict=True):
            found.append(half @ map_[:, part].mT)
            found.append((half.square() * nodes.weights[part]).sum(-1))
        return tuple(found)

    size = max(1, _CHUNK // max(1, shape.numel() * 2))
    parts = [slice(i, i + size) for i in range(0, len(nodes.points), size)]
    again = torch.is_grad_enabled() and len(parts) > 1
    sums: list[Tensor] | None = None
    for part in parts:
        found = checkpoint(totals, part, use_reentrant=False) if again else totals(part)
        sums = list(found) if sums is None else [a + b for a, b in zip(sums, found, strict=True)]
    assert sums is not None
    coefficients = sums[0].new_zeros(len(nodes.indices), *shape)
    residuals, decays = [], []
    for parity in (0, 1):
        mapped, square = sums[2 * parity], sums[2 * parity + 1]
        count = len(nodes.places[parity])
        own, sketch = mapped[..., :count], mapped[..., count:]
        coefficients = coefficients.index_copy(0, nodes.places[parity], own.movedim(-1, 0))
        sketch = sketch - own @ nodes.sketches[parity].mT
        fitted = ((own @ nodes.grams[parity]) * own).sum(-1)
        rest = square - fitted
        some = rest > 1e-13 * (sums[1] + sums[3]).detach()
        length = torch.where(some, torch.where(some, rest, 1.0).sqrt(), 0.0)
        size_ = torch.where(some[..., None], sketch, 1.0).square().sum(-1)
        size_ = torch.where(size_ > 0, size_, 1.0).sqrt()
        residuals.append(((length / size_)[..., None] * sketch).movedim(-1, 0))
        last = nodes.degree - (nodes.degree - parity) % 2
        final = torch.tensor([sum(a) == last for a in nodes.indices], device=own.device)
        energy = coefficients[final].square().sum(0) if last > 0 else length**2
        decays.append(length / (1.001 * length**2 + energy + 1e-300).sqrt())
    return Expansion(
        whitening,
        nodes.degree,
        nodes.indices,
        coefficients,
        (residuals[0], residuals[1]),
        (decays[0], decays[1]),
        _shares(coefficients, nodes.indices),
    )


def _shares(coefficients: Tensor, indices: Sequence[Sequence[int]]) -> Tensor:
    """Root of each variable's share in the Dirichlet energy sum_a |a| c_a^2, `[k, ...]`."""
    table = torch.tensor(indices, dtype=coefficients.dtype, device=coefficients.device)
    energy = torch.einsum("ak,a...->k...", table, coefficients.square())
    total = energy.sum(0) + 1e-300
    k = len(energy)
    return ((energy + 1e-6 * total / k) / (total * (1 + 1e-6))).sqrt()


def inner_product(
    left: Expansion,
    right: Expansion,
    cross: Sequence[Sequence[Tensor | None]],
    on_left: Place,
    on_right: Place,
) -> Tensor:
    """E[f(u) g(v)] of pairs of points.

    Args:
        left: f at the left points, `[..., n, (P)]`.
        right: g at the right points.
        cross: E[u_i v_j], in the shape of the pairs; None is 0.
        on_left: Shapes a number per left point to multiply pairs; earlier dimensions stay.
        on_right: The same for right points.

    Returns:
        In the shape of the pairs, float64.
    """
    diagonal = left.whitening.lower is None and right.whitening.lower is None
    diagonal = diagonal and all(
        c is None for i, row in enumerate(cross) for j, c in enumerate(row) if i != j
    )
    correlations = _correlations(left.whitening, right.whitening, cross, on_left, on_right)
    lefts, rights = on_left(left.coefficients), on_right(right.coefficients)
    degree = min(left.degree, right.degree)
    if diagonal:
        value = _matched(left, right, degree, lefts, rights, correlations)
    else:
        value = _tensors(left, right, degree, lefts, rights, correlations)
    if len(left.shares) != len(right.shares) or left.degree != right.degree:
        return value
    return value + _rest(left, right, correlations, on_left, on_right)


Correlations = list[list[Tensor | None]]


def _correlations(
    left: Whitening,
    right: Whitening,
    cross: Sequence[Sequence[Tensor | None]],
    on_left: Place,
    on_right: Place,
) -> Correlations:
    """R, entries in the shape of the pairs; None is 0."""
    sides = [on_left(s) for s in left.scales], [on_right(s) for s in right.scales]
    found: Correlations = [
        [None if c is None else _scaled(c, sides[0][i], sides[1][j]) for j, c in enumerate(row)]
        for i, row in enumerate(cross)
    ]
    if left.lower is None and right.lower is None:
        return found
    example = next(c for row in found for c in row if c is not None)
    zero = torch.zeros_like(example)
    dense = torch.stack(
        [torch.stack([zero if c is None else c for c in row], -1) for row in found], -2
    )
    for lower, place, flip in ((left.lower, on_left, False), (right.lower, on_right, True)):
        if lower is None:
            continue
        spread = place(lower.movedim((-2, -1), (0, 1))).movedim((0, 1), (-2, -1))
        dense = _solve_lower(spread, dense.mT).mT if flip else _solve_lower(spread, dense)
    return [list(row.unbind(-1)) for row in dense.unbind(-2)]


def _matched(
    left: Expansion,
    right: Expansion,
    degree: int,
    lefts: Tensor,
    rights: Tensor,
    correlations: Correlations,
) -> Tensor:
    """sum_a c_a c'_a prod_i R_ii^a_i, where variables meet only their own like."""
    k, m = len(left.shares), len(right.shares)
    terms = []
    known = {a: i for i, a in enumerate(right.indices)}
    for i, a in enumerate(left.indices):
        common = min(k, m)
        if sum(a) > degree or any(a[common:]):
            continue
        if any(n and correlations[j][j] is None for j, n in enumerate(a[:common])):
            continue
        terms.append((i, known[a[:common] + (0,) * (m - common)], a[:common]))
    example = next((c for row in correlations for c in row if c is not None), None)
    shape = torch.broadcast_shapes(
        lefts.shape[1:], rights.shape[1:], () if example is None else example.shape
    )
    powers: list[Tensor | None] = []
    for j in range(min(k, m)):
        r = correlations[j][j]
        if r is None:
            powers.append(None)
            continue
        one = [torch.ones_like(r)]
        for _ in range(degree):
            one.append(one[-1] * r)
        powers.append(torch.stack(one))

    def part(chosen: list[tuple[int, int, tuple[int, ...]]]) -> Tensor:
        value = lefts[[i for i, _, _ in chosen]] * rights[[j for _, j, _ in chosen]]
        for j, power in enumerate(powers):
            orders = [a[j] for _, _, a in chosen]
            if power is not None and any(orders):
                value = value * power[orders]
        return value.sum(0)

    return _summed(part, terms, shape)


def _summed(
    part: Callable[[list[tuple[int, int, tuple[int, ...]]]], Tensor],
    terms: list[tuple[int, int, tuple[int, ...]]],
    shape: torch.Size,
) -> Tensor:
    """The terms a few at a time, made again in the backward pass if there are many."""
    size = max(1, _CHUNK // max(1, shape.numel()))
    again = torch.is_grad_enabled() and len(terms) > size
    total: Tensor | None = None
    for start in range(0, len(terms), size):
        chosen = terms[start : start + size]
        value = checkpoint(part, chosen, use_reentrant=False) if again else part(chosen)
        total = value if total is None else total + value
    assert total is not None
    return total.expand(shape)


def _tensors(
    left: Expansion,
    right: Expansion,
    degree: int,
    lefts: Tensor,
    rights: Tensor,
    correlations: Correlations,
) -> Tensor:
    """sum_n <f_n, R^(x n) g_n> with full tensors."""
    example = next((c for row in correlations for c in row if c is not None), None)
    if example is None:
        return lefts[0] * rights[0]
    shape = torch.broadcast_shapes(lefts.shape[1:], rights.shape[1:], example.shape)
    zero = torch.zeros_like(example)
    dense = torch.stack(
        [
            torch.stack([(zero if c is None else c).expand(shape) for c in row])
            for row in correlations
        ]
    ).flatten(2)
    dense = dense.reshape(*dense.shape[:2], -1)
    sides = [side.expand(len(side), *shape).reshape(len(side), -1) for side in (lefts, rights)]
    most = max(len(s.shares) for s in (left, right)) ** degree

    def part(rows: slice) -> Tensor:
        r = dense[..., rows]
        one, two = sides[0][:, rows], sides[1][:, rows]
        value = one[0] * two[0]
        for n in range(1, degree + 1):
            f = _full(one, left.indices, n)
            g = _full(two, right.indices, n)
            for _ in range(n):  # the first index of g is used up, one of f's comes last
                g = torch.einsum("ijp,j...p->...ip", r, g)
            value = value + (f * g).flatten(0, -2).sum(0)
        return value

    size = max(1, _CHUNK // most)
    rows = [slice(i, i + size) for i in range(0, dense.shape[-1], size)]
    again = torch.is_grad_enabled() and len(rows) > 1
    values = [checkpoint(part, r, use_reentrant=False) if again else part(r) for r in rows]
    return torch.cat(values).reshape(shape)


def _full(coefficients: Tensor, indices: Sequence[tuple[int, ...]], n: int) -> Tensor:
    """The coefficients of degree n as a symmetric tensor `[k, .., k, pairs]`."""
    places, scale, shape = _placement(tuple(indices), n)
    device = coefficients.device
    full = coefficients[places.to(device)] * scale.to(device)[:, None]
    return full.reshape(*shape, -1)


@functools.lru_cache(maxsize=256)
def _placement(
    indices: tuple[tuple[int, ...], ...], n: int
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    known = {a: i for i, a in enumerate(indices)}
    k = len(indices[0])
    places, scale = [], []
    for chosen in itertools.product(range(k), repeat=n):
        a = tuple(chosen.count(i) for i in range(k))
        places.append(known[a])
        copies = math.factorial(n) // math.prod(math.factorial(x) for x in a)
        scale.append(1 / math.sqrt(copies))
    return torch.tensor(places), torch.tensor(scale, dtype=torch.float64), (k,) * n


def _rest(
    left: Expansion,
    right: Expansion,
    correlations: Correlations,
    on_left: Place,
    on_right: Place,
) -> Tensor:
    """What the degrees above N contribute."""
    one, two = on_left(left.shares), on_right(right.shares)
    s: Tensor | None = None
    for i, row in enumerate(correlations):
        for j, r in enumerate(row):
            if r is not None:
                term = one[i] * two[j] * r
                s = term if s is None else s + term
    if s is None:
        return torch.zeros_like(on_left(left.mean) * on_right(right.mean))
    total: Tensor | None = None
    for parity in (0, 1):
        first, second = on_left(left.residuals[parity]), on_right(right.residuals[parity])
        product = _dot(first, second)
        a, b = on_left(left.decays[parity]), on_right(right.decays[parity])
        power = left.degree + 1 + (left.degree + 1 - parity) % 2
        law = ((1 - a**2) * (1 - b**2)).sqrt() * s**power / (1 - a * b * s**2)
        term = product * law
        total = term if total is None else total + term
    assert total is not None
    return total


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """sum over the leading dimension, without the product of all pairs at a time."""
    shape = torch.broadcast_shapes(first.shape, second.shape)
    if math.prod(shape) <= _CHUNK:
        return (first * second).sum(0)
    total: Tensor | None = None
    for a, b in zip(first, second, strict=True):
        total = a * b if total is None else torch.addcmul(total, a, b)
    assert total is not None
    return total
