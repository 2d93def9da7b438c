"""Sums, products and nonlinear functions of branches, reduced to functions of Gaussian vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from priors.gaussian.activations import ABReLU, Activation, Numerical
from priors.gaussian.quadrature import detect_kinks
from priors.programs.builder import NEEDS_A_LAYER, Builder
from priors.programs.expressions import Apply, OneVariable, Statistic, Variable
from priors.programs.layout import aligned
from priors.programs.nodes import BatchNormalise, Combination, Factor, Features, Nonlinear
from priors.programs.values import Value, name_of, replaced, values_in

__all__ = ["activation", "combine", "elementwise", "multiply"]


def combine(builder: Builder, parts: Sequence[tuple[float, Any]], offset: float = 0.0) -> Value:
    """sum_k c_k value_k + offset of hidden values, raw input, parameters and constants."""
    values = aligned(builder, [v for _, v in parts])
    scales = [c for c, _ in parts]
    index = _combination(
        builder, [(c, v.index) for c, v in zip(scales, values, strict=True)], offset
    )
    return builder.like(values[0], index)


def _combination(builder: Builder, parts: Sequence[tuple[float, int]], offset: float) -> int:
    layout = {builder.hidden(i).partition(builder) for _, i in parts}
    if len(layout) == 1 and next(iter(layout)) is not None:
        return _distribute(
            builder,
            [i for _, i in parts],
            lambda indices: _combination(
                builder, [(c, i) for (c, _), i in zip(parts, indices, strict=True)], offset
            ),
        )
    coefficients: dict[int, float] = {}
    for scale, index in parts:
        offset += scale * builder.offset(index)
        for coefficient, term in builder.terms(index):
            coefficients[term] = coefficients.get(term, 0.0) + scale * coefficient
    terms = tuple((c, i) for i, c in coefficients.items() if c != 0.0)
    if not offset and len(terms) == 1 and terms[0][0] == 1.0:
        return terms[0][1]
    return builder.add(Combination(terms, offset, builder.positions(parts[0][1])))


def activation(builder: Builder, x: Value, function: Activation) -> Value:
    """A nonlinearity of one value."""
    if x.finite:
        return builder.finite_call(function, x)
    return builder.like(x, _activation(builder, x.index, function))


def _activation(builder: Builder, index: int, function: Activation) -> int:
    node = builder.hidden(index)
    if isinstance(node, Features):  # of the raw input beside hidden units
        value = builder.finite_call(function, Value(node.source))
        return builder.add(Features(value.index, node.axis, node.positions))
    if node.partition(builder) is not None and not builder.gaussian(index):
        return _distribute(builder, [index], lambda i: _activation(builder, i[0], function))
    positions = builder.positions(index)
    if builder.gaussian(index) or isinstance(node, BatchNormalise):
        return builder.add(Nonlinear((Factor(function, (index,)),), positions))
    offset = builder.offset(index)
    if isinstance(node, Combination) and all(builder.gaussian(i) for _, i in node.terms):
        source = _combination(builder, node.terms, 0.0)
        factor = Factor(function.shifted(offset), (source,))
        return builder.add(Nonlinear((factor,), positions))
    return _expression(builder, [index], lambda parts: Apply(function, (parts[0],)))


def elementwise(
    builder: Builder, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
) -> Value:
    """A torch function of several values, unit by unit, as an expression."""
    inputs = [a for a in values_in((args, kwargs))]
    if any(v.finite for v in inputs):
        raise builder.unsupported(
            f"{name_of(function)} of hidden units and the raw input", NEEDS_A_LAYER
        )
    values = aligned(builder, inputs)

    def build(parts: Sequence[Any]) -> Apply:
        fresh = iter(parts)
        arguments, keywords = replaced((args, kwargs), lambda v: next(fresh), lambda: None)
        return Apply(function, tuple(arguments), tuple(keywords.items()))

    return builder.like(values[0], _expression(builder, [v.index for v in values], build))


def multiply(builder: Builder, a: Value, b: Value) -> Value:
    """The product of two branches, unit by unit."""
    values = aligned(builder, [a, b])
    return builder.like(values[0], _multiply(builder, values[0].index, values[1].index))


def _multiply(builder: Builder, a: int, b: int) -> int:
    partition = builder.hidden(a).partition(builder)
    if partition is not None and partition == builder.hidden(b).partition(builder):
        return _distribute(builder, [a, b], lambda i: _multiply(builder, *i))
    expanded = _expanded_product(builder, a, b)
    if expanded is not None:
        return expanded
    scale = 1.0
    factors: list[tuple[Factor, ...]] = []
    for index in (a, b):
        terms = builder.terms(index)
        if builder.gaussian(index):
            factors.append((Factor(ABReLU(1.0, 1.0), (index,)),))
        elif len(terms) == 1 and not builder.offset(index):
            node = builder.nodes[terms[0][1]]
            if isinstance(node, Nonlinear):
                scale *= terms[0][0]
                factors.append(node.factors)
    used = [{s for f in fs for s in f.sources} for fs in factors]
    if len(factors) == 2 and not used[0] & used[1]:
        node = Nonlinear((*factors[0], *factors[1]), builder.positions(a))
        return _combination(builder, [(scale, builder.add(node))], 0.0)
    return _expression(builder, [a, b], lambda parts: Apply(torch.mul, tuple(parts)))


# Most products that a product of sums is expanded into.
_MAX_PRODUCTS = 32


def _expanded_product(builder: Builder, a: int, b: int) -> int | None:
    """A product of sums as a sum of products whose factors share no variable.

    (1 + erf(u)) v is v + erf(u) v, whose expectations are those of functions of one variable.
    """
    if len(_sources(builder, a) | _sources(builder, b)) == 1:
        return None  # a function of one variable
    (left, c), (right, d) = ((builder.terms(i), builder.offset(i)) for i in (a, b))
    count = (len(left) + bool(c)) * (len(right) + bool(d))
    if count == 1 or count > _MAX_PRODUCTS:
        return None
    if not all(_separate(builder, i, j) for _, i in left for _, j in right):
        return None
    parts = [(x * y, _multiply(builder, i, j)) for x, i in left for y, j in right]
    parts += [(x * d, i) for x, i in left if d] + [(c * y, j) for y, j in right if c]
    return _combination(builder, parts, c * d)


def _separate(builder: Builder, i: int, j: int) -> bool:
    """Whether two nodes have no variable in common, or one variable all in all."""
    if not all(
        builder.gaussian(index) or isinstance(builder.nodes[index], Nonlinear) for index in (i, j)
    ):
        return False
    sources = [_sources(builder, index) for index in (i, j)]
    return not sources[0] & sources[1] or len(sources[0] | sources[1]) == 1


def _sources(builder: Builder, index: int) -> set[int]:
    """The Gaussian nodes of which a node is a function, as far as they are its own."""
    node = builder.nodes[index]
    if builder.gaussian(index) or not isinstance(node, Nonlinear | Combination):
        return {index}
    if isinstance(node, Nonlinear):
        return set(node.related_through)
    return set().union(*(_sources(builder, i) for i in node.inputs))


def _expression(
    builder: Builder, indices: Sequence[int], build: Callable[[Sequence[Any]], Apply]
) -> int:
    """An elementwise function of nodes over the Gaussian vectors underneath."""
    partitions = {builder.hidden(i).partition(builder) for i in indices}
    if len(partitions) == 1 and None not in partitions:
        return _distribute(builder, indices, lambda i: _expression(builder, i, build))
    over = _Expansion(builder)
    expression = build([over.expand(i) for i in indices])
    positions = builder.positions(indices[0])
    sources, statistics = over.sources, over.statistics
    if len(sources) == 1 and not statistics:
        function = OneVariable(expression)
        one = Numerical(function, detect_kinks(function))
        return builder.add(Nonlinear((Factor(one, (sources[0],)),), positions))
    factor = Factor(expression, tuple(sources), tuple(statistics))
    return builder.add(Nonlinear((factor,), positions))


class _Expansion:
    """Nodes as expressions over the Gaussian vectors underneath."""

    def __init__(self, builder: Builder) -> None:
        self.sources: list[int] = []
        self.statistics: list[tuple[str, int]] = []
        self._builder = builder
        self._done: dict[int, Any] = {}

    def variable(self, index: int) -> Variable:
        """The variable that a Gaussian node is."""
        return Variable(_place(self.sources, index))

    def statistic(self, kind: str, index: int) -> Statistic:
        """The statistic ("mean" or "scale") of a node."""
        return Statistic(_place(self.statistics, (kind, index)))

    def expand(self, index: int) -> Any:
        """A node as an expression."""
        if index not in self._done:
            self._done[index] = self._expand(index)
        return self._done[index]

    def _expand(self, index: int) -> Any:
        node = self._builder.hidden(index)
        if self._builder.gaussian(index) and not isinstance(node, Combination):
            return self.variable(index)
        expression = node.expression(index, self)
        if isinstance(node, Features):
            raise self._builder.unsupported(
                "a nonlinearity of units that have different constants added",
                "the raw input or a constant was added to them; put a linear layer or a "
                "convolution between them",
            )
        if expression is None:
            raise self._builder.unsupported(
                "a nonlinearity whose input is not Gaussian in the limit",
                f"its input is the result of {type(node).__name__} of nonlinear units; put a "
                "linear layer or a convolution between them",
            )
        return expression


def _place(items: list[Any], item: Any) -> int:
    """Where an item is in a list, added if it is new."""
    if item not in items:
        items.append(item)
    return items.index(item)


def _distribute(
    builder: Builder, indices: Sequence[int], rule: Callable[[Sequence[int]], int]
) -> int:
    """A rule applied input by input to nodes of one partition."""
    parts = zip(*(builder.nodes[i].inputs for i in indices), strict=True)
    results = [rule(list(part)) for part in parts]
    return builder.add(builder.nodes[indices[0]].with_inputs(results))
