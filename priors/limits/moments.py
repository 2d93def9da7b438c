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

Each is written with its kind of node (`kinds` finds it); `pairs` explains the words they share.
None stands for a moment that vanishes by structure: branches without a common weight.

Positions trail (`pairs`): all pairs of them, or with `full=False` the same position of both, which
is all that networks without pooling or attention ask for. The variances that expectations need are
the moments of each data point with itself (`of_points`). Where x1 is x2, the diagonal of an
expectation is set to that value, which has the exact closed form of u = v and its true derivative.
"""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from priors.limits.expectations import plain
from priors.limits.kinds import kind_of, mapped
from priors.limits.pairs import Pairs
from priors.limits.points import Inputs, Settings
from priors.programs.nodes import Linear
from priors.programs.program import Program
from priors.programs.relations import related

__all__ = ["Moments", "Points", "Settings"]


class Points(Inputs):
    """Data points `[..., n, d]` and all that concerns each of them alone."""

    def __init__(
        self, program: Program, settings: Settings, x: Tensor, *, derivatives: bool = False
    ) -> None:
        super().__init__(program, settings, x)
        self._derivatives = derivatives

    @cached_property
    def single(self) -> Moments:
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
        if len(self.program.nodes) > 100:
            self._warm_up()

    def of_points(self, side: int) -> Moments:
        return self if self.of_single_points else self._points[side].single

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
        full = full or not self.alike(a, b)
        if (a, b, full) not in self._cache:
            if self.same and (b, a, full) in self._cache:
                return self.transposed(self._cache[b, a, full], b, a, full)
            if not full and (a, b, True) in self._cache:
                return self._cache[a, b, True].diagonal(dim1=-2, dim2=-1)
            value = self._moment(a, b, full)
            assert value is not None
            self._cache[a, b, full] = value
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
        kind = kind_of(self.program.nodes[a])
        if kind is kind_of(self.program.nodes[b]):
            return kind.moment(self, a, b, full)
        return mapped(self, a, b, full, self.moment, means=True)

    def duals(self, a: int, b: int, full: bool) -> tuple[Tensor, Tensor | None]:
        """E[phi(u) psi(v)] and E[phi'(u) psi'(v)] of two plain nonlinearities."""
        full = full or not self.alike(a, b)
        if (a, b, full) not in self._duals:
            if self.same and (b, a, full) in self._duals:
                value, derivative = self._duals[b, a, full]
                return self.transposed(value, b, a, full), (
                    None if derivative is None else self.transposed(derivative, b, a, full)
                )
            self._duals[a, b, full] = plain(self, a, b, full)
        return self._duals[a, b, full]

    def mean(self, index: int, side: int = 0) -> Tensor | None:
        """Mean over the width at each left or right point, `[..., n, (P)]`; None if 0."""
        single = self.of_points(side)
        if single is not self:
            return single.mean(index)
        if index not in self._means:
            self._means[index] = self._mean(index)
        return self._means[index]

    def _mean(self, index: int) -> Tensor | None:
        if self.program.gaussian(index):
            return None
        return kind_of(self.program.nodes[index]).mean(self, index)
