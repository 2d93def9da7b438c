"""The forward pass of a tensor program: second moments of pairs of nodes (NNGP).

For nodes a, b and data points x_i, x_j the moment is the limit of <a(x_i), b(x_j)> / width as all
hidden widths go to infinity (Yang 2019, 1910.12478, the Master theorem), for each pair of their
positions. The rules are pairwise:

    Linear, Linear            weight_var * moment(sources) if the weight is the same, else 0,
                              plus bias_var if the bias is the same; a convolution averages
                              the moments of its window, shifted together
    Nonlinear, Nonlinear      a Gaussian expectation of the sources' moments (`expectations`)
    Nonlinear, Gaussian       Stein's lemma: E[phi(u) v] = E[phi'(u)] E[u v]
    linear maps               applied on their side of the pair (`maps`)

None stands for a moment that vanishes by structure: branches without a common weight.

Positions trail (`pairs`): all pairs of them, or with `full=False` the same position of both, which
is all that networks without pooling or attention ask for. The variances that expectations need are
the moments of each data point with itself (`of_points`). Where x1 is x2, the diagonal of an
expectation is set to that value, which has the exact closed form of u = v and its true derivative.
"""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from priors.limits.expectations import expectation, mean_of, plain, stein
from priors.limits.heads import Heads
from priors.limits.maps import Mean, OneSide, is_map, map_of
from priors.limits.pairs import Pairs, Pairwise
from priors.limits.points import Inputs, Settings
from priors.limits.relations import related
from priors.limits.weights import embedding, inner_product, linear
from priors.programs.nodes import (
    Attention,
    Embedding,
    Features,
    Linear,
    Nonlinear,
    Normalise,
)
from priors.programs.program import Program

__all__ = ["Moments", "Points", "Settings"]


class Points(Inputs):
    """Data points `[..., n, d]` and all that concerns each of them alone."""

    def __init__(
        self, program: Program, settings: Settings, x: Tensor, *, derivatives: bool = False
    ) -> None:
        super().__init__(program, settings, x)
        self._derivatives = derivatives

    @cached_property
    def own(self) -> Moments:
        """Moments of each data point with itself."""
        return Moments(self, self, paired=True, derivatives=self._derivatives)


