"""Pairs of data points and pairs of positions: how their tensors are shaped and combined.

Positions are flattened and trail: `[..., n1, n2, P_a, P_b]`, or with `full=False` the same
position of both, `[..., n1, n2, P]`. The data points come as a matrix of pairs, or *paired* row by
row, then without n2. What is known of each data point alone, `[..., n, (P)]`, is *spread* over
the pairs from its side.

Words used throughout `limits`:

    moment          limit of <a(x_i), b(x_j)> / width for two nodes and two data points
    tangent         the same of their gradients in all weights
    a, b            indices of the nodes on the left and on the right of a pair
    side            0 for the left, 1 for the right
    single points   the pairs of each data point with itself alone (`Pairs.of_points`)
    full            all pairs of positions, not only equal ones
    trailing        how many position dimensions a pair's tensor ends with
    exact diagonal  a point (and position) with itself, where a closed form replaces quadrature
    derivatives     E[phi'(u) psi'(v)], which only the tangent kernel needs
    plain           of a nonlinearity: one `Activation` of one Gaussian vector
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from priors.gaussian.activations import Activation
from priors.limits.points import Inputs
from priors.programs.nodes import Nonlinear

__all__ = ["Pairs", "Pairwise"]

T = TypeVar("T")

# (a, b, full) -> what is propagated through linear maps
Pairwise = Callable[[int, int, bool], Tensor | None]


class Pairs(ABC):
    """Pairs of data points over which the nodes of a program have moments.

    Attributes:
        program: The program.
        settings: How it is evaluated.
        inputs: The data points of the left and of the right.
        paired: Point i of the left goes with point i of the right, instead of all pairs.
        same: Whether both sides are the same points.
        of_single_points: Whether each point goes with itself.
        derivatives: Whether derivatives are kept for the tangent kernel.
    """

    def __init__(
        self,
        left: Inputs,
        right: Inputs,
        *,
        rows: slice = slice(None),
        columns: slice = slice(None),
        paired: bool = False,
        derivatives: bool = False,
    ) -> None:
        self.program = left.program
        self.settings = left.settings
        self.paired = paired
        self.same = left is right and rows == columns
        self.of_single_points = paired and left is right
        self.derivatives = derivatives
        self.inputs = left, right
        self._rows = rows, columns
        self._once: dict[Hashable, Any] = {}

    @abstractmethod
    def moment(self, a: int, b: int, full: bool = True) -> Tensor | None:
        """Moment of nodes `a` on the left and `b` on the right; None if it vanishes."""

    @abstractmethod
    def mean(self, index: int, side: int = 0) -> Tensor | None:
        """Mean over the width at each left or right point, `[..., n, (P)]`; None if 0."""

    @abstractmethod
    def duals(self, a: int, b: int, full: bool) -> tuple[Tensor, Tensor | None]:
        """E[phi(u) psi(v)] and E[phi'(u) psi'(v)] of two plain nonlinearities."""

    @abstractmethod
    def of_points(self, side: int) -> Pairs:
        """The left (0) or right (1) points, each with itself; all of them, not only the rows."""

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returns, made once for these pairs."""
        if key not in self._once:
            self._once[key] = make()
        return self._once[key]

    def variance(self, kind: str, layer: str, trailing: int) -> Tensor:
        """Variance of a weight or bias, shaped to multiply a pair of `trailing` position dims."""
        value = self.inputs[0].variance(kind, layer)
        if value.dim() == 0:
            return value
        return value[(..., *(None,) * ((1 if self.paired else 2) + trailing))]

    def trailing(self, a: int, b: int, full: bool) -> int:
        """Number of position dimensions of a pair."""
        return 1 if not full else int(self.has_positions(a)) + int(self.has_positions(b))

    def transposed(self, value: Tensor, a: int, b: int, full: bool) -> Tensor:
        """The pair (a, b) seen as (b, a), where both sides are the same points."""
        trailing = self.trailing(a, b, full) if full or self.has_positions(a) else 0
        if full and trailing == 2:
            value = value.transpose(-1, -2)
        return value if self.paired else value.transpose(-1 - trailing, -2 - trailing)

    def on_left(self, value: Tensor, a: int, b: int, full: bool) -> Tensor:
        """A number per left point (and position of `a`) shaped to multiply the pair."""
        value = self.rows_of(value, 0, int(self.has_positions(a)))
        if not self.paired:
            value = value.unsqueeze(-2 if self.has_positions(a) else -1)
        return value.unsqueeze(-1) if full and self.has_positions(b) else value

    def on_right(self, value: Tensor, a: int, b: int, full: bool) -> Tensor:
        """The same for right points."""
        positions = self.has_positions(b)
        value = self.rows_of(value, 1, int(positions))
        if not self.paired:
            value = value.unsqueeze(-3 if positions else -2)
        if full and self.has_positions(a):
            value = value.unsqueeze(-2 if positions else -1)
        return value

    def rows_of(self, value: Tensor, side: int, trailing: int) -> Tensor:
        """Those of a side's points that are meant, of a tensor with `trailing` position dims."""
        rows = self._rows[side]
        if rows == slice(None):
            return value
        return value.movedim(-1 - trailing, 0)[rows].movedim(0, -1 - trailing)

    def has_positions(self, index: int) -> bool:
        """Whether a node has positions; otherwise it is a single vector."""
        return self.program.positions(index) is not None

    def alike(self, a: int, b: int) -> bool:
        """Whether two nodes have equally many positions, so that a same one of both is meant."""
        positions = self.program.positions(a)
        return positions is not None and positions == self.program.positions(b)

    def zeros(self, a: int, b: int, full: bool) -> Tensor:
        """Zero for every pair."""
        left, right = self.inputs[0].x, self.inputs[1].x
        sizes = [self.rows_of(p.x[..., 0], side, 0).shape[-1] for side, p in enumerate(self.inputs)]
        pairs = sizes[:1] if self.paired else sizes
        places = [self.program.positions(i) for i in ((a, b) if full else (a,))]
        batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        return left.new_zeros(*batch, *pairs, *(p for p in places if p is not None))

    def with_exact_diagonal(
        self,
        value: Tensor,
        a: int,
        b: int,
        full: bool,
        exact: Callable[[Pairs], Tensor | None],
    ) -> Tensor:
        """Set the pairs of a point and position with itself to their own closed form."""
        trailing = self.trailing(a, b, full)
        if not self.same or (trailing == 1 and full):
            return value
        if self.program.positions(a) != self.program.positions(b):
            return value
        if self.paired:
            if trailing != 2:
                return value
            known = exact(self)
            assert known is not None
            return _with_diagonal(value, known, [(-2, -1)])
        known = exact(self.of_points(0))
        assert known is not None
        known = self.rows_of(known, 0, int(trailing > 0))
        if trailing == 0:
            return _with_diagonal(value, known, [(-2, -1)])
        if trailing == 1:
            return _with_diagonal(value, known.mT, [(-3, -2)])
        # [.., n, n, P, P] -> [.., P, P, n] -> [.., n, P]
        return _with_diagonal(value, known, [(-4, -3), (-3, -2)])

    def with_exact_blocks(self, value: Tensor, exact: Tensor | None) -> Tensor:
        """Pairs of a point with itself, at all positions, replaced: their heads are the same."""
        assert exact is not None
        return _with_diagonal(value, self.rows_of(exact, 0, 2).movedim(-3, -1), [(-4, -3)])

    def variance_of(self, index: int, side: int) -> Tensor:
        """Second moment of each left (0) or right (1) point, all of them, `[..., n, (P)]`."""
        value = self.of_points(side).moment(index, index, False)
        assert value is not None
        return value

    def is_plain(self, index: int) -> bool:
        """Whether a node is one `Activation` of one Gaussian."""
        node = self.program.nodes[index]
        return isinstance(node, Nonlinear) and node.activation is not None

    def activation(self, index: int) -> tuple[Activation, int]:
        """The function and the source of a plain nonlinearity."""
        node = self.program.nodes[index]
        assert isinstance(node, Nonlinear)
        assert node.activation is not None
        return node.activation, node.factors[0].sources[0]

    def zeros_of(self, index: int) -> Tensor:
        """Zero at each left point (and position of a node), `[..., n, (P)]`."""
        if self.has_positions(index):
            return self.zeros(index, index, False)
        return self.inputs[0].x[..., 0] * 0


def _with_diagonal(value: Tensor, exact: Tensor, dims: Sequence[tuple[int, int]]) -> Tensor:
    """Replace a diagonal (of a diagonal)."""
    if not (torch.is_grad_enabled() and (value.requires_grad or exact.requires_grad)):
        view = value
        for dim1, dim2 in dims:
            view = view.diagonal(dim1=dim1, dim2=dim2)
        view.copy_(exact)
        return value
    (dim1, dim2), *rest = dims
    inner = (
        exact.expand(value.diagonal(dim1=dim1, dim2=dim2).shape)
        if not rest
        else (_with_diagonal(value.diagonal(dim1=dim1, dim2=dim2), exact, rest))
    )
    return torch.diagonal_scatter(value, inner, dim1=dim1, dim2=dim2)
