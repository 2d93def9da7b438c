"""Nodes that hold weights: layers and embeddings."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from priors.programs.nodes.base import Construction, Hidden, Node, OneSource
from priors.programs.nodes.finite import Features

__all__ = ["Embedding", "Linear", "Weighted", "Window"]


@dataclass(frozen=True)
class Window:
    """The window of a convolution: per spatial dimension."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    circular: bool


class Weighted(Hidden):
    """A node with a matrix of its own, and so Gaussian.

    Equal `weight` means the same matrix; `layer` names its variance.
    """

    weight: str
    layer: str

    def is_gaussian(self, gaussian: Callable[[int], bool]) -> bool:
        return True

    @property
    def homogeneous(self) -> bool:
        return True

    @property
    def related_through(self) -> tuple[int, ...]:
        return ()

    def restricted(self, index: int, first: int, last: int, program: Construction) -> int:
        if self.weight != self.layer:
            raise program.unsupported("a slice of a slice of units")
        return program.add(self._rows(f"[{first}:{last}]"))

    @abstractmethod
    def _rows(self, suffix: str) -> Self:
        """The node with those rows of the matrix that `suffix` names."""


@dataclass(frozen=True)
class Linear(Weighted):
    """W h + b. Equal `bias` means the same bias vector.

    `source` None is the zero vector: what remains is the bias. `fan_in` is the module's own.
    """

    source: int | None
    weight: str
    layer: str
    bias: str | None
    bias_layer: str | None
    fan_in: int | None
    window: Window | None
    positions: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        return () if self.source is None else (self.source,)

    def with_inputs(self, inputs: Sequence[int]) -> Self:
        return self if self.source is None else replace(self, source=inputs[0])

    def relation(self, other: Node, related: Callable[[int, int], bool]) -> bool | None:
        if not isinstance(other, Linear):
            return None
        if self.bias is not None and self.bias == other.bias:
            return True
        if self.weight != other.weight or self.source is None or other.source is None:
            return False
        return related(self.source, other.source)

    def selected(self, picks: Tensor, program: Construction) -> int | None:
        if self.window is not None or self.source is None:
            return None
        if isinstance(program.nodes[self.source], Features):
            return None
        source = program.select(self.source, picks)
        return program.add(replace(self, source=source, positions=tuple(picks.shape)))

    def _rows(self, suffix: str) -> Self:
        bias = None if self.bias is None else self.bias + suffix
        return replace(self, weight=self.weight + suffix, bias=bias)


@dataclass(frozen=True)
class Embedding(OneSource, Weighted):
    """The row of W that belongs to a token, 0 for the padding token; `source` is finite."""

    weight: str
    layer: str
    padding: int | None
    positions: tuple[int, ...]

    def relation(self, other: Node, related: Callable[[int, int], bool]) -> bool | None:
        return self.weight == other.weight if isinstance(other, Embedding) else None

    def _rows(self, suffix: str) -> Self:
        return replace(self, weight=self.weight + suffix)
