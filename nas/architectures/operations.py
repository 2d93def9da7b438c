"""The vocabulary of architectures: the torch module behind each operation label.

An operation takes the shapes of its inputs (without the batch dimension) and its arguments and
gives a module and the shape of its output, so that a graph of labels needs no layer sizes
beyond the ones that were chosen. The convolutional ones are those of NAS-Bench-201
(Dong & Yang 2020, 2001.00326): ReLU, convolution, batch normalisation, in this order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nas.architectures.shapes import Built, Shape, image, one
from nas.architectures.tensor_operations import TENSOR_OPERATIONS

__all__ = ["ACTIVATIONS", "OPERATIONS", "Operation", "Shape", "register_operation"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


@dataclass(frozen=True)
class Operation:
    """One label of the vocabulary.

    Attributes:
        build: `(input shapes, **arguments) -> (module, output shape)`.
        weight_layers: Matrices or filters on the longest path through it; depth counts these.
        symmetric: Whether the order of its inputs means nothing.
    """

    build: Callable[..., Built]
    weight_layers: int = 0
    symmetric: bool = False


class Sum(nn.Module):
    """Sum of any number of inputs of one shape."""

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """The sum, of the shape of each input."""
        total = first
        for other in others:
            total = total + other
        return total


class Zero(nn.Module):
    """Zeros of the shape of the input: an edge that carries nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """Zeros like `x`."""
        return 0.0 * x


class ReLUConvBN(nn.Sequential):
    """ReLU, convolution without bias, batch normalisation."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(out_channels),
        )


class Reduction(nn.Module):
    """The residual block between the stages of NAS-Bench-201: half the size, more channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            ReLUConvBN(in_channels, out_channels, 3, stride=2),
            ReLUConvBN(out_channels, out_channels, 3),
        )
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2), nn.Conv2d(in_channels, out_channels, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[b, in, h, w]` to `[b, out, h / 2, w / 2]`."""
        return self.shortcut(x) + self.block(x)


def _linear(shapes: tuple[Shape, ...], out_features: int) -> Built:
    *front, last = one(shapes)
    return nn.Linear(last, out_features), (*front, out_features)


def _projection(shapes: tuple[Shape, ...], out_features: int) -> Built:
    *front, last = one(shapes)
    return nn.Linear(last, out_features, bias=False), (*front, out_features)


def _layer_norm(shapes: tuple[Shape, ...]) -> Built:
    shape = one(shapes)
    return nn.LayerNorm(shape[-1]), shape


def _sum(shapes: tuple[Shape, ...]) -> Built:
    if len(set(shapes)) != 1:
        raise ValueError(f"a sum needs inputs of one shape, got {list(shapes)}.")
    return Sum(), shapes[0]


def _same(module: Callable[[], nn.Module]) -> Callable[[tuple[Shape, ...]], Built]:
    return lambda shapes: (module(), one(shapes))


def _nor_conv(kernel: int) -> Callable[[tuple[Shape, ...]], Built]:
    def build(shapes: tuple[Shape, ...]) -> Built:
        shape = image(shapes)
        return ReLUConvBN(shape[0], shape[0], kernel), shape

    return build


def _stem(shapes: tuple[Shape, ...], channels: int) -> Built:
    in_channels, height, width = image(shapes)
    convolution = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    module = nn.Sequential(convolution, nn.BatchNorm2d(channels))
    return module, (channels, height, width)


def _reduction(shapes: tuple[Shape, ...], channels: int) -> Built:
    in_channels, height, width = image(shapes)
    if height % 2 or width % 2:
        raise ValueError(f"a reduction halves height and width, got {height} x {width}.")
    return Reduction(in_channels, channels), (channels, height // 2, width // 2)


def _pool(shapes: tuple[Shape, ...]) -> Built:
    channels = image(shapes)[0]
    module = nn.Sequential(
        nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return module, (channels,)


def _avg_pool_3x3() -> nn.Module:
    return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)


OPERATIONS: dict[str, Operation] = {
    "linear": Operation(_linear, weight_layers=1),
    "projection": Operation(_projection, weight_layers=1),
    "layer_norm": Operation(_layer_norm),
    "sum": Operation(_sum, symmetric=True),
    "none": Operation(_same(Zero)),
    "skip_connect": Operation(_same(nn.Identity)),
    "nor_conv_1x1": Operation(_nor_conv(1), weight_layers=1),
    "nor_conv_3x3": Operation(_nor_conv(3), weight_layers=1),
    "avg_pool_3x3": Operation(_same(_avg_pool_3x3)),
    "stem": Operation(_stem, weight_layers=1),
    "reduction": Operation(_reduction, weight_layers=2),
    "pool": Operation(_pool),
    **{name: Operation(_same(activation)) for name, activation in ACTIVATIONS.items()},
    **{name: Operation(*entry) for name, entry in TENSOR_OPERATIONS.items()},
}


def register_operation(
    name: str,
    build: Callable[..., Built],
    *,
    weight_layers: int = 0,
    symmetric: bool = False,
    replace: bool = False,
) -> None:
    """Add a label to the vocabulary of architectures.

        def _highway(shapes, width):
            (shape,) = shapes
            return Highway(shape[-1], width), (*shape[:-1], width)

        register_operation("highway", _highway, weight_layers=2)

    From then on `Node("highway", ...)` can stand in an `Architecture`, in this process and in every
    other that runs the registration: put it at the top of the module of the objective, which
    workers import.

    Args:
        name: The label, which is stored with architectures.
        build: `(input shapes, **arguments) -> (module, output shape)`, shapes without the batch;
            arguments are JSON values. It raises `ValueError` where they do not fit.
        weight_layers: Matrices or filters on the longest path through it; depth counts these.
        symmetric: Whether the order of its inputs means nothing, as for a sum; architectures that
            differ only in it are then equal.
        replace: Whether to replace an operation that is registered under this label.

    Raises:
        ValueError: the label is known, reserved or empty.
        TypeError: `build` cannot be called.
    """
    if name in _RESERVED or not name:
        raise ValueError(f"{name!r} cannot be the label of an operation; choose another.")
    if name in OPERATIONS and not replace:
        raise ValueError(
            f"Operation {name!r} is registered already; choose another name, or pass replace=True."
        )
    if not callable(build):
        raise TypeError(f"build must be callable, got {type(build).__name__}.")
    OPERATIONS[name] = Operation(build, weight_layers, symmetric)


_RESERVED = ("input", "repeat")


def build_operation(name: str, shapes: tuple[Shape, ...], arguments: dict[str, Any]) -> Built:
    """The module of one operation and the shape of its output.

    Args:
        name: Label in `OPERATIONS`.
        shapes: Shapes of its inputs, without the batch dimension.
        arguments: What was chosen for it.

    Raises:
        ValueError: the inputs or arguments do not fit the operation.
    """
    try:
        return OPERATIONS[name].build(shapes, **arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Operation {name!r} with arguments {arguments} on inputs of shape "
            f"{[tuple(shape) for shape in shapes]}: {error}"
        ) from error
