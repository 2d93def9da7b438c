"""Rules for layers and functions of one's own, and what registration refuses."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from priors import InfiniteNetwork, UnsupportedOperationError, register_function, register_layer
from priors.gaussian.activations import Erf
from priors.programs import registry
from priors.programs.tracer import trace


@pytest.fixture(autouse=True)
def registrations_are_undone():
    with registry.isolated():
        yield


class Residual(nn.Module):
    """x + W relu(V x), in a forward that cannot be traced."""

    def __init__(self, width):
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        if x.sum() > 1e9:
            raise RuntimeError("branches on values")
        return x + self.outer(F.relu(self.inner(x)))


class PlainResidual(Residual):
    def forward(self, x):
        return x + self.outer(F.relu(self.inner(x)))


class ScaledErf(nn.Module):
    def forward(self, x):
        return torch.special.erf(float(x) if x.dim() == 0 else x)


def bump(x, y):
    """A function of torch tensors that torch.fx would trace through."""
    return x * torch.tanh(y) if bool((x == x).all()) else y


@torch.fx.wrap
def wrapped(x):
    return torch.tanh(x) if bool((x == x).all()) else x


def network(middle, width=8):
    return nn.Sequential(nn.Linear(3, width), middle, nn.Linear(width, 1))


def same_kernels(one, two):
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = [InfiniteNetwork(m, weight_var=1.3, bias_var=0.2).kernels(x) for m in (one, two)]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def residual(tracer, layer, x):
    hidden = tracer.call(layer.outer, tracer.call(torch.relu, tracer.call(layer.inner, x)))
    return tracer.combine([(1.0, x), (1.0, hidden)])


def test_a_layer_made_of_others():
    with pytest.raises(ValueError, match="cannot trace"):
        trace(network(Residual(8)))
    register_layer(Residual)(residual)
    same_kernels(network(Residual(8)), network(PlainResidual(8)))


def test_a_rule_may_call_modules_without_a_rule():
    block = nn.Sequential(nn.Linear(8, 8), PlainResidual(8), nn.Tanh())

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block

        def forward(self, x):
            return self.block(x)

    register_layer(Wrapped)(lambda tracer, layer, x: tracer.call(layer.block, x))
    same_kernels(network(Wrapped()), network(block))


def test_an_elementwise_layer_by_its_activation():
    register_layer(ScaledErf)(lambda tracer, layer, x: tracer.activation(x, Erf()))

    class Plain(nn.Module):
        def forward(self, x):
            return torch.erf(x)

    same_kernels(network(ScaledErf()), network(Plain()))


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)


class BumpGate(Gate):
    def forward(self, x):
        return bump(self.a(x), y=self.b(x))


class PlainGate(Gate):
    def forward(self, x):
        return self.a(x) * torch.tanh(self.b(x))


def test_a_function_of_ones_own():
    @register_function(bump)
    def rule(tracer, x, y):
        return tracer.multiply(x, tracer.call(torch.tanh, y))

    same_kernels(network(BumpGate()), network(PlainGate()))


def test_a_function_that_fx_does_not_enter_needs_a_rule():
    class Wrapped(nn.Module):
        def forward(self, x):
            return wrapped(x)

    with pytest.raises(UnsupportedOperationError, match="operation wrapped.*register_function"):
        trace(network(Wrapped()))
    register_function(wrapped)(lambda tracer, x: tracer.call(torch.tanh, x))
    same_kernels(network(Wrapped()), network(nn.Tanh()))


def test_a_function_of_torch_by_name():
    class Cumulative(nn.Module):
        def forward(self, x):
            return torch.cumsum(x, 0)

    with pytest.raises(UnsupportedOperationError, match="operation cumsum"):
        trace(network(Cumulative()))
    register_function("cumsum")(lambda tracer, x, dim: x)
    same_kernels(network(Cumulative()), network(nn.Identity()))
    assert "cumsum" in registry.supported()


def relu(x):
    """Not torch's."""
    return 2 * x


def test_names_stand_for_functions_of_torch_alone():
    assert registry.function_rule(relu) is None
    assert registry.function_rule(torch.relu) is registry.function_rule("relu")


def test_subclasses_have_the_rule_unless_they_override_the_forward():
    class Renamed(Residual):
        pass

    register_layer(Residual)(residual)
    assert registry.steps_of_their_own(Renamed)
    assert not registry.steps_of_their_own(PlainResidual)
    same_kernels(network(Renamed(8)), network(PlainResidual(8)))

    register_layer(Renamed)(lambda tracer, layer, x: tracer.call(layer.inner, x))
    program = trace(network(Renamed(8)))
    assert "1.outer" not in program.weights


def test_what_is_supported_is_generated():
    text = registry.supported()
    for name in ("nn.Conv1d/2d/3d", "nn.LSTMCell", "scaled_dot_product_attention", "nn.GELU"):
        assert name in text
    for name in ("MaxPool", "BatchNorm", "ConvTranspose", "_", "Residual"):
        assert f" nn.{name}" not in text
    assert "Residual" not in text
    register_layer(Residual)(residual)
    assert "Residual" in registry.supported()


def test_a_registration_is_undone_and_replaced_on_demand():
    with registry.isolated():
        register_layer(Residual)(residual)
        with pytest.raises(ValueError, match="Residual already has a rule; pass replace=True"):
            register_layer(Residual)(residual)
        register_layer(Residual, replace=True)(lambda tracer, layer, x: x)
        register_function(bump)(lambda tracer, x, y: x)
        with pytest.raises(ValueError, match="bump already has a rule"):
            register_function(bump)(lambda tracer, x, y: y)
    assert registry.layer_rule(Residual) is None
    assert registry.function_rule(bump) is None
    with pytest.raises(ValueError, match="Linear already has a rule"):
        register_layer(nn.Linear)(residual)


@pytest.mark.parametrize(
    ("register", "message"),
    [
        (lambda: register_layer(nn.Linear(2, 2)), "takes classes of torch.nn.Module"),
        (lambda: register_layer(dict), "takes classes of torch.nn.Module"),
        (lambda: register_layer(), "at least one class"),
        (lambda: register_layer(Residual)(3), "rule must be a function, got int"),
        (lambda: register_function(3), "takes functions and names"),
        (lambda: register_function(Residual), "register_layer takes classes"),
        (lambda: register_function(), "at least one function"),
        (lambda: register_function("f")(None), "rule must be a function, got NoneType"),
    ],
)
def test_misuse_is_refused(register, message):
    with pytest.raises(TypeError, match=message):
        register()


def test_a_rule_must_return_something_and_may_refuse():
    register_layer(Residual)(lambda tracer, layer, x: None)
    with pytest.raises(TypeError, match="rule of Residual returned None"):
        trace(network(Residual(8)))

    @register_layer(ScaledErf)
    def refuse(tracer, layer, x):
        raise tracer.unsupported("a scaled error function", "it is an example")

    with pytest.raises(UnsupportedOperationError, match="error function at module '1'.*example"):
        trace(network(ScaledErf()))
