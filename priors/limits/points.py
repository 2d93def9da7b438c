"""The data points of a kernel: their finite values, and how a program is evaluated at them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from priors.gaussian.quasi_monte_carlo import QuasiMonteCarlo
from priors.programs.nodes import Array, Features, Function, Input, Ref, Span
from priors.programs.program import Program

__all__ = ["FiniteValues", "Inputs", "Settings", "Variances"]

# (kind, layer, like) -> variance `[*batch]` in the dtype of `like`; kind is "weight" or "bias".
Variances = Callable[[str, str, Tensor], Tensor]


@dataclass(frozen=True)
class Settings:
    """How a program is evaluated.

    Attributes:
        variances: Variance of each weight and bias, `[*batch]`.
        quadrature: For expectations over more than two variables.
        max_variables: Most variables of one expectation.
        max_bytes: Memory for what is held besides the result.
    """

    variances: Variances
    quadrature: QuasiMonteCarlo
    max_variables: int = 64
    max_bytes: int = 2**30


class FiniteValues:
    """Data points `[..., n, d]` and the values computed from them without any weight."""

    def __init__(self, program: Program, x: Tensor) -> None:
        self.program = program
        self.x = x
        self._values: dict[int, Any] = {}

    def features(self, index: int) -> Tensor:
        """A `Features` node at the data points, `[..., n, (P,) width]`."""
        node = self.program.nodes[index]
        assert isinstance(node, Features)
        value = self._value(node.source).movedim(node.axis + 1, -1).to(self.x)
        places = (math.prod(node.positions),) if node.positions else ()
        return value.reshape(*self.x.shape[:-1], *places, value.shape[-1])

    def tokens(self, index: int, positions: tuple[int, ...]) -> Tensor:
        """Integer tokens at the data points, `[..., n, (P)]`."""
        value = self._value(index)
        places = (math.prod(positions),) if positions else ()
        tokens = value.reshape(*self.x.shape[:-1], *places).round().long()
        return tokens.to(self.x.device)  # positions are numbered on the CPU

    def _value(self, index: int) -> Any:
        """A finite node with the batch as the first dimension."""
        if index not in self._values:
            node = self.program.nodes[index]
            if isinstance(node, Input):
                shape = [self.x.shape[-1] if s is None else s for s in node.shape]
                self._values[index] = self.x.reshape(-1, *shape)
            else:
                assert isinstance(node, Function)
                arguments = [self._argument(a) for a in node.arguments]
                keywords = {k: self._argument(a) for k, a in node.keywords}
                value = node.function(*arguments, **keywords)
                # constants of a given size are made on the CPU
                self._values[index] = (
                    value.to(self.x.device) if isinstance(value, Tensor) else value
                )
        return self._values[index]

    def _argument(self, item: Any) -> Any:
        """An argument of a finite function as torch wants it."""
        match item:
            case Ref(index=int(index)):
                value = self._value(index)
                return value.movedim(0, item.batch) if item.batch else value
            case Ref():
                return self.x.shape[:-1].numel()
            case Array():
                return item.tensor(self.x)
            case Span():
                return slice(*(self._argument(p) for p in (item.start, item.stop, item.step)))
            case tuple():
                return tuple(self._argument(part) for part in item)
        return item


class Inputs(FiniteValues):
    """Data points at which moments are computed, under these settings."""

    def __init__(self, program: Program, settings: Settings, x: Tensor) -> None:
        super().__init__(program, x)
        self.settings = settings
        self._variances: dict[tuple[str, str], Tensor] = {}

    def variance(self, kind: str, layer: str) -> Tensor:
        """Variance of a weight or bias, `[*batch]`; the same tensor for all blocks of points."""
        if (kind, layer) not in self._variances:
            self._variances[kind, layer] = self.settings.variances(kind, layer, self.x)
        return self._variances[kind, layer]
