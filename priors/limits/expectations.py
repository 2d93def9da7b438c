"""Gaussian expectations of nonlinearities: of one, of a pair, and with a Gaussian node (Stein).

A nonlinearity is a product of factors, each a function of jointly Gaussian vectors; factors that
have nothing in common are independent, so an expectation is a product over groups of them. Each
group is one Gaussian integral: closed, over two variables, or by expansions in Hermite polynomials
(`gaussian.hermite`), which are made once for each data point. `derivatives`
says for which factor, (side, number), a partial derivative is meant, and in which of its sources.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from priors.gaussian.activations import Activation
from priors.gaussian.hermite import Expansion, Whitening, expand, inner_product
from priors.gaussian.quadrature import gaussian_expectation, gaussian_mean
from priors.limits.normalisation import statistics
from priors.limits.pairs import Pairs
from priors.limits.relations import independent_groups
from priors.programs.expressions import Apply, crossings
from priors.programs.nodes import Factor, Nonlinear

__all__ = ["expectation", "mean_of", "plain", "slopes"]


def plain(pairs: Pairs, a: int, b: int, full: bool) -> tuple[Tensor, Tensor | None]:
    """E[phi(u) psi(v)] and, if asked for, E[phi'(u) psi'(v)] of two plain nonlinearities."""
    (phi, u), (psi, v) = pairs.activation(a), pairs.activation(b)
    c = pairs.moment(u, v, full)
    if c is None:
        left, right = pairs.mean(a, 0), pairs.mean(b, 1)
        assert left is not None
        assert right is not None
        return pairs.on_left(left, a, b, full) * pairs.on_right(right, a, b, full), None
    if pairs.of_single_points and a == b and pairs.trailing(a, b, full) == (0 if full else 1):
        return phi.second_moment(c), phi.second_moment_derivative(c)
    q1 = pairs.on_left(pairs.variance_of(u, 0), a, b, full)
    q2 = pairs.on_right(pairs.variance_of(v, 1), a, b, full)
    if not pairs.derivatives:
        return phi.dual(psi, q1, q2, c), None
    value, derivative = phi.duals(psi, q1, q2, c)
    return value, derivative


def expectation(
    pairs: Pairs,
    a: int,
    b: int,
    full: bool,
    da: tuple[int, int] | None = None,
    db: tuple[int, int] | None = None,
) -> Tensor:
    """E[f(u) g(v)] of two `Nonlinear` nodes, or of their partial derivatives.

    `da` = (factor, source of the factor) takes the derivative of f there, `db` of g.
    """
    first, second = pairs.program.nodes[a], pairs.program.nodes[b]
    assert isinstance(first, Nonlinear)
    assert isinstance(second, Nonlinear)
    items = [(0, k, f) for k, f in enumerate(first.factors)]
    items += [(1, k, f) for k, f in enumerate(second.factors)]
    total: Tensor | None = None
    for group in independent_groups(pairs.program, items):
        derivatives = {(side, k): d[1] for side, d in ((0, da), (1, db)) if d for k in (d[0],)}
        value = _group(pairs, a, b, full, group, derivatives)
        total = value if total is None else total * value
    assert total is not None
    return total


def _group(
    pairs: Pairs,
    a: int,
    b: int,
    full: bool,
    group: Sequence[tuple[int, int, Factor]],
    derivatives: dict[tuple[int, int], int],
) -> Tensor:
    """Expectation of the product of factors that depend on each other."""
    # in the order of the node, whatever is opposite: it decides the order of variables
    ends = [
        sorted(((k, f) for s, k, f in group if s == side), key=lambda end: end[0])
        for side in (0, 1)
    ]
    if not ends[1]:
        left = _one_sided(pairs, a, 0, ends[0], derivatives)
        return pairs.on_left(left, a, b, full)
    if not ends[0]:
        return pairs.on_right(_one_sided(pairs, b, 1, ends[1], derivatives), a, b, full)
    if len(group) == 2 and all(len(f.sources) == 1 for _, _, f in group):
        return _two_variables(pairs, a, b, full, ends, derivatives)
    factors = (
        n.factors for n in (pairs.program.nodes[i] for i in (a, b)) if isinstance(n, Nonlinear)
    )
    if len(group) == sum(map(len, factors)):
        return _many_variables(pairs, a, b, full, ends, derivatives)
    # a part of the product, which other products and other derivatives have too
    contents = tuple(_contents(end, side, derivatives) for side, end in enumerate(ends))
    key = ("group", contents, pairs.has_positions(a), pairs.has_positions(b), full)
    return pairs.once(key, lambda: _many_variables(pairs, a, b, full, ends, derivatives))


Contents = tuple[tuple[Any, ...], ...]


def _contents(
    factors: Sequence[tuple[int, Factor]], side: int, derivatives: dict[tuple[int, int], int]
) -> Contents:
    """What a product of factors is, whichever node it belongs to."""
    return tuple(
        (f.function, f.sources, f.statistics, derivatives.get((side, k))) for k, f in factors
    )


def _one_sided(
    pairs: Pairs,
    index: int,
    side: int,
    factors: Sequence[tuple[int, Factor]],
    derivatives: dict[tuple[int, int], int],
) -> Tensor:
    """Mean of dependent factors at each left or right point, `[..., n, (P)]`."""
    single = pairs.of_points(side)
    functions = [_Bound(f, derivatives.get((side, k)), single, side) for k, f in factors]
    if len(factors) == 1 and len(factors[0][1].sources) == 1:
        (bound,) = functions
        q = pairs.variance_of(factors[0][1].sources[0], side)
        phi = bound.plain
        if phi is not None:
            return phi.mean_derivative(q) if bound.derivative is not None else phi.mean(q)
        return gaussian_mean(bound.of_one, q, parameters=bound.statistics, kinks=bound.kinks)
    return _expansion(pairs, side, factors, derivatives).mean.to(pairs.inputs[0].x.dtype)


def _two_variables(
    pairs: Pairs,
    a: int,
    b: int,
    full: bool,
    ends: Sequence[Sequence[tuple[int, Factor]]],
    derivatives: dict[tuple[int, int], int],
) -> Tensor:
    ((k, f),), ((m, g),) = ends
    u, v = f.sources[0], g.sources[0]
    one = _Bound(f, derivatives.get((0, k)), pairs.of_points(0), 0)
    two = _Bound(g, derivatives.get((1, m)), pairs.of_points(1), 1)
    c = pairs.moment(u, v, full)
    assert c is not None
    q1 = pairs.on_left(pairs.variance_of(u, 0), a, b, full)
    q2 = pairs.on_right(pairs.variance_of(v, 1), a, b, full)
    if (
        one.plain is not None
        and two.plain is not None
        and (one.derivative is None) == (two.derivative is None)
    ):
        dual = one.plain.dual if one.derivative is None else one.plain.dual_derivative
        return dual(two.plain, q1, q2, c)
    return gaussian_expectation(
        one.of_one,
        two.of_one,
        q1,
        q2,
        c,
        f_parameters=tuple(pairs.on_left(s, a, b, full) for s in one.statistics),
        g_parameters=tuple(pairs.on_right(s, a, b, full) for s in two.statistics),
        f_kinks=tuple(_spread_kink(k, a, b, full, pairs.on_left) for k in one.kinks),
        g_kinks=tuple(_spread_kink(k, a, b, full, pairs.on_right) for k in two.kinks),
    )


def _spread_kink(
    kink: float | Tensor, a: int, b: int, full: bool, place: Callable[..., Tensor]
) -> float | Tensor:
    return place(kink, a, b, full) if isinstance(kink, Tensor) else kink


def _many_variables(
    pairs: Pairs,
    a: int,
    b: int,
    full: bool,
    ends: Sequence[Sequence[tuple[int, Factor]]],
    derivatives: dict[tuple[int, int], int],
) -> Tensor:
    """By the expansions of both sides in Hermite polynomials."""
    sources = [_distinct([s for _, f in end for s in f.sources]) for end in ends]
    _check_count(pairs, len(sources[0]) + len(sources[1]))
    left = _expansion(pairs, 0, ends[0], derivatives)
    right = _expansion(pairs, 1, ends[1], derivatives)
    value = inner_product(
        left,
        right,
        [[pairs.moment(s, t, full) for t in sources[1]] for s in sources[0]],
        lambda number: pairs.on_left(number, a, b, full),
        lambda number: pairs.on_right(number, a, b, full),
    )
    return value.to(pairs.inputs[0].x.dtype)


def _expansion(
    pairs: Pairs,
    side: int,
    factors: Sequence[tuple[int, Factor]],
    derivatives: dict[tuple[int, int], int],
) -> Expansion:
    """The product of dependent factors at each left or right point, expanded once."""
    single = pairs.of_points(side)

    def make() -> Expansion:
        sources = _distinct([s for _, f in factors for s in f.sources])
        _check_count(pairs, len(sources))
        functions = [_Bound(f, derivatives.get((side, k)), single, side) for k, f in factors]

        def product(values: Sequence[Tensor]) -> Tensor:
            by = dict(zip(sources, values, strict=True))
            parts = (f.of_many(by, [s[..., None] for s in f.statistics]) for f in functions)
            return functools.reduce(torch.mul, parts)

        covariance = [[single.moment(s, t, False) for t in sources] for s in sources]
        return expand(product, Whitening.of(covariance), pairs.settings.quadrature)

    return single.once(("expansion", _contents(factors, side, derivatives)), make)


def _check_count(pairs: Pairs, variables: int) -> None:
    if variables > pairs.settings.max_variables:
        raise NotImplementedError(
            f"An expectation over {variables} Gaussian variables is needed, more than "
            f"max_variables={pairs.settings.max_variables}: gates multiply at every step, so "
            "their number grows with the length of the sequence. Shorten the sequence, or "
            "raise max_variables of InfiniteNetwork."
        )


def slopes(pairs: Pairs, index: int, side: int, *, jumps: bool) -> list[tuple[int, Tensor]]:
    """E[df/du] of a `Nonlinear` node for each of its sources, at left or right points.

    With `jumps` the deltas of the derivative at jumps count, as Stein's lemma asks for. The
    gradient of a network does not see them.
    """
    node = pairs.program.nodes[index]
    assert isinstance(node, Nonlinear)
    if jumps and pairs.is_plain(index):
        phi, source = pairs.activation(index)
        return [(source, phi.stein(pairs.variance_of(source, side)))]
    if jumps:
        return _stein(pairs, index, side, node)
    result = []
    for k, factor in enumerate(node.factors):
        for position, source in enumerate(factor.sources):
            result.append((source, mean_of(pairs, index, side, (k, position))))
    return result


def _stein(pairs: Pairs, index: int, side: int, node: Nonlinear) -> list[tuple[int, Tensor]]:
    """Slopes with jumps: of each group of factors, times the means of the others."""
    items = [(side, k, f) for k, f in enumerate(node.factors)]
    groups = [
        sorted(((k, f) for _, k, f in g), key=lambda end: end[0])
        for g in independent_groups(pairs.program, items)
    ]
    means = [_one_sided(pairs, index, side, group, {}) for group in groups]
    result = []
    for number, group in enumerate(groups):
        others = means[:number] + means[number + 1 :]
        for source, slope in _slopes_of_group(pairs, index, side, group):
            result.append((source, functools.reduce(torch.mul, others, slope)))
    return result


def _slopes_of_group(
    pairs: Pairs, index: int, side: int, group: Sequence[tuple[int, Factor]]
) -> list[tuple[int, Tensor]]:
    (k, factor), *more = group
    if more or len(factor.sources) > 1 or not _is_continuous(factor):
        # those of the expansion, so that moments with Gaussian nodes fit the others
        dtype = pairs.inputs[0].x.dtype
        slopes = _expansion(pairs, side, group, {}).slopes
        sources = _distinct([s for _, f in group for s in f.sources])
        return [(s, slope.to(dtype)) for s, slope in zip(sources, slopes, strict=True)]
    source = factor.sources[0]
    if isinstance(factor.function, Activation):
        return [(source, factor.function.stein(pairs.variance_of(source, side)))]
    return [(source, _one_sided(pairs, index, side, group, {(side, k): 0}))]


def mean_of(pairs: Pairs, index: int, side: int, derivative: tuple[int, int] | None) -> Tensor:
    """Mean of a `Nonlinear` node at each left or right point, or of a derivative."""
    node = pairs.program.nodes[index]
    assert isinstance(node, Nonlinear)
    derivatives = {} if derivative is None else {(side, derivative[0]): derivative[1]}
    total: Tensor | None = None
    items = [(side, k, f) for k, f in enumerate(node.factors)]
    for group in independent_groups(pairs.program, items):
        factors = sorted(((k, f) for _, k, f in group), key=lambda end: end[0])
        value = _one_sided(pairs, index, side, factors, derivatives)
        total = value if total is None else total * value
    assert total is not None
    return total


@dataclass
class _Bound:
    """A factor with the statistics of its side, and what is to be differentiated."""

    factor: Factor
    derivative: int | None
    single: Pairs
    side: int
    statistics: tuple[Tensor, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.statistics = tuple(self._statistic(*s) for s in self.factor.statistics)

    def _statistic(self, kind: str, index: int) -> Tensor:
        mean, scale = statistics(self.single, index, 0)
        if kind == "scale":
            return scale
        return torch.zeros_like(scale) if mean is None else mean

    @property
    def plain(self) -> Activation | None:
        """The activation, if it is one."""
        function = self.factor.function
        return function if isinstance(function, Activation) else None

    @property
    def kinks(self) -> tuple[Any, ...]:
        """Where the function of its only variable has kinks: numbers, or one per data point."""
        if self.plain is not None:
            return self.plain.kinks
        assert isinstance(self.factor.function, Apply)
        with torch.no_grad():
            scale = self.single.variance_of(self.factor.sources[0], 0).double().sqrt()
            statistics = [s.double() for s in self.statistics]
            return tuple(crossings(self.factor.function, scale, statistics))

    def of_one(self, x: Tensor, *statistics: Tensor) -> Tensor:
        """The function of its only variable."""
        return self.of_many({self.factor.sources[0]: x}, statistics)

    def of_many(self, values: dict[int, Tensor], statistics: Sequence[Tensor]) -> Tensor:
        """The function of its variables by source."""
        variables = [values[s] for s in self.factor.sources]
        function = self.factor.function
        if isinstance(function, Activation):
            return (
                function(variables[0])
                if self.derivative is None
                else function.derivative(variables[0])
            )
        if self.derivative is None:
            return function(variables, statistics)
        return function.derivative(self.derivative, variables, statistics)


def _distinct(items: Sequence[int]) -> list[int]:
    return list(dict.fromkeys(items))


# Functions that may jump.
_JUMPS = frozenset("gt lt ge le eq ne where sign heaviside round floor ceil".split())


def _is_continuous(factor: Factor) -> bool:
    """Whether an expression has no function that may jump."""

    def names(part: Any) -> set[str]:
        if not isinstance(part, Apply):
            return set()
        found = {getattr(part.function, "__name__", type(part.function).__name__).lower()}
        return found.union(*(names(a) for a in part.arguments))

    return not names(factor.function) & _JUMPS
