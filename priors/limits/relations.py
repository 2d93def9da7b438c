"""Which pairs of nodes can have a moment: those with a common weight, or with means."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from priors.programs.nodes import Factor
from priors.programs.program import Program

__all__ = ["independent_groups", "related"]


def related(program: Program, a: int, b: int) -> bool:
    """Whether the moment of two nodes can differ from 0."""
    key = (min(a, b), max(a, b))
    if key not in program.relations:
        program.relations[key] = _find_relation(program, *key)
    return program.relations[key]


def _find_relation(program: Program, a: int, b: int) -> bool:
    first, second = program.hidden(a), program.hidden(b)
    for node, other in ((first, second), (second, first)):
        known = node.relation(other, functools.partial(related, program))
        if known is not None:
            return known
    if not program.gaussian(a) and not program.gaussian(b):
        return True  # means
    # take the later node apart
    for index, opposite in ((b, a), (a, b)):
        sources = program.hidden(index).related_through
        if sources:
            return any(related(program, s, opposite) for s in sources)
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
