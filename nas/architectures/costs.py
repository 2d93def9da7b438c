"""What a network costs, node by node: parameters and floating-point operations.

The cost of one operation on inputs of given shapes is found once, by building it on the meta
device, and remembered; a search asks for thousands of networks made of a few dozen operations.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas.architectures import operations
from nas.architectures.operations import Operation, Shape, build_operation

if TYPE_CHECKING:
    from nas.architectures.architecture import Architecture, Node, Value

__all__ = ["count_flops", "count_parameters", "output_of", "output_shape"]

Arguments = tuple[tuple[str, "Value"], ...]
Shapes = tuple[Shape, ...]
Measured = tuple[int, Shape]
Measure = Callable[[Operation, str, Shapes, Arguments], Measured]


def count_parameters(architecture: Architecture) -> int:
    """Trainable parameters of the built network."""
    return _total(architecture, architecture.input_shape, _parameters)[0]


def count_flops(architecture: Architecture) -> int:
    """Floating-point operations of matrix products and convolutions for one input.

    A multiplication and an addition count as two.
    """
    return _total(architecture, architecture.input_shape, _flops)[0]


def output_shape(architecture: Architecture, shape: Shape) -> Shape:
    """Shape of the output for inputs of this shape, both without the batch dimension.

    Raises:
        ValueError: an operation does not fit the shape that reaches it.
    """
    return _total(architecture, shape, _parameters)[1]


def output_of(node: Node, shapes: Shapes) -> Shape | None:
    """Shape of the output of one node for inputs of these shapes; None where they do not fit."""
    try:
        if node.body is not None:
            shape = shapes[0]
            for _ in range(int(dict(node.arguments)["count"])):
                shape = output_shape(node.body, shape)
            return shape
        return _output_or_none(operations.OPERATIONS[node.operation], shapes, node.arguments)
    except ValueError:
        return None


@lru_cache(maxsize=1 << 16)
def _output_or_none(operation: Operation, shapes: Shapes, arguments: Arguments) -> Shape | None:
    try:
        with torch.device("meta"):
            return tuple(operation.build(shapes, **dict(arguments))[1])
    except (TypeError, ValueError):
        return None


def _total(graph: Architecture, shape: Shape, measure: Measure) -> Measured:
    shapes, total = [tuple(shape)], 0
    for node in graph.nodes[1:]:
        reads = tuple(shapes[source] for source in node.inputs)
        if node.body is None:
            operation = operations.OPERATIONS[node.operation]
            cost, output = measure(operation, node.operation, reads, node.arguments)
            total += cost
            shapes.append(output)
            continue
        output, remaining = reads[0], int(dict(node.arguments)["count"])
        while remaining:
            entered = output
            cost, output = _total(node.body, entered, measure)
            alike = remaining if output == entered else 1  # copies that cost the same
            total += alike * cost
            remaining -= alike
        shapes.append(output)
    return total, shapes[-1]


# The operation itself is among the keys, so one that was replaced is measured anew.
@lru_cache(maxsize=1 << 14)
def _parameters(operation: Operation, name: str, shapes: Shapes, arguments: Arguments) -> Measured:
    module, shape = _on_meta(name, shapes, arguments)
    return sum(parameter.numel() for parameter in module.parameters()), tuple(shape)


@lru_cache(maxsize=1 << 14)
def _flops(operation: Operation, name: str, shapes: Shapes, arguments: Arguments) -> Measured:
    module, shape = _on_meta(name, shapes, arguments)
    with torch.device("meta"):
        inputs = [torch.empty(1, *each) for each in shapes]
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module.eval()(*inputs)
    return int(counter.get_total_flops()), tuple(shape)


def _on_meta(name: str, shapes: Shapes, arguments: Arguments) -> tuple[nn.Module, Shape]:
    with torch.device("meta"):
        return build_operation(name, shapes, dict(arguments))
