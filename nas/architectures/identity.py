"""When two graphs are the same network: isomorphism that respects operations and input order.

Each node gets a colour from what reaches it and then one from what it reaches, which is
Weisfeiler-Lehman refinement (Shervashidze et al. 2011, section 2) run to its end in two passes,
because the graph has no cycles. The sorted colours, hashed, are the fingerprint: isomorphic graphs
share it. Graphs that share it are compared node by node, so equality is exact.

The order of inputs counts, except for operations that are symmetric, such as a sum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nas.architectures import operations

if TYPE_CHECKING:
    from nas.architectures.architecture import Node

__all__ = ["fingerprint", "is_isomorphic"]


def fingerprint(nodes: Sequence[Node]) -> str:
    """32 hexadecimal digits, equal for isomorphic graphs, the same in every process."""
    return _digest(sorted(_colours(nodes)))


def is_isomorphic(nodes: Sequence[Node], others: Sequence[Node]) -> bool:
    """Whether a map of nodes to nodes keeps operations, arguments and inputs in their order."""
    from networkx.algorithms.isomorphism import DiGraphMatcher

    return bool(
        DiGraphMatcher(
            _digraph(nodes),
            _digraph(others),
            node_match=lambda one, other: one["colour"] == other["colour"],
            edge_match=lambda one, other: one["places"] == other["places"],
        ).is_isomorphic()
    )


def _digest(parts: list[Any]) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _is_symmetric(node: Node) -> bool:
    return (
        node.operation in operations.OPERATIONS and operations.OPERATIONS[node.operation].symmetric
    )


def _places(node: Node) -> list[int]:
    """The place of each input, 0 for all where their order means nothing."""
    return [0] * len(node.inputs) if _is_symmetric(node) else list(range(len(node.inputs)))


def _colours(nodes: Sequence[Node]) -> list[str]:
    before: list[str] = []
    for node in nodes:
        read = [before[source] for source in node.inputs]
        body = None if node.body is None else node.body.fingerprint
        inputs = sorted(read) if _is_symmetric(node) else read
        before.append(_digest([node.operation, node.arguments, body, inputs]))
    readers: list[list[tuple[str, int]]] = [[] for _ in nodes]
    colours = [""] * len(nodes)
    for index in reversed(range(len(nodes))):
        is_output = index == len(nodes) - 1
        colours[index] = _digest([before[index], is_output, sorted(readers[index])])
        for source, place in zip(nodes[index].inputs, _places(nodes[index]), strict=True):
            readers[source].append((colours[index], place))
    return colours


def _digraph(nodes: Sequence[Node]):  # type: ignore[no-untyped-def]  # networkx is untyped
    from networkx import DiGraph

    graph = DiGraph()
    for index, (node, colour) in enumerate(zip(nodes, _colours(nodes), strict=True)):
        graph.add_node(index, colour=colour)
        places: dict[int, list[int]] = {}
        for source, place in zip(node.inputs, _places(node), strict=True):
            places.setdefault(source, []).append(place)
        for source, taken in places.items():
            graph.add_edge(source, index, places=taken)
    return graph
