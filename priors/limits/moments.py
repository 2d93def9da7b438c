"""The forward pass of a tensor program: second moments of pairs of nodes (NNGP).

For nodes a, b and data points x_i, x_j the moment is the limit of <a(x_i), b(x_j)> / width as all
hidden widths go to infinity (Yang 2019, 1910.12478, the Master theorem), for each pair of their
positions. The rules are pairwise:

    Linear, Linear            weight_var * moment(sources) if the weight is the same, else 0,
                              plus bias_var if the bias is the same; a convolution averages
                              the moments of its window, shifted together
    Nonlinear, Nonlinear      a Gaussian expectation of the sources' moments
    Nonlinear, Gaussian       Stein's lemma: E[phi(u) v] = E[phi'(u)] E[u v]
    linear maps               applied on their side of the pair

None stands for a moment that vanishes by structure: branches without a common weight.

Positions are flattened and trail: `[..., n1, n2, P_a, P_b]`, or with `full=False` the same
position of both, `[..., n1, n2, P]`, which is all that networks without pooling or attention ask
for. The data points come as a matrix of pairs, or *paired* row by row, then without n2. The
variances that expectations need are the paired moments of each data point with itself. Where x1
is x2, the diagonal of an expectation is set to the paired value, which has the exact closed form
of u = v and its true derivative.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from priors.gaussian.activations import Activation
from priors.gaussian.quadrature import gaussian_expectation, gaussian_mean
from priors.gaussian.quadrature import jumps as activation_jumps
from priors.gaussian.quasi_monte_carlo import QuasiMonteCarlo
from priors.limits.heads import Heads
from priors.limits.maps import (
    averaged,
    convolved,
    gathered,
    mixed,
    needs_graph,
    selected,
)
from priors.programs.expressions import Apply, crossings
from priors.programs.nodes import (
    Array,
    Attention,
    BatchNormalise,
    Combination,
    Concatenate,
    Dropout,
    Embedding,
    Factor,
    Features,
    Flatten,
    Function,
    Input,
    Join,
    Linear,
    Mix,
    Nonlinear,
    Normalise,
    Ref,
    Select,
    Span,
)
from priors.programs.program import Program

__all__ = ["Moments", "Points", "Settings", "Variances", "is_map"]

# (kind, layer, like) -> variance `[*batch]` in the dtype of `like`; kind is "weight" or "bias".
Variances = Callable[[str, str, Tensor], Tensor]
# (a, b, full) -> what is propagated through linear maps
Pairwise = Callable[[int, int, bool], Tensor | None]


@dataclass(frozen=True)
class Settings:
    """How a program is evaluated.

    Attributes:
        variances: Variance of each weight and bias, `[*batch]`.
        quadrature: For expectations over more than two variables.
        max_variables: Most variables of one expectation.
    """

    variances: Variances
    quadrature: QuasiMonteCarlo
    max_variables: int = 64


class Points:
    """Data points `[..., n, d]` and all that concerns each of them alone."""

    def __init__(
        self, program: Program, settings: Settings, x: Tensor, *, derivatives: bool = False
    ) -> None:
        self.program = program
        self.settings = settings
        self.x = x
        self._derivatives = derivatives
        self._values: dict[int, Any] = {}

    @cached_property
    def own(self) -> Moments:
        """Moments of each data point with itself."""
        return Moments(self, self, paired=True, derivatives=self._derivatives)

    def features(self, index: int) -> Tensor:
        """A `Features` node at the data points, `[..., n, (P,) width]`."""
        node = self.program.nodes[index]
        assert isinstance(node, Features)
        value = self._value(node.source).movedim(node.axis + 1, -1)
        places = (math.prod(node.positions),) if node.positions else ()
        return value.reshape(*self.x.shape[:-1], *places, value.shape[-1])

    def tokens(self, index: int, positions: tuple[int, ...]) -> Tensor:
        """Integer tokens at the data points, `[..., n, (P)]`."""
        value = self._value(index)
        places = (math.prod(positions),) if positions else ()
        tokens = value.reshape(*self.x.shape[:-1], *places).round().long()
        return tokens.to(self.x.device)  # positions are numbered on the CPU

    def _value(self, index: int) -> Any:
        """A finite node with the batch as the first dimension."""
        if index not in self._values:
            node = self.program.nodes[index]
            if isinstance(node, Input):
                shape = [self.x.shape[-1] if s is None else s for s in node.shape]
                self._values[index] = self.x.reshape(-1, *shape)
            else:
                assert isinstance(node, Function)
                arguments = [self._thaw(a) for a in node.arguments]
                keywords = {k: self._thaw(a) for k, a in node.keywords}
                self._values[index] = node.function(*arguments, **keywords)
        return self._values[index]

    def _thaw(self, item: Any) -> Any:
        match item:
            case Ref(index=int(index)):
                return self._value(index)
            case Ref():
                return self.x.shape[:-1].numel()
            case Array():
                return item.tensor(self.x)
            case Span():
                return slice(*(self._thaw(p) for p in (item.start, item.stop, item.step)))
            case tuple():
                return tuple(self._thaw(part) for part in item)
        return item


class Moments:
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
        self.program = left.program
        self.settings = left.settings
        self.paired = paired
        self.same = left is right and rows == columns
        self._points = left, right
        self._rows = rows, columns
        self._derivatives = derivatives
        self._cache: dict[tuple[int, int, bool], Tensor] = {}
        self._duals: dict[tuple[int, int, bool], tuple[Tensor, Tensor | None]] = {}
        self._means: dict[int, Tensor | None] = {}
        self._heads: dict[tuple[int, int], Heads] = {}
        self._itself = paired and left is right
        if len(self.program.nodes) > 100:
            self._warm_up()

    def _warm_up(self) -> None:
        """Fill the cache from the input on, so that recursion does not grow with the depth."""
        chain = [i for i, n in enumerate(self.program.nodes) if isinstance(n, Linear)]
        if all(self.program.positions(i) is None for i in chain):
            for index in chain:
                self.moment(index, index)

    # Pairs -------------------------------------------------------------------------------------

    def moment(self, a: int, b: int, full: bool = True) -> Tensor | None:
        """Moment of nodes `a` on the left and `b` on the right; None if it vanishes."""
        if not self.related(a, b):
            return None
        full = full or not (self._placed(a) and self._placed(b))
        if (a, b, full) not in self._cache:
            if self.same and (b, a, full) in self._cache:
                return self.transposed(self._cache[b, a, full], b, a, full)
            if not full and (a, b, True) in self._cache:
                return self._cache[a, b, True].diagonal(dim1=-2, dim2=-1)
            value = self._moment(a, b, full)
            assert value is not None
            self._cache[a, b, full] = self.symmetrised(value, a, b, full)
            if not self._derivatives:
                self.forget_below(a, b)
        return self._cache[a, b, full]

    def forget_below(self, a: int, b: int) -> None:
        """Drop what led to a layer and serves nothing else, so that a block stays in the cache."""
        node = self.program.nodes[a]
        if a != b or self._itself or not isinstance(node, Linear) or node.source is None:
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
        return _related(self.program, a, b)

    def variance(self, kind: str, layer: str, trailing: int) -> Tensor:
        """Variance of a weight or bias, shaped to multiply a pair of `trailing` position dims."""
        value = self.settings.variances(kind, layer, self._points[0].x)
        if value.dim() == 0:
            return value
        return value[(..., *(None,) * ((1 if self.paired else 2) + trailing))]

    def trailing(self, a: int, b: int, full: bool) -> int:
        """Number of position dimensions of a pair."""
        return 1 if not full else int(self._placed(a)) + int(self._placed(b))

    def transposed(self, value: Tensor, a: int, b: int, full: bool) -> Tensor:
        """The pair (a, b) seen as (b, a), where both sides are the same points."""
        trailing = self.trailing(a, b, full) if full or self._placed(a) else 0
        if full and trailing == 2:
            value = value.transpose(-1, -2)
        return value if self.paired else value.transpose(-1 - trailing, -2 - trailing)

    def symmetrised(self, value: Tensor, a: int, b: int, full: bool) -> Tensor:
        """The mean of both orders of a pair, which a quadrature over many variables draws apart."""
        if a != b or not self.same or self.paired:
            return value
        if not isinstance(self.program.nodes[a], Nonlinear) or self.is_plain(a):
            return value
        return (value + self.transposed(value, a, a, full)) / 2

    def on_left(self, value: Tensor, a: int, b: int, full: bool) -> Tensor:
        """A number per left point (and position of `a`) shaped to multiply the pair."""
        value = self._slice(value, 0, int(self._placed(a)))
        if not self.paired:
            value = value.unsqueeze(-2 if self._placed(a) else -1)
        return value.unsqueeze(-1) if full and self._placed(b) else value

    def on_right(self, value: Tensor, a: int, b: int, full: bool) -> Tensor:
        """The same for right points."""
        placed = self._placed(b)
        value = self._slice(value, 1, int(placed))
        if not self.paired:
            value = value.unsqueeze(-3 if placed else -2)
        if full and self._placed(a):
            value = value.unsqueeze(-2 if placed else -1)
        return value

    def _slice(self, value: Tensor, side: int, trailing: int) -> Tensor:
        rows = self._rows[side]
        if rows == slice(None):
            return value
        return value.movedim(-1 - trailing, 0)[rows].movedim(0, -1 - trailing)

    def _own(self, side: int) -> Moments:
        return self if self._itself else self._points[side].own

    def _placed(self, index: int) -> bool:
        return self.program.positions(index) is not None

    def _moment(self, a: int, b: int, full: bool) -> Tensor | None:
        first, second = self.program.nodes[a], self.program.nodes[b]
        if is_map(first) or is_map(second):
            return self.image(a, b, full, self.moment, means=True)
        match first, second:
            case Features(), Features():
                return self._inner_product(a, b, full)
            case Linear(), Linear():
                return self._linear(a, b, full)
            case Embedding(), Embedding():
                return self._embedding(a, b, full)
            case Nonlinear(), Nonlinear():
                return self.pinned(
                    self._expectation(a, b, full), a, b, full, lambda own: own.moment(a, b, False)
                )
            case Nonlinear(), _:
                return self.stein(a, b, full, self.moment, jumps=True)
            case _, Nonlinear():
                return self.stein(a, b, full, self.moment, jumps=True)
        raise AssertionError(f"no moment of {first} and {second}")

    # Weights -----------------------------------------------------------------------------------

    def _linear(self, a: int, b: int, full: bool) -> Tensor | None:
        first, second = self.program.nodes[a], self.program.nodes[b]
        assert isinstance(first, Linear)
        assert isinstance(second, Linear)
        trailing = self.trailing(a, b, full)
        total: Tensor | None = None
        if first.weight == second.weight:
            moment = self.through_weight(a, b, full, self.moment)
            if moment is not None:
                variance = self.variance("weight", first.layer, trailing)
                fresh = first.window is not None and not needs_graph(moment, variance)
                total = moment.mul_(variance) if fresh else moment * variance
        if first.bias is not None and first.bias == second.bias:
            assert first.bias_layer is not None
            variance = self.variance("bias", first.bias_layer, trailing)
            if total is None:
                total = self.zeros(a, b, full) + variance
            elif variance.dim() or needs_graph(total, variance):
                total = total + variance
            else:
                total += variance
        return total

    def through_weight(self, a: int, b: int, full: bool, of: Pairwise) -> Tensor | None:
        """What a shared matrix of variance 1 makes of the sources' pairs."""
        first, second = self.program.nodes[a], self.program.nodes[b]
        assert isinstance(first, Linear)
        assert isinstance(second, Linear)
        if first.source is None or second.source is None:
            return None
        value = of(first.source, second.source, full)
        if value is None or first.window is None:
            return value
        shapes = [self.program.nodes[n.source].positions for n in (first, second)]  # type: ignore
        return convolved(value, first.window, shapes[0], shapes[1], full)

    def _inner_product(self, a: int, b: int, full: bool) -> Tensor:
        trailing = 1 + int(self._placed(a)), 1 + int(self._placed(b))
        left = self._slice(self._points[0].features(a), 0, trailing[0])
        right = self._slice(self._points[1].features(b), 1, trailing[1])
        left = left / left.shape[-1]
        if trailing == (1, 1):
            return (left * right).sum(-1) if self.paired else left @ right.mT
        if not full:
            if self.paired:
                return (left * right).sum(-1)
            if left.shape[-1] <= 8:  # colours: products of many tiny matrices are slow
                left, right = left.unsqueeze(-3), right.unsqueeze(-4)
                parts = (left[..., c] * right[..., c] for c in range(left.shape[-1]))
                return functools.reduce(torch.add, parts)
            product = left.transpose(-2, -3) @ right.transpose(-2, -3).mT
            return product.movedim(-3, -1).contiguous()
        letters = "i" if self.paired else "j"
        one, two = ("p" if t == 2 else "" for t in trailing)
        two = "q" if two else ""
        pairs = "i" if self.paired else "ij"
        return torch.einsum(
            f"...i{one}d,...{letters}{two}d->...{pairs}{one}{two}", left, right
        ).contiguous()

    def _embedding(self, a: int, b: int, full: bool) -> Tensor:
        first, second = self.program.nodes[a], self.program.nodes[b]
        assert isinstance(first, Embedding)
        assert isinstance(second, Embedding)
        x = self._points[0].x
        tokens = (
            self.on_left(self._points[0].tokens(first.source, first.positions), a, b, full),
            self.on_right(self._points[1].tokens(second.source, second.positions), a, b, full),
        )
        equal = tokens[0] == tokens[1]
        if first.padding is not None:
            equal = equal & (tokens[0] != first.padding)
        variance = self.variance("weight", first.layer, self.trailing(a, b, full))
        return equal.to(x.dtype) * variance

    def zeros(self, a: int, b: int, full: bool) -> Tensor:
        """Zero for every pair."""
        left, right = self._points[0].x, self._points[1].x
        sizes = [self._slice(p.x[..., 0], side, 0).shape[-1] for side, p in enumerate(self._points)]
        pairs = sizes[:1] if self.paired else sizes
        places = [self.program.positions(i) for i in ((a, b) if full else (a,))]
        batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        return left.new_zeros(*batch, *pairs, *(p for p in places if p is not None))

    # Expectations ------------------------------------------------------------------------------

    def duals(self, a: int, b: int, full: bool) -> tuple[Tensor, Tensor | None]:
        """E[phi(u) psi(v)] and E[phi'(u) psi'(v)] of two plain nonlinearities."""
        full = full or not (self._placed(a) and self._placed(b))
        if (a, b, full) not in self._duals:
            if self.same and (b, a, full) in self._duals:
                value, derivative = self._duals[b, a, full]
                return self.transposed(value, b, a, full), (
                    None if derivative is None else self.transposed(derivative, b, a, full)
                )
            self._duals[a, b, full] = self._plain(a, b, full)
        return self._duals[a, b, full]

    def is_plain(self, index: int) -> bool:
        """Whether a node is one `Activation` of one Gaussian."""
        node = self.program.nodes[index]
        return (
            isinstance(node, Nonlinear)
            and len(node.factors) == 1
            and isinstance(node.factors[0].function, Activation)
        )

    def _plain(self, a: int, b: int, full: bool) -> tuple[Tensor, Tensor | None]:
        (phi, u), (psi, v) = self.activation(a), self.activation(b)
        c = self.moment(u, v, full)
        if c is None:
            left, right = self.mean(a, 0), self.mean(b, 1)
            assert left is not None
            assert right is not None
            return self.on_left(left, a, b, full) * self.on_right(right, a, b, full), None
        if self._itself and a == b and self.trailing(a, b, full) == (0 if full else 1):
            return phi.second_moment(c), phi.second_moment_derivative(c)
        q1 = self.on_left(self.variance_of(u, 0), a, b, full)
        q2 = self.on_right(self.variance_of(v, 1), a, b, full)
        if not self._derivatives:
            return phi.dual(psi, q1, q2, c), None
        value, derivative = phi.duals(psi, q1, q2, c)
        return value, derivative

    def activation(self, index: int) -> tuple[Activation, int]:
        node = self.program.nodes[index]
        assert isinstance(node, Nonlinear)
        function = node.factors[0].function
        assert isinstance(function, Activation)
        return function, node.factors[0].sources[0]

    def variance_of(self, index: int, side: int) -> Tensor:
        """Second moment of each left (0) or right (1) point, all of them, `[..., n, (P)]`."""
        value = self._own(side).moment(index, index, False)
        assert value is not None
        return value

    def _expectation(self, a: int, b: int, full: bool) -> Tensor:
        if self.is_plain(a) and self.is_plain(b):
            return self.duals(a, b, full)[0]
        return self.expectation(a, b, full)

    def expectation(
        self,
        a: int,
        b: int,
        full: bool,
        da: tuple[int, int] | None = None,
        db: tuple[int, int] | None = None,
    ) -> Tensor:
        """E[f(u) g(v)] of two `Nonlinear` nodes, or of their partial derivatives.

        `da` = (factor, source of the factor) takes the derivative of f there, `db` of g.
        """
        first, second = self.program.nodes[a], self.program.nodes[b]
        assert isinstance(first, Nonlinear)
        assert isinstance(second, Nonlinear)
        items = [(0, k, f) for k, f in enumerate(first.factors)]
        items += [(1, k, f) for k, f in enumerate(second.factors)]
        total: Tensor | None = None
        for group in _components(self.program, items):
            marks = {(side, k): d[1] for side, d in ((0, da), (1, db)) if d for k in (d[0],)}
            value = self._group(a, b, full, group, marks)
            total = value if total is None else total * value
        assert total is not None
        return total

    def _group(
        self,
        a: int,
        b: int,
        full: bool,
        group: Sequence[tuple[int, int, Factor]],
        marks: dict[tuple[int, int], int],
    ) -> Tensor:
        """Expectation of the product of factors that depend on each other."""
        ends = [[(k, f) for s, k, f in group if s == side] for side in (0, 1)]
        if not ends[1]:
            left = self._one_sided(a, 0, ends[0], marks)
            return self.on_left(left, a, b, full)
        if not ends[0]:
            return self.on_right(self._one_sided(b, 1, ends[1], marks), a, b, full)
        if len(group) == 2 and all(len(f.sources) == 1 for _, _, f in group):
            return self._two_variables(a, b, full, ends, marks)
        return self._many_variables(a, b, full, ends, marks)

    def _one_sided(
        self,
        index: int,
        side: int,
        factors: Sequence[tuple[int, Factor]],
        marks: dict[tuple[int, int], int],
    ) -> Tensor:
        """Mean of dependent factors at each left or right point, `[..., n, (P)]`."""
        own = self._own(side)
        functions = [_Bound(f, marks.get((side, k)), own, side) for k, f in factors]
        if len(factors) == 1 and len(factors[0][1].sources) == 1:
            (bound,) = functions
            q = self.variance_of(factors[0][1].sources[0], side)
            plain = bound.plain
            if plain is not None:
                return plain.mean_derivative(q) if bound.mark is not None else plain.mean(q)
            return gaussian_mean(bound.of_one, q, parameters=bound.statistics, kinks=bound.kinks)
        sources = _distinct([s for _, f in factors for s in f.sources])
        self._check_count(len(sources))
        covariance = _matrix([[own.moment(s, t, False) for t in sources] for s in sources])

        def product(values: Sequence[Tensor]) -> Tensor:
            by = dict(zip(sources, values, strict=True))
            return math.prod(f.of_many(by, [s[..., None] for s in f.statistics]) for f in functions)  # type: ignore[return-value]

        return self.settings.quadrature.gaussian_expectation_multivariate(product, covariance)

    def _two_variables(
        self,
        a: int,
        b: int,
        full: bool,
        ends: Sequence[Sequence[tuple[int, Factor]]],
        marks: dict[tuple[int, int], int],
    ) -> Tensor:
        ((k, f),), ((m, g),) = ends
        u, v = f.sources[0], g.sources[0]
        one = _Bound(f, marks.get((0, k)), self._own(0), 0)
        two = _Bound(g, marks.get((1, m)), self._own(1), 1)
        c = self.moment(u, v, full)
        assert c is not None
        q1 = self.on_left(self.variance_of(u, 0), a, b, full)
        q2 = self.on_right(self.variance_of(v, 1), a, b, full)
        if (
            one.plain is not None
            and two.plain is not None
            and (one.mark is None) == (two.mark is None)
        ):
            dual = one.plain.dual if one.mark is None else one.plain.dual_derivative
            return dual(two.plain, q1, q2, c)
        return gaussian_expectation(
            one.of_one,
            two.of_one,
            q1,
            q2,
            c,
            f_parameters=tuple(self.on_left(s, a, b, full) for s in one.statistics),
            g_parameters=tuple(self.on_right(s, a, b, full) for s in two.statistics),
            f_kinks=tuple(self._spread_kink(k, a, b, full, self.on_left) for k in one.kinks),
            g_kinks=tuple(self._spread_kink(k, a, b, full, self.on_right) for k in two.kinks),
        )

    @staticmethod
    def _spread_kink(
        kink: float | Tensor, a: int, b: int, full: bool, place: Callable[..., Tensor]
    ) -> float | Tensor:
        return place(kink, a, b, full) if isinstance(kink, Tensor) else kink

    def _many_variables(
        self,
        a: int,
        b: int,
        full: bool,
        ends: Sequence[Sequence[tuple[int, Factor]]],
        marks: dict[tuple[int, int], int],
    ) -> Tensor:
        same_place = self._itself and self.trailing(a, b, full) == (0 if full else 1)
        if same_place:  # u = v: one set of variables
            both = [(k, f) for k, f in ends[0]] + [(-1 - k, f) for k, f in ends[1]]
            joint = {(0, k): m for (s, k), m in marks.items() if s == 0}
            joint |= {(0, -1 - k): m for (s, k), m in marks.items() if s == 1}
            return self._one_sided(a, 0, both, joint)
        sources = [_distinct([s for _, f in end for s in f.sources]) for end in ends]
        self._check_count(len(sources[0]) + len(sources[1]))
        own = self._own(0), self._own(1)
        lefts, rights = (
            [[own[side].moment(s, t, False) for t in sources[side]] for s in sources[side]]
            for side in (0, 1)
        )
        cross = [[self.moment(s, t, full) for t in sources[1]] for s in sources[0]]

        def spread(table: list[list[Tensor | None]], place: Callable[..., Tensor]) -> Any:
            return [[None if m is None else place(m, a, b, full) for m in row] for row in table]

        lefts, rights = spread(lefts, self.on_left), spread(rights, self.on_right)
        flipped = [list(column) for column in zip(*cross, strict=True)]
        rows = [[*x, *y] for x, y in zip(lefts, cross, strict=True)]
        rows += [[*x, *y] for x, y in zip(flipped, rights, strict=True)]
        functions = [
            [_Bound(f, marks.get((side, k)), own[side], side) for k, f in ends[side]]
            for side in (0, 1)
        ]
        statistics = [
            [[self.on_left(s, a, b, full)[..., None] for s in f.statistics] for f in functions[0]],
            [[self.on_right(s, a, b, full)[..., None] for s in f.statistics] for f in functions[1]],
        ]

        def product(values: Sequence[Tensor]) -> Tensor:
            cut = len(sources[0])
            parts = []
            for side, own_values in ((0, values[:cut]), (1, values[cut:])):
                by = dict(zip(sources[side], own_values, strict=True))
                parts += [
                    f.of_many(by, s) for f, s in zip(functions[side], statistics[side], strict=True)
                ]
            return math.prod(parts)  # type: ignore[return-value]

        return self.settings.quadrature.gaussian_expectation_multivariate(product, _matrix(rows))

    def _check_count(self, variables: int) -> None:
        if variables > self.settings.max_variables:
            raise NotImplementedError(
                f"An expectation over {variables} Gaussian variables is needed, more than "
                f"max_variables={self.settings.max_variables}: gates multiply at every step, so "
                "their number grows with the length of the sequence. Shorten the sequence, or "
                "raise max_variables of InfiniteNetwork."
            )

    def slopes(self, index: int, side: int, *, jumps: bool) -> list[tuple[int, Tensor]]:
        """E[df/du] of an `Nonlinear` node for each of its sources, at left or right points.

        With `jumps` the deltas of the derivative at jumps count, as Stein's lemma asks for. The
        gradient of a network does not see them.
        """
        node = self.program.nodes[index]
        assert isinstance(node, Nonlinear)
        if jumps and self.is_plain(index):
            phi, source = self.activation(index)
            return [(source, phi.stein(self.variance_of(source, side)))]
        if jumps:
            _check_continuous(node)
        result = []
        for k, factor in enumerate(node.factors):
            for position, source in enumerate(factor.sources):
                result.append((source, self._mean_of(index, side, (k, position))))
        return result

    def stein(
        self, a: int, b: int, full: bool, of: Pairwise, *, jumps: bool = False
    ) -> Tensor | None:
        """Pairs of a nonlinearity with a Gaussian node, by the mean slope of the former."""
        left = isinstance(self.program.nodes[a], Nonlinear)
        total: Tensor | None = None
        for source, slope in self.slopes(a if left else b, 0 if left else 1, jumps=jumps):
            other = of(source, b, full) if left else of(a, source, full)
            if other is None:
                continue
            place = self.on_left if left else self.on_right
            term = place(slope, a, b, full) * other
            total = term if total is None else total + term
        return total

    def pinned(
        self,
        value: Tensor,
        a: int,
        b: int,
        full: bool,
        exact: Callable[[Moments], Tensor | None],
    ) -> Tensor:
        """Set the pairs of a point and position with itself to their own closed form."""
        trailing = self.trailing(a, b, full)
        if not self.same or (trailing == 1 and full):
            return value
        if self.paired:
            if trailing != 2:
                return value
            own = exact(self)
            assert own is not None
            return _with_diagonal(value, own, [(-2, -1)])
        own = exact(self._own(0))
        assert own is not None
        own = self._slice(own, 0, int(trailing > 0))
        if trailing == 0:
            return _with_diagonal(value, own, [(-2, -1)])
        if trailing == 1:
            return _with_diagonal(value, own.mT, [(-3, -2)])
        # [.., n, n, P, P] -> [.., P, P, n] -> [.., n, P]
        return _with_diagonal(value, own, [(-4, -3), (-3, -2)])

    # Linear maps -------------------------------------------------------------------------------

    def image(
        self, a: int, b: int, full: bool, of: Pairwise, *, means: bool = False
    ) -> Tensor | None:
        """What linear maps make of the pairs of their sources; the later node's comes first."""
        first, second = self.program.nodes[a], self.program.nodes[b]
        if isinstance(first, Attention) and isinstance(second, Attention):
            if not first.mean_field and not second.mean_field:
                return self._attention(a, b, full, of, means)
        pair = _together(self.program, first, second, full)
        if pair is not None:
            return pair(of)
        if isinstance(first, Dropout) and a == b:
            value = of(first.source, first.source, full)
            return None if value is None else self.dropout(a, b, full, value)
        left = is_map(first) and (a >= b or not is_map(second))
        if not full and not _keeps_places(first if left else second):
            value = of(a, b, True)
            return None if value is None else value.diagonal(dim1=-2, dim2=-1)
        return self._map(a, b, full, of, means, left=left)

    def _map(
        self, a: int, b: int, full: bool, of: Pairwise, means: bool, *, left: bool
    ) -> Tensor | None:
        """The map of `a` (or of `b`) applied to one side of pairs with the other."""
        index, other = (a, b) if left else (b, a)
        node = self.program.nodes[index]
        place = self.on_left if left else self.on_right
        # where the mapped side's positions are, counted from the end
        axis = -1 - int(full and self._placed(other)) if left else -1

        def pair(i: int) -> Tensor | None:
            return of(i, b, full) if left else of(a, i, full)

        def with_mean(value: Tensor | None, number: Tensor | float) -> Tensor | None:
            """value + number * mean(other)"""
            if not means:
                return value
            mean = self.mean(other, 1 if left else 0)
            if mean is None:
                return value
            opposite = self.on_right if left else self.on_left
            term = number * opposite(mean, a, b, full)
            if value is None:
                return self.zeros(a, b, full) + term
            return value + term

        match node:
            case Combination():
                total: Tensor | None = None
                for coefficient, i in node.terms:
                    part = pair(i)
                    if part is None:
                        continue
                    part = part if coefficient == 1.0 else part * coefficient
                    total = part if total is None else total + part
                return with_mean(total, node.offset) if node.offset else total
            case Normalise():
                mean, scale = self.statistics(index, 0 if left else 1)
                value = pair(node.source)
                if mean is not None:
                    value = with_mean(value, -place(mean, a, b, full))
                return None if value is None else value * place(scale, a, b, full)
            case Dropout():
                return pair(node.source)
            case Select():
                value = pair(node.source)
                return None if value is None else selected(value, node, axis, self.program)
            case Mix():
                value = pair(node.source)
                return None if value is None else mixed(value, node, axis, self.program)
            case Join():
                parts = [(i, pair(i)) for i in node.sources]
                if all(p is None for _, p in parts):
                    return None
                whole = []
                for i, part in parts:
                    if part is None:
                        part = self.zeros(i, b, full) if left else self.zeros(a, i, full)
                    whole.append(part if self._placed(i) else part.unsqueeze(axis))
                return torch.cat(whole, axis)
            case Flatten():
                value = pair(node.source)
                if value is None:
                    return None
                return gathered(value, node.members, axis).mean(axis)
            case Concatenate():
                total = None
                for size, i in zip(node.sizes, node.sources, strict=True):
                    part = pair(i)
                    if part is not None:
                        part = part * (size / sum(node.sizes))
                        total = part if total is None else total + part
                return total
            case Attention():
                value = pair(node.value)
                if value is None:
                    return None
                weights = self._own(0 if left else 1).weights(index)
                weights = self._slice(weights, 0 if left else 1, 2)
                if not self.paired:
                    weights = weights.unsqueeze(-3 if left else -4)
                return averaged(value, weights, axis)
        raise AssertionError(f"{node} is no linear map")

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

    # Single data points ------------------------------------------------------------------------

    def mean(self, index: int, side: int = 0) -> Tensor | None:
        """Mean over the width at each left or right point, `[..., n, (P)]`; None if 0."""
        own = self._own(side)
        if own is not self:
            return own.mean(index)
        if index not in self._means:
            self._means[index] = self._mean(index)
        return self._means[index]

    def _mean(self, index: int) -> Tensor | None:
        node = self.program.nodes[index]
        if self.program.gaussian(index):
            return None
        match node:
            case Nonlinear():
                return self._mean_of(index, 0, None)
            case Combination():
                total: Tensor | None = None
                for coefficient, i in node.terms:
                    part = self.mean(i)
                    if part is not None:
                        total = coefficient * part if total is None else total + coefficient * part
                if node.offset:
                    if total is None:
                        total = (
                            self.zeros(index, index, False)
                            if node.positions
                            else (self._points[0].x[..., 0] * 0)
                        )
                    total = total + node.offset
                return total
            case Normalise():
                inner = self.mean(node.source)
                mean, scale = self.statistics(index, 0)
                if inner is None or (node.centred and not node.pooled):
                    return None
                return (inner if mean is None else inner - mean) * scale
            case Dropout():
                return self.mean(node.source)
            case Select():
                value = self.mean(node.source)
                return None if value is None else selected(value, node, -1, self.program)
            case Mix():
                value = self.mean(node.source)
                return None if value is None else mixed(value, node, -1, self.program)
            case Join():
                parts = [self.mean(i) for i in node.sources]
                if all(p is None for p in parts):
                    return None
                whole = []
                for i, part in zip(node.sources, parts, strict=True):
                    if part is None:
                        part = self._points[0].x[..., 0] * 0
                        if self._placed(i):
                            part = self.zeros(i, i, False)
                    whole.append(part if self._placed(i) else part.unsqueeze(-1))
                return torch.cat(whole, -1)
            case Flatten():
                value = self.mean(node.source)
                return None if value is None else gathered(value, node.members, -1).mean(-1)
            case Concatenate():
                total = None
                for size, i in zip(node.sizes, node.sources, strict=True):
                    part = self.mean(i)
                    if part is not None:
                        part = part * (size / sum(node.sizes))
                        total = part if total is None else total + part
                return total
            case Attention():
                value = self.mean(node.value)
                return None if value is None else averaged(value, self.weights(index), -1)
        raise AssertionError(f"no mean of {node}")

    def _mean_of(self, index: int, side: int, mark: tuple[int, int] | None) -> Tensor:
        node = self.program.nodes[index]
        assert isinstance(node, Nonlinear)
        marks = {} if mark is None else {(side, mark[0]): mark[1]}
        total: Tensor | None = None
        items = [(side, k, f) for k, f in enumerate(node.factors)]
        for group in _components(self.program, items):
            value = self._one_sided(index, side, [(k, f) for _, k, f in group], marks)
            total = value if total is None else total * value
        assert total is not None
        return total

    # Attention ---------------------------------------------------------------------------------

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
        value = self._own(side).moment(a, b, True)
        if value is None:
            return None
        value = self._slice(value, side, 2)
        if self.paired:
            return value
        return value.unsqueeze(-3 if side == 0 else -4)

    def _attention(self, a: int, b: int, full: bool, of: Pairwise, means: bool) -> Tensor | None:
        """Both sides average with random weights of the same heads, or of independent ones."""
        first, second = self.program.nodes[a], self.program.nodes[b]
        assert isinstance(first, Attention)
        assert isinstance(second, Attention)
        inner = of(first.value, second.value, True)
        if inner is None:
            return None
        value = self.heads(a, b).average(inner)
        if means and self.same and not self.paired:
            value = self.pinned_block(value, self._own(0).moment(a, b, True))
        return value if full else value.diagonal(dim1=-2, dim2=-1)

    def pinned_block(self, value: Tensor, own: Tensor | None) -> Tensor:
        """Pairs of a point with itself, at all positions, replaced: their heads are the same."""
        assert own is not None
        return _with_diagonal(value, self._slice(own, 0, 2).movedim(-3, -1), [(-4, -3)])

    @property
    def own_left(self) -> Moments:
        """Moments of each left point with itself."""
        return self._own(0)

    def dropout(self, a: int, b: int, full: bool, value: Tensor) -> Tensor:
        """Pairs of a point with itself under the same random mask: times 1 / keep."""
        first = self.program.nodes[a]
        assert isinstance(first, Dropout)
        if not self.same:
            return value
        trailing = self.trailing(a, b, full)
        factor = value.new_ones(value.shape[-2 - trailing if not self.paired else -1 - trailing :])
        pairs = factor if self.paired else factor.diagonal(dim1=0, dim2=1).movedim(-1, 0)
        if trailing == 2 and not first.whole:
            pairs = pairs.diagonal(dim1=-2, dim2=-1)
        pairs /= first.keep
        return value * factor


