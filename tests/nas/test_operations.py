"""The vocabulary of architectures, and an operation that a user adds."""

import pytest
import torch
from torch import nn

from nas import Architecture, Node, register_operation
from nas.architectures import operations
from nas.testing import OperationContract


class Gated(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.gate, self.value = nn.Linear(size, size), nn.Linear(size, size)

    def forward(self, x):
        return x + torch.sigmoid(self.gate(x)) * self.value(x)


def build_gated(shapes):
    (shape,) = shapes
    return Gated(shape[-1]), shape


@pytest.fixture(autouse=True)
def vocabulary(monkeypatch):
    """Registrations end with the test."""
    monkeypatch.setattr(operations, "OPERATIONS", dict(operations.OPERATIONS))


class TestOfAUser(OperationContract):
    operation = "gated"
    shapes = ((3,),)

    @pytest.fixture(autouse=True)
    def registered(self, vocabulary):
        register_operation("gated", build_gated, weight_layers=1)


class TestLinear(OperationContract):
    operation, shapes, arguments = "linear", ((4, 3),), {"out_features": 5}


class TestConvolution(OperationContract):
    operation, shapes = "nor_conv_3x3", ((4, 6, 6),)


class TestReduction(OperationContract):
    operation, shapes, arguments = "reduction", ((4, 6, 6),), {"channels": 8}


class TestSum(OperationContract):
    operation, shapes = "sum", ((3,), (3,), (3,))


def test_a_registered_operation_counts():
    register_operation("gated", build_gated, weight_layers=1)
    made = Architecture((Architecture.input((3,)), Node.of("gated", 0), Node.of("gated", 1)))
    assert made.num_parameters == 2 * 24
    assert made.depth == 2


def test_bad_registrations():
    with pytest.raises(ValueError, match="registered already"):
        register_operation("linear", build_gated)
    register_operation("linear", build_gated, replace=True)
    for reserved in ("input", "repeat", ""):
        with pytest.raises(ValueError, match="cannot be the label"):
            register_operation(reserved, build_gated)
    with pytest.raises(TypeError, match="must be callable"):
        register_operation("other", 3)
    with pytest.raises(ValueError, match="register_operation"):
        Architecture((Architecture.input((3,)), Node.of("unheard", 0)))


def test_pixels_in_another_memory_layout_are_normalised():
    """PyTorch's group normalisation ends the process here, in its backward pass."""
    nodes = (Architecture.input((3, 8, 8)), Node.of("permute", 0, order="312"), Node.of("norm", 1))
    module = Architecture(nodes).build()
    x = torch.randn(2, 3, 8, 8)
    y = module(x)
    assert not x.permute(0, 3, 1, 2).is_contiguous()
    torch.testing.assert_close(y, torch.nn.functional.group_norm(x.permute(0, 3, 1, 2), 1))
    y.square().sum().backward()
    assert all(p.grad is not None for p in module.parameters())