class Moments(Pairs):
    """Second moments of a program over pairs of data points.

    Args:
        left: The points of the rows.
        right: The points of the columns; the same object means the same points.
        rows: Which of the left points; all if None.
        columns: Which of the right points.
        paired: Point i of the left goes with point i of the right, instead of all pairs.
        derivatives: Keep the derivatives that the tangent kernel needs.
    """

    def __init__(
        self,
        left: Points,
        right: Points,
        *,
        rows: slice = slice(None),
        columns: slice = slice(None),
        paired: bool = False,
        derivatives: bool = False,
    ) -> None:
        super().__init__(
            left, right, rows=rows, columns=columns, paired=paired, derivatives=derivatives
        )
        self._points = left, right
        self._cache: dict[tuple[int, int, bool], Tensor] = {}
        self._duals: dict[tuple[int, int, bool], tuple[Tensor, Tensor | None]] = {}
        self._means: dict[int, Tensor | None] = {}
        self._heads: dict[tuple[int, int], Heads] = {}
        if len(self.program.nodes) > 100:
            self._warm_up()

    def of_points(self, side: int) -> Moments:
        return self if self.of_single_points else self._points[side].own

    def _warm_up(self) -> None:
        """Fill the cache from the input on, so that recursion does not grow with the depth."""
        chain = [i for i, n in enumerate(self.program.nodes) if isinstance(n, Linear)]
        if all(self.program.positions(i) is None for i in chain):
            for index in chain:
                self.moment(index, index)

    def moment(self, a: int, b: int, full: bool = True) -> Tensor | None:
        """Moment of nodes `a` on the left and `b` on the right; None if it vanishes."""
        if not self.related(a, b):
            return None
        full = full or not (self.has_positions(a) and self.has_positions(b))
        if (a, b, full) not in self._cache:
            if self.same and (b, a, full) in self._cache:
                return self.transposed(self._cache[b, a, full], b, a, full)
            if not full and (a, b, True) in self._cache:
                return self._cache[a, b, True].diagonal(dim1=-2, dim2=-1)
            value = self._moment(a, b, full)
            assert value is not None
            self._cache[a, b, full] = self.symmetrised(value, a, b, full)
            if not self.derivatives:
                self.drop_intermediate(a, b)
        return self._cache[a, b, full]

    def drop_intermediate(self, a: int, b: int) -> None:
        """Drop what led to a layer and serves nothing else, so that a block stays in the cache."""
        node = self.program.nodes[a]
        if a != b or self.of_single_points or not isinstance(node, Linear) or node.source is None:
            return
        below = node.source
        while self.program.consumers[below] == 1 and not self.program.from_input(below):
            for cache in (self._cache, self._duals):
                for full in (True, False):
                    cache.pop((below, below, full), None)
            sources = self.program.sources(below)
            if len(sources) != 1 or isinstance(self.program.nodes[below], Linear):
                return
            (below,) = sources

    def related(self, a: int, b: int) -> bool:
        """Whether a moment can differ from 0: a common weight, or means."""
        return related(self.program, a, b)

    def _moment(self, a: int, b: int, full: bool) -> Tensor | None:
        first, second = self.program.nodes[a], self.program.nodes[b]
        if is_map(first) or is_map(second):
            return self.mapped(a, b, full, self.moment, means=True)
        match first, second:
            case Features(), Features():
                return inner_product(self, a, b, full)
            case Linear(), Linear():
                return linear(self, a, b, full)
            case Embedding(), Embedding():
                return embedding(self, a, b, full)
            case Nonlinear(), Nonlinear():
                return self.with_exact_diagonal(
                    self._expectation(a, b, full),
                    a,
                    b,
                    full,
                    lambda single: single.moment(a, b, False),
                )
            case Nonlinear(), _:
                return stein(self, a, b, full, self.moment, jumps=True)
            case _, Nonlinear():
                return stein(self, a, b, full, self.moment, jumps=True)
        raise AssertionError(f"no moment of {first} and {second}")

    def duals(self, a: int, b: int, full: bool) -> tuple[Tensor, Tensor | None]:
        """E[phi(u) psi(v)] and E[phi'(u) psi'(v)] of two plain nonlinearities."""
        full = full or not (self.has_positions(a) and self.has_positions(b))
        if (a, b, full) not in self._duals:
            if self.same and (b, a, full) in self._duals:
                value, derivative = self._duals[b, a, full]
                return self.transposed(value, b, a, full), (
                    None if derivative is None else self.transposed(derivative, b, a, full)
                )
            self._duals[a, b, full] = plain(self, a, b, full)
        return self._duals[a, b, full]

    def _expectation(self, a: int, b: int, full: bool) -> Tensor:
        if self.is_plain(a) and self.is_plain(b):
            return self.duals(a, b, full)[0]
        return expectation(self, a, b, full)

    def mapped(
        self, a: int, b: int, full: bool, of: Pairwise, *, means: bool = False
    ) -> Tensor | None:
        """What linear maps make of the pairs of their sources; the later node's comes first."""
        first, second = self.program.nodes[a], self.program.nodes[b]
        if type(first) is type(second):
            both = map_of(first).both(self, a, b, full, of, means)
            if both is not None:
                return both()
        left = is_map(first) and (a >= b or not is_map(second))
        index, node = (a, first) if left else (b, second)
        kind = map_of(node)
        if not full and not kind.pointwise:
            value = of(a, b, True)
            return None if value is None else value.diagonal(dim1=-2, dim2=-1)
        return kind.apply(index, node, OneSide(self, a, b, full, of, means, left=left))

    def statistics(self, index: int, side: int) -> tuple[Tensor | None, Tensor]:
        """Mean and 1/standard deviation of a `Normalise` node, `[..., n, (P)]`."""
        node = self.program.nodes[index]
        assert isinstance(node, Normalise)
        square = self._pooled(node, self.variance_of(node.source, side))
        mean = self.mean(node.source, side) if node.centred else None
        if mean is not None:
            mean = self._pooled(node, mean)
            square = square - mean**2
        return mean, (square + node.eps).rsqrt()

    def _pooled(self, node: Normalise, value: Tensor) -> Tensor:
        if not node.pooled:
            return value
        shape = value.shape
        value = value.unflatten(-1, node.positions)
        axes = tuple(range(-node.pooled, 0))
        return value.mean(axes, keepdim=True).expand(*shape[:-1], *node.positions).reshape(shape)

    def mean(self, index: int, side: int = 0) -> Tensor | None:
        """Mean over the width at each left or right point, `[..., n, (P)]`; None if 0."""
        single = self.of_points(side)
        if single is not self:
            return single.mean(index)
        if index not in self._means:
            self._means[index] = self._mean(index)
        return self._means[index]

    def _mean(self, index: int) -> Tensor | None:
        node = self.program.nodes[index]
        if self.program.gaussian(index):
            return None
        if isinstance(node, Nonlinear):
            return mean_of(self, index, 0, None)
        return map_of(node).apply(index, node, Mean(self))

    def weights(self, index: int) -> Tensor:
        """Average attention weights at each point, `[..., n, queries, keys]`."""
        return self.heads(index, index).mean_weights()

    def heads(self, a: int, b: int) -> Heads:
        """The attention heads of two nodes."""
        if (a, b) not in self._heads:
            self._heads[a, b] = self._make_heads(a, b)
        return self._heads[a, b]

    def _make_heads(self, a: int, b: int) -> Heads:
        first, second = self.program.nodes[a], self.program.nodes[b]
        assert isinstance(first, Attention)
        assert isinstance(second, Attention)
        queries, keys = (
            (self._logits(i, i, 0), self._logits(j, j, 1), self._logits(i, j, None))
            for i, j in ((first.query, second.query), (first.key, second.key))
        )
        mean_field = None
        if first.mean_field:
            mean_field = self._logits(first.query, first.key, 0)
        symmetric = a == b and self.same and not self.paired
        rule = self.settings.quadrature
        return Heads(first, second, queries, keys, mean_field, rule, symmetric)  # type: ignore

    def _logits(self, a: int, b: int, side: int | None) -> Tensor | None:
        """Full moments of queries or keys: cross (None), or own of a side, spread over pairs."""
        if side is None:
            return self.moment(a, b, True)
        value = self.of_points(side).moment(a, b, True)
        if value is None:
            return None
        value = self.rows_of(value, side, 2)
        if self.paired:
            return value
        return value.unsqueeze(-3 if side == 0 else -4)
