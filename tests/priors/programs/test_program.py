"""Tracing modules into programs: what is found, and what is refused and how."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from priors import InfiniteNetwork, UnsupportedOperationError
from priors.gaussian.activations import ABReLU
from priors.programs.nodes import Combination, Function, Linear, Nonlinear
from priors.programs.tracer import trace
from priors.programs.values import Width


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
    assert kinds(program) == ["Input", "Function", "Features", "Linear", "Nonlinear", "Linear"]
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
    (activation,) = [n for n in program.nodes if isinstance(n, Nonlinear)]
    (combined,) = activation.factors[0].sources
    ((coefficient, source),) = program.terms(combined)
    assert coefficient == -3.5
    assert isinstance(program.nodes[source], Linear)
    combination = program.nodes[combined]
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
    network = InfiniteNetwork(module, weight_var=2.0, bias_var=0.0, input_shape=(1, 2, 3))
    torch.testing.assert_close(network.nngp(x), 2 * x.relu() @ x.relu().mT / 6)
    assert isinstance(network.program.nodes[1], Function)


def test_program_pickles():
    program = trace(Net(lambda m, x: m.c(F.relu(m.a(x)))))
    assert pickle.loads(pickle.dumps(program)) == program
    assert ABReLU() == pickle.loads(pickle.dumps(ABReLU()))


class Images(nn.Module):
    """Convolutions c, d and a readout r, with a forward given as a function."""

    def __init__(self, forward):
        super().__init__()
        self.c, self.d = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.r, self.p = nn.Linear(8, 1), nn.PReLU()
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


class Sequences(nn.Module):
    """An embedding e of features, layers q and k, a readout r."""

    def __init__(self, forward, width=8, **options):
        super().__init__()
        self.e, self.r = nn.Linear(3, width), nn.Linear(width, 1)
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width)
        self.rnn = nn.RNN(3, width, **options)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def attend(q, k, v, **options):
    return F.scaled_dot_product_attention(q, k, v, **options)


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (
            nn.Sequential(nn.Linear(3, 4), nn.Softmax(-1), nn.Linear(4, 1)),
            None,
            "Softmax at mod.*coupled",
        ),
        (
            nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)),
            None,
            "BatchNorm1d at module '1'.*whole batch",
        ),
        (nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 1)), None, "Dropout of the raw input"),
        (nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 1)), None, "slope is learnt"),
        (Net(lambda m, x: m.c(m.a(x) * m.b.weight[0])), None, "product.*unequal entries.*held"),
        (Net(lambda m, x: m.c(m.a(x) * m.scale.log())), None, "log.*makes it 0.*vanish.*ones_"),
        (Net(lambda m, x: m.c(m.a(x) + m.b.weight[:1, :1])), None, "a shift.*unequal entries"),
        (Net(lambda m, x: m.c(m.a(x) + m.b.weight.data)), None, "data of a parameter"),
        (Net(lambda m, x: m.b(m.c.weight + x), 3), None, "parameter added to the raw input"),
        (Net(lambda m, x: m.c(m.b(m.a(x)) + m.b.weight[0])), None, "both a matrix and the units"),
        (Net(lambda m, x: m.c(m.b(m.a(x) * m.c.weight))), None, "unequal entries"),
        (Net(lambda m, x: m.c(m.a(x) @ m.b.weight + m.b(m.a(x)))), None, "with its transpose"),
        (Net(lambda m, x: m.c(m.a(x)) + 1.0), None, "not a linear readout"),
        (Net(lambda m, x: m.c(torch.cumsum(m.a(x), -1))), None, "operation cumsum"),
        (Net(lambda m, x: m.c(m.a(x).softmax(-1))), None, "softmax at operation"),
        (Net(lambda m, x: torch.relu(m.a(x))), None, "not a linear readout"),
        (Net(lambda m, x: m.c(torch.relu(x + m.a(x))), 3), None, "different constants added"),
        (Net(lambda m, x: (m.a(x), m.a(x))), None, "not a single tensor"),
        (Net(lambda m, x: m.c(m.a(x)[:, torch.tensor([1, 0, 2])])), None, "reorders units"),
        (Net(lambda m, x: m.c(m.a(x).flip(0))), None, "reorders the batch"),
        (Net(lambda m, x: m.c(m.a(x) - m.a(x).mean(-1, keepdim=True))), None, "or the width"),
        (Images(lambda m, x: F.max_pool2d(m.c(x), 2)), (2, 4, 4), "max.*use average pooling"),
        (Images(lambda m, x: m.r(m.c(x).mean((2, 3)).prod(1))), (2, 4, 4), "operation prod"),
        (
            Images(lambda m, x: F.avg_pool2d(m.c(x).relu(), 2).relu()),
            (2, 4, 4),
            "not Gaussian in the limit.*Mix",
        ),
        (Images(lambda m, x: m.c(x)), (2, 4, 4), "not a vector of units"),
        (
            Images(lambda m, x: m.r(m.c(m.c(x)[:, :2]).mean((2, 3)))),
            (2, 4, 4),
            "raw input and to hidden",
        ),
        (nn.Sequential(nn.ConvTranspose2d(2, 8, 3)), (2, 4, 4), "ConvTranspose2d.*fan-ins"),
        (nn.Sequential(nn.Conv2d(2, 8, 1), nn.Conv2d(8, 8, 3, groups=8)), (2, 4, 4), "depthwise"),
        (nn.Conv2d(2, 8, 3, groups=2), (2, 4, 4), "grouped convolution of the raw input"),
        (nn.Sequential(nn.Conv2d(2, 8, 3, padding_mode="reflect")), (2, 4, 4), "reflect"),
        (nn.Sequential(nn.Conv2d(2, 8, 1), nn.InstanceNorm2d(8)), (2, 4, 4), "InstanceNorm2d"),
        (Sequences(lambda m, x: m.r(m.rnn(x)[0][:, -1])), (4, 3), "batch_first=False"),
        (
            Sequences(lambda m, x: m.r(attend(m.q(m.e(x)), m.q(m.e(x)), m.k(m.e(x)))[:, 0])),
            (4, 3),
            "grow with the width",
        ),
        (
            Sequences(lambda m, x: m.r(attend(x, x, m.e(x))[:, 0])),
            (4, 3),
            "attention over the raw input",
        ),
    ],
)
def test_unsupported_names_the_place_and_what_is_supported(module, shape, message):
    with pytest.raises(NotImplementedError, match=message) as caught:
        trace(module.eval() if shape else module, shape)
    assert "UnsupportedOperationError.supported()" in str(caught.value)
    assert len(str(caught.value)) < 350
    assert isinstance(caught.value, UnsupportedOperationError)


def test_untraceable_and_misfitting_modules():
    with pytest.raises(ValueError, match="torch.fx cannot trace"):
        trace(Net(lambda m, x: m.c(m.a(x)) if x.sum() > 0 else m.c(m.a(-x))))
    with pytest.raises(ValueError, match="expects 5 features but gets 4"):
        trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(5, 1)))
    with pytest.raises(ValueError, match="give input_shape"):
        trace(Net(lambda m, x: m.c(m.a(x[:, :3]))))
    with pytest.raises(ValueError, match="expects inputs of 3 dimensions"):
        trace(nn.Conv2d(2, 8, 3), (4, 4))
    with pytest.raises(ValueError, match="larger than its input"):
        trace(nn.Conv2d(2, 8, 5), (2, 4, 4))
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


def attention(scale):
    """Attention whose scale is made of sizes."""

    def forward(m, x):
        q, k, v = m.q(m.e(x)), m.k(m.e(x)), m.e(x)
        return m.r((torch.softmax(q @ k.mT * scale(k), -1) @ v)[:, 0])

    return forward


@pytest.mark.parametrize(
    "scale",
    [
        lambda k: k.size(-1) ** -0.5,
        lambda k: 1 / math.sqrt(k.size(-1)),
        lambda k: 1.0 / math.sqrt(k.shape[-1]),
        lambda k: math.sqrt(1 / k.shape[2]),
        lambda k: k.size(k.ndim - 1) ** -0.5,
    ],
)
def test_sizes_are_numbers(scale):
    x = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    plain = InfiniteNetwork(Sequences(attention(lambda k: 8**-0.5)).eval(), input_shape=(4, 3))
    sized = InfiniteNetwork(Sequences(attention(scale)).eval(), input_shape=(4, 3))
    torch.testing.assert_close(sized.nngp(x), plain.nngp(x))


def test_sizes_in_arithmetic():
    x = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    plain = InfiniteNetwork(Net(lambda m, x: m.c(torch.relu(m.a(-6.0 * x))))).nngp(x)
    sized = Net(lambda m, x: m.c(torch.relu(m.a(x * -x.size(1) * x.dim()))))
    torch.testing.assert_close(InfiniteNetwork(sized, input_shape=(3,)).nngp(x), plain)


def test_programs_with_sizes_can_be_copied():
    def forward(m, x):
        width = m.a(x).size(-1)
        return m.c(torch.relu(m.a(x * width**-0.5 + 1 / math.sqrt(width * width))))

    program = trace(Net(forward), (3,))
    assert pickle.loads(pickle.dumps(program)) == program
    width = Width(8)
    for number, exponent in ((width, 1), (2 * width, 1), (width * width, 2), (3 / width, -1)):
        assert copy.deepcopy(number).exponent == number.exponent == exponent
    assert (-(width**-0.5) / width).exponent == -1.5
    assert torch.zeros(2, 16).view(2, 2, width).shape[-1] == 8


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda m, x: m.c(m.a(x).flip(-1)), "reorders units"),
        (lambda m, x: m.c(F.linear(m.a(x), m.b.weight * 0.5)), "weight_var"),
        (lambda m, x: m.c(F.linear(m.a(x), -m.b.weight)), "weight_var"),
        (lambda m, x: m.c(F.linear(m.a(x), m.b.weight / 2)), "weight_var"),
        (lambda m, x: m.c(F.linear(m.a(x), m.b.weight + 1)), "weight_var"),
        (lambda m, x: m.c(m.a(x) * m.b.weight.sum()), "sum"),
        (lambda m, x: m.c(m.a(x.cumsum(0))), "cumsum.*mixes the points"),
        (lambda m, x: m.c(m.a(x.flip(0))), "flip.*mixes the points"),
        (lambda m, x: m.c(m.a(x / x.norm(dim=0, keepdim=True).expand_as(x))), "first dimension"),
        (lambda m, x: m.c(m.a(x + torch.rand_like(x))), "is random"),
        (lambda m, x: m.c(m.a(x.sort(0).values)), "mixes the points"),
        (lambda m, x: m.c(m.a(x.reshape(x.shape[0] * 1, 3))), "the batch size"),
        (lambda m, x: m.c(m.a(x) * x.numel()), "counts the batch"),
        (lambda m, x: m.c(torch.cummax(m.a(x), 1)[0]), "cummax"),
    ],
)
def test_refusals_name_the_reason(forward, message):
    with pytest.raises(UnsupportedOperationError, match=message):
        trace(Net(forward), (3,))


def test_refusals_name_what_is_like_it():
    with pytest.raises(UnsupportedOperationError, match=r"Nearest: .*avg_pool1d"):
        trace(Net(lambda m, x: m.c(F.max_pool1d(m.a(x), 2))), (3,))
    assert "nn.Conv1d/2d/3d" in UnsupportedOperationError.supported()


@pytest.mark.parametrize("forward", [lambda m, x: m.c(m.a(x) * len(x)), lambda m, x: float(x)])
def test_what_python_wants_to_know_of_a_batch(forward):
    with pytest.raises(ValueError, match=r"len\(x\)|float\(x\)"):
        trace(Net(forward))


@pytest.mark.parametrize("what", ["nngp", "ntk"])
def test_kernels_without_points(what):
    conv = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(1))
    for network in (
        InfiniteNetwork(conv, input_shape=(2, 6), batch_shape=torch.Size([5])),
        InfiniteNetwork(Sequences(attention(lambda k: 8**-0.5)).eval(), input_shape=(4, 3)),
        InfiniteNetwork(nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(1))),
    ):
        x = torch.zeros(3, 12)
        kernel = getattr(network, what)
        shape = kernel(x, x).shape[:-2]
        assert kernel(x, x[:0]).shape == (*shape, 3, 0)
        assert kernel(x[:0], x).shape == (*shape, 0, 3)
        assert kernel(x[:0]).shape == (*shape, 0, 0)
        assert kernel(x[:0], diag=True).shape == (*shape, 0)