@dataclass
class _Bound:
    """A factor with the statistics of its side, and what is to be differentiated."""

    factor: Factor
    mark: int | None
    own: Moments
    side: int
    statistics: tuple[Tensor, ...] = field(init=False)

    def __post_init__(self) -> None:
        found = []
        for kind, index in self.factor.statistics:
            mean, scale = self.own.statistics(index, 0)
            if kind == "mean" and mean is None:
                mean = torch.zeros_like(scale)
            found.append(scale if kind == "scale" else mean)
        self.statistics = tuple(found)  # type: ignore[arg-type]

    @property
    def plain(self) -> Activation | None:
        """The activation, if it is one."""
        function = self.factor.function
        return function if isinstance(function, Activation) else None

    @property
    def kinks(self) -> tuple[Any, ...]:
        """Where the function of its only variable has kinks: numbers, or one per data point."""
        if self.plain is not None:
            return self.plain.kinks
        assert isinstance(self.factor.function, Apply)
        with torch.no_grad():
            scale = self.own.variance_of(self.factor.sources[0], 0).double().sqrt()
            statistics = [s.double() for s in self.statistics]
            return tuple(crossings(self.factor.function, scale, statistics))

    def of_one(self, x: Tensor, *statistics: Tensor) -> Tensor:
        """The function of its only variable."""
        return self.of_many({self.factor.sources[0]: x}, statistics)

    def of_many(self, values: dict[int, Tensor], statistics: Sequence[Tensor]) -> Tensor:
        """The function of its variables by source."""
        own = [values[s] for s in self.factor.sources]
        function = self.factor.function
        if isinstance(function, Activation):
            return function(own[0]) if self.mark is None else function.derivative(own[0])
        if self.mark is None:
            return function(own, statistics)
        return function.derivative(self.mark, own, statistics)


