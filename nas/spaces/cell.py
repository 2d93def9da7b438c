"""The NAS-Bench-201 space: one cell of four nodes, repeated in three stages.

Each of the six edges j -> i (j < i) of the cell carries one of five operations, and node i is
the sum over its incoming edges. The network is a stem, three stages of `num_cells` cells with a
residual reduction between them (channels C, 2C, 4C), pooling and a linear classifier
(Dong & Yang 2020, 2001.00326, section 2). The standard string of a cell lists, node by node,
`|operation~source|...`, the nodes joined by `+`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution
from torch import Tensor

from nas.architectures.architecture import Architecture, Node
from nas.checks import check_whole
from nas.spaces.space import FlatSpace

__all__ = ["CELL_OPERATIONS", "CellSpace", "cell_string"]

CELL_OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))  # (source, target), in string order


class CellSpace(FlatSpace):
    """Image classifiers of repeated NAS-Bench-201 cells, 5^6 = 15,625 of them.

    Args:
        num_classes: Outputs of the classifier.
        in_channels: Channels of an image.
        image_size: Height and width of an image, divisible by 4.
        channels: Channels of the first stage.
        num_cells: Cells in each of the three stages.

    Raises:
        ValueError: a size is not positive or the image cannot be halved twice.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        image_size: int = 32,
        channels: int = 16,
        num_cells: int = 5,
    ) -> None:
        check_whole(
            num_classes=num_classes,
            in_channels=in_channels,
            image_size=image_size,
            channels=channels,
            num_cells=num_cells,
        )
        if image_size % 4:
            raise ValueError(f"image_size must be divisible by 4, got {image_size}.")
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.image_size = image_size
        self.channels = channels
        self.num_cells = num_cells

    def __repr__(self) -> str:
        return (
            f"CellSpace({self.num_classes}, in_channels={self.in_channels}, "
            f"image_size={self.image_size}, channels={self.channels}, num_cells={self.num_cells})"
        )

    def parameters(self) -> dict[str, BaseDistribution]:
        """One operation for each edge, `edge_0_1` to `edge_2_3`."""
        return dict(_PARAMETERS)

    def from_parameters(self, values: Mapping[str, Any]) -> Architecture:
        """The network of the cell with these operations on its edges.

        Raises:
            ValueError: an edge is missing or has another operation.
        """
        operations = tuple(values.get(name) for name in _NAMES)
        if any(each not in CELL_OPERATIONS for each in operations):
            self.checked_parameters(values)  # raises, and says what is wrong
        return _network(
            operations,
            (self.in_channels, self.image_size, self.image_size),
            self.channels,
            self.num_cells,
            self.num_classes,
        )

    def to_parameters(self, architecture: Architecture) -> dict[str, Any]:
        """The operation of each edge.

        Raises:
            ValueError: the architecture is not in this space.
        """
        body = next((node.body for node in architecture.nodes if node.body is not None), None)
        operations = [] if body is None else _operations(body)
        if len(operations) == len(EDGES):
            values = dict(zip(_NAMES, operations, strict=True))
            if self.from_parameters(values) == architecture:
                return values
        raise ValueError(f"The architecture is not a network of this CellSpace:\n{architecture}")

    def from_string(self, text: str) -> Architecture:
        """The network of a cell in the standard notation.

        Args:
            text: `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`.

        Raises:
            ValueError: the string has another form or an unknown operation.
            TypeError: it is no string.
        """
        if not isinstance(text, str):
            raise TypeError(f"A cell is given as a string, got {type(text).__name__}.")
        form = "+".join("|" + "|".join(f"op~{j}" for j in range(i)) + "|" for i in range(1, 4))
        edges = {}
        for target, part in enumerate(text.strip().split("+"), start=1):
            for position, item in enumerate(part.strip("|").split("|")):
                operation, _, source = item.partition("~")
                if source != str(position):
                    raise ValueError(f"A cell has the form {form}, got {text!r}.")
                edges[position, target] = operation
        if set(edges) != set(EDGES):
            raise ValueError(f"A cell has the form {form}, got {text!r}.")
        return self.from_parameters(
            {f"edge_{source}_{target}": edges[source, target] for source, target in EDGES}
        )

    def to_string(self, architecture: Architecture) -> str:
        """The standard notation of its cell.

        Raises:
            ValueError: the architecture is not in this space.
        """
        values = self.to_parameters(architecture)
        return _string([values[name] for name in _NAMES])

    def encode(self, architecture: Architecture) -> Tensor:
        """One-hot operations of the six edges, `[30]`.

        An edge that is not on a path of working edges from input to output counts as `none`,
        so that cells which differ only in dead edges encode alike.
        """
        values = self.to_parameters(architecture)
        live = _live({edge: values[name] for edge, name in zip(EDGES, _NAMES, strict=True)})
        row = [float(live[edge] == name) for edge in EDGES for name in CELL_OPERATIONS]
        return torch.tensor(row, dtype=torch.float64, device="cpu")

    def code_sizes(self) -> tuple[int, ...]:
        """An operation on each of the six edges."""
        return (len(CELL_OPERATIONS),) * len(EDGES)


