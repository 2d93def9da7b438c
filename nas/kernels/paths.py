"""The paths of operations that lead through an architecture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from nas.architectures import Architecture
from nas.kernels.computation import Operation, bodies_of, computation

__all__ = ["Path", "path_counts", "paths_of"]

Path = tuple[str, ...]

MAX_PATHS = 64  # into one step; a network of many branches has more than can be listed


@lru_cache(maxsize=1 << 14)
def paths_of(architecture: Architecture) -> frozenset[Path]:
    """Names of operations along each path from input to output, of the network and of its cells.

    Of steps that more than 64 paths lead to, the shortest 64 count. Empty operations are
    taken out first, see `nas.kernels.computation`.
    """
    graphs = [computation(graph.nodes) for graph in (architecture, *bodies_of(architecture))]
    return frozenset(path_counts(graphs))


def path_counts(graphs: Sequence[Sequence[Operation]]) -> Counter[Path]:
    """How often each path leads from input to output, in some graphs together.

    Of different paths into one step, the shortest 64 are kept.
    """
    total: Counter[Path] = Counter()
    for graph in graphs:
        total.update(_into_output(graph))
    return total


def _into_output(graph: Sequence[Operation]) -> Counter[Path]:
    paths: list[Counter[Path]] = []
    for step in graph:
        before: Counter[Path] = Counter()
        for source in step.inputs:
            before.update(paths[source])
        if not step.inputs:
            before[()] = 1
        if len(before) > MAX_PATHS:
            kept = sorted(before, key=lambda path: (len(path), path))[:MAX_PATHS]
            before = Counter({path: before[path] for path in kept})
        # A sum is where paths meet, not a step of them.
        if step.name != "sum":
            before = Counter({(*path, step.name): n for path, n in before.items()})
        paths.append(before)
    return paths[-1]