# Structure ---------------------------------------------------------------------------------------

_MAPS = (Combination, Normalise, Mix, Select, Join, Flatten, Concatenate, Dropout, Attention)


def is_map(node: Any) -> bool:
    """Whether a node is a linear map of others, given the statistics of each data point."""
    return isinstance(node, _MAPS)


def _keeps_places(node: Any) -> bool:
    """Whether a map works position by position."""
    if isinstance(node, Select):
        return False
    return isinstance(node, Combination | Normalise | Concatenate | Dropout)


def _related(program: Program, a: int, b: int) -> bool:
    """Whether the moment of two nodes can differ from 0."""
    key = (min(a, b), max(a, b))
    if key not in program.relations:
        program.relations[key] = _find_relation(program, *key)
    return program.relations[key]


def _find_relation(program: Program, a: int, b: int) -> bool:
    first, second = program.nodes[a], program.nodes[b]
    gaussian = program.gaussian(a), program.gaussian(b)
    if isinstance(first, Features) or isinstance(second, Features):
        return isinstance(first, Features) and isinstance(second, Features)
    if not any(gaussian):
        return True  # means
    if isinstance(first, Linear) and isinstance(second, Linear):
        if first.bias is not None and first.bias == second.bias:
            return True
        if first.weight != second.weight or first.source is None or second.source is None:
            return False
        return _related(program, first.source, second.source)
    if isinstance(first, Embedding) and isinstance(second, Embedding):
        return first.weight == second.weight
    # take the later node apart
    for index, other in ((b, a), (a, b)):
        node = program.nodes[index]
        if isinstance(node, Attention):
            return _related(program, node.value, other)
        if isinstance(node, BatchNormalise):
            return _related(program, node.source, other)
        if isinstance(node, Nonlinear):
            return any(_related(program, s, other) for f in node.factors for s in f.sources)
        if is_map(node):
            return any(_related(program, s, other) for s in program.sources(index))
    return False


