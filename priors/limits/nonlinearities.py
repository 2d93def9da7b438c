"""Nonlinear nodes, by Gaussian expectations over their sources (`expectations`)."""

from __future__ import annotations

import functools

from torch import Tensor

from priors.limits.expectations import expectation, mean_of, slopes
from priors.limits.kinds import Kind, TangentPairs, register_kind
from priors.limits.operands import OneSide
from priors.limits.pairs import Pairs
from priors.programs.nodes import Nonlinear

__all__: list[str] = []


@register_kind(Nonlinear)
class _Nonlinear(Kind[Nonlinear]):
    precedence = 1

    def moment(self, pairs: Pairs, a: int, b: int, full: bool) -> Tensor | None:
        plain = pairs.is_plain(a) and pairs.is_plain(b)
        value = pairs.duals(a, b, full)[0] if plain else expectation(pairs, a, b, full)
        return pairs.with_exact_diagonal(
            value, a, b, full, lambda single: single.moment(a, b, False)
        )

    def tangent(self, tangents: TangentPairs, a: int, b: int, full: bool) -> Tensor | None:
        pairs = tangents.moments
        if pairs.is_plain(a) and pairs.is_plain(b):
            (_, u), (_, v) = pairs.activation(a), pairs.activation(b)
            inner = tangents.tangent(u, v, full)
            if inner is None:
                return None
            derivative = _derivative(pairs, a, b, full)
            return None if derivative is None else derivative * inner
        total: Tensor | None = None
        first, second = self.nodes(pairs, a, b)
        for j, f in enumerate(first.factors):
            for s, u in enumerate(f.sources):
                for k, g in enumerate(second.factors):
                    for t, v in enumerate(g.sources):
                        inner = tangents.tangent(u, v, full)
                        if inner is None:
                            continue
                        slope = expectation(pairs, a, b, full, (j, s), (k, t))
                        exact = functools.partial(_slope, a, b, (j, s), (k, t))
                        slope = pairs.with_exact_diagonal(slope, a, b, full, exact)
                        total = slope * inner if total is None else total + slope * inner
        return total

    def one_side(self, index: int, x: OneSide) -> Tensor | None:
        """With a Gaussian node: Stein's lemma, by the mean slope."""
        total: Tensor | None = None
        for source, slope in slopes(x.pairs, index, x.side, jumps=x.means):
            other = x.of(source)
            if other is None:
                continue
            term = x.spread(slope) * other
            total = term if total is None else total + term
        return total

    def mean(self, single: Pairs, index: int) -> Tensor | None:
        return mean_of(single, index, 0, None)


def _derivative(pairs: Pairs, a: int, b: int, full: bool) -> Tensor | None:
    """E[phi'(u) psi'(v)] of two plain nonlinearities."""
    derivative = pairs.duals(a, b, full)[1]
    if derivative is None:
        return None

    def exact(single: Pairs) -> Tensor:
        return single.once(("slope", a, b), lambda: _slope_of_points(single, a, b))

    return pairs.with_exact_diagonal(derivative, a, b, full, exact)


def _slope_of_points(single: Pairs, a: int, b: int) -> Tensor:
    """E[phi'(u) psi'(v)] of each point with itself."""
    phi, u = single.activation(a)
    psi, v = single.activation(b)
    q = single.variance_of(u, 0)
    if a == b:
        return phi.second_moment_derivative(q)
    c = single.moment(u, v, False)
    assert c is not None
    return phi.dual_derivative(psi, q, single.variance_of(v, 0), c)


def _slope(a: int, b: int, da: tuple[int, int], db: tuple[int, int], single: Pairs) -> Tensor:
    return expectation(single, a, b, False, da, db)
