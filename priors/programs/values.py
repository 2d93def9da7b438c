"""Values during tracing, and the arguments of calls that contain them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from priors.programs.nodes import Array, Ref, Span

__all__ = ["BATCH", "Power", "Value", "Width", "frozen", "name_of", "replaced", "values_in"]

# Batch size of tensors that stand in: entries of the second must follow those of the first.
BATCH = 2


@dataclass(frozen=True)
class Value:
    """A node during tracing, with what its torch tensor looks like.

    Attributes:
        index: The node.
        width: Number of units in the module; 0 for a finite value.
        axis: The width's dimension, counted without the batch; None if it was squeezed away.
        heads: Dimensions and sizes that the width is split into, as of heads, besides `axis`,
            in the order of their strides; empty if it is in one piece.
        batch: The batch's dimension; only reshaping may move it, and has to bring it back.
    """

    index: int
    width: int = 0
    axis: int | None = None
    heads: tuple[tuple[int, int], ...] = ()
    batch: int = 0

    @property
    def finite(self) -> bool:
        """Whether the value comes from the data point alone."""
        return self.width == 0

    @property
    def num_heads(self) -> int:
        """Number of pieces that the width is split into."""
        return math.prod(size for _, size in self.heads)


class _Counted:
    """A number c n^p of which the power p of the width n is known."""

    exponent: float

    def __pow__(self, other: Any) -> Any:
        return Power(self._number() ** other, self.exponent * other)

    def __mul__(self, other: Any) -> Any:
        exponent = self.exponent + getattr(other, "exponent", 0.0)
        value = self._number() * other
        return Width(value, exponent) if isinstance(value, int) else Power(value, exponent)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Power:
        exponent = self.exponent - getattr(other, "exponent", 0.0)
        return Power(self._number() / other, exponent)

    def __rtruediv__(self, other: Any) -> Power:
        return Power(other / self._number(), -self.exponent)

    def __neg__(self) -> Any:
        return self * -1

    def _number(self) -> Any:
        return int(self) if isinstance(self, int) else float(self)  # type: ignore[arg-type]


class Width(_Counted, int):  # type: ignore[misc]  # __pow__ has one form
    """The width of a value, or a multiple of it."""

    def __new__(cls, value: int, exponent: float = 1.0) -> Width:
        made = super().__new__(cls, value)
        made.exponent = exponent
        return made


class Power(_Counted, float):  # type: ignore[misc]  # __pow__ has one form
    """A number made of widths."""

    def __new__(cls, value: float, exponent: float = 0.0) -> Power:
        made = super().__new__(cls, value)
        made.exponent = exponent
        return made


def name_of(function: Any) -> str:
    """The name of a function, or of the class of a callable object."""
    return getattr(function, "__name__", type(function).__name__)


def values_in(item: Any) -> Iterator[Value]:
    """The values in nested arguments, in order."""
    if isinstance(item, Value):
        yield item
    elif isinstance(item, tuple | list):
        for part in item:
            yield from values_in(part)
    elif isinstance(item, dict):
        for part in item.values():
            yield from values_in(part)


def replaced(item: Any, value: Callable[[Value], Any], batch: Callable[[], Any]) -> Any:
    """Nested arguments with their values and batch sizes replaced."""
    if isinstance(item, Value):
        return value(item)
    if isinstance(item, Ref):
        return batch()
    if isinstance(item, tuple | list):
        return type(item)(replaced(part, value, batch) for part in item)
    if isinstance(item, dict):
        return {key: replaced(part, value, batch) for key, part in item.items()}
    if isinstance(item, slice):
        return slice(*(replaced(p, value, batch) for p in (item.start, item.stop, item.step)))
    return item


def frozen(item: Any) -> Any:
    """Arguments as they can be compared: lists as tuples, tensors as arrays."""
    if isinstance(item, tuple | list):
        return tuple(frozen(part) for part in item)
    if isinstance(item, Tensor):
        return Array.of(item)
    if isinstance(item, slice):
        return Span(item.start, item.stop, item.step)
    return item
