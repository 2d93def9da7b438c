"""An architecture as data: a graph of labelled operations that can be stored, compared, built.

A graph is a tuple of nodes in topological order; each names its operation, the earlier nodes it
reads and its arguments. The first node is the input, the last one the output. A node labelled
`repeat` holds a whole graph as its body and stands for `count` copies of it in a row, each with
weights of its own; that is how a cell stays one small graph in a deep network.

Two architectures are equal if and only if their graphs are isomorphic: the same operations with the
same arguments, joined in the same way, in whatever order the nodes are listed. Equal ones hash
alike.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from nas.architectures import operations
from nas.architectures.costs import count_flops, count_parameters, output_shape
from nas.architectures.identity import fingerprint, is_isomorphic
from nas.architectures.operations import Shape, build_operation
from nas.architectures.outline import outlines

__all__ = ["Architecture", "GraphNetwork", "Node"]

Value = int | float | str | bool


@dataclass(frozen=True)
class Node:
    """One operation in a graph.

    Attributes:
        operation: `input`, `repeat` or a label of `nas.architectures.operations.OPERATIONS`.
        inputs: Indices of the earlier nodes it reads, in order.
        arguments: Name and value pairs, sorted by name.
        body: The graph that a `repeat` node repeats.
    """

    operation: str
    inputs: tuple[int, ...] = ()
    arguments: tuple[tuple[str, Value], ...] = ()
    body: Architecture | None = None

    def __repr__(self) -> str:
        parts = [repr(self.operation), *map(str, self.inputs)]
        parts += [f"{name}={value!r}" for name, value in self.arguments]
        parts += [] if self.body is None else [f"body={self.body!r}"]
        return f"Node.of({', '.join(parts)})"

    @classmethod
    def of(
        cls, operation: str, *inputs: int, body: Architecture | None = None, **arguments: Value
    ) -> Node:
        """A node from plain arguments, which are put in canonical order."""
        return cls(operation, inputs, tuple(sorted(arguments.items())), body)


@dataclass(frozen=True, eq=False)
class Architecture:
    """A graph of labelled operations.

    Equal and hashed up to isomorphism; the order of inputs counts unless the operation is
    symmetric, as a sum is.

    Args:
        nodes: In topological order. The first is `Node.of("input", shape...)`, made by
            `Architecture.input`; the last is the output.
        derivation: The options that a grammar took to derive it, see `nas.spaces.Grammar`; not part
            of its identity.

    Raises:
        ValueError: an unknown operation, or a node that reads itself or a later one.
    """

    nodes: tuple[Node, ...]
    derivation: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.nodes or self.nodes[0].operation != "input":
            raise ValueError("The first node of an architecture must be its input.")
        for index, node in enumerate(self.nodes):
            self._check(index, node)

    def _check(self, index: int, node: Node) -> None:
        if (node.operation == "input") != (index == 0):
            raise ValueError("An architecture has one input, its first node.")
        known = operations.OPERATIONS
        if node.operation not in ("input", "repeat") and node.operation not in known:
            raise ValueError(
                f"Node {index} has the unknown operation {node.operation!r}; known are "
                f"{', '.join(sorted(known))} and repeat; add one by nas.register_operation."
            )
        if index and not node.inputs:
            raise ValueError(f"Node {index} ({node.operation}) reads no node.")
        if any(not 0 <= source < index for source in node.inputs):
            raise ValueError(
                f"Node {index} ({node.operation}) reads nodes {node.inputs}; it can only read "
                f"nodes 0 to {index - 1}."
            )
        if (node.operation == "repeat") != (node.body is not None):
            raise ValueError(
                f"Node {index} ({node.operation}): a repeat must have a body, and no other "
                "operation may have one."
            )

    @staticmethod
    def input(shape: Iterable[int]) -> Node:
        """The input node for inputs of this shape, without the batch dimension."""
        return Node.of("input", shape="x".join(str(int(size)) for size in shape))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Architecture):
            return NotImplemented
        if self is other or self.nodes == other.nodes:
            return True
        if len(self.nodes) != len(other.nodes) or self.fingerprint != other.fingerprint:
            return False
        return is_isomorphic(self.nodes, other.nodes)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @cached_property
    def fingerprint(self) -> str:
        """32 hexadecimal digits that equal architectures share, in every process."""
        return fingerprint(self.nodes)

    @property
    def input_shape(self) -> Shape:
        """Shape of one input; a body has none of its own and raises."""
        shape = dict(self.nodes[0].arguments).get("shape")
        if not shape:
            raise ValueError("This graph is the body of another one; it has no input shape.")
        return tuple(int(size) for size in str(shape).split("x"))

    def to_json(self) -> str:
        """JSON of the nodes in their order, and of the derivation where there is one."""
        data: Any = self._to_data()
        if self.derivation is not None:
            data = {"nodes": data, "derivation": list(self.derivation)}
        return json.dumps(data, separators=(",", ":"))

    def _to_data(self) -> list[list[Any]]:
        rows = []
        for node in self.nodes:
            row: list[Any] = [node.operation, list(node.inputs), dict(node.arguments)]
            rows.append(row if node.body is None else [*row, node.body._to_data()])
        return rows

    @classmethod
    def from_json(cls, text: str) -> Architecture:
        """The architecture of `to_json`.

        Raises:
            ValueError: not the JSON of an architecture.
        """
        try:
            data = json.loads(text)
            if not isinstance(data, dict):
                return cls._from_data(data)
            derivation = tuple(int(option) for option in data["derivation"])
            return cls(cls._from_data(data["nodes"]).nodes, derivation)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"Not the JSON of an architecture ({error}): {str(text)[:80]!r}"
            ) from error

    @classmethod
    def _from_data(cls, rows: list[list[Any]]) -> Architecture:
        nodes = []
        for operation, inputs, arguments, *rest in rows:
            if not isinstance(arguments, Mapping):
                raise TypeError(f"arguments of {operation!r} must be an object")
            body = cls._from_data(rest[0]) if rest else None
            nodes.append(Node.of(operation, *inputs, body=body, **arguments))
        return cls(tuple(nodes))

    def build(self) -> nn.Module:
        """A freshly initialised network of this architecture.

        Weights follow torch's own initialisation and so its global random state:
        `torch.manual_seed` before the call fixes them. The network is traceable by `torch.fx`.

        Raises:
            ValueError: an operation does not fit the shape that reaches it.
        """
        return GraphNetwork(self, self.input_shape)

    @cached_property
    def depth(self) -> int:
        """Weight layers on the longest path from input to output."""
        depths: list[int] = []
        for node in self.nodes:
            before = max((depths[source] for source in node.inputs), default=0)
            depths.append(before + _weight_layers(node))
        return depths[-1]

    @cached_property
    def num_parameters(self) -> int:
        """Trainable parameters of the built network."""
        return count_parameters(self)

    @cached_property
    def flops(self) -> int:
        """Floating-point operations of matrix products and convolutions for one input.

        A multiplication and an addition count as two.
        """
        return count_flops(self)

    @property
    def output_shape(self) -> Shape:
        """Shape of one output, without the batch dimension.

        Raises:
            ValueError: an operation does not fit the shape that reaches it.
        """
        return output_shape(self, self.input_shape)

    def operation_counts(self) -> dict[str, int]:
        """How often each operation is in the network; those of a body count at every copy."""
        counts: Counter[str] = Counter()
        for node in self.nodes[1:]:
            if node.body is None:
                counts[node.operation] += 1
                continue
            copies = int(dict(node.arguments)["count"])
            for name, number in node.body.operation_counts().items():
                counts[name] += copies * number
        return dict(sorted(counts.items()))

    def descriptors(self) -> dict[str, int]:
        """Numbers that describe it: `num_parameters`, `depth`, `flops`."""
        return {
            "num_parameters": self.num_parameters,
            "depth": self.depth,
            "flops": self.flops,
        }

    def __str__(self) -> str:
        """Runs of operations, then the cells that are repeated; see `nas.architectures.outline`."""
        network, *cells = outlines(self)
        lines = network.lines()
        for cell in cells:
            lines += [f"{cell.title}:", *(f"  {line}" for line in cell.lines())]
        return "\n".join(lines)

    def __repr__(self) -> str:
        network, *cells = outlines(self)
        parts = ["; ".join(network.lines())]
        parts += [f"{cell.title}: {'; '.join(cell.lines())}" for cell in cells]
        return f"Architecture({' | '.join(parts)})"


class GraphNetwork(nn.Module):
    """The network of an architecture: its nodes evaluated in order.

    Args:
        architecture: The graph.
        shape: Shape of one input, without the batch dimension.
    """

    def __init__(self, architecture: Architecture, shape: Shape) -> None:
        super().__init__()
        self.sources = [node.inputs for node in architecture.nodes[1:]]
        self.layers = nn.ModuleList()
        shapes = [tuple(shape)]
        for node in architecture.nodes[1:]:
            reads = tuple(shapes[source] for source in node.inputs)
            module, output = _build_node(node, reads)
            self.layers.append(module)
            shapes.append(output)
        self.output_shape = shapes[-1]

    def forward(self, x: Tensor) -> Tensor:
        """`[b, *input_shape]` to `[b, *output_shape]`."""
        values = [x]
        for layer, sources in zip(self.layers, self.sources, strict=True):
            values.append(layer(*(values[source] for source in sources)))
        return values[-1]


def _build_node(node: Node, shapes: tuple[Shape, ...]) -> tuple[nn.Module, Shape]:
    arguments = dict(node.arguments)
    if node.body is None:
        return build_operation(node.operation, shapes, arguments)
    copies = []
    shape = shapes[0]
    for _ in range(int(arguments["count"])):
        copy = GraphNetwork(node.body, shape)
        shape = copy.output_shape
        copies.append(copy)
    return nn.Sequential(*copies), shape


def _weight_layers(node: Node) -> int:
    if node.operation == "input":
        return 0
    if node.body is not None:
        return int(dict(node.arguments)["count"]) * node.body.depth
    return operations.OPERATIONS[node.operation].weight_layers
