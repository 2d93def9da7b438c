"""Nodes that act unit by unit: functions, sums, normalisations, masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from priors.gaussian.activations import Activation, Numerical
from priors.programs.expressions import Apply, Expression, OneVariable, substitute
from priors.programs.nodes.base import Construction, Expansion, Hidden, OneSource

__all__ = ["BatchNormalise", "Combination", "Dropout", "Factor", "Nonlinear", "Normalise"]


@dataclass(frozen=True)
class Factor:
    """A function of jointly Gaussian vectors, unit by unit.

    An `Activation` has one source. An `Expression` may also use statistics, numbers that differ
    between data points: ("mean" or "scale", index of a `Normalise` node).
    """

    function: Activation | Expression
    sources: tuple[int, ...]
    statistics: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Nonlinear(Hidden):
    """A product of factors that have no source in common."""

    factors: tuple[Factor, ...]
    positions: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        return self.related_through + tuple(i for f in self.factors for _, i in f.statistics)

    def with_inputs(self, inputs: Sequence[int]) -> Self:
        fresh = iter(inputs)
        sources = [tuple(next(fresh) for _ in f.sources) for f in self.factors]
        statistics = [tuple((kind, next(fresh)) for kind, _ in f.statistics) for f in self.factors]
        factors = zip(self.factors, sources, statistics, strict=True)
        return replace(self, factors=tuple(Factor(f.function, s, t) for f, s, t in factors))

    @property
    def related_through(self) -> tuple[int, ...]:
        return tuple(s for f in self.factors for s in f.sources)

    @property
    def homogeneous(self) -> bool:
        return self.activation is not None and self.activation.homogeneous

    @property
    def activation(self) -> Activation | None:
        """The function, if it is one `Activation` of one Gaussian."""
        function = self.factors[0].function
        return function if len(self.factors) == 1 and isinstance(function, Activation) else None

    def selected(self, picks: Tensor, program: Construction) -> int | None:
        factors = tuple(
            Factor(
                f.function,
                tuple(program.select(s, picks) for s in f.sources),
                tuple((kind, program.select(s, picks)) for kind, s in f.statistics),
            )
            for f in self.factors
        )
        if all(isinstance(program.nodes[i], Normalise) for f in factors for _, i in f.statistics):
            return program.add(Nonlinear(factors, tuple(picks.shape)))
        return None

    def restricted(self, index: int, first: int, last: int, program: Construction) -> int:
        if any(f.statistics for f in self.factors):
            return super().restricted(index, first, last, program)
        return program.add(
            self.with_inputs([program.restrict(s, first, last) for s in self.related_through])
        )

    def expression(self, index: int, expansion: Expansion) -> Any:
        factors = []
        for f in self.factors:
            variables = [expansion.variable(s) for s in f.sources]
            statistics = [expansion.statistic(*s) for s in f.statistics]
            function = f.function
            inner = function.function if isinstance(function, Numerical) else None
            if isinstance(inner, OneVariable):  # whose parts tell more than its values
                function = inner.expression
            factors.append(
                substitute(function, variables, statistics)
                if isinstance(function, Apply)
                else Apply(function, (variables[0],))
            )
        result = factors[0]
        for factor in factors[1:]:
            result = Apply(torch.mul, (result, factor))
        return result


@dataclass(frozen=True)
class Combination(Hidden):
    """A fixed linear combination of other nodes, plus `offset` in every coordinate."""

    terms: tuple[tuple[float, int], ...]
    offset: float
    positions: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        return tuple(i for _, i in self.terms)

    def with_inputs(self, inputs: Sequence[int]) -> Self:
        terms = zip(self.terms, inputs, strict=True)
        return replace(self, terms=tuple((c, i) for (c, _), i in terms))

    def is_gaussian(self, gaussian: Callable[[int], bool]) -> bool:
        return self.offset == 0 and all(gaussian(i) for i in self.inputs)

    @property
    def homogeneous(self) -> bool:
        return len(self.terms) == 1 and not self.offset

    def sum(self, index: int) -> tuple[tuple[tuple[float, int], ...], float]:
        return self.terms, self.offset

    def selected(self, picks: Tensor, program: Construction) -> int | None:
        moved = self.with_inputs([program.select(i, picks) for i in self.inputs])
        return program.add(replace(moved, positions=tuple(picks.shape)))

    def restricted(self, index: int, first: int, last: int, program: Construction) -> int:
        return program.add(
            self.with_inputs([program.restrict(i, first, last) for i in self.inputs])
        )

    def expression(self, index: int, expansion: Expansion) -> Any:
        parts: list[Any] = [
            expansion.expand(i) if c == 1.0 else Apply(torch.mul, (expansion.expand(i), c))
            for c, i in self.terms
        ]
        if self.offset:
            parts.append(self.offset)
        result = parts[0]
        for part in parts[1:]:
            result = Apply(torch.add, (result, part))
        return result


@dataclass(frozen=True)
class Normalise(OneSource):
    """(h - mean) / sqrt(variance + eps); `centred` False is RMSNorm.

    The statistics are over the width and, with `pooled`, over the last `pooled` positions' axes.
    """

    centred: bool
    eps: float
    pooled: int
    positions: tuple[int, ...]

    def is_gaussian(self, gaussian: Callable[[int], bool]) -> bool:
        return gaussian(self.source)

    def selected(self, picks: Tensor, program: Construction) -> int | None:
        if self.pooled:
            return None
        source = program.select(self.source, picks)
        return program.add(replace(self, source=source, positions=tuple(picks.shape)))

    def restricted(self, index: int, first: int, last: int, program: Construction) -> int:
        return program.add(self.with_inputs([program.restrict(self.source, first, last)]))

    def expression(self, index: int, expansion: Expansion) -> Any:
        scale = expansion.statistic("scale", index)
        inner = expansion.expand(self.source)
        if self.centred:
            inner = Apply(torch.sub, (inner, expansion.statistic("mean", index)))
        return Apply(torch.mul, (inner, scale))


@dataclass(frozen=True)
class BatchNormalise(OneSource):
    """(h - mean) / sqrt(variance + eps), over the batch and all positions."""

    eps: float
    positions: tuple[int, ...]

    @property
    def homogeneous(self) -> bool:
        return True


@dataclass(frozen=True)
class Dropout(OneSource):
    """Units kept with probability `keep`, then divided by it.

    `whole` drops a unit at all positions at once. `call` tells masks apart.
    """

    keep: float
    whole: bool
    call: int
    positions: tuple[int, ...]

    @property
    def homogeneous(self) -> bool:
        return True
