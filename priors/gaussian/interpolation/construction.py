"""Tables made from quadrature, and compared with it where they were not made.

Nodes in each direction are as many as slices through the expectation need to be resolved; where
they would be too many, or the table differs from quadrature at other points, there is no table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from priors.gaussian.interpolation.evaluation import evaluate
from priors.gaussian.interpolation.tables import (
    RESOLVED,
    Series,
    Stack,
    Table,
    chebyshev,
    nodes,
    variances,
)
from priors.gaussian.quadrature.functions import Elementwise, Function
from priors.gaussian.quadrature.grids import Marginal, on_a_grid
from priors.gaussian.quadrature.mehler import expectation_without_gradient, mean_without_gradient

__all__ = ["MeanTable", "best_bend", "mean_table", "table"]

_TOLERANCE = 5e-11  # largest error at the points of the check, as a share of the scale
_ROUNDED = 1e-11  # coefficients of a mean below this share are rounding of the quadrature
_MOST_ANGLES, _MOST_VARIANCES = 256, 128
_BENDS = (0.5, 0.75, 0.875, 0.94, 0.97, 0.985, 0.9925, 0.996, 0.998, 0.999, 1.0)
Sizes = tuple[int, int]


def table(
    f: Function, g: Function, low: float, high: float, bend: float, device: torch.device
) -> Table | None:
    """Tabulate E[f(u) g(v)] for variances from 2^low to 2^high; None where that is not accurate.

    Accurate: within 5e-11 of the root of E[f^2] E[g^2], at points off the grid, of quadrature.
    """
    scales = _series_of_scale(f, low, high, device), _series_of_scale(g, low, high, device)
    if scales[0] is None or scales[1] is None:
        return None
    known = scales[0], scales[1]
    if min(float(s.coefficients[0]) for s in known) == -math.inf:
        nothing = torch.zeros(1, 1, 1, dtype=torch.float64, device=device)
        return Table(low, high, bend, None, nothing, None)

    sizes = _sizes(f, g, known, low, high, bend)
    if sizes is None:
        return None
    angles, number = sizes
    x, to_series = nodes(number, device)
    q = variances(x, low, high)
    y, to_angles = nodes(angles, device)
    values = _on_a_grid((f, g), known, (q, q), _straight(y, bend))
    coefficients = torch.tensordot(to_angles, to_series @ values @ to_series.T, 1)
    linear = _linear(f, g, known, q)
    coefficients, rows = _without_linear(coefficients, linear @ to_series.T, bend)
    if f == g:  # exactly so, and not but for rounding
        coefficients = (coefficients + coefficients.mT) / 2
        rows = None if rows is None else rows.mean(0).expand(2, -1)
    made = Table(low, high, bend, known, coefficients, rows)
    return made if _accurate(made, f, g) else None


def _series_of_scale(f: Function, low: float, high: float, device: torch.device) -> Series | None:
    """The logarithm of the root of E[f^2]; minus infinity if f vanishes."""
    q = variances(nodes(_MOST_VARIANCES, device)[0], low, high)
    square = mean_without_gradient(Elementwise(lambda x: f(x) ** 2), q)
    if bool((square == 0).all()):
        return Series(low, high, torch.full((1,), -math.inf, dtype=q.dtype, device=device))
    if not bool(((square > 1e-290) & (square < 1e290)).all()):
        return None
    return _series(square.log() / 2, low, high)


def _series(values: Tensor, low: float, high: float, scale: float | None = None) -> Series | None:
    _, to_series = nodes(len(values), values.device)
    coefficients = to_series @ values
    size = _resolved(coefficients, scale or max(1.0, float(values.abs().max())))
    return None if size is None else Series(low, high, coefficients[:size])


@dataclass(frozen=True)
class MeanTable:
    """E[f(u)] or E[f(u) g(u)] by the variance of u, as a series times the scales of f and g."""

    series: Series
    scales: tuple[Series, ...]

    def __call__(self, q: Tensor) -> Tensor:
        """Values at the variances `q`."""
        every = self.series, *self.scales
        number = max(len(s.coefficients) for s in every)
        basis = chebyshev(q, self.series.low, self.series.high, number)
        value, *scales = (s.coefficients @ basis[: len(s.coefficients)] for s in every)
        return value * torch.stack(scales).sum(0).exp() if scales else value


def mean_table(
    functions: Sequence[Function], low: float, high: float, device: torch.device
) -> MeanTable | None:
    """Tabulate the mean of one function or of the product of two; None if that is not accurate."""
    scales = [_series_of_scale(f, low, high, device) for f in functions]
    known = tuple(s for s in scales if s is not None)
    if len(known) < len(scales):
        return None
    if any(float(s.coefficients[0]) == -math.inf for s in known):
        nothing = torch.zeros(1, dtype=torch.float64, device=device)
        return MeanTable(Series(low, high, nothing), ())
    q = variances(nodes(_MOST_VARIANCES, device)[0], low, high)
    inverse = torch.stack([s(q) for s in known]).sum(0).neg().exp()

    def product(x: Tensor, inverse: Tensor) -> Tensor:
        return math.prod((f(x) for f in functions), start=inverse)

    values = mean_without_gradient(Elementwise(product, (), 1), q, inverse)
    series = _series(values, low, high, _ROUNDED / RESOLVED)
    return None if series is None else MeanTable(series, known)


def _normalised(
    f: Function, g: Function, scales: tuple[Series, Series], q1: Tensor, q2: Tensor, rho: Tensor
) -> Tensor:
    """E[f(u) g(v)] over the root of E[f^2] E[g^2], by quadrature."""
    inverse1, inverse2 = (
        (-scale(q.flatten())).exp().view_as(q) for scale, q in zip(scales, (q1, q2), strict=True)
    )
    first = Elementwise(lambda x, s: f(x) * s, (), 1)
    second = Elementwise(lambda x, s: g(x) * s, (), 1)
    c = rho * (q1 * q2).sqrt()
    return expectation_without_gradient(first, second, q1, q2, c, (inverse1,), (inverse2,))


def _on_a_grid(
    functions: tuple[Function, Function],
    scales: tuple[Series, Series],
    variances: tuple[Tensor, Tensor],
    rho: Tensor,
) -> Tensor:
    """E[f(u) g(v)] over the root of E[f^2] E[g^2], `[correlations, n, m]`."""
    first, second = (
        Marginal(function, q, (-scale(q)).exp())
        for function, scale, q in zip(functions, scales, variances, strict=True)
    )
    same = functions[0] == functions[1] and variances[0] is variances[1]
    return on_a_grid(first, first if same else second, rho)


def _sizes(
    f: Function, g: Function, scales: tuple[Series, Series], low: float, high: float, bend: float
) -> Sizes | None:
    """Numbers of angles and of variances that resolve the expectation, from slices of it."""
    device = scales[0].coefficients.device
    some = 2.0 ** torch.linspace(low, high, 3, dtype=torch.float64, device=device)

    def angles(number: int) -> int | None:
        y, to_series = nodes(number, device)
        along = _on_a_grid((f, g), scales, (some, some), _straight(y, bend))
        return _resolved(torch.tensordot(to_series, along, 1), 1.0)

    few = _straight(torch.tensor([-1.0, 0.3, 0.95, 1.0], dtype=torch.float64, device=device), bend)

    def degrees(number: int) -> int | None:
        x, to_series = nodes(number, device)
        q = variances(x, low, high)
        first = _on_a_grid((f, g), scales, (q, some), few).movedim(1, 0)
        found = [_resolved(torch.tensordot(to_series, first, 1), 1.0)]
        if f != g:
            second = _on_a_grid((f, g), scales, (some, q), few).movedim(-1, 0)
            found.append(_resolved(torch.tensordot(to_series, second, 1), 1.0))
        known = [n for n in found if n is not None]
        return max(known) if len(known) == len(found) else None

    counts = [
        next((n for n in map(count, (most // 2, most)) if n is not None), None)
        for count, most in ((angles, _MOST_ANGLES), (degrees, _MOST_VARIANCES))
    ]
    if counts[0] is None or counts[1] is None:
        return None
    # slices miss a little of what lies between them
    return counts[0] + 2 + counts[0] // 16, counts[1] + 2 + counts[1] // 16


def _resolved(coefficients: Tensor, scale: float) -> int | None:
    """How many leading coefficients are not negligible; None unless the last ones are."""
    size = coefficients.flatten(1).abs().amax(1) if coefficients.dim() > 1 else coefficients.abs()
    if not bool(size.isfinite().all()):
        return None
    needed = (size > RESOLVED * scale).nonzero()
    number = int(needed[-1]) + 1 if len(needed) else 1
    return number if number <= len(size) - 4 else None


def _linear(f: Function, g: Function, scales: tuple[Series, Series], q: Tensor) -> Tensor:
    """E[f(u) u] and E[g(v) v] for standardised u and v over the same scales, `[2, n]`."""
    rows = []
    for h, scale in ((f, scales[0]), (g, scales[1])):
        weighted = Elementwise(lambda x, s, h=h: h(x) * x * s, (), 1)
        rows.append(mean_without_gradient(weighted, q, (-scale(q)).exp() * q.rsqrt()))
    return torch.stack(rows)


def _without_linear(
    coefficients: Tensor, linear: Tensor, bend: float
) -> tuple[Tensor, Tensor | None]:
    """Take rho E[f(u) u] E[g(v) v] away, if that is all that is odd: rho itself has a dozen
    coefficients in the bent correlation."""
    y, to_angles = nodes(len(coefficients), coefficients.device)
    straight = to_angles @ _straight(y, bend)
    rest = coefficients - straight[:, None, None] * (linear[0][:, None] * linear[1])
    if float(coefficients[1::2].abs().max()) > 10 * RESOLVED >= float(rest[1::2].abs().max()):
        rest[1::2] = 0
        return rest, linear
    return coefficients, None


def _accurate(made: Table, f: Function, g: Function) -> bool:
    """Compare with quadrature pair by pair, off the grid."""
    device = made.coefficients.device
    step = torch.arange(1, 12, dtype=torch.float64, device=device)
    position = torch.stack([step * 0.6180339887498949, step * 0.7548776662466927]) % 1
    q1, q2 = 2 ** (made.low + (made.high - made.low) * position)
    x = torch.tensor(
        [-1, -0.96, -0.7, -0.3, 0.05, 0.5, 0.8, 0.98, 1], dtype=torch.float64, device=device
    )[:, None, None]
    assert made.scales is not None
    exact = _normalised(f, g, made.scales, q1[:, None], q2[None, :], _straight(x, made.bend))
    one = q1[:, None].expand(len(x), -1, 1), q2.expand(len(x), 1, -1)
    c = _straight(x, made.bend) * (q1[:, None] * q2).sqrt()
    stack = Stack.of([made.factors(made.low, made.high)])
    value = torch.empty_like(exact)
    for where, (part,) in evaluate(stack, *one, c):
        value[where] = part
    value = value * (-made.scales[0](q1))[:, None].exp() * (-made.scales[1](q2)).exp()
    return bool(((value - exact).abs() <= _TOLERANCE).all())


def best_bend(
    f: Function, g: Function, low: float, high: float, device: torch.device
) -> float | None:
    """The bend with the fewest terms for pairs of the largest variances; None: too many."""
    scales = _series_of_scale(f, low, high, device), _series_of_scale(g, low, high, device)
    if scales[0] is None or scales[1] is None:
        return None
    known = scales[0], scales[1]
    if min(float(s.coefficients[0]) for s in known) == -math.inf:
        return 1.0  # there is nothing to resolve
    q = torch.full((1,), 2.0**high, dtype=torch.float64, device=device)

    def terms(bend: float) -> int:
        for number in (_MOST_ANGLES // 2, _MOST_ANGLES):
            y, to_series = nodes(number, device)
            values = _on_a_grid((f, g), known, (q, q), _straight(y, bend)).flatten()
            along = to_series @ values
            if _resolved(along, 1.0) is not None:
                return int((along.abs() > RESOLVED).sum())
        return 2 * _MOST_ANGLES

    # the number falls and rises again with the bend: downhill from what suits a tanh
    place = min(len(_BENDS) - 1, max(0, round(high) + 1))
    found = {place: terms(_BENDS[place])}
    for step in (-1, 1):
        at = place
        while 0 <= at + step < len(_BENDS):
            found[at + step] = terms(_BENDS[at + step])
            if found[at + step] > found[at]:
                break
            at += step
    best = min(found, key=found.__getitem__)
    return _BENDS[best] if found[best] <= _MOST_ANGLES else None


def _straight(x: Tensor, bend: float) -> Tensor:
    """The correlation from the bent one."""
    return torch.sin(math.asin(bend) * x) / bend