def _components(
    program: Program, items: Sequence[tuple[int, int, Factor]]
) -> list[list[tuple[int, int, Factor]]]:
    """Factors in groups that are independent of each other."""
    groups: list[list[tuple[int, int, Factor]]] = []
    for item in items:
        joined = [item]
        rest = []
        for group in groups:
            if any(
                _related(program, s, t)
                for _, _, f in group
                for s in f.sources
                for t in item[2].sources
            ):
                joined = group + joined
            else:
                rest.append(group)
        groups = [*rest, joined]
    return groups


def _together(program: Program, first: Any, second: Any, full: bool) -> Any:
    """Rules for two maps of the same kind, where both sides at once is cheaper or different."""
    match first, second:
        case Flatten(), Flatten() if first.members == second.members:
            if not first.positions:
                return lambda of: _maybe(
                    of(first.source, second.source, False),
                    lambda v: gathered(v, first.members, -1).mean(-1),
                )

            def both(of: Pairwise) -> Tensor | None:
                value = of(first.source, second.source, True)
                if value is None:
                    return None
                members = first.members.tensor(value).flatten(0, -2)
                picked = value[..., members[:, None], members[None, :]].mean(-1)
                return picked if full else picked.diagonal(dim1=-2, dim2=-1)

            return both
        case Concatenate(), Concatenate() if first.sizes == second.sizes:

            def parts(of: Pairwise) -> Tensor | None:
                total: Tensor | None = None
                for size, i, j in zip(first.sizes, first.sources, second.sources, strict=True):
                    part = of(i, j, full)
                    if part is not None:
                        part = part * (size / sum(first.sizes))
                        total = part if total is None else total + part
                return total

            return parts
        case Select(), Select() if not full and first.picks == second.picks:
            return lambda of: _maybe(
                of(first.source, second.source, False),
                lambda v: selected(v, first, -1, program),
            )
        case Join(), Join() if not full and _places(program, first) == _places(program, second):

            def joined(of: Pairwise) -> Tensor | None:
                found = [
                    of(i, j, not program.nodes[i].positions)  # type: ignore[union-attr]
                    for i, j in zip(first.sources, second.sources, strict=True)
                ]
                parts = [p for p in found if p is not None]
                if len(parts) < len(found):
                    whole = of_full(of)
                    return None if whole is None else whole.diagonal(dim1=-2, dim2=-1)
                placed = [program.positions(i) is not None for i in first.sources]
                return torch.cat(
                    [p if q else p.unsqueeze(-1) for p, q in zip(parts, placed, strict=True)], -1
                )

            def of_full(of: Pairwise) -> Tensor | None:
                a, b = program.nodes.index(first), program.nodes.index(second)
                return of(a, b, True)

            return joined
    return None


