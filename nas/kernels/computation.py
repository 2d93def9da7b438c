"""What a graph computes, with its empty operations taken out.

As in NAS-BOWL (Ru et al. 2021, 2006.07556, appendix A) skip connections are contracted, what
carries zeros is removed, and so is what does not reach the output: graphs that differ in such parts
only are the same to a kernel. A sum of one term is that term.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from nas.architectures import Architecture, Node

__all__ = ["Operation", "bodies_of", "computation"]


class Operation(NamedTuple):
    """One step of a computation.

    Attributes:
        name: The operation.
        arguments: Its arguments, as a text.
        inputs: Places of the steps it reads.
    """

    name: str
    arguments: str
    inputs: tuple[int, ...]


def computation(nodes: Sequence[Node]) -> list[Operation]:
    """The steps of a graph, the input first; only that where nothing reaches the output."""
    stands_for: list[int | None] = []  # the node whose value each has; None for zeros
    reads: list[tuple[int, ...]] = []
    for index, node in enumerate(nodes):
        values = [stands_for[source] for source in node.inputs]
        kept = tuple(value for value in values if value is not None)
        reads.append(kept)
        if node.operation == "none" or (node.inputs and not kept):
            stands_for.append(None)
        elif node.operation == "skip_connect" or (node.operation == "sum" and len(kept) == 1):
            stands_for.append(kept[0])
        else:
            stands_for.append(index)
    needed, waiting = {0}, [stands_for[-1]]
    while waiting:
        reached = waiting.pop()
        if reached is not None and reached not in needed:
            needed.add(reached)
            waiting.extend(reads[reached])
    place = {index: number for number, index in enumerate(sorted(needed))}
    return [
        Operation(
            nodes[index].operation,
            ",".join(f"{name}={value}" for name, value in nodes[index].arguments),
            tuple(place[source] for source in reads[index]),
        )
        for index in sorted(needed)
    ]


def bodies_of(architecture: Architecture) -> list[Architecture]:
    """The different graphs that are repeated in it, at any depth."""
    found: dict[Architecture, None] = {}
    for node in architecture.nodes:
        if node.body is not None:
            found[node.body] = None
            found.update(dict.fromkeys(bodies_of(node.body)))
    return list(found)
