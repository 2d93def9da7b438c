"""The nodes that hold weights, and the raw features below them."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from priors.limits.kinds import Kind, TangentPairs, register_kind
from priors.limits.operands import OneSide
from priors.limits.pairs import Pairs, Pairwise
from priors.limits.positions import convolved, needs_graph
from priors.programs.nodes import Embedding, Features, Linear

__all__: list[str] = []


@register_kind(Linear)
class _Linear(Kind[Linear]):
    def moment(self, pairs: Pairs, a: int, b: int, full: bool) -> Tensor | None:
        """From a common matrix and from a common bias."""
        first, second = self.nodes(pairs, a, b)
        trailing = pairs.trailing(a, b, full)
        total: Tensor | None = None
        if first.weight == second.weight:
            moment = _through_weight(pairs, a, b, full, pairs.moment)
            if moment is not None:
                variance = pairs.variance("weight", first.layer, trailing)
                fresh = first.window is not None and not needs_graph(moment, variance)
                fresh = fresh and variance.dim() == 0  # a batch of variances makes it larger
                total = moment.mul_(variance) if fresh else moment * variance
        if first.bias is not None and first.bias == second.bias:
            assert first.bias_layer is not None
            variance = pairs.variance("bias", first.bias_layer, trailing)
            if total is None:
                total = pairs.zeros(a, b, full) + variance
            elif variance.dim() or needs_graph(total, variance):
                total = total + variance
            else:
                total += variance
        return total

    def tangent(self, tangents: TangentPairs, a: int, b: int, full: bool) -> Tensor | None:
        pairs = tangents.moments
        first, second = self.nodes(pairs, a, b)
        trailing = pairs.trailing(a, b, full)
        gradient = self._gradient(tangents, a, b, full)
        if first.weight != second.weight:
            return gradient
        below = _through_weight(pairs, a, b, full, tangents.tangent)
        if below is None:
            return gradient
        variance = pairs.variance("weight", first.layer, trailing)
        if gradient is None:
            return variance * below
        if variance.dim() == 0 and not variance.requires_grad:
            return gradient.add(below, alpha=float(variance))
        return gradient + variance * below

    def _gradient(self, tangents: TangentPairs, a: int, b: int, full: bool) -> Tensor | None:
        """What the layer's weight and bias themselves contribute."""
        pairs = tangents.moments
        first, second = self.nodes(pairs, a, b)
        weight, bias = self._trained(pairs, first)
        if not tangents.standard and weight and bias:
            return pairs.moment(a, b, full)
        trailing = pairs.trailing(a, b, full)
        total: Tensor | None = None
        if first.weight == second.weight and weight:
            total = _through_weight(pairs, a, b, full, pairs.moment)
            if total is not None and tangents.standard:
                assert first.fan_in is not None
                total = total * float(first.fan_in)
            elif total is not None:
                total = total * pairs.variance("weight", first.layer, trailing)
        if first.bias is not None and first.bias == second.bias and bias:
            assert first.bias_layer is not None
            own: Tensor | float = 1.0
            if not tangents.standard:
                own = pairs.variance("bias", first.bias_layer, trailing)
            total = pairs.zeros(a, b, full) + own if total is None else total + own
        return total

    def _trained(self, pairs: Pairs, node: Linear) -> tuple[bool, bool]:
        """Whether the weight and the bias are trained."""
        program = pairs.program
        bias = None if node.bias_layer is None else program.biases[node.bias_layer]
        return program.weights[node.layer] not in program.frozen, bias not in program.frozen