def _places(program: Program, node: Join) -> tuple[int | None, ...]:
    return tuple(program.positions(i) for i in node.sources)


def _maybe(value: Tensor | None, change: Callable[[Tensor], Tensor]) -> Tensor | None:
    return None if value is None else change(value)


# Functions that may jump.
_JUMPS = frozenset("gt lt ge le eq ne where sign heaviside round floor ceil".split())


def _check_continuous(node: Nonlinear) -> None:
    """Stein's lemma needs the derivative, which at jumps in several variables is not known."""

    def names(part: Any) -> set[str]:
        if not isinstance(part, Apply):
            return set()
        own = {getattr(part.function, "__name__", type(part.function).__name__).lower()}
        return own.union(*(names(a) for a in part.arguments))

    for factor in node.factors:
        function = factor.function
        jumps = (
            not all(j == 0 for j in activation_jumps(function, function.kinks))
            if isinstance(function, Activation)
            else bool(names(function) & _JUMPS)
        )
        if jumps:
            raise NotImplementedError(
                "A product or expression with a jump meets its own inputs again, as in a skip "
                "connection around a hard gate; the moment of the two is not known here. Use a "
                "continuous gate."
            )


def _distinct(items: Sequence[int]) -> list[int]:
    return list(dict.fromkeys(items))


def _matrix(rows: list[list[Tensor | None]]) -> Tensor:
    """Moments as a covariance matrix in the last two dimensions."""
    shape = torch.broadcast_shapes(*(m.shape for row in rows for m in row if m is not None))
    example = next(m for row in rows for m in row if m is not None)
    zero = example.new_zeros(()).expand(shape)
    return torch.stack(
        [torch.stack([zero if m is None else m.expand(shape) for m in row], -1) for row in rows],
        -2,
    )


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
