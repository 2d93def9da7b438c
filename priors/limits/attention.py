"""Attention: averages over positions, with weights held fixed or random over the heads."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from priors.limits.heads import Heads
from priors.limits.kinds import LinearMap, TangentPairs, mapped, register_kind
from priors.limits.operands import Operand
from priors.limits.pairs import Pairs, Pairwise
from priors.limits.positions import averaged
from priors.programs.nodes import Attention

__all__: list[str] = []


@register_kind(Attention)
class _Attention(LinearMap[Attention]):
    def apply(self, index: int, node: Attention, x: Operand) -> Tensor | None:
        value = x.of(node.value)
        if value is None:
            return None
        weights = _heads(x.pairs.of_points(x.side), index, index).mean_weights()
        return averaged(value, x.spread_matrix(weights), x.axis)

    def both(
        self, pairs: Pairs, a: int, b: int, full: bool, of: Pairwise, means: bool
    ) -> Callable[[], Tensor | None] | None:
        first, second = self.nodes(pairs, a, b)
        if first.mean_field or second.mean_field:
            return None

        def over_heads() -> Tensor | None:
            inner = of(first.value, second.value, True)
            if inner is None:
                return None
            value = _heads(pairs, a, b).average(inner)
            if means and pairs.same and not pairs.paired:
                single = pairs.of_points(0).moment(a, b, True)
                value = pairs.with_exact_blocks(value, single)
            return value if full else value.diagonal(dim1=-2, dim2=-1)

        return over_heads

    def tangent(self, tangents: TangentPairs, a: int, b: int, full: bool) -> Tensor | None:
        """With the gradient with respect to queries and keys, where the logits are random."""
        pairs = tangents.moments
        value = super().tangent(tangents, a, b, full)
        first, second = self.nodes(pairs, a, b)
        if first.mean_field or second.mean_field:
            return value
        inner = pairs.moment(first.value, second.value, True)
        if inner is None:
            return value
        term = _heads(pairs, a, b).logit_gradient(
            inner,
            tangents.tangent(first.query, second.query, True),
            tangents.tangent(first.key, second.key, True),
        )
        if term is None:
            return value
        if value is not None:
            whole = value if full else mapped(pairs, a, b, True, tangents.tangent)
            assert whole is not None
            term = term + whole
        if pairs.same and not pairs.paired:
            term = pairs.with_exact_blocks(term, tangents.of_points().tangent(a, b, True))
        return term if full else term.diagonal(dim1=-2, dim2=-1)


def _heads(pairs: Pairs, a: int, b: int) -> Heads:
    """The heads of two attention nodes."""
    return pairs.once(("heads", a, b), lambda: _make_heads(pairs, a, b))


def _make_heads(pairs: Pairs, a: int, b: int) -> Heads:
    first, second = pairs.program.nodes[a], pairs.program.nodes[b]
    assert isinstance(first, Attention)
    assert isinstance(second, Attention)
    queries = _of_sides(pairs, first.query, second.query)
    keys = _of_sides(pairs, first.key, second.key)
    mean_field = _of_side(pairs, first.query, first.key, 0) if first.mean_field else None
    symmetric = a == b and pairs.same and not pairs.paired
    return Heads(
        first,
        second,
        queries,
        keys,
        mean_field,
        pairs.settings,
        paired=pairs.paired,
        symmetric=symmetric,
    )


def _of_sides(pairs: Pairs, a: int, b: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Moments of the left's queries or keys, of the right's, and of both."""
    left, right = _of_side(pairs, a, a, 0), _of_side(pairs, b, b, 1)
    assert left is not None
    assert right is not None
    return left, right, pairs.moment(a, b, True)


def _of_side(pairs: Pairs, a: int, b: int, side: int) -> Tensor | None:
    """Moment of one side's points, each with itself, shaped to meet the pairs."""
    value = pairs.of_points(side).moment(a, b, True)
    if value is None:
        return None
    value = pairs.rows_of(value, side, 2)
    if pairs.paired:
        return value
    return value.unsqueeze(-3 if side == 0 else -4)
