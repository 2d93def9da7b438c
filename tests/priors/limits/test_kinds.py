"""A kind of node from elsewhere: its class, its rules and the layer that makes it, in one file."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import priors
from priors.limits.kinds import LinearMap, register_kind
from priors.limits.operands import Operand
from priors.programs.nodes import OneSource
from priors.programs.registry import isolated, register_layer


@dataclass(frozen=True)
class Scaled(OneSource):
    """`factor` h."""

    factor: float
    positions: tuple[int, ...]

    def is_gaussian(self, gaussian: Callable[[int], bool]) -> bool:
        return gaussian(self.source)


@register_kind(Scaled)
class ScaledMap(LinearMap[Scaled]):
    pointwise = True

    def apply(self, index: int, node: Scaled, x: Operand) -> Tensor | None:
        value = x.of(node.source)
        return None if value is None else node.factor * value


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


@pytest.fixture
def rule():
    with isolated():

        @register_layer(Scale)
        def _(tracer, layer, x):
            node = Scaled(x.index, layer.factor, tracer.positions(x))
            return tracer.like(x, tracer.add(node))

        yield


def points() -> Tensor:
    return torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_map_of_a_gaussian_and_of_rectified_units(rule):
    """3 times a layer's units and -2 times the rectified ones: Cho & Saul's kernel times 36."""
    network = nn.Sequential(
        nn.Linear(3, 4, bias=False), Scale(3.0), nn.ReLU(), Scale(-2.0), nn.Linear(4, 1, bias=False)
    )
    x = points()
    limit = priors.InfiniteNetwork(network, weight_var=1.0).double()
    inner = x @ x.mT / 3
    norm = inner.diagonal().sqrt()
    theta = (inner / norm / norm[:, None]).clamp(-1, 1).acos()
    angle = (math.pi - theta) / (2 * math.pi)
    rectified = norm * norm[:, None] * theta.sin() / (2 * math.pi) + inner * angle
    torch.testing.assert_close(limit.nngp(x), 36 * rectified)
    torch.testing.assert_close(limit.ntk(x), 36 * (rectified + inner * angle))


def test_map_that_meets_other_kinds(rule):
    """A skip connection, an average over positions and a mean: as with the map written as a sum."""

    class Block(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.first, self.last = nn.Linear(1, 4), nn.Linear(4, 1)
            self.scale = scale

        def forward(self, x):
            hidden = self.first(x.unsqueeze(-1))
            return self.last((hidden + self.scale(torch.sigmoid(hidden))).mean(1))

    class Twice(nn.Module):
        def forward(self, x):
            return 2.0 * x

    x = points()
    ours, known = (
        priors.InfiniteNetwork(Block(scale), input_shape=(3,)).double()
        for scale in (Scale(2.0), Twice())
    )
    assert any(isinstance(node, Scaled) for node in ours.program.nodes)
    torch.testing.assert_close(ours.nngp(x), known.nngp(x))
    torch.testing.assert_close(ours.ntk(x), known.ntk(x))


def test_kind_without_rules_says_so(rule):
    @dataclass(frozen=True)
    class Unknown(OneSource):
        positions: tuple[int, ...]

    class Layer(nn.Identity):
        pass

    @register_layer(Layer)
    def _(tracer, layer, x):
        return tracer.like(x, tracer.add(Unknown(x.index, tracer.positions(x))))

    network = nn.Sequential(nn.Linear(3, 4), Layer(), nn.Linear(4, 1))
    with pytest.raises(NotImplementedError, match="Unknown nodes have no rule.*register_kind"):
        priors.InfiniteNetwork(network).double().nngp(points())
