"""The forward pass of a tensor program: second moments of pairs of nodes (NNGP).

For nodes a, b and data points x_i, x_j the moment is the limit of <a(x_i), b(x_j)> / width as all
hidden widths go to infinity (Yang 2019, 1910.12478, the Master theorem). The rules are pairwise:

    Linear, Linear            weight_var * moment(sources) if the weight is the same, else 0,
                              plus bias_var if the bias is the same
    Activation, Activation    a two-dimensional Gaussian expectation of the sources' moments
    Activation, Linear        Stein's lemma: E[phi(u) v] = E[phi'(u)] E[u v]
    Combination, anything     bilinear

A moment is asked for and computed once. The data points come as a matrix of pairs, x1 against x2,
or *paired*, row by row; the variances that the expectations need are the paired moments of x1
with itself and of x2 with itself. Where x1 is x2, the diagonal of an expectation is set to the
paired value, which has the exact closed form of u = v and its true derivative.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from priors.program import (
    ActivationNode,
    Combination,
    Flatten,
    Input,
    Linear,
    Program,
)

__all__ = ["Moments", "Variances"]

# (kind, layer, like) -> variance `[*batch]` in the dtype of `like`; kind is "weight" or "bias".
Variances = Callable[[str, str, Tensor], Tensor]


class Moments:
    """Second moments of a program over pairs of data points.

    Args:
        program: The traced network.
        variances: Variance of each weight and bias, `[*batch]`.
        x1: Data points as rows, `[..., n1, d]`.
        x2: Others, `[..., n2, d]`; the same tensor object means the same points.
        paired: Row i of x1 goes with row i of x2 (then n1 = n2), instead of all pairs.
    """

    def __init__(
        self, program: Program, variances: Variances, x1: Tensor, x2: Tensor, *, paired: bool
    ) -> None:
        self.program = program
        self.paired = paired
        self.same = x1 is x2
        self._variances = variances
        self._inputs = x1, x2
        self._cache: dict[tuple[int, int], Tensor] = {}
        self._values: dict[tuple[int, int], Tensor] = {}
        if paired and self.same:
            self._left = self._right = self
        else:
            self._left = Moments(program, variances, x1, x1, paired=True)
            self._right = self._left
            if not self.same:
                self._right = Moments(program, variances, x2, x2, paired=True)

    def moment(self, a: int, b: int) -> Tensor:
        """Moment of nodes `a` at x1 and `b` at x2, `[..., n1, n2]`, or `[..., n]` if paired."""
        if self.same and (b, a) in self._cache:
            value = self._cache[b, a]
            return value if self.paired else value.mT
        if (a, b) not in self._cache:
            self._cache[a, b] = self._moment(a, b)
        return self._cache[a, b]

    def variance(self, kind: str, layer: str) -> Tensor:
        """Variance of a weight or bias, shaped to multiply a moment."""
        value = self._variances(kind, layer, self._inputs[0])
        return value[(..., *(None,) * (1 if self.paired else 2))]

    def dual_derivative(self, a: int | None, b: int | None) -> Tensor | float:
        """E[phi'(u) psi'(v)] of activation nodes `a` at x1, `b` at x2; None means phi' = 1."""
        if a is None and b is None:
            return 1.0
        if a is None or b is None:
            return self._mean_derivative(a, b)
        phi, psi = self._activation(a), self._activation(b)
        if self._left is self:
            if a == b:
                return phi.function.second_moment_derivative(self.moment(phi.source, phi.source))
        arguments = self._arguments(phi, psi)
        value = phi.function.dual_derivative(psi.function, *arguments)
        return self._pin(value, lambda: self._left.dual_derivative(a, b))

    def _moment(self, a: int, b: int) -> Tensor:
        nodes = self.program.nodes
        first, second = nodes[a], nodes[b]
        if first.finite and second.finite:
            return self._inner_product(a, b)
        if isinstance(first, Combination) or isinstance(second, Combination):
            total = self._zero()
            for c1, i in self.program.terms(a):
                for c2, j in self.program.terms(b):
                    total = total + c1 * c2 * self.moment(i, j)
            return total
        match first, second:
            case Linear(), Linear():
                return self._linear(first, second)
            case ActivationNode(), ActivationNode():
                return self._expectation(a, b)
            case ActivationNode(), Linear():
                return self._mean_derivative(a, None) * self.moment(first.source, b)
            case Linear(), ActivationNode():
                return self._mean_derivative(None, b) * self.moment(a, second.source)
        raise AssertionError(f"no moment of {first} and {second}")

    def _linear(self, first: Linear, second: Linear) -> Tensor:
        total = self._zero()
        if first.weight == second.weight:
            moment = self.moment(first.source, second.source)
            total = total + self.variance("weight", first.weight) * moment
        if first.bias is not None and first.bias == second.bias:
            total = total + self.variance("bias", first.bias)
        return total

    def _expectation(self, a: int, b: int) -> Tensor:
        phi, psi = self._activation(a), self._activation(b)
        if self._left is self and a == b:
            return phi.function.second_moment(self.moment(phi.source, phi.source))
        value = phi.function.dual(psi.function, *self._arguments(phi, psi))
        return self._pin(value, lambda: self._left.moment(a, b))

    def _arguments(self, phi: ActivationNode, psi: ActivationNode) -> tuple[Tensor, Tensor, Tensor]:
        q1 = self._left.moment(phi.source, phi.source)
        q2 = self._right.moment(psi.source, psi.source)
        c = self.moment(phi.source, psi.source)
        if self.paired:
            return q1, q2, c
        return q1[..., :, None], q2[..., None, :], c

    def _mean_derivative(self, a: int | None, b: int | None) -> Tensor:
        """E[phi'(u)] of one activation node, of x1 (`a`) or x2 (`b`)."""
        side, index = (self._left, a) if b is None else (self._right, b)
        assert index is not None
        node = self._activation(index)
        value = node.function.mean_derivative(side.moment(node.source, node.source))
        if self.paired:
            return value
        return value[..., :, None] if b is None else value[..., None, :]

    def _activation(self, index: int) -> ActivationNode:
        node = self.program.nodes[index]
        assert isinstance(node, ActivationNode)
        return node

    def _pin(self, value: Tensor, diagonal: Callable[[], Tensor | float]) -> Tensor:
        if self.paired or not self.same:
            return value
        exact = torch.as_tensor(diagonal()).to(value).expand(value.shape[:-1])
        return torch.diagonal_scatter(value, exact, dim1=-2, dim2=-1)

    # Finite nodes: values, not limits ----------------------------------------------------------

    def _inner_product(self, a: int, b: int) -> Tensor:
        first, second = self._value(a, 0), self._value(b, 1)
        width = first.shape[-1]
        if self.paired:
            return (first * second).sum(-1) / width
        return first @ second.mT / width

    def _value(self, index: int, side: int) -> Tensor:
        """A finite node at x1 (side 0) or x2 (side 1), `[..., n, features]`."""
        if (index, side) in self._values:
            return self._values[index, side]
        node = self.program.nodes[index]
        match node:
            case Input():
                value = self._inputs[side]
            case Flatten():
                value = self._value(node.source, side)
            case ActivationNode():
                value = node.function(self._value(node.source, side))
            case Combination():
                value = torch.full_like(self._inputs[side], node.offset)
                for scale, i in node.terms:
                    value = value + scale * self._value(i, side)
            case _:
                raise AssertionError(f"{node} is not finite")
        self._values[index, side] = value
        return value

    def _zero(self) -> Tensor:
        x1, x2 = self._inputs
        batch = torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2])
        size = x1.shape[-2:-1] if self.paired else (x1.shape[-2], x2.shape[-2])
        return x1.new_zeros(*batch, *size)
