"""NNGP and NTK kernels against stored values, GPyTorch's contract, and gradients."""

import json
import math
import pickle
import unittest
from pathlib import Path

import gpytorch
import pytest
import torch
from gpytorch.test.base_kernel_test_case import BaseKernelTestCase
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from priors import InfiniteNetwork, NetworkPrior, NNGPKernel, NTKKernel
from priors.programs.rules.elementwise import _MODULES
from priors.testing import KernelContract

REFERENCE = json.loads(Path(__file__).with_name("reference_kernels.json").read_text())["cases"]


class Elementwise(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.LazyLinear(8), nn.Linear(8, 1)
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + block(torch.relu(x))
        return self.last(torch.relu(x))


ACTIVATIONS = {
    "relu": nn.ReLU(),
    "leaky02": nn.LeakyReLU(0.2),
    "erf": Elementwise(torch.erf),
    "gelu": nn.GELU(),
    "tanh": nn.Tanh(),
    "cos": Elementwise(torch.cos),
    "sin_a1_b2_c03": Elementwise(lambda x: torch.sin(2 * x + 0.3)),
    "rbf_g07": Elementwise(lambda x: math.sqrt(2) * torch.sin(math.sqrt(1.4) * x + math.pi / 4)),
}


def mlp(activation, depth=1, width=8, outputs=1):
    layers = []
    for _ in range(depth):
        layers += [nn.LazyLinear(width), activation]
    return nn.Sequential(*layers, nn.LazyLinear(outputs))


def reference_network(case):
    if case == "fc_resnet2":
        return InfiniteNetwork(Residual(), weight_var=1.2**2, bias_var=0.1**2)
    name = case.split("_", 1)[1]
    if case.startswith("fc3"):
        network = mlp(ACTIVATIONS[name], depth=3)
        return InfiniteNetwork(network, weight_var=1.5**2, bias_var=0.1**2)
    return InfiniteNetwork(
        mlp(ACTIVATIONS[name]),
        weight_var={"0": 1.3**2, "2": 1.1**2},
        bias_var={"0": 0.2**2, "2": 0.1**2},
    )


@pytest.mark.parametrize("case", sorted(REFERENCE))
def test_reference_values(case):
    stored = {k: torch.tensor(v, dtype=torch.float64) for k, v in REFERENCE[case].items()}
    network = reference_network(case)
    nngp, ntk = network.kernels(stored["x1"], stored["x2"])
    nngp_self, ntk_self = network.kernels(stored["x1"])
    for value, name in (
        (nngp, "nngp"),
        (ntk, "ntk"),
        (nngp_self, "nngp_self"),
        (ntk_self, "ntk_self"),
    ):
        torch.testing.assert_close(value.detach(), stored[name], rtol=1e-9, atol=0)


@pytest.mark.parametrize("kernel_class", [NNGPKernel, NTKKernel])
@pytest.mark.parametrize("depth", [1, 3, 10])
def test_float32_agrees_with_float64(kernel_class, depth):
    x = torch.randn(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kernel = kernel_class(mlp(nn.ReLU(), depth), weight_var=2.0, bias_var=0.1)
    exact = kernel(x).to_dense()
    single = kernel.float()(x.float()).to_dense()
    assert single.dtype == torch.float32
    # entries near 0 are differences of larger numbers
    atol = 1e-6 * exact.diagonal().max().item()
    torch.testing.assert_close(single.double(), exact, rtol=2e-5 * depth, atol=atol)


class GPyTorchContract(BaseKernelTestCase):
    def create_kernel_no_ard(self, **kwargs):
        return self.kernel_class(mlp(self.activation, depth=2), bias_var=0.1, **kwargs)

    def test_pickle_keeps_values(self):
        kernel = self.create_kernel_no_ard()
        x = torch.randn(4, 3)
        copy = pickle.loads(pickle.dumps(kernel))
        self.assertAllClose(copy(x).to_dense(), kernel(x).to_dense())


class TestNNGPContract(GPyTorchContract, unittest.TestCase):
    kernel_class, activation = NNGPKernel, nn.ReLU()


class TestNTKContract(GPyTorchContract, unittest.TestCase):
    kernel_class, activation = NTKKernel, nn.ReLU()


class TestNTKContractTanh(GPyTorchContract, unittest.TestCase):
    kernel_class, activation = NTKKernel, nn.Tanh()


del GPyTorchContract, BaseKernelTestCase  # pytest must not collect the bases


class TestNNGPKernel(KernelContract):
    def make_kernel(self):
        return NNGPKernel(mlp(nn.ReLU(), depth=2), weight_var=1.7, bias_var=0.1)


class TestNTKKernel(KernelContract):
    def make_kernel(self):
        return NTKKernel(mlp(nn.ReLU(), depth=2), weight_var=1.7, bias_var=0.1)


class TestSmoothNTKKernel(KernelContract):
    def make_kernel(self):
        return NTKKernel(mlp(nn.Tanh(), depth=2), weight_var=1.7)


@pytest.mark.covering
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("kind", ["nngp", "ntk"])
def test_diagonal_and_batches(name, kind):
    generator = torch.Generator().manual_seed(1)
    x1 = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=generator)
    x2 = torch.randn(3, 6, 4, dtype=torch.float64, generator=generator)
    kernel = getattr(InfiniteNetwork(mlp(ACTIVATIONS[name], 2), bias_var=0.2), kind)
    full = kernel(x1, x2)
    assert full.shape == (2, 3, 5, 6)
    torch.testing.assert_close(full[1, 2], kernel(x1[1, 2], x2[2]))
    torch.testing.assert_close(full.mT, kernel(x2, x1))
    torch.testing.assert_close(kernel(x1).diagonal(dim1=-2, dim2=-1), kernel(x1, diag=True))
    pairs = kernel(x1, x1 + 0.1, diag=True)
    torch.testing.assert_close(pairs, kernel(x1, x1 + 0.1).diagonal(dim1=-2, dim2=-1))


@pytest.mark.parametrize("layer", sorted(_MODULES, key=lambda kind: kind.__name__))
def test_activations_have_the_derivatives_that_kernels_need(layer):
    """The slope of a kernel takes two of the function, its curvature three."""
    phi = _MODULES[layer](layer())
    x = torch.tensor([-4.1, -0.7, 0.3, 2.2], dtype=torch.float64, requires_grad=True)
    assert torch.allclose(phi(x), layer()(x))
    value = phi(x)
    for _ in range(3):
        if not value.requires_grad:  # the slope of a piecewise linear one is constant
            break
        (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        assert value.isfinite().all()


def test_slopes_of_a_kernel_by_central_differences():
    """Of a hard sigmoid, whose function in torch has no second derivative."""
    network = InfiniteNetwork(mlp(nn.Hardsigmoid()), weight_var=1.3, bias_var=0.2).double()
    x = torch.tensor([[0.7, -0.3]], dtype=torch.float64, requires_grad=True)
    z = torch.tensor([[0.2, 0.9]], dtype=torch.float64)
    along = torch.tensor([[0.6, -0.8]], dtype=torch.float64)
    ends = [network.kernels(x.detach() + step * along, z) for step in (1e-5, -1e-5)]
    for k, value in enumerate(network.kernels(x, z)):
        (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        truth = (ends[0][k] - ends[1][k]).item() / 2e-5
        assert (slope * along).sum().item() == pytest.approx(truth, rel=1e-5, abs=1e-7)


@pytest.mark.fast_for("nngp-relu", "nngp-tanh", "ntk-leaky02", "ntk-gelu")
@pytest.mark.parametrize("name", ["relu", "leaky02", "erf", "gelu", "tanh", "cos"])
@pytest.mark.parametrize("kind", ["nngp", "ntk"])
def test_gradcheck(name, kind):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(3, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    z = torch.randn(2, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    network = InfiniteNetwork(mlp(ACTIVATIONS[name], 2), weight_var=1.3, bias_var=0.2).double()
    kernel = getattr(network, kind)
    parameters = tuple(network.parameters())
    assert len(parameters) == 6

    def both(*arguments):
        return kernel(x, z), kernel(x)

    torch.autograd.gradcheck(both, (x, z, *parameters), atol=1e-6)


@pytest.mark.covering
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["nngp", "ntk"])
def test_gradients_are_finite_at_coincident_opposite_and_zero_inputs(name, dtype, kind):
    rows = torch.tensor([[1.0, -0.5], [1.0, -0.5], [-1.0, 0.5], [0.0, 0.0], [2.0, -1.0]])
    for bias_var in (0.0, 0.3):
        network = InfiniteNetwork(mlp(ACTIVATIONS[name], 3), bias_var=bias_var).to(dtype)
        x1 = rows.to(dtype).requires_grad_()
        x2 = rows.to(dtype).clone().requires_grad_()
        for arguments in ((x1,), (x1, x2)):
            value = getattr(network, kind)(*arguments)
            assert value.isfinite().all()
            inputs = [*arguments, *network.parameters()]
            for gradient in torch.autograd.grad(value.sum(), inputs, allow_unused=True):
                assert gradient is None or gradient.isfinite().all()


def test_gradient_of_the_diagonal_is_that_of_the_closed_form():
    # bias-free ReLU with weight_var 2: nngp(x, x) = 2 |x|^2 / d
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    network = InfiniteNetwork(
        nn.Sequential(nn.LazyLinear(8, bias=False), nn.ReLU(), nn.LazyLinear(1, bias=False)),
        weight_var=2.0,
    )
    (gradient,) = torch.autograd.grad(network.nngp(x).diagonal().sum(), x)
    torch.testing.assert_close(gradient, 4 * x.detach() / 3)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(sorted(ACTIVATIONS)),
    st.integers(1, 4),
    st.floats(0.1, 4.0),
    st.floats(0.0, 1.0),
    st.integers(0, 10_000),
)
def test_kernels_are_positive_semidefinite(name, depth, weight_var, bias_var, seed):
    x = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = torch.cat([x, x[:2], -x[:2]])
    network = InfiniteNetwork(
        mlp(ACTIVATIONS[name], depth), weight_var=weight_var, bias_var=bias_var
    )
    with torch.no_grad():
        for kernel in network.kernels(x):
            torch.testing.assert_close(kernel, kernel.mT)
            assert torch.linalg.eigvalsh(kernel).min() > -1e-7 * kernel.diagonal().max()


def test_rotation_invariance():
    x = torch.randn(6, 4, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    network = InfiniteNetwork(mlp(nn.GELU(), 2), bias_var=0.1)
    for a, b in zip(network.kernels(x), network.kernels(x @ rotation), strict=True):
        torch.testing.assert_close(a, b)


def test_batch_of_variances_equals_single_ones():
    x = torch.randn(5, 3, dtype=torch.float64)
    kernel = NTKKernel(mlp(nn.ReLU()), bias_var=0.1, batch_shape=torch.Size([2]))
    kernel.network.variances.weight_var["0"] = torch.tensor([1.0, 2.0])
    batched = kernel(x).to_dense()
    assert batched.shape == (2, 5, 5)
    for i, value in enumerate((1.0, 2.0)):
        single = NTKKernel(mlp(nn.ReLU()), bias_var=0.1, weight_var={"0": value})
        torch.testing.assert_close(batched[i], single(x).to_dense())
        torch.testing.assert_close(kernel[i](x).to_dense(), single(x).to_dense())


def test_marginal_likelihood_learns_every_variance_that_is_no_constant():
    kernel = NNGPKernel(mlp(nn.ReLU(), 2), bias_var={"0": 0.1, "2": 0.0, "4": 0.0})
    names = {name.rsplit(".", 1)[-1] for name, _ in kernel.named_parameters()}
    assert names == {"raw_weight_var_0", "raw_weight_var_2", "raw_weight_var_4", "raw_bias_var_0"}
    homogeneous = NNGPKernel(mlp(nn.ReLU(), 2), bias_var=0.0)
    assert [n.rsplit(".", 1)[-1] for n, _ in homogeneous.named_parameters()] == ["raw_weight_var_4"]


def test_gpytorch_priors_apply():
    kernel = NNGPKernel(mlp(nn.ReLU()), bias_var=0.1)
    kernel.network.variances.register_prior(
        "first_weight", gpytorch.priors.GammaPrior(2.0, 1.0), lambda m: m.weight_var["0"]
    )
    (entry,) = (e for e in kernel.named_priors() if e[0].endswith("first_weight"))
    assert entry[3](entry[1]).item() == pytest.approx(1.0)


def test_sharing_of_variances():
    prior = NetworkPrior(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)), bias_var=0.1)
    kernel = NNGPKernel(InfiniteNetwork(prior))
    prior.variances.weight_var["0"] = 3.0
    assert kernel.network.variances.weight_var["0"].item() == pytest.approx(3.0)
    assert NetworkPrior(kernel.network).variances is prior.variances


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_cuda_agrees_with_cpu(name):
    x = torch.randn(6, 3, dtype=torch.float64)
    network = InfiniteNetwork(mlp(ACTIVATIONS[name], 2), bias_var=0.1)
    expected = network.kernels(x)
    for a, b in zip(network.cuda().kernels(x.cuda()), expected, strict=True):
        torch.testing.assert_close(a.cpu(), b.cpu())


class TestErrors:
    def test_wrong_last_dimension(self):
        network = InfiniteNetwork(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)))
        with pytest.raises(ValueError, match="4 features.*expects 3"):
            network.nngp(torch.randn(2, 4))

    def test_disagreeing_inputs(self):
        with pytest.raises(ValueError, match="x2 has 4 features, x1 has 3"):
            InfiniteNetwork(mlp(nn.ReLU())).nngp(torch.randn(2, 3), torch.randn(2, 4))

    def test_a_single_row(self):
        with pytest.raises(ValueError, match=r"\[..., n, d\]"):
            InfiniteNetwork(mlp(nn.ReLU())).nngp(torch.randn(3))

    def test_bad_variances(self):
        with pytest.raises(ValueError, match="non-negative"):
            InfiniteNetwork(mlp(nn.ReLU()), weight_var=-1.0)
        with pytest.raises(ValueError, match="layers are"):
            InfiniteNetwork(mlp(nn.ReLU()), weight_var={"9": 1.0})
        network = InfiniteNetwork(mlp(nn.ReLU()), bias_var=0.0)
        with pytest.raises(ValueError, match="fixed"):
            network.variances.bias_var["0"] = 1.0

    def test_sharing_refuses_new_variances(self):
        with pytest.raises(ValueError, match="shares its variances"):
            NNGPKernel(InfiniteNetwork(mlp(nn.ReLU())), weight_var=2.0)
