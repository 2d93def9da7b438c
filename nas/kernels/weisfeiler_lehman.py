"""Weisfeiler-Lehman features of a graph: how often each motif is in it.

At level 0 a motif is an operation; at level h an operation with the motifs of level h - 1 that it
reads, so a tree of h layers (Shervashidze et al. 2011, section 3.1, along the edges towards the
input). The plain kernel of two graphs is the inner product of their counts, the
optimal-assignment kernel the sum over motifs of the smaller count (Kriege et al. 2016,
1606.01141, section 4.2), the number of nodes that can be matched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

from nas.kernels.computation import Operation

__all__ = ["motif_counts", "unary"]


def motif_counts(
    graphs: Sequence[Sequence[Operation]], depth: int, *, with_arguments: bool
) -> list[Counter[Hashable]]:
    """Counts of the motifs of some graphs together, level by level.

    Args:
        graphs: As `computation` gives them.
        depth: The last level.
        with_arguments: Whether operations with different arguments are different.

    Returns:
        `depth + 1` counters.
    """
    counts: list[Counter[Hashable]] = [Counter() for _ in range(depth + 1)]
    for graph in graphs:
        labels: list[int] = []
        for level in range(depth + 1):
            if level == 0:
                labels = [
                    hash((step.name, step.arguments) if with_arguments else step.name)
                    for step in graph
                ]
            else:
                labels = [
                    hash((own, *sorted(labels[source] for source in step.inputs)))
                    for own, step in zip(labels, graph, strict=True)
                ]
            counts[level].update(labels)
    return counts


def unary(counts: Mapping[Hashable, int]) -> dict[Hashable, int]:
    """One feature for each motif and each number up to its count.

    The inner product of two such counters is the sum of the smaller counts of the motifs.
    """
    return {(motif, k): 1 for motif, count in counts.items() for k in range(count)}
