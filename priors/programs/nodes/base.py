"""The base class of nodes: their inputs, and their changes while a program is built."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy
import torch
from torch import Tensor

from priors.programs.expressions import Expression, Statistic, Variable

__all__ = [
    "Array",
    "Construction",
    "Expansion",
    "Finite",
    "Hidden",
    "Node",
    "OneSource",
    "Ref",
    "SeveralSources",
    "Shape",
    "Span",
    "is_gaussian",
]

# A dimension that the module leaves open (`nn.LazyLinear`, or no `input_shape` given).
Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Array:
    """A constant array by value: hashable, and a tensor on any device."""

    data: bytes
    shape: tuple[int, ...]
    kind: str

    @staticmethod
    def of(tensor: Tensor) -> Array:
        """The array of a tensor; floating point is kept in float64."""
        values = tensor.detach().cpu()
        values = values.double() if values.is_floating_point() else values
        array = values.contiguous().numpy()
        return Array(array.tobytes(), tuple(array.shape), array.dtype.str)

    def tensor(self, like: Tensor) -> Tensor:
        """The array on the device of `like`, and in its dtype if floating point."""
        array = numpy.frombuffer(self.data, dtype=self.kind).reshape(self.shape).copy()
        result = torch.from_numpy(array).to(like.device)
        return result.to(like.dtype) if result.is_floating_point() else result


@dataclass(frozen=True)
class Ref:
    """A finite node among the arguments of a `Function`; the batch size if `index` is None.

    The function gets it with the batch as dimension `batch`.
    """

    index: int | None
    batch: int = 0


@dataclass(frozen=True)
class Span:
    """A slice among the arguments of a `Function`, which unlike `slice` is hashable."""

    start: Any
    stop: Any
    step: Any


class Construction(Protocol):
    """A program under construction, as its nodes see it."""

    nodes: list[Node]

    def add(self, node: Node) -> int:
        """The index of a node; an equal one is the same."""

    def positions(self, value: int) -> tuple[int, ...]:
        """Shape of the positions of a hidden node."""

    def select(self, index: int, picks: Tensor) -> int:
        """Positions `picks` (numbers of flattened positions, in the new shape) of a node."""

    def restrict(self, index: int, first: int, last: int) -> int:
        """Units first..last-1 of a node: other rows of the matrix that made it."""

    def unsupported(self, what: str, why: str = "") -> Exception:
        """The error that refuses what is being translated."""


class Expansion(Protocol):
    """An expression over Gaussian vectors that is being put together."""

    def variable(self, index: int) -> Variable:
        """The variable that a Gaussian node is."""

    def statistic(self, kind: str, index: int) -> Statistic:
        """The statistic ("mean" or "scale") of a node."""

    def expand(self, index: int) -> Expression:
        """A node as an expression over the Gaussian vectors underneath."""


class NodeBase(ABC):
    """What finite and hidden nodes have in common."""

    @property
    @abstractmethod
    def inputs(self) -> tuple[int, ...]:
        """The nodes that it is computed from."""

    @abstractmethod
    def with_inputs(self, inputs: Sequence[int]) -> Self:
        """The same node computed from others, in the order of `inputs`."""

    def renumbered(self, places: Mapping[int, int]) -> Self:
        """The node where its inputs have moved to `places`."""
        return self.with_inputs([places[i] for i in self.inputs])

    def is_gaussian(self, gaussian: Callable[[int], bool]) -> bool:
        """Whether its units are Gaussian with mean 0, given that question for its inputs."""
        return False


class Finite(NodeBase):
    """A node computed from the data point alone; `shape` is without the batch."""

    shape: Shape


class Hidden(NodeBase):
    """A node with a vector of infinite width at each of its `positions`.

    A new kind says what it is computed from and, if it is Gaussian, that it is. The other methods
    are about the short cuts that a kind allows; by default it has none.

    Attributes:
        mixes: Whether different positions meet in it.
    """

    positions: tuple[int, ...]
    mixes = False

    @property
    def num_positions(self) -> int | None:
        """Number of positions; None of a single vector."""
        return math.prod(self.positions) if self.positions else None

    @property
    def homogeneous(self) -> bool:
        """Whether s > 0 times its only input gives a power of s times it."""
        return False

    # In the limit ------------------------------------------------------------------------------

    @property
    def related_through(self) -> tuple[int, ...]:
        """The inputs whose relation to another node is its own."""
        return self.inputs

    def relation(self, other: Node, related: Callable[[int, int], bool]) -> bool | None:
        """Whether its moment with `other` can differ from 0; None if its inputs decide."""
        return None

    # While a program is built ------------------------------------------------------------------

    def sum(self, index: int) -> tuple[tuple[tuple[float, int], ...], float]:
        """Terms (c_k, node k) and offset of the sum that it is, none of them a sum."""
        return ((1.0, index),), 0.0

    def selected(self, picks: Tensor, program: Construction) -> int | None:
        """A node that has its positions `picks`; None if there is no better one than `Select`."""
        return None

    def restricted(self, index: int, first: int, last: int, program: Construction) -> int:
        """A node that has its units first..last-1.

        Raises:
            NotImplementedError: it has no units of its own.
        """
        raise program.unsupported(f"a slice of units of {type(self).__name__}")

    def partition(self, program: Construction) -> Hashable | None:
        """What another node shares if both can be combined input by input; None if none can."""
        return None

    def expression(self, index: int, expansion: Expansion) -> Any:
        """An expression of its inputs, unit by unit; None if it is not one."""
        return None


Node = Finite | Hidden


@dataclass(frozen=True)
class OneSource(Hidden):
    """A hidden node computed from one other."""

    source: int

    @property
    def inputs(self) -> tuple[int, ...]:
        return (self.source,)

    def with_inputs(self, inputs: Sequence[int]) -> Self:
        return replace(self, source=inputs[0])


@dataclass(frozen=True)
class SeveralSources(Hidden):
    """A hidden node computed from any number of others."""

    sources: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        return self.sources

    def with_inputs(self, inputs: Sequence[int]) -> Self:
        return replace(self, sources=tuple(inputs))


def is_gaussian(nodes: Sequence[Node], index: int) -> bool:
    """Whether a node's units are Gaussian with mean 0 in the limit."""
    return nodes[index].is_gaussian(lambda i: is_gaussian(nodes, i))
