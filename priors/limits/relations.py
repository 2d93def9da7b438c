"""Independence of the factors of nonlinearities."""

from __future__ import annotations

from collections.abc import Sequence

from priors.programs.nodes import Factor
from priors.programs.program import Program
from priors.programs.relations import related

__all__ = ["independent_groups"]


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
