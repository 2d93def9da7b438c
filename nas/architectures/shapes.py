"""Shapes of inputs without the batch, and what operations ask of them."""

from __future__ import annotations

from torch import nn

__all__ = ["Built", "Shape", "image", "one", "tokens"]

Shape = tuple[int, ...]
Built = tuple[nn.Module, Shape]


def one(shapes: tuple[Shape, ...]) -> Shape:
    """The shape of the only input.

    Raises:
        ValueError: there are several.
    """
    if len(shapes) != 1:
        raise ValueError(f"expected one input, got {len(shapes)}.")
    return shapes[0]


def image(shapes: tuple[Shape, ...]) -> Shape:
    """Channels, height and width of the only input.

    Raises:
        ValueError: it is something else.
    """
    shape = one(shapes)
    if len(shape) != 3:
        raise ValueError(f"expected an input (channels, height, width), got shape {shape}.")
    return shape


def tokens(shapes: tuple[Shape, ...]) -> Shape:
    """Length and features of the only input.

    Raises:
        ValueError: it is something else.
    """
    shape = one(shapes)
    if len(shape) != 2:
        raise ValueError(f"expected an input (length, features), got shape {shape}.")
    return shape
