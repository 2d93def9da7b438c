"""Linear maps between nodes: combinations, masks, and maps of positions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from priors.limits.kinds import LinearMap, TangentPairs, register_kind
from priors.limits.operands import Operand
from priors.limits.pairs import Pairs, Pairwise
from priors.limits.positions import gathered, mixed, selected
from priors.programs.nodes import (
    Combination,
    Concatenate,
    Dropout,
    Flatten,
    Join,
    Mix,
    Select,
    Zero,
)

__all__: list[str] = []


@register_kind(Combination)
class _Combination(LinearMap[Combination]):
    pointwise = True

    def apply(self, index: int, node: Combination, x: Operand) -> Tensor | None:
        total = x.weighted_sum(list(node.terms))
        if not node.offset:
            return total
        if total is None and x.is_mean:
            total = x.zeros(index)
        return x.plus_constant(total, node.offset)


@register_kind(Dropout)
class _Dropout(LinearMap[Dropout]):
    pointwise = True

    def apply(self, index: int, node: Dropout, x: Operand) -> Tensor | None:
        return x.of(node.source)

    def both(
        self, pairs: Pairs, a: int, b: int, full: bool, of: Pairwise, means: bool
    ) -> Callable[[], Tensor | None] | None:
        if a != b:
            return None
        node, _ = self.nodes(pairs, a, b)

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


@register_kind(Select)
class _Select(LinearMap[Select]):
    def apply(self, index: int, node: Select, x: Operand) -> Tensor | None:
        value = x.of(node.source)
        return None if value is None else selected(value, node, x.axis, x.program)

    def both(
        self, pairs: Pairs, a: int, b: int, full: bool, of: Pairwise, means: bool
    ) -> Callable[[], Tensor | None] | None:
        first, second = self.nodes(pairs, a, b)
        if full or first.picks != second.picks:
            return None

        def same_picks() -> Tensor | None:
            value = of(first.source, second.source, False)
            return None if value is None else selected(value, first, -1, pairs.program)

        return same_picks


@register_kind(Mix)
class _Mix(LinearMap[Mix]):
    def apply(self, index: int, node: Mix, x: Operand) -> Tensor | None:
        value = x.of(node.source)
        return None if value is None else mixed(value, node, x.axis, x.program)


@register_kind(Join)
class _Join(LinearMap[Join]):
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
        first, second = self.nodes(pairs, a, b)
        sizes = [[program.positions(i) for i in node.sources] for node in (first, second)]
        if full or sizes[0] != sizes[1]:
            return None

        def part_by_part() -> Tensor | None:
            found = [
                of(i, j, size is None)
                for i, j, size in zip(first.sources, second.sources, sizes[0], strict=True)
            ]
            if all(part is None for part in found):
                return None
            parts = []
            for part, i, j, size in zip(
                found, first.sources, second.sources, sizes[0], strict=True
            ):
                part = pairs.zeros(i, j, size is None) if part is None else part
                parts.append(part.unsqueeze(-1) if size is None else part)
            return torch.cat(parts, -1)

        return part_by_part


@register_kind(Zero)
class _Zero(LinearMap[Zero]):
    def apply(self, index: int, node: Zero, x: Operand) -> Tensor | None:
        return None

    def moment(self, pairs: Pairs, a: int, b: int, full: bool) -> Tensor | None:
        return pairs.zeros(a, b, full)

    def tangent(self, tangents: TangentPairs, a: int, b: int, full: bool) -> Tensor | None:
        return None


@register_kind(Flatten)
class _Flatten(LinearMap[Flatten]):
    def apply(self, index: int, node: Flatten, x: Operand) -> Tensor | None:
        value = x.of(node.source)
        return None if value is None else gathered(value, node.members, x.axis).mean(x.axis)

    def both(
        self, pairs: Pairs, a: int, b: int, full: bool, of: Pairwise, means: bool
    ) -> Callable[[], Tensor | None] | None:
        first, second = self.nodes(pairs, a, b)
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


@register_kind(Concatenate)
class _Concatenate(LinearMap[Concatenate]):
    pointwise = True

    def apply(self, index: int, node: Concatenate, x: Operand) -> Tensor | None:
        return x.weighted_sum(_shares(node))

    def both(
        self, pairs: Pairs, a: int, b: int, full: bool, of: Pairwise, means: bool
    ) -> Callable[[], Tensor | None] | None:
        first, second = self.nodes(pairs, a, b)
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
