"""A hyperparameter as columns of the unit cube.

A number takes one coordinate, linear or logarithmic as its distribution says; a categorical
takes one coordinate for each choice (one-hot).

A hyperparameter that exists only for some candidates has a code in which those without it are all
the same point, as far from each that has it: 0 where it is not, and else a number is a point of a
quarter of the unit circle, (sin, cos) of pi / 2 times its coordinate, and a categorical as it is
above. This is the arc kernel of Swersky et al. 2014 (1409.4011, section 3) with its angle fixed at
a quarter turn; its radius is the length scale that the coordinates share.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

__all__ = ["Columns", "columns_of", "from_unit", "reflect", "to_unit"]


class Columns(ABC):
    """How one hyperparameter is encoded.

    Args:
        distribution: Of its values.
        sizes: How many coordinates share each length scale, in their order.
    """

    def __init__(self, distribution: BaseDistribution, sizes: tuple[int, ...]) -> None:
        self.distribution = distribution
        self.sizes = sizes

    @property
    def absent(self) -> list[float]:
        """The point of a candidate without it."""
        return [0.0] * sum(self.sizes)

    @abstractmethod
    def point(self, value: Any) -> list[float]:
        """The coordinates of a value."""


class Number(Columns):
    """One coordinate."""

    def point(self, value: Any) -> list[float]:
        """Where the value is between its bounds."""
        return [to_unit(value, self.distribution)]


class Arc(Columns):
    """A quarter of the unit circle."""

    def point(self, value: Any) -> list[float]:
        """At the angle of the value."""
        angle = math.pi / 2 * to_unit(value, self.distribution)
        return [math.sin(angle), math.cos(angle)]


class OneHot(Columns):
    """A coordinate for each choice, and zeros where there are more."""

    def point(self, value: Any) -> list[float]:
        """1 for the value."""
        assert isinstance(self.distribution, CategoricalDistribution)
        row = self.absent
        row[int(self.distribution.to_internal_repr(value))] = 1.0
        return row


def columns_of(distribution: BaseDistribution, *, conditional: bool) -> Columns:
    """The columns of a hyperparameter.

    Args:
        distribution: Of its values.
        conditional: Whether some candidates lack it.
    """
    if isinstance(distribution, CategoricalDistribution):
        number = len(distribution.choices)
        return OneHot(distribution, (max(2, number),) if conditional else (1,) * number)
    return Arc(distribution, (2,)) if conditional else Number(distribution, (1,))


def to_unit(value: float, distribution: BaseDistribution) -> float:
    """Where a number is between its bounds, from 0 to 1; 0.5 where they are equal."""
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = _bounds(distribution)
    if high == low:
        return 0.5
    return ((math.log(value) if distribution.log else float(value)) - low) / (high - low)


def from_unit(unit: float, distribution: BaseDistribution) -> Any:
    """The value at a place from 0 to 1; a choice has as much room as any other."""
    if isinstance(distribution, CategoricalDistribution):
        size = len(distribution.choices)
        return distribution.choices[min(int(unit * size), size - 1)]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = _bounds(distribution)
    value = low + unit * (high - low)
    value = math.exp(value) if distribution.log else value
    if distribution.step is not None:
        steps = round((value - distribution.low) / distribution.step)
        value = distribution.low + steps * distribution.step
    value = min(max(value, distribution.low), distribution.high)
    return round(value) if isinstance(distribution, IntDistribution) else float(value)


def reflect(unit: float) -> float:
    """Back into [0, 1] from its ends, as often as it takes."""
    folded = unit % 2.0
    return 2.0 - folded if folded > 1.0 else folded


def _bounds(distribution: FloatDistribution | IntDistribution) -> tuple[float, float]:
    """Bounds on the scale that the unit coordinate is linear in.

    Integers get half a step on each side, so that the end values are as likely as the others.
    """
    low, high = float(distribution.low), float(distribution.high)
    if isinstance(distribution, IntDistribution):
        low, high = low - 0.5 * distribution.step, high + 0.5 * distribution.step
    if distribution.log:
        return math.log(low), math.log(high)
    return low, high
