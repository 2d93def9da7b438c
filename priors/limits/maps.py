"""Linear maps between nodes: one class for each kind, with all that a kernel asks of it.

A map acts on *one side* of pairs of nodes, and in the same way on the mean of a node. Both are an
`Operand`: what is known of the map's sources, how a number for each data point multiplies it, and
what a constant vector adds to it. A kind may also have a rule for *both sides* at once, where that
is cheaper or different.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from priors.limits.pairs import Pairs, Pairwise
from priors.limits.positions import averaged, gathered, mixed, selected
from priors.programs.nodes import (
    Attention,
    Combination,
    Concatenate,
    Dropout,
    Flatten,
    Join,
    Mix,
    Normalise,
    Select,
)
from priors.programs.program import Program

__all__ = ["Mean", "OneSide", "is_map", "map_of"]


class Operand(ABC):
    """What a map is applied to.

    Attributes:
        program: The program.
        axis: Dimension of the mapped positions, from the end.
        is_mean: Whether it is the mean of a node, not pairs.
    """

    program: Program
    axis: int
    is_mean: bool

    @abstractmethod
    def of(self, source: int) -> Tensor | None:
        """What the map's source has in the place of the map's node; None if it vanishes."""

    @abstractmethod
    def plus_constant(self, value: Tensor | None, number: Tensor | float) -> Tensor | None:
        """With a vector added whose entries are `number` (a tensor: `spread`)."""

    @abstractmethod
    def spread(self, number: Tensor) -> Tensor:
        """A number for each data point and position, shaped to multiply."""

    @abstractmethod
    def zeros(self, source: int) -> Tensor:
        """Zero, in the shape that `of` has."""

    @abstractmethod
    def statistics(self, index: int) -> tuple[Tensor | None, Tensor]:
        """Mean and scale of a normalisation, not spread."""

    @abstractmethod
    def weights(self, index: int) -> Tensor:
        """Average attention weights, spread."""

    def weighted_sum(self, terms: list[tuple[float, int]]) -> Tensor | None:
        """sum_k c_k of(source k)."""
        total: Tensor | None = None
        for coefficient, source in terms:
            part = self.of(source)
            if part is None:
                continue
            part = part if coefficient == 1.0 else part * coefficient
            total = part if total is None else total + part
        return total


class OneSide(Operand):
    """Pairs of nodes `a` and `b`, mapped on the side of `a` (or of `b`).

    Args:
        pairs: The moments.
        a: Node on the left.
        b: Node on the right.
        full: Whether all pairs of positions are meant.
        of: What is propagated through the maps.
        means: Whether it has a part from the means, as moments have and tangents do not.
        left: Whether the map is that of `a`.
    """

    is_mean = False

    def __init__(
        self, pairs: Pairs, a: int, b: int, full: bool, of: Pairwise, means: bool, *, left: bool
    ) -> None:
        self.program = pairs.program
        self._pairs, self._a, self._b, self._full = pairs, a, b, full
        self._pairwise, self._means, self._left = of, means, left
        self._other = b if left else a
        # counted from the end, the other side's positions may come after those of the left
        self.axis = -1 - int(full and pairs.has_positions(b)) if left else -1

    def of(self, source: int) -> Tensor | None:
        pair = (source, self._b) if self._left else (self._a, source)
        return self._pairwise(*pair, self._full)

    def plus_constant(self, value: Tensor | None, number: Tensor | float) -> Tensor | None:
        if not self._means:
            return value
        mean = self._pairs.mean(self._other, 1 if self._left else 0)
        if mean is None:
            return value
        opposite = self._pairs.on_right if self._left else self._pairs.on_left
        term = number * opposite(mean, self._a, self._b, self._full)
        return (
            self._pairs.zeros(self._a, self._b, self._full) + term
            if value is None
            else (value + term)
        )

    def spread(self, number: Tensor) -> Tensor:
        place = self._pairs.on_left if self._left else self._pairs.on_right
        return place(number, self._a, self._b, self._full)

    def zeros(self, source: int) -> Tensor:
        pair = (source, self._b) if self._left else (self._a, source)
        return self._pairs.zeros(*pair, self._full)

    def statistics(self, index: int) -> tuple[Tensor | None, Tensor]:
        return self._pairs.statistics(index, 0 if self._left else 1)

    def weights(self, index: int) -> Tensor:
        side = 0 if self._left else 1
        weights = self._pairs.of_points(side).weights(index)
        weights = self._pairs.rows_of(weights, side, 2)
        return weights if self._pairs.paired else weights.unsqueeze(-3 if self._left else -4)


class Mean(Operand):
    """The mean of a node at each data point."""

    axis = -1
    is_mean = True

    def __init__(self, single: Pairs) -> None:
        self.program = single.program
        self._single = single

    def of(self, source: int) -> Tensor | None:
        return self._single.mean(source, 0)

    def plus_constant(self, value: Tensor | None, number: Tensor | float) -> Tensor | None:
        return None if value is None else value + number

    def spread(self, number: Tensor) -> Tensor:
        return number

    def zeros(self, source: int) -> Tensor:
        return self._single.zeros_of(source)

    def statistics(self, index: int) -> tuple[Tensor | None, Tensor]:
        return self._single.statistics(index, 0)

    def weights(self, index: int) -> Tensor:
        return self._single.weights(index)


class LinearMap(ABC):
    """One kind of map.

    Attributes:
        pointwise: Whether it works position by position.
    """

    pointwise = False

    @abstractmethod
    def apply(self, index: int, node: Any, x: Operand) -> Tensor | None:
        """The map of node `index`, applied to its sources; None if nothing is left."""

    def both(
        self, pairs: Pairs, a: int, b: int, full: bool, of: Pairwise, means: bool
    ) -> Callable[[], Tensor | None] | None:
        """A rule for two nodes of this kind at once; None: one side after the other."""
        return None


class _Combination(LinearMap):
    pointwise = True

    def apply(self, index: int, node: Combination, x: Operand) -> Tensor | None:
        total = x.weighted_sum(list(node.terms))
        if not node.offset:
            return total
        if total is None and x.is_mean:
            total = x.zeros(index)
        return x.plus_constant(total, node.offset)


class _Normalise(LinearMap):
    """With the statistics of each data point held fixed."""

    pointwise = True

    def apply(self, index: int, node: Normalise, x: Operand) -> Tensor | None:
        mean, scale = x.statistics(index)
        if x.is_mean and node.centred and not node.pooled:
            return None  # the mean is taken off
        value = x.of(node.source)
        if mean is not None:
            value = x.plus_constant(value, -x.spread(mean))
        return None if value is None else value * x.spread(scale)


class _Dropout(LinearMap):
    pointwise = True

    def apply(self, index: int, node: Dropout, x: Operand) -> Tensor | None:
        return x.of(node.source)

    def both(
        self, pairs: Pairs, a: int, b: int, full: bool, of: Pairwise, means: bool
    ) -> Callable[[], Tensor | None] | None:
        if a != b:
            return None
        node = pairs.program.nodes[a]
        assert isinstance(node, Dropout)

        def same_mask() -> Tensor | None:
            value = of(node.source, node.source, full)
            return None if value is None else _masked(pairs, node, a, full, value)

        return same_mask


def _masked(pairs: Pairs, node: Dropout, index: int, full: bool, value: Tensor) -> Tensor:
    """Pairs of a point with itself under the same random mask: times 1 / keep."""
    if not pairs.same:
        return value
    trailing = pairs.trailing(index, index, full)
    factor = value.new_ones(value.shape[-2 - trailing if not pairs.paired else -1 - trailing :])
    chosen = factor if pairs.paired else factor.diagonal(dim1=0, dim2=1).movedim(-1, 0)
    if trailing == 2 and not node.whole:
        chosen = chosen.diagonal(dim1=-2, dim2=-1)
    chosen /= node.keep
    return value * factor


class _Select(LinearMap):
    def apply(self, index: int, node: Select, x: Operand) -> Tensor | None:
        value = x.of(node.source)
        return None if value is None else selected(value, node, x.axis, x.program)

    def both(
        self, pairs: Pairs, a: int, b: int, full: bool, of: Pairwise, means: bool
    ) -> Callable[[], Tensor | None] | None:
        first, second = pairs.program.nodes[a], pairs.program.nodes[b]
        assert isinstance(first, Select)
        assert isinstance(second, Select)
        if full or first.picks != second.picks:
            return None

        def same_picks() -> Tensor | None:
            value = of(first.source, second.source, False)
            return None if value is None else selected(value, first, -1, pairs.program)

        return same_picks


class _Mix(LinearMap):
    def apply(self, index: int, node: Mix, x: Operand) -> Tensor | None:
        value = x.of(node.source)
        return None if value is None else mixed(value, node, x.axis, x.program)


class _Join(LinearMap):
    def apply(self, index: int, node: Join, x: Operand) -> Tensor | None:
        parts = [(i, x.of(i)) for i in node.sources]
        if all(part is None for _, part in parts):
            return None
        whole = []
        for i, part in parts:
            part = x.zeros(i) if part is None else part
            has_positions = x.program.positions(i) is not None
            whole.append(part if has_positions else part.unsqueeze(x.axis))
        return torch.cat(whole, x.axis)

    def both(
        self, pairs: Pairs, a: int, b: int, full: bool, of: Pairwise, means: bool
    ) -> Callable[[], Tensor | None] | None:
        program = pairs.program
        first, second = program.nodes[a], program.nodes[b]
        assert isinstance(first, Join)
        assert isinstance(second, Join)
        sizes = [[program.positions(i) for i in node.sources] for node in (first, second)]
        if full or sizes[0] != sizes[1]:
            return None

        def part_by_part() -> Tensor | None:
            found = [
                of(i, j, size is None)
                for i, j, size in zip(first.sources, second.sources, sizes[0], strict=True)
            ]
            parts = [p for p in found if p is not None]
            if len(parts) < len(found):
                whole = of(a, b, True)
                return None if whole is None else whole.diagonal(dim1=-2, dim2=-1)
            return torch.cat(
                [
                    part.unsqueeze(-1) if size is None else part
                    for part, size in zip(parts, sizes[0], strict=True)
                ],
                -1,
            )

        return part_by_part


class _Flatten(LinearMap):
    def apply(self, index: int, node: Flatten, x: Operand) -> Tensor | None:
        value = x.of(node.source)
        return None if value is None else gathered(value, node.members, x.axis).mean(x.axis)

    def both(
        self, pairs: Pairs, a: int, b: int, full: bool, of: Pairwise, means: bool
    ) -> Callable[[], Tensor | None] | None:
        first, second = pairs.program.nodes[a], pairs.program.nodes[b]
        assert isinstance(first, Flatten)
        assert isinstance(second, Flatten)
        if first.members != second.members:
            return None

        def same_members() -> Tensor | None:
            single = not first.positions
            value = of(first.source, second.source, not single)
            if value is None:
                return None
            if single:
                return gathered(value, first.members, -1).mean(-1)
            members = first.members.tensor(value).flatten(0, -2)
            picked = value[..., members[:, None], members[None, :]].mean(-1)
            return picked if full else picked.diagonal(dim1=-2, dim2=-1)

        return same_members


class _Concatenate(LinearMap):
    pointwise = True

    def apply(self, index: int, node: Concatenate, x: Operand) -> Tensor | None:
        return x.weighted_sum(_shares(node))

    def both(
        self, pairs: Pairs, a: int, b: int, full: bool, of: Pairwise, means: bool
    ) -> Callable[[], Tensor | None] | None:
        first, second = pairs.program.nodes[a], pairs.program.nodes[b]
        assert isinstance(first, Concatenate)
        assert isinstance(second, Concatenate)
        if first.sizes != second.sizes:
            return None

        def part_by_part() -> Tensor | None:
            total: Tensor | None = None
            for (share, i), j in zip(_shares(first), second.sources, strict=True):
                part = of(i, j, full)
                if part is not None:
                    total = part * share if total is None else total + part * share
            return total

        return part_by_part


def _shares(node: Concatenate) -> list[tuple[float, int]]:
    """Each part's share of the width."""
    whole = sum(node.sizes)
    return [(size / whole, i) for size, i in zip(node.sizes, node.sources, strict=True)]