def _through_weight(pairs: Pairs, a: int, b: int, full: bool, of: Pairwise) -> Tensor | None:
    """What a shared matrix of variance 1 makes of the sources' pairs."""
    first, second = pairs.program.nodes[a], pairs.program.nodes[b]
    assert isinstance(first, Linear)
    assert isinstance(second, Linear)
    if first.source is None or second.source is None:
        return None
    shapes = [pairs.program.hidden(s).positions for s in (first.source, second.source)]
    if first.window is None or second.window is None:
        return of(first.source, second.source, full)
    # at two resolutions, equal positions do not come from equal ones
    whole = full or shapes[0] != shapes[1] or first.window != second.window
    value = of(first.source, second.source, whole)
    if value is None:
        return None
    value = convolved(value, (first.window, second.window), shapes[0], shapes[1], whole)
    return value if whole == full else value.diagonal(dim1=-2, dim2=-1)


@register_kind(Embedding)
class _Embedding(Kind[Embedding]):
    def moment(self, pairs: Pairs, a: int, b: int, full: bool) -> Tensor | None:
        """With one matrix, that of equal tokens."""
        first, second = self.nodes(pairs, a, b)
        x = pairs.inputs[0].x
        tokens = (
            pairs.on_left(pairs.inputs[0].tokens(first.source, first.positions), a, b, full),
            pairs.on_right(pairs.inputs[1].tokens(second.source, second.positions), a, b, full),
        )
        equal = tokens[0] == tokens[1]
        if first.padding is not None:
            equal = equal & (tokens[0] != first.padding)
        variance = pairs.variance("weight", first.layer, pairs.trailing(a, b, full))
        return equal.to(x.dtype) * variance

    def tangent(self, tangents: TangentPairs, a: int, b: int, full: bool) -> Tensor | None:
        pairs = tangents.moments
        layer = self.nodes(pairs, a, b)[0].layer
        if pairs.program.weights[layer] in pairs.program.frozen:
            return None
        value = pairs.moment(a, b, full)
        if value is None or not tangents.standard:
            return value
        return value / pairs.variance("weight", layer, pairs.trailing(a, b, full))


@register_kind(Features)
class _Features(Kind[Features]):
    """Vectors that are the same in every network, and so independent of all others."""

    precedence = 2

    def moment(self, pairs: Pairs, a: int, b: int, full: bool) -> Tensor | None:
        return _inner_product(pairs, a, b, full)

    def tangent(self, tangents: TangentPairs, a: int, b: int, full: bool) -> Tensor | None:
        return None

    def one_side(self, index: int, x: OneSide) -> Tensor | None:
        """With a nonlinearity of other units: the product of the means."""
        return x.plus_constant(None, x.spread(x.pairs.inputs[x.side].features(index).mean(-1)))

    def mean(self, single: Pairs, index: int) -> Tensor | None:
        return single.inputs[0].features(index).mean(-1)


def _inner_product(pairs: Pairs, a: int, b: int, full: bool) -> Tensor:
    """<x, x'> / width of two `Features` nodes."""
    trailing = 1 + int(pairs.has_positions(a)), 1 + int(pairs.has_positions(b))
    left = pairs.rows_of(pairs.inputs[0].features(a), 0, trailing[0])
    right = pairs.rows_of(pairs.inputs[1].features(b), 1, trailing[1])
    left = left / left.shape[-1]
    if trailing == (1, 1):
        return (left * right).sum(-1) if pairs.paired else left @ right.mT
    if not full:
        if pairs.paired:
            return (left * right).sum(-1)
        if left.shape[-1] <= 8:  # colours: products of many tiny matrices are slow
            left, right = left.unsqueeze(-3), right.unsqueeze(-4)
            parts = (left[..., c] * right[..., c] for c in range(left.shape[-1]))
            return functools.reduce(torch.add, parts)
        product = left.transpose(-2, -3) @ right.transpose(-2, -3).mT
        return product.movedim(-3, -1).contiguous()
    letters = "i" if pairs.paired else "j"
    one, two = ("p" if t == 2 else "" for t in trailing)
    two = "q" if two else ""
    both = "i" if pairs.paired else "ij"
    return torch.einsum(
        f"...i{one}d,...{letters}{two}d->...{both}{one}{two}", left, right
    ).contiguous()
