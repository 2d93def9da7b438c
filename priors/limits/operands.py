"""Operands taken apart into their sources: one side of pairs of nodes, or the mean of a node.

A linear map acts in the same way on both. An `Operand` has what is known of the sources, how a
number for each data point multiplies it, and what a constant vector adds to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from priors.limits.pairs import Pairs, Pairwise
from priors.programs.program import Program

__all__ = ["Mean", "OneSide", "Operand"]


class Operand(ABC):
    """What a map is applied to.

    Attributes:
        program: The program.
        axis: Dimension of the mapped positions, from the end.
        is_mean: Whether it is the mean of a node, not pairs.
        pairs: The moments that it comes from.
        side: The mapped side, 0 for the left and 1 for the right.
        means: Whether it has a part from the means, as moments have and tangents do not.
    """

    program: Program
    axis: int
    is_mean: bool
    pairs: Pairs
    side: int
    means: bool

    @abstractmethod
    def of(self, source: int) -> Tensor | None:
        """What the map's source has in the place of the map's node; None if it vanishes."""

    @abstractmethod
    def plus_constant(self, value: Tensor | None, number: Tensor | float) -> Tensor | None:
        """With a vector added whose entries are `number` (a tensor: `spread`)."""

    @abstractmethod
    def spread(self, number: Tensor) -> Tensor:
        """A number for each data point and position, shaped to multiply."""

    @abstractmethod
    def zeros(self, source: int) -> Tensor:
        """Zero, in the shape that `of` has."""

    @abstractmethod
    def spread_matrix(self, value: Tensor) -> Tensor:
        """A matrix over positions for each data point, shaped to multiply."""

    def weighted_sum(self, terms: list[tuple[float, int]]) -> Tensor | None:
        """sum_k c_k of(source k)."""
        total: Tensor | None = None
        for coefficient, source in terms:
            part = self.of(source)
            if part is None:
                continue
            part = part if coefficient == 1.0 else part * coefficient
            total = part if total is None else total + part
        return total


class OneSide(Operand):
    """Pairs of nodes `a` and `b`, mapped on the side of `a` (or of `b`).

    Args:
        pairs: The moments.
        a: Node on the left.
        b: Node on the right.
        full: Whether all pairs of positions are meant.
        of: What is propagated through the maps.
        means: Whether it has a part from the means, as moments have and tangents do not.
        left: Whether the map is that of `a`.
    """

    is_mean = False

    def __init__(
        self, pairs: Pairs, a: int, b: int, full: bool, of: Pairwise, means: bool, *, left: bool
    ) -> None:
        self.program = pairs.program
        self.pairs, self.side, self.means = pairs, 0 if left else 1, means
        self._a, self._b, self._full = a, b, full
        self._pairwise, self._left = of, left
        self._other = b if left else a
        # counted from the end, the other side's positions may come after those of the left
        self.axis = -1 - int(full and pairs.has_positions(b)) if left else -1

    def of(self, source: int) -> Tensor | None:
        pair = (source, self._b) if self._left else (self._a, source)
        return self._pairwise(*pair, self._full)

    def plus_constant(self, value: Tensor | None, number: Tensor | float) -> Tensor | None:
        if not self.means:
            return value
        mean = self.pairs.mean(self._other, 1 if self._left else 0)
        if mean is None:
            return value
        opposite = self.pairs.on_right if self._left else self.pairs.on_left
        term = number * opposite(mean, self._a, self._b, self._full)
        if value is None:
            return self.pairs.zeros(self._a, self._b, self._full) + term
        return value + term

    def spread(self, number: Tensor) -> Tensor:
        place = self.pairs.on_left if self._left else self.pairs.on_right
        return place(number, self._a, self._b, self._full)

    def zeros(self, source: int) -> Tensor:
        pair = (source, self._b) if self._left else (self._a, source)
        return self.pairs.zeros(*pair, self._full)

    def spread_matrix(self, value: Tensor) -> Tensor:
        value = self.pairs.rows_of(value, self.side, 2)
        return value if self.pairs.paired else value.unsqueeze(-3 if self._left else -4)


class Mean(Operand):
    """The mean of a node at each data point."""

    axis = -1
    is_mean = True
    side = 0
    means = True

    def __init__(self, single: Pairs) -> None:
        self.program = single.program
        self.pairs = single

    def of(self, source: int) -> Tensor | None:
        return self.pairs.mean(source, 0)

    def plus_constant(self, value: Tensor | None, number: Tensor | float) -> Tensor | None:
        return None if value is None else value + number

    def spread(self, number: Tensor) -> Tensor:
        return number

    def zeros(self, source: int) -> Tensor:
        return self.pairs.zeros_of(source)

    def spread_matrix(self, value: Tensor) -> Tensor:
        return value
