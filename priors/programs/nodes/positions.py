"""Nodes that rearrange positions, or average over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from priors.programs.nodes.base import (
    Array,
    Construction,
    Hidden,
    Node,
    OneSource,
    SeveralSources,
)

__all__ = ["Attention", "Concatenate", "Flatten", "Join", "Mix", "Select", "Zero"]


@dataclass(frozen=True)
class Mix(OneSource):
    """A matrix for each axis of the source's positions (None: identity).

    `flat` instead is one matrix over all positions in a row.
    """

    matrices: tuple[Array | None, ...]
    flat: Array | None
    positions: tuple[int, ...]

    mixes = True

    @property
    def homogeneous(self) -> bool:
        return True

    def is_gaussian(self, gaussian: Callable[[int], bool]) -> bool:
        return gaussian(self.source)

    def restricted(self, index: int, first: int, last: int, program: Construction) -> int:
        return program.add(self.with_inputs([program.restrict(self.source, first, last)]))


@dataclass(frozen=True)
class Select(OneSource):
    """Position k of the result is position `picks[k]` of the source (both flattened)."""

    picks: Array
    positions: tuple[int, ...]

    @property
    def homogeneous(self) -> bool:
        return True

    def is_gaussian(self, gaussian: Callable[[int], bool]) -> bool:
        return gaussian(self.source)

    def selected(self, picks: Tensor, program: Construction) -> int | None:
        own = self.picks.tensor(torch.empty(0, device="cpu")).flatten()
        return program.select(self.source, own[picks])

    def restricted(self, index: int, first: int, last: int, program: Construction) -> int:
        return program.add(self.with_inputs([program.restrict(self.source, first, last)]))


@dataclass(frozen=True)
class Join(SeveralSources):
    """The flattened positions of several nodes in a row."""

    positions: tuple[int, ...]

    def is_gaussian(self, gaussian: Callable[[int], bool]) -> bool:
        return all(gaussian(i) for i in self.sources)

    def selected(self, picks: Tensor, program: Construction) -> int | None:
        start = 0
        for source in self.sources:
            size = math.prod(program.positions(source))
            if bool(((picks >= start) & (picks < start + size)).all()):
                return program.select(source, picks - start)
            start += size
        return None

    def restricted(self, index: int, first: int, last: int, program: Construction) -> int:
        return program.add(
            self.with_inputs([program.restrict(i, first, last) for i in self.sources])
        )

    def partition(self, program: Construction) -> Hashable | None:
        return "join", tuple(program.positions(i) for i in self.sources), self.positions


@dataclass(frozen=True)
class Zero(Hidden):
    """The zero vector at every position: what images and sequences are padded with."""

    positions: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        return ()

    def with_inputs(self, inputs: Sequence[int]) -> Self:
        return self

    def is_gaussian(self, gaussian: Callable[[int], bool]) -> bool:
        return True

    def relation(self, other: Node, related: Callable[[int, int], bool]) -> bool | None:
        return isinstance(other, Zero)

    def restricted(self, index: int, first: int, last: int, program: Construction) -> int:
        return index

    def selected(self, picks: Tensor, program: Construction) -> int | None:
        return program.add(Zero(tuple(picks.shape)))


@dataclass(frozen=True)
class Flatten(OneSource):
    """The vectors of `members[k]` (positions of the source) in a row, as one vector."""

    members: Array
    positions: tuple[int, ...]

    @property
    def homogeneous(self) -> bool:
        return True

    def partition(self, program: Construction) -> Hashable | None:
        return "flatten", self.members, program.positions(self.source)


@dataclass(frozen=True)
class Concatenate(SeveralSources):
    """Vectors in a row; `sizes` are their widths in the module, whose ratios stay."""

    sizes: tuple[int, ...]
    positions: tuple[int, ...]

    def restricted(self, index: int, first: int, last: int, program: Construction) -> int:
        start = 0
        for source, size in zip(self.sources, self.sizes, strict=True):
            if (start, start + size) == (first, last):
                return source
            if start <= first and last <= start + size:
                return program.restrict(source, first - start, last - start)
            start += size
        return super().restricted(index, first, last, program)

    def partition(self, program: Construction) -> Hashable | None:
        return "concatenate", self.sizes


@dataclass(frozen=True)
class Attention(Hidden):
    """sum_b A_ab value_b, A = softmax(logits) or the logits, over the last axis of positions.

    Logits are `scale` <query_a, key_b> / width if `mean_field`, else / sqrt(width), plus `mask`
    `[queries, keys]`.
    """

    value: int
    query: int
    key: int
    scale: float
    mean_field: bool
    softmax: bool
    mask: Array | None
    positions: tuple[int, ...]

    mixes = True

    @property
    def inputs(self) -> tuple[int, ...]:
        return (self.value, self.query, self.key)

    def with_inputs(self, inputs: Sequence[int]) -> Self:
        value, query, key = inputs
        return replace(self, value=value, query=query, key=key)

    def is_gaussian(self, gaussian: Callable[[int], bool]) -> bool:
        return self.mean_field and gaussian(self.value)

    @property
    def related_through(self) -> tuple[int, ...]:
        return (self.value,)

    def restricted(self, index: int, first: int, last: int, program: Construction) -> int:
        return program.add(replace(self, value=program.restrict(self.value, first, last)))
