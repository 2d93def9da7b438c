"""Columns of flat inputs that a network gives the same weights.

The pixels of a channel, a feature of all tokens, an input at all times: where weights are shared,
entries have a common unit, and models standardise them together. Each by itself would make a pixel
that is rarely lit as large as one that always is, and hide from shared weights what they look for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from priors.limits.points import FiniteValues
from priors.programs.nodes import Features, Linear
from priors.programs.program import Program

__all__ = ["joined", "shared_columns"]


def shared_columns(program: Program) -> list[list[int]]:
    """Groups of at least two columns that meet the same weight, without common members.

    Functions that compute with inputs, rather than move them, share nothing.

    Args:
        program: A network.
    """
    if None in program.input_shape:
        return []
    columns = math.prod(size or 1 for size in program.input_shape)
    numbers = torch.arange(columns, dtype=torch.float64, device="cpu")
    # a function of entries, or only their places?
    others = (numbers + 0.5).sin()
    values = FiniteValues(program, torch.stack([numbers, others]))
    met: dict[tuple[str | int, int], list[int]] = {}
    for index, node in enumerate(program.nodes):
        source: int
        weight: str | int
        if isinstance(node, Features):
            source, weight = index, index
        elif isinstance(node, Linear) and node.source is not None:
            source, weight = node.source, node.weight
        else:
            continue
        if not isinstance(program.nodes[source], Features):
            continue
        moved = _places(values.features(source), others)
        for slot, places in enumerate([] if moved is None else moved.mT.tolist()):
            met.setdefault((weight, slot), []).extend(places)
    return joined(met.values())


def joined(groups: Iterable[Iterable[int]]) -> list[list[int]]:
    """Groups of at least two numbers; those with a common member become one.

    Args:
        groups: Any, in which numbers may be repeated.
    """
    apart: list[set[int]] = []
    for group in map(set, groups):
        meeting = [other for other in apart if other & group]
        apart = [other for other in apart if not other & group] + [group.union(*meeting)]
    return sorted(sorted(group) for group in apart if len(group) > 1)


def _places(features: Tensor, others: Tensor) -> Tensor | None:
    """Where each entry `[P, width]` comes from, None if any of them is computed."""
    numbers, values = features.reshape(2, -1, features.shape[-1])
    places = numbers.round().long().clamp(0, len(others) - 1)
    return places if torch.equal(others[places], values) else None
