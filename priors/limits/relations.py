"""Which pairs of nodes can have a moment: those with a common weight, or with means."""

from __future__ import annotations

from collections.abc import Sequence

from priors.limits.maps import is_map
from priors.programs.nodes import (
    Attention,
    BatchNormalise,
    Embedding,
    Factor,
    Features,
    Linear,
    Nonlinear,
)
from priors.programs.program import Program

__all__ = ["independent_groups", "related"]


def related(program: Program, a: int, b: int) -> bool:
    """Whether the moment of two nodes can differ from 0."""
    key = (min(a, b), max(a, b))
    if key not in program.relations:
        program.relations[key] = _find_relation(program, *key)
    return program.relations[key]


def _find_relation(program: Program, a: int, b: int) -> bool:
    first, second = program.nodes[a], program.nodes[b]
    gaussian = program.gaussian(a), program.gaussian(b)
    if isinstance(first, Features) or isinstance(second, Features):
        return isinstance(first, Features) and isinstance(second, Features)
    if not any(gaussian):
        return True  # means
    if isinstance(first, Linear) and isinstance(second, Linear):
        if first.bias is not None and first.bias == second.bias:
            return True
        if first.weight != second.weight or first.source is None or second.source is None:
            return False
        return related(program, first.source, second.source)
    if isinstance(first, Embedding) and isinstance(second, Embedding):
        return first.weight == second.weight
    # take the later node apart
    for index, other in ((b, a), (a, b)):
        node = program.nodes[index]
        if isinstance(node, Attention):
            return related(program, node.value, other)
        if isinstance(node, BatchNormalise):
            return related(program, node.source, other)
        if isinstance(node, Nonlinear):
            return any(related(program, s, other) for f in node.factors for s in f.sources)
        if is_map(node):
            return any(related(program, s, other) for s in program.sources(index))
    return False


def independent_groups(
    program: Program, items: Sequence[tuple[int, int, Factor]]
) -> list[list[tuple[int, int, Factor]]]:
    """Factors in groups that are independent of each other."""
    groups: list[list[tuple[int, int, Factor]]] = []
    for item in items:
        joined = [item]
        rest = []
        for group in groups:
            if any(
                related(program, s, t)
                for _, _, f in group
                for s in f.sources
                for t in item[2].sources
            ):
                joined = group + joined
            else:
                rest.append(group)
        groups = [*rest, joined]
    return groups
