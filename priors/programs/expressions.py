"""Elementwise expressions over several variables, as trees that can be copied and pickled.

What an ordinary forward does unit by unit between two layers, u + relu(u), sigmoid(a) * tanh(b),
is an expression whose variables are Gaussian in the infinite-width limit. Statistics are numbers
that differ between data points (the mean and the scale of a normalisation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from priors.gaussian.quadrature import derivative_of

__all__ = [
    "Apply",
    "Expression",
    "OneVariable",
    "Statistic",
    "Variable",
    "crossings",
    "substitute",
]


@dataclass(frozen=True)
class Variable:
    """Variable number `index`."""

    index: int


@dataclass(frozen=True)
class Statistic:
    """Statistic number `index`."""

    index: int


@dataclass(frozen=True, eq=False)
class Apply:
    """An elementwise function of expressions and constants."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...] = ()

    def __call__(self, variables: Sequence[Tensor], statistics: Sequence[Tensor] = ()) -> Tensor:
        """The expression's value.

        Args:
            variables: Tensors that broadcast together, in the order of `Variable.index`.
            statistics: The same for `Statistic.index`.
        """
        # A node used twice is evaluated once: a recurrent cell's state appears in every step.
        done: dict[int, Any] = {}

        def value(node: Any) -> Any:
            match node:
                case Variable():
                    return variables[node.index]
                case Statistic():
                    return statistics[node.index]
                case Apply():
                    if id(node) not in done:
                        arguments = [value(a) for a in node.arguments]
                        keywords = {k: value(v) for k, v in node.keywords}
                        done[id(node)] = node.function(*arguments, **keywords)
                    return done[id(node)]
            return node

        result: Tensor = value(self)
        # a comparison, as the number that it is
        return result.to(variables[0].dtype) if result.dtype == torch.bool else result

    def derivative(
        self, index: int, variables: Sequence[Tensor], statistics: Sequence[Tensor] = ()
    ) -> Tensor:
        """The partial derivative in one variable, where the others are given."""

        def along(x: Tensor) -> Tensor:
            moved = [x if k == index else v for k, v in enumerate(variables)]
            return self(moved, statistics)

        # expanded, so that nothing is summed over
        shape = torch.broadcast_shapes(*(v.shape for v in (*variables, *statistics)))
        return derivative_of(along)(variables[index].expand(shape))


Expression = Apply

# Cells of the grid on which crossings are looked for, and halvings of a cell.
_CELLS, _HALVINGS = 240, 40


def crossings(expression: Apply, scale: Tensor, statistics: Sequence[Tensor]) -> list[Tensor]:
    """Where an expression of one variable has kinks, which move with its statistics.

    A kink is where the argument of a kinked function, relu for one, passes that function's own
    kink. Crossings closer than a tenth of a standard deviation may be missed.

    Args:
        expression: Of variable 0.
        scale: Standard deviation of the variable at each data point, any shape.
        statistics: Each of that shape.

    Returns:
        Tensors of that shape, NaN where a data point has no such crossing.
    """
    spread = [s[..., None] for s in statistics]

    def arguments(x: Tensor) -> list[Tensor]:
        """Argument minus kink, for each kinked function inside."""
        found: list[Tensor] = []
        done: dict[int, Any] = {}

        def value(node: Any) -> Any:
            match node:
                case Variable():
                    return x
                case Statistic():
                    return spread[node.index]
                case Apply():
                    if id(node) not in done:
                        own = [value(a) for a in node.arguments]
                        keywords = {k: value(v) for k, v in node.keywords}
                        for kink in getattr(node.function, "kinks", ()):
                            found.append((own[0] - kink).expand(x.shape))
                        done[id(node)] = node.function(*own, **keywords)
                    return done[id(node)]
            return node

        value(expression)
        return found

    grid = torch.linspace(-12.0, 12.0, _CELLS + 1, dtype=scale.dtype, device=scale.device)
    x = scale[..., None] * grid
    places = []
    for k, inner in enumerate(arguments(x)):
        # the first and the last cell in which the sign changes
        changes = (inner[..., :-1] > 0) != (inner[..., 1:] > 0)
        some = changes.any(-1)
        cells = [changes.int().argmax(-1), _CELLS - 1 - changes.flip(-1).int().argmax(-1)]
        for cell in cells:
            low = x.gather(-1, cell[..., None])
            high = x.gather(-1, cell[..., None] + 1)
            rising = inner.gather(-1, cell[..., None] + 1) > 0
            for _ in range(_HALVINGS):
                middle = (low + high) / 2
                above = (arguments(middle)[k] > 0) == rising
                low, high = torch.where(above, low, middle), torch.where(above, middle, high)
            places.append(torch.where(some, high.squeeze(-1), float("nan")))
    return places


@dataclass(frozen=True)
class OneVariable:
    """An expression of one variable as a function of one tensor (and statistics)."""

    expression: Apply

    def __call__(self, x: Tensor, *statistics: Tensor) -> Tensor:
        return self.expression((x,), statistics)


def substitute(node: Any, variables: Sequence[Any], statistics: Sequence[Any]) -> Any:
    """An expression with its variables and statistics replaced; shared parts stay shared."""
    done: dict[int, Any] = {}

    def replace(part: Any) -> Any:
        match part:
            case Variable():
                return variables[part.index]
            case Statistic():
                return statistics[part.index]
            case Apply():
                if id(part) not in done:
                    arguments = tuple(replace(a) for a in part.arguments)
                    keywords = tuple((k, replace(v)) for k, v in part.keywords)
                    done[id(part)] = Apply(part.function, arguments, keywords)
                return done[id(part)]
        return part

    return replace(node)