class _Attention(LinearMap):
    """Averages over positions with weights held fixed, or random over the heads."""

    def apply(self, index: int, node: Attention, x: Operand) -> Tensor | None:
        value = x.of(node.value)
        return None if value is None else averaged(value, x.weights(index), x.axis)

    def both(
        self, pairs: Pairs, a: int, b: int, full: bool, of: Pairwise, means: bool
    ) -> Callable[[], Tensor | None] | None:
        first, second = pairs.program.nodes[a], pairs.program.nodes[b]
        assert isinstance(first, Attention)
        assert isinstance(second, Attention)
        if first.mean_field or second.mean_field:
            return None

        def over_heads() -> Tensor | None:
            inner = of(first.value, second.value, True)
            if inner is None:
                return None
            value = pairs.heads(a, b).average(inner)
            if means and pairs.same and not pairs.paired:
                own = pairs.of_points(0).moment(a, b, True)
                value = pairs.with_exact_blocks(value, own)
            return value if full else value.diagonal(dim1=-2, dim2=-1)

        return over_heads


_MAPS: dict[type, LinearMap] = {
    Attention: _Attention(),
    Combination: _Combination(),
    Concatenate: _Concatenate(),
    Dropout: _Dropout(),
    Flatten: _Flatten(),
    Join: _Join(),
    Mix: _Mix(),
    Normalise: _Normalise(),
    Select: _Select(),
}


def is_map(node: Any) -> bool:
    """Whether a node is a linear map of others, given the statistics of each data point."""
    return type(node) in _MAPS


def map_of(node: Any) -> LinearMap:
    """The map that a node is."""
    return _MAPS[type(node)]
