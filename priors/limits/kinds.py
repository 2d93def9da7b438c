"""The questions that the infinite-width limit asks of a node: one class for each kind of node.

Two nodes of one kind are that kind's own matter. Of two kinds, one side is taken apart into its
sources: that of a linear map, the later one first; else that of a nonlinear node, whose partner
is then Gaussian. A kind from elsewhere is a class of nodes, `register_kind(MyNode)` of a `Kind`
(or `LinearMap`) and a layer rule that makes such nodes; nothing else knows of it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from torch import Tensor

from priors.limits.operands import Mean, OneSide, Operand
from priors.limits.pairs import Pairs, Pairwise
from priors.programs.nodes import Hidden, Node

__all__ = ["Kind", "LinearMap", "TangentPairs", "kind_of", "mapped", "register_kind"]

N = TypeVar("N", bound=Hidden)
K = TypeVar("K", bound="type[Kind[Any]]")


class TangentPairs(Protocol):
    """Tangents over pairs of data points, as kinds see them."""

    @property
    def moments(self) -> Pairs:
        """The moments of the same pairs."""

    @property
    def standard(self) -> bool:
        """Whether the standard parametrisation is meant instead of the NTK's."""

    def tangent(self, a: int, b: int, full: bool = True) -> Tensor | None:
        """Tangent of nodes `a` on the left and `b` on the right; None if it vanishes."""

    def of_points(self) -> TangentPairs:
        """The left points, each with itself."""


class Kind(Generic[N]):
    """The rules of one kind of node.

    Attributes:
        precedence: Of two kinds, the one with the larger precedence is taken apart.
        pointwise: Whether one side can be taken apart position by position.
    """

    precedence: ClassVar[int] = 0
    pointwise: ClassVar[bool] = True

    def moment(self, pairs: Pairs, a: int, b: int, full: bool) -> Tensor | None:
        """Moment of two nodes of this kind."""
        raise self._without_rule(pairs, a)

    def tangent(self, tangents: TangentPairs, a: int, b: int, full: bool) -> Tensor | None:
        """Tangent of two nodes of this kind."""
        raise self._without_rule(tangents.moments, a)

    def one_side(self, index: int, x: OneSide) -> Tensor | None:
        """What node `index` makes of its sources, with a node of another kind opposite."""
        raise self._without_rule(x.pairs, index)

    def mean(self, single: Pairs, index: int) -> Tensor | None:
        """Mean over the width at each point, `[..., n, (P)]`; None if 0."""
        raise self._without_rule(single, index)

    def nodes(self, pairs: Pairs, a: int, b: int) -> tuple[N, N]:
        """Two nodes of this kind."""
        nodes: Any = pairs.program.nodes
        return nodes[a], nodes[b]

    def _without_rule(self, pairs: Pairs, index: int) -> NotImplementedError:
        name = type(pairs.program.nodes[index]).__name__
        return NotImplementedError(
            f"{name} nodes have no rule for this kernel; give one in the Kind that "
            f"register_kind({name}) registers."
        )


class LinearMap(Kind[N]):
    """A linear map of others, given the statistics of each data point.

    It acts on one side of a pair of nodes, and in the same way on the mean of a node. Where that
    is cheaper or different, it also has a rule for both sides at once.
    """

    precedence = 2
    pointwise = False

    @abstractmethod
    def apply(self, index: int, node: N, x: Operand) -> Tensor | None:
        """The map of node `index`, applied to its sources; None if nothing is left."""

    def both(
        self, pairs: Pairs, a: int, b: int, full: bool, of: Pairwise, means: bool
    ) -> Callable[[], Tensor | None] | None:
        """A rule for two nodes of this kind at once; None: one side after the other."""
        return None

    def moment(self, pairs: Pairs, a: int, b: int, full: bool) -> Tensor | None:
        return mapped(pairs, a, b, full, pairs.moment, means=True)

    def tangent(self, tangents: TangentPairs, a: int, b: int, full: bool) -> Tensor | None:
        return mapped(tangents.moments, a, b, full, tangents.tangent)

    def one_side(self, index: int, x: OneSide) -> Tensor | None:
        return self.apply(index, self.nodes(x.pairs, index, index)[0], x)

    def mean(self, single: Pairs, index: int) -> Tensor | None:
        return self.apply(index, self.nodes(single, index, index)[0], Mean(single))


_KINDS: dict[type[Hidden], Kind[Any]] = {}
_WITHOUT_RULES: Kind[Any] = Kind()


def register_kind(node: type[Hidden]) -> Callable[[K], K]:
    """A decorator: the decorated `Kind` has the rules of a class of nodes and its subclasses."""

    def register(kind: K) -> K:
        _KINDS[node] = kind()
        return kind

    return register


def kind_of(node: Node) -> Kind[Any]:
    """The rules of a node."""
    return next((_KINDS[t] for t in type(node).__mro__ if t in _KINDS), _WITHOUT_RULES)


def mapped(
    pairs: Pairs, a: int, b: int, full: bool, of: Pairwise, *, means: bool = False
) -> Tensor | None:
    """Nodes of different kinds, or of one kind of map, made of the pairs of their sources.

    Args:
        pairs: The moments.
        a: Node on the left.
        b: Node on the right.
        full: Whether all pairs of positions are meant.
        of: What is propagated through the nodes, moments or tangents.
        means: Whether it has a part from the means, as moments have and tangents do not.
    """
    first, second = kind_of(pairs.program.nodes[a]), kind_of(pairs.program.nodes[b])
    if first is second and isinstance(first, LinearMap):
        both = first.both(pairs, a, b, full, of, means)
        if both is not None:
            return both()
    left = (first.precedence, a) >= (second.precedence, b)
    index, kind = (a, first) if left else (b, second)
    if not full and not kind.pointwise:
        value = of(a, b, True)
        return None if value is None else value.diagonal(dim1=-2, dim2=-1)
    return kind.one_side(index, OneSide(pairs, a, b, full, of, means, left=left))