_NAMES = tuple(f"edge_{source}_{target}" for source, target in EDGES)
_PARAMETERS = {name: CategoricalDistribution(CELL_OPERATIONS) for name in _NAMES}


# A search asks for the same networks again and again; what it finds out about one stays with it.
@lru_cache(maxsize=1 << 14)
def _network(
    operations: tuple[str, ...],
    image: tuple[int, int, int],
    channels: int,
    count: int,
    num_classes: int,
) -> Architecture:
    body = _cell(operations)
    return Architecture(
        (
            Architecture.input(image),
            Node.of("stem", 0, channels=channels),
            Node.of("repeat", 1, body=body, count=count),
            Node.of("reduction", 2, channels=2 * channels),
            Node.of("repeat", 3, body=body, count=count),
            Node.of("reduction", 4, channels=4 * channels),
            Node.of("repeat", 5, body=body, count=count),
            Node.of("pool", 6),
            Node.of("linear", 7, out_features=num_classes),
        )
    )


def _cell(operations: Sequence[str]) -> Architecture:
    """The cell as a graph: an operation node for each edge, a sum node for each cell node."""
    labels = dict(zip(EDGES, operations, strict=True))
    nodes = [Node.of("input")]
    cell_nodes = [0]
    for target in range(1, 4):
        for source in range(target):
            nodes.append(Node.of(labels[source, target], cell_nodes[source]))
        incoming = range(len(nodes) - target, len(nodes))
        nodes.append(Node.of("sum", *incoming))
        cell_nodes.append(len(nodes) - 1)
    return Architecture(tuple(nodes))


def cell_string(architecture: Architecture) -> str | None:
    """The standard notation of the cell that a network repeats, None if it has no such cell."""
    for node in architecture.nodes:
        operations = [] if node.body is None else _operations(node.body)
        if (
            node.body is not None
            and len(operations) == len(EDGES)
            and set(operations) <= set(CELL_OPERATIONS)
            and _cell(operations) == node.body
        ):
            return _string(operations)
    return None


def _string(operations: Sequence[str]) -> str:
    labels = dict(zip(EDGES, operations, strict=True))
    parts = (
        "|".join(f"{labels[source, target]}~{source}" for source in range(target))
        for target in range(1, 4)
    )
    return "+".join(f"|{part}|" for part in parts)


def _operations(cell: Architecture) -> list[str]:
    return [node.operation for node in cell.nodes[1:] if node.operation != "sum"]


def _live(labels: Mapping[tuple[int, int], str]) -> dict[tuple[int, int], str]:
    working = {edge for edge, operation in labels.items() if operation != "none"}
    reached, useful = {0}, {3}
    for source, target in sorted(working, key=lambda edge: edge[1]):
        if source in reached:
            reached.add(target)
    for source, target in sorted(working, key=lambda edge: -edge[0]):
        if target in useful:
            useful.add(source)
    return {
        (source, target): operation
        if (source, target) in working and source in reached and target in useful
        else "none"
        for (source, target), operation in labels.items()
    }
