"""The paths of operations that lead through an architecture."""

from __future__ import annotations

from functools import lru_cache

from nas.architectures import Architecture
from nas.kernels.computation import Operation, bodies_of, computation

__all__ = ["paths_of"]

MAX_PATHS = 64  # into one step; a network of many branches has more than can be listed


@lru_cache(maxsize=1 << 14)
def paths_of(architecture: Architecture) -> frozenset[tuple[str, ...]]:
    """Names of operations along each path from input to output, of the network and of its cells.

    Of steps that more than 64 paths lead to, the shortest 64 count. Empty operations are
    taken out first, see `nas.kernels.computation`.
    """
    graphs = [computation(graph.nodes) for graph in (architecture, *bodies_of(architecture))]
    return frozenset(path for graph in graphs for path in _into_output(graph))


def _into_output(graph: list[Operation]) -> list[tuple[str, ...]]:
    paths: list[list[tuple[str, ...]]] = []
    for step in graph:
        before = {path for source in step.inputs for path in paths[source]} or {()}
        kept = sorted(before, key=lambda path: (len(path), path))[:MAX_PATHS]
        # A sum is where paths meet, not a step of them.
        paths.append(kept if step.name == "sum" else [(*path, step.name) for path in kept])
    return paths[-1]
