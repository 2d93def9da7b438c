"""Normalisation over the width: a linear map, each data point's statistics held fixed."""

from __future__ import annotations

from torch import Tensor

from priors.limits.kinds import LinearMap, register_kind
from priors.limits.operands import Operand
from priors.limits.pairs import Pairs
from priors.programs.nodes import Normalise

__all__ = ["statistics"]


@register_kind(Normalise)
class _Normalise(LinearMap[Normalise]):
    pointwise = True

    def apply(self, index: int, node: Normalise, x: Operand) -> Tensor | None:
        mean, scale = statistics(x.pairs, index, x.side)
        if x.is_mean and node.centred and not node.pooled:
            return None  # the mean is taken off
        value = x.of(node.source)
        if mean is not None:
            value = x.plus_constant(value, -x.spread(mean))
        return None if value is None else value * x.spread(scale)


def statistics(pairs: Pairs, index: int, side: int) -> tuple[Tensor | None, Tensor]:
    """Mean and 1/standard deviation of a `Normalise` node, `[..., n, (P)]`."""
    node = pairs.program.nodes[index]
    assert isinstance(node, Normalise)
    square = _pooled(node, pairs.variance_of(node.source, side))
    mean = pairs.mean(node.source, side) if node.centred else None
    if mean is not None:
        mean = _pooled(node, mean)
        square = square - mean**2
    return mean, (square + node.eps).rsqrt()


def _pooled(node: Normalise, value: Tensor) -> Tensor:
    if not node.pooled:
        return value
    shape = value.shape
    value = value.unflatten(-1, node.positions)
    axes = tuple(range(-node.pooled, 0))
    return value.mean(axes, keepdim=True).expand(*shape[:-1], *node.positions).reshape(shape)
