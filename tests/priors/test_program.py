"""Tracing modules into programs: what is found, and what is refused and how."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from priors import InfiniteNetwork, UnsupportedOperationError
from priors.activations import ABReLU
from priors.program import ActivationNode, Combination, Flatten, Linear, trace


class Net(nn.Module):
    """Layers a, b, c and a forward given as a function."""

    def __init__(self, forward, width=8, d=3):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(d, width), nn.Linear(width, width), nn.Linear(width, 1)
        self.scale = nn.Parameter(torch.ones(()))
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def kinds(program):
    return [type(node).__name__ for node in program.nodes]


def test_sequential():
    program = trace(
        nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Identity(), nn.ReLU(), nn.Linear(4, 2)),
        input_shape=(2, 3),
    )
    assert kinds(program) == ["Input", "Flatten", "Linear", "ActivationNode", "Linear"]
    assert program.weights == {"1": "1.weight", "4": "4.weight"}
    assert program.biases == {"1": "1.bias", "4": "4.bias"}
    assert program.num_outputs == 2
    assert program.is_homogeneous_chain


def test_input_width_comes_from_the_first_layer():
    assert trace(nn.Sequential(nn.Linear(6, 1))).input_shape == (6,)
    assert trace(nn.Sequential(nn.LazyLinear(1))).input_shape == (None,)
    assert trace(Net(lambda m, x: m.c(m.a(2.0 * x)))).input_shape == (3,)


def test_weight_tying_is_identity_of_the_parameter():
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    module[2].weight = module[0].weight
    with pytest.raises(UnsupportedOperationError, match="raw input and to hidden"):
        trace(module)

    def forward(m, x):
        h = torch.relu(m.a(x))
        for _ in range(2):
            h = torch.relu(m.b(h))
        return m.c(h)

    program = trace(Net(forward))
    names = [node.weight for node in program.nodes if isinstance(node, Linear)]
    assert names == ["a", "b", "b", "c"]
    assert not program.is_homogeneous_chain


def test_arithmetic_is_collected_into_coefficients():
    def forward(m, x):
        h = m.a(x)
        return m.c(torch.tanh((2 * h - h / 2 + sum([h, h])) * -1.0 + 0.25 - 0.25))

    program = trace(Net(forward))
    (activation,) = [n for n in program.nodes if isinstance(n, ActivationNode)]
    ((coefficient, source),) = program.terms(activation.source)
    assert coefficient == -3.5
    assert isinstance(program.nodes[source], Linear)
    combination = program.nodes[activation.source]
    assert isinstance(combination, Combination)
    assert combination.offset == 0.0


def test_functional_forms_equal_modules():
    x = torch.randn(4, 3, dtype=torch.float64)

    def functional(m, x):
        h = F.leaky_relu(F.linear(x, m.a.weight, m.a.bias), 0.3)
        h = F.dropout(F.gelu(m.b(h)), 0.5, training=False)
        return F.linear(h, m.c.weight)

    module = nn.Sequential(
        nn.Linear(3, 8),
        nn.LeakyReLU(0.3),
        nn.Linear(8, 8),
        nn.GELU(),
        nn.Dropout(0.5),
        nn.Linear(8, 1, bias=False),
    ).eval()
    pairs = zip(
        InfiniteNetwork(Net(functional), weight_var=1.3, bias_var=0.1).kernels(x),
        InfiniteNetwork(module, weight_var=1.3, bias_var=0.1).kernels(x),
        strict=True,
    )
    for a, b in pairs:
        torch.testing.assert_close(a, b)


def test_flatten_and_activation_of_the_raw_input():
    x = torch.randn(5, 6, dtype=torch.float64)
    module = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(6, 1))
    network = InfiniteNetwork(module, weight_var=2.0, input_shape=(1, 2, 3))
    torch.testing.assert_close(network.nngp(x), 2 * x.relu() @ x.relu().mT / 6)
    assert isinstance(network.program.nodes[1], Flatten)


def test_program_pickles():
    program = trace(Net(lambda m, x: m.c(F.relu(m.a(x)))))
    assert pickle.loads(pickle.dumps(program)) == program
    assert ABReLU() == pickle.loads(pickle.dumps(ABReLU()))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.Softmax(-1), nn.Linear(4, 1)), "Softmax at module '1'"),
        (
            nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)),
            "BatchNorm1d at module '1'",
        ),
        (nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)), r"call module.eval\(\)"),
        (Net(lambda m, x: m.c(torch.relu(torch.relu(m.a(x)) + m.b(m.a(x))))), "not Gaussian"),
        (Net(lambda m, x: m.c(torch.tanh(m.a(x)) * m.b(m.a(x)))), "product of two branches"),
        (Net(lambda m, x: m.c(m.a(x) * m.scale)), "arithmetic with a parameter"),
        (Net(lambda m, x: m.c(m.a(x) + 1.0)), "use a bias"),
        (Net(lambda m, x: m.c(torch.relu(m.a(x) + 1.0))), "moves its kink"),
        (Net(lambda m, x: m.c(torch.exp(m.a(x)))), "operation exp at operation 'exp' of forward"),
        (Net(lambda m, x: m.c(m.a(x).softmax(-1))), "operation softmax"),
        (Net(lambda m, x: torch.relu(m.a(x))), "no linear readout"),
        (Net(lambda m, x: m.c(x + m.a(x)), width=3), "raw input"),
        (Net(lambda m, x: (m.a(x), m.a(x))), "no single tensor"),
    ],
)
def test_unsupported_names_the_place_and_what_is_supported(module, message):
    with pytest.raises(NotImplementedError, match=message) as caught:
        trace(module)
    assert "Supported are" in str(caught.value)
    assert isinstance(caught.value, UnsupportedOperationError)


def test_untraceable_and_misfitting_modules():
    with pytest.raises(ValueError, match="torch.fx cannot trace"):
        trace(Net(lambda m, x: m.c(m.a(x)) if x.sum() > 0 else m.c(m.a(-x))))
    with pytest.raises(ValueError, match="expects 5 features, it gets 4"):
        trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(5, 1)))
    with pytest.raises(ValueError, match="adds shapes"):
        trace(Net(lambda m, x: m.b(m.a(x)) + m.c(m.a(x))))
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        trace(torch.relu)


def test_ntk_refuses_a_readout_used_elsewhere():
    def forward(m, x):
        h = m.b(torch.relu(m.a(x)))
        return m.b(torch.relu(h))

    x = torch.randn(3, 3)
    network = InfiniteNetwork(Net(forward))
    assert network.nngp(x).shape == (3, 3)
    with pytest.raises(NotImplementedError, match="readout"):
        network.ntk(x)
