"""Values during tracing, and the arguments of calls that contain them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from priors.programs.nodes import Array, Ref, Span

__all__ = [
    "BATCH",
    "Pending",
    "Power",
    "Scaled",
    "Value",
    "Width",
    "frozen",
    "name_of",
    "parts_of",
    "replaced",
    "values_in",
    "width_exponent",
]

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
        batch: The batch's dimension.
        copies: How often each unit stands in the tensor, as keys that several heads share do.
    """

    index: int
    width: int = 0
    axis: int | None = None
    heads: tuple[tuple[int, int], ...] = ()
    batch: int = 0
    copies: int = 1

    @property
    def finite(self) -> bool:
        """Whether the value comes from the data point alone."""
        return self.width == 0

    @property
    def num_heads(self) -> int:
        """Number of pieces that the width is split into."""
        return math.prod(size for _, size in self.heads)


class Pending:
    """A result that is not a node yet; rules declare what they accept by `registry.takes`."""

    def refusal(self, name: str) -> tuple[str, str]:
        """What is not supported, and why, where function or layer `name` is applied to it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Scaled(Pending):
    """A hidden value times `scale`, a number that goes like the width to the power `exponent`.

    Attention takes it up into its logits; elsewhere it has no limit.
    """

    value: Value
    scale: float
    exponent: float

    def refusal(self, name: str) -> tuple[str, str]:
        return (
            f"{name} of hidden units scaled by width**{self.exponent:g}",
            f"at infinite width they {'vanish' if self.exponent < 0 else 'grow'}, and weight_var "
            "scales with the width by itself; remove the factor, or if it does not depend on "
            f"the width, give the module another width than {self.value.width}",
        )


# Widths up to this often equal a number by chance, so only sizes tell there.
_NARROW = 16


def width_exponent(value: Value, number: Any) -> float:
    """The power of a hidden value's width that a number goes like.

    A number made of sizes says so. Another that equals a power of the width is taken for it.
    """
    exponent: float | None = getattr(number, "exponent", None)
    if exponent is not None:
        return exponent
    size = value.width // value.num_heads
    if size <= _NARROW:
        return 0.0
    powers = (p for p in (-1.0, -0.5, -0.25, 0.25, 0.5, 1.0))
    return next((p for p in powers if math.isclose(abs(number), size**p, rel_tol=1e-6)), 0.0)


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
    return parts_of(item, Value)


def parts_of(item: Any, kinds: type | tuple[type, ...]) -> Iterator[Any]:
    """What is of some kinds in nested arguments, in order."""
    if isinstance(item, kinds):
        yield item
    elif isinstance(item, tuple | list):
        for part in item:
            yield from parts_of(part, kinds)
    elif isinstance(item, dict):
        for part in item.values():
            yield from parts_of(part, kinds)


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
