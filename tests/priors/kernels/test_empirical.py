"""Empirical tangent kernels against loops of autograd, closed forms and infinite width."""

import copy
import math
import pickle
import unittest

import pytest
import torch
from gpytorch.test.base_kernel_test_case import BaseKernelTestCase
from scipy import integrate
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from priors import InfiniteNetwork, NetworkPrior
from priors.diagnostics.monte_carlo import monte_carlo_kernels
from priors.kernels.empirical import EmpiricalNTKKernel, empirical_ntk, ntk_vector_product
from priors.kernels.linearisation import LinearizedModule, linearize
from priors.testing import KernelContract

METHODS = ["jacobian_contraction", "ntk_vector_products"]


class Tied(nn.Module):
    """A layer under two names, its weight in a third, a scalar, and outputs in two dimensions."""

    def __init__(self):
        super().__init__()
        self.shared, self.last = nn.Linear(3, 3), nn.Linear(3, 4)
        self.again, self.scale = self.shared, nn.Parameter(torch.tensor(0.7))
        self.middle = nn.Linear(3, 3)
        self.middle.weight = self.shared.weight

    def forward(self, x):
        hidden = torch.tanh(self.again(torch.tanh(self.middle(torch.tanh(self.shared(x))))))
        return (self.scale * self.last(hidden)).unflatten(-1, (2, 2))


class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(x)


class AnyFeatures(nn.Module):
    """Rows of any length: a convolution over the features, averaged."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv1d(1, 6, 3, padding=1), nn.Linear(6, 2)

    def forward(self, x):
        return self.last(torch.tanh(self.conv(x[:, None])).mean(-1))


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def mlp(activation=nn.ReLU, depth=2, width=8, outputs=1, features=3):
    def make():
        sizes = [features] + [width] * depth
        layers = []
        for a, b in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(a, b), activation()]
        return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))

    return seeded(make)


def conv():
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(3, 4, 3),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(16, 3),
        )
    )


NETWORKS = {
    "mlp": (lambda: mlp(outputs=3), (3,)),
    "conv": (conv, (2, 4, 4)),
    "tied": (lambda: seeded(Tied), (3,)),
    "tokens": (lambda: seeded(lambda: nn.Sequential(nn.Embedding(9, 3), nn.Linear(3, 2))), None),
}


def normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def setting(name):
    make, shape = NETWORKS[name]
    network = make().double()
    parameters = {k: p.detach() for k, p in network.named_parameters()}
    if shape is None:
        return network, parameters, torch.tensor([3, 1, 8, 0, 3]), torch.tensor([8, 2, 3, 3])
    return network, parameters, normal(5, *shape), normal(4, *shape, seed=1)


def gradient_rows(network, x, scale=None):
    """The gradient of every output at every example, one backward pass each, `[n, m, P]`."""
    rows = []
    names = [name for name, _ in network.named_parameters()]
    for example in x:
        outputs = network(example[None]).flatten()
        gradients = [
            torch.autograd.grad(value, list(network.parameters()), retain_graph=True)
            for value in outputs
        ]
        rows.append(
            torch.stack(
                [
                    torch.cat(
                        [
                            (g if scale is None else g * scale[name]).flatten()
                            for name, g in zip(names, gradient, strict=True)
                        ]
                    )
                    for gradient in gradients
                ]
            )
        )
    return torch.stack(rows)


def brute_force(network, x1, x2, scale=None):
    left, right = gradient_rows(network, x1, scale), gradient_rows(network, x2, scale)
    return torch.einsum("iop,jqp->ijoq", left, right)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_agrees_with_a_loop_of_backward_passes(name, method):
    network, parameters, x1, x2 = setting(name)
    exact = brute_force(network, x1, x2)
    m = exact.shape[-1]
    kernel = empirical_ntk(network, parameters, x1, x2, method=method)
    torch.testing.assert_close(kernel, exact, rtol=1e-11, atol=1e-12)
    square = empirical_ntk(network, parameters, x1, method=method)
    torch.testing.assert_close(square, brute_force(network, x1, x1), rtol=1e-11, atol=1e-12)
    assert all(network.get_parameter(name).requires_grad for name in parameters)  # left as it was
    for output, expected in (("mean", exact.diagonal(dim1=2, dim2=3).mean(-1)), (-1, None)):
        expected = exact[..., m - 1, m - 1] if expected is None else expected
        kernel = empirical_ntk(network, parameters, x1, x2, method=method, output=output)
        torch.testing.assert_close(kernel, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("output", ["all", "mean", 1])
def test_diagonal_is_that_of_the_matrix(method, output):
    network, parameters, x1, x2 = setting("conv")
    arguments = {"method": method, "output": output}
    index = torch.arange(4)
    for a, b in ((x1[:4], None), (x1[:4], x2)):
        full = empirical_ntk(network, parameters, a, b, **arguments)
        diagonal = empirical_ntk(network, parameters, a, b, diag=True, **arguments)
        torch.testing.assert_close(diagonal, full[index, index], rtol=1e-11, atol=1e-12)


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that any operation makes."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return result


@pytest.mark.covering
@pytest.mark.parametrize("diag", [False, True])
@pytest.mark.parametrize("output", ["all", "mean"])
@pytest.mark.parametrize("method", METHODS)
def test_blocks_give_the_same_within_the_memory(method, output, diag):
    network = mlp(nn.Tanh, width=60, outputs=3).double()
    parameters = {k: p.detach() for k, p in network.named_parameters()}
    x1 = normal(9, 3)
    for x2 in (None, normal(9, 3, seed=1), *([] if diag else [normal(7, 3, seed=1)])):
        arguments = {"method": method, "output": output, "diag": diag}
        with LargestTensor() as whole:
            full = empirical_ntk(network, parameters, x1, x2, **arguments)
        for max_bytes in (420_000, 600_000):
            assert whole.bytes > max_bytes  # or nothing is tested
            with LargestTensor() as blocks:
                kernel = empirical_ntk(
                    network, parameters, x1, x2, max_bytes=max_bytes, **arguments
                )
            assert blocks.bytes <= max_bytes
            torch.testing.assert_close(kernel, full, rtol=1e-11, atol=1e-12)


def test_jacobians_of_both_sides_share_the_memory(monkeypatch):
    from priors.kernels import tangent

    held, original = [], tangent.Tangent.jacobians

    def spy(self, x):
        blocks = original(self, x)
        held.append(sum(b.numel() * b.element_size() for b in blocks.values()))
        return blocks

    monkeypatch.setattr(tangent.Tangent, "jacobians", spy)
    network, parameters, x1, x2 = setting("conv")
    for other in (None, x2):
        held.clear()
        max_bytes = 45_000
        arguments = {"method": "jacobian_contraction", "max_bytes": max_bytes}
        empirical_ntk(network, parameters, x1, other, **arguments)
        assert len(held) > 2
        assert 2 * max(held) <= max_bytes


def test_auto_takes_the_cheaper_method(monkeypatch):
    from priors.kernels import tangent

    taken = []
    for name in ("_contracted", "_by_columns"):
        original = getattr(tangent.Tangent, name)

        def spy(self, *args, name=name, original=original):
            taken.append(name)
            return original(self, *args)

        monkeypatch.setattr(tangent.Tangent, name, spy)

    def run(network, x, **arguments):
        parameters = {k: p.detach() for k, p in network.named_parameters()}
        empirical_ntk(network, parameters, x, **arguments)
        return taken[-1]

    # one output: n^2 P against 2 n^2 FP with FP = P; many: n^2 m^2 P against 2 n^2 m P
    assert run(mlp(width=30), normal(20, 3, dtype=torch.float32)) == "_contracted"
    wide = mlp(width=30, outputs=20)
    assert run(wide, normal(20, 3, dtype=torch.float32)) == "_by_columns"
    assert run(wide, normal(20, 3, dtype=torch.float32), output="mean") == "_contracted"
    # a convolution uses each weight at every position: FP >> P
    images = normal(3, 2, 4, 4, dtype=torch.float32)
    assert run(conv(), images) == "_contracted"
    # Jacobians that do not fit
    assert run(conv(), images, max_bytes=5_000) == "_by_columns"


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_auto_avoids_operations_without_a_forward_derivative():
    attention = seeded(lambda: nn.MultiheadAttention(4, 2, batch_first=True))

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = attention

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    network, x = Attention(), normal(2, 3, 4, dtype=torch.float32)
    parameters = {k: p.detach() for k, p in network.named_parameters()}
    kernel = empirical_ntk(network, parameters, x)  # 12 outputs: products would be cheaper
    torch.testing.assert_close(kernel, brute_force(network, x, x), rtol=1e-4, atol=1e-5)
    with pytest.raises(NotImplementedError, match="SDPBackend.MATH"):
        empirical_ntk(network, parameters, x, method="ntk_vector_products")
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        plain = empirical_ntk(network, parameters, x, method="ntk_vector_products")
    torch.testing.assert_close(plain, kernel, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_in_inputs_and_parameters(method):
    network = mlp(nn.Tanh, depth=1, width=4, outputs=2).double()
    names = [name for name, _ in network.named_parameters()]
    values = [p.detach().requires_grad_() for p in network.parameters()]
    x1, x2 = normal(2, 3).requires_grad_(), normal(3, 3, seed=1).requires_grad_()

    def kernel(x1, x2, *values):
        parameters = dict(zip(names, values, strict=True))
        return empirical_ntk(network, parameters, x1, x2, method=method)

    torch.autograd.gradcheck(kernel, (x1, x2, *values))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bias_var", [0.0, 0.3])
def test_kernel_of_a_linear_model_in_closed_form(method, bias_var):
    x1, x2 = normal(6, 5), normal(4, 5, seed=1)
    for outputs in (1, 3):
        model = mlp(depth=0, features=5, outputs=outputs)
        kernel = EmpiricalNTKKernel(model, weight_var=1.7, bias_var=bias_var, method=method)
        value = kernel.double()(x1, x2).to_dense()
        torch.testing.assert_close(value, 1.7 * x1 @ x2.T / 5 + bias_var, rtol=1e-6, atol=1e-6)
        standard = EmpiricalNTKKernel(model, parameterization="standard", method=method)
        value = standard.double()(x1, x2).to_dense()
        torch.testing.assert_close(value, x1 @ x2.T + 1, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("output", ["mean", 2])
def test_kernel_scales_gradients_by_the_prior_deviations(output):
    network = conv().double()
    prior = NetworkPrior(
        network, weight_var={"0": 2.0, "2": 0.5}, bias_var=0.3, input_shape=(2, 4, 4)
    )
    x1, x2 = normal(5, 2, 4, 4), normal(3, 2, 4, 4, seed=1)
    blocks = brute_force(network, x1, x2, prior.parameter_std())
    exact = blocks.diagonal(dim1=2, dim2=3)
    exact = exact.mean(-1) if output == "mean" else exact[..., output]
    for kernel in (
        EmpiricalNTKKernel(prior, output=output),
        EmpiricalNTKKernel(
            conv().double(),
            weight_var={"0": 2.0, "2": 0.5},
            bias_var=0.3,
            input_shape=(2, 4, 4),
            output=output,
        ),
    ):
        value = kernel(x1.flatten(1), x2.flatten(1)).to_dense()
        torch.testing.assert_close(value, exact, rtol=1e-6, atol=1e-7)
    standard = EmpiricalNTKKernel(
        network, parameterization="standard", input_shape=(2, 4, 4), output=output
    )
    exact = brute_force(network, x1, x2).diagonal(dim1=2, dim2=3)
    exact = exact.mean(-1) if output == "mean" else exact[..., output]
    value = standard(x1.flatten(1), x2.flatten(1)).to_dense()
    torch.testing.assert_close(value, exact, rtol=1e-11, atol=1e-12)


@pytest.mark.covering
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("frozen", [{"0.weight"}, {"0.bias", "2.weight", "2.bias"}, {"4.weight"}])
def test_parameters_that_are_not_trained_have_no_part(method, frozen):
    """As in gradient descent, in both parametrisations, the Monte Carlo and the linearisation."""
    network = mlp(outputs=2).double()
    prior = NetworkPrior(network, weight_var=1.7, bias_var=0.3)
    std = prior.parameter_std()
    x1, x2 = normal(5, 3), normal(4, 3, seed=1)
    trained = {name: float(name not in frozen) for name in std}
    scaled = {name: std[name].double() * trained[name] for name in std}
    exact = {
        "ntk": brute_force(network, x1, x2, scaled),
        "standard": brute_force(network, x1, x2, trained),
    }
    for name, p in network.named_parameters():
        p.requires_grad_(name not in frozen)
    for parameterization, blocks in exact.items():
        given = {"weight_var": 1.7, "bias_var": 0.3} if parameterization == "ntk" else {}
        kernel = EmpiricalNTKKernel(
            network, parameterization=parameterization, method=method, **given
        ).double()
        truth = blocks.diagonal(dim1=2, dim2=3).mean(-1).detach()
        torch.testing.assert_close(kernel(x1, x2).to_dense(), truth, rtol=1e-6, atol=1e-9)
        batch = copy.deepcopy(kernel).expand_batch(2)
        torch.testing.assert_close(batch(x1, x2).to_dense()[1], truth, rtol=1e-6, atol=1e-9)
    linear = LinearizedModule(network)
    asked = {n for n, p in linear.displacement.named_parameters() if p.requires_grad}
    assert asked == {name.replace(".", "/") for name in std} - {n.replace(".", "/") for n in frozen}


def test_monte_carlo_of_a_network_that_is_trained_in_part():
    """Its mean is the limit's tangent kernel, which counts trained parameters alone."""
    network = mlp(depth=1, width=64)
    network[0].requires_grad_(False)
    prior = NetworkPrior(network.double(), weight_var=1.7, bias_var=0.3)
    x = normal(3, 3)
    generator = torch.Generator().manual_seed(0)
    found = monte_carlo_kernels(prior, x, num_networks=60, generator=generator)
    truth = InfiniteNetwork(prior).ntk(x)
    assert ((found.ntk - truth).abs() < 5 * found.ntk_error).all()
    whole = InfiniteNetwork(mlp(depth=1), weight_var=1.7, bias_var=0.3).double().ntk(x)
    assert ((whole - truth).diagonal() > 0.3 * truth.diagonal()).all()  # the first layer's part


def test_nothing_to_train_is_refused():
    network = mlp().requires_grad_(False)
    for parameterization in ("ntk", "standard"):
        with pytest.raises(ValueError, match="requires_grad=False"):
            EmpiricalNTKKernel(network, parameterization=parameterization)


def test_kernel_is_linear_in_the_variances_and_learns_them():
    # the sum over layers of variance times a fixed matrix: its gradient is that matrix
    kernel = EmpiricalNTKKernel(mlp(nn.Tanh), weight_var=1.3, bias_var=0.2).double()
    x = normal(4, 3)
    whole = kernel(x).to_dense()
    names = {name for name, p in kernel.named_parameters() if p.requires_grad}
    assert len(names) == 6
    assert all("var" in name for name in names)
    variances = kernel.prior.variances
    total = sum(
        torch.autograd.grad(whole.sum(), raw, retain_graph=True)[0]  # d/dlog var = the term itself
        for raw in variances.parameters()
    )
    torch.testing.assert_close(total, whole.sum(), rtol=1e-6, atol=1e-6)
    part = torch.autograd.grad(whole[0, 1], variances.raw_weight_var_2)[0]
    variances.weight_var["2"] = 2.6
    torch.testing.assert_close(kernel(x).to_dense()[0, 1] - whole[0, 1], part, rtol=1e-6, atol=1e-7)


def test_kernel_broadcasts_batches_of_inputs_and_networks():
    prior = NetworkPrior(mlp(nn.Tanh), weight_var=1.5, bias_var=0.1)
    weights = prior.draw(torch.Size([2]), generator=torch.Generator().manual_seed(3))
    batch = EmpiricalNTKKernel(prior, parameters=weights).double()
    singles = [
        EmpiricalNTKKernel(prior, parameters={k: p[i] for k, p in weights.items()}).double()
        for i in range(2)
    ]
    assert batch.batch_shape == (2,)
    x1, x2 = normal(3, 1, 4, 3), normal(5, 3, seed=1)
    full = batch(x1, x2).to_dense()
    assert full.shape == (3, 2, 4, 5)
    for i in range(3):
        for k in range(2):
            alone = singles[k](x1[i, 0], x2).to_dense()
            torch.testing.assert_close(full[i, k], alone, rtol=1e-9, atol=1e-10)
            torch.testing.assert_close(batch[k](x1[i, 0], x2).to_dense(), alone)
    expanded = batch.expand_batch(3, 2)
    torch.testing.assert_close(expanded(x2).to_dense()[2], batch(x2).to_dense())
    small = EmpiricalNTKKernel(
        prior, parameters={k: p[0] for k, p in weights.items()}, max_bytes=20_000
    ).double()
    for a, b in ((x1, x2), (normal(2, 1, 4, 3), normal(3, 5, 3, seed=1)), (x2, None)):
        value = small(a, b).to_dense()
        torch.testing.assert_close(value, singles[0](a, b).to_dense(), rtol=1e-9, atol=1e-10)


def test_kernel_keeps_the_weights_it_was_made_with():
    network = mlp()
    kernel, x = EmpiricalNTKKernel(network), normal(4, 3, dtype=torch.float32)
    before = kernel(x).to_dense()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    torch.testing.assert_close(kernel(x).to_dense(), before)
    torch.testing.assert_close(pickle.loads(pickle.dumps(kernel))(x).to_dense(), before)
    assert network[0].weight.dtype == torch.float32
    kernel.double()
    assert network[0].weight.dtype == torch.float32


def test_standard_parameterization_takes_modules_without_a_limit():
    network = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Softsign(), nn.Linear(5, 2))
    network = network.eval()
    with torch.no_grad():
        network[1].running_var.fill_(0.3)
    kernel = EmpiricalNTKKernel(network, parameterization="standard").double()
    x = normal(4, 3)
    exact = brute_force(network.double(), x, x).diagonal(dim1=2, dim2=3).mean(-1)
    torch.testing.assert_close(kernel(x).to_dense(), exact, rtol=1e-6, atol=1e-7)


class TestEmpiricalNTKKernel(KernelContract):
    def make_kernel(self):
        return EmpiricalNTKKernel(mlp(outputs=2), weight_var=1.7, bias_var=0.1)


class TestStandardEmpiricalNTKKernel(KernelContract):
    def make_kernel(self):
        return EmpiricalNTKKernel(mlp(nn.Tanh), parameterization="standard")


class TestEmpiricalNTKKernelByVectorProducts(KernelContract):
    def make_kernel(self):
        return EmpiricalNTKKernel(mlp(outputs=2), bias_var=0.1, method="ntk_vector_products")


class TestGPyTorchContract(BaseKernelTestCase, unittest.TestCase):
    def create_kernel_no_ard(self, batch_shape=None, **kwargs):
        network = seeded(AnyFeatures)
        weights = {
            name: normal(*(batch_shape or ()), *p.shape, seed=i, dtype=torch.float32)
            for i, (name, p) in enumerate(network.named_parameters())
        }
        return EmpiricalNTKKernel(
            network, parameters=weights, parameterization="standard", **kwargs
        )

    test_kernel_dtype_device = None  # the standard one has no parameter to have a device


del BaseKernelTestCase  # pytest must not collect the base


def test_vector_product_is_that_of_the_matrix():
    for name in NETWORKS:
        network, parameters, x1, x2 = setting(name)
        vector = normal(*network(x2).shape, seed=5)
        kernel = empirical_ntk(network, parameters, x1, x2)
        exact = torch.einsum("ijop,jp->io", kernel, vector.flatten(1)).reshape(5, *vector.shape[1:])
        value = ntk_vector_product(network, parameters, x1, x2, vector)
        torch.testing.assert_close(value, exact, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", NETWORKS)
def test_linearization_has_value_and_slope_of_the_network(name):
    network, parameters, x, _ = setting(name)
    linear = linearize(network, parameters)
    torch.testing.assert_close(linear(parameters, x), network(x), rtol=0, atol=0)
    step = {k: normal(*p.shape, seed=i) for i, (k, p) in enumerate(parameters.items())}

    def at(t, function):
        return function({k: p + t * step[k] for k, p in parameters.items()}, x)

    def full(values, x):
        moved = copy.deepcopy(network)  # functional_call would not restore the tied layer
        for name, parameter in moved.named_parameters():
            parameter.data.copy_(values[name])
        return moved(x)

    # affine along any line, with the slope of central differences of the network
    slope = (at(1e-5, full) - at(-1e-5, full)) / 2e-5
    for t in (-1.0, 0.5, 3.0):
        torch.testing.assert_close(at(t, linear), network(x) + t * slope, rtol=1e-6, atol=1e-6)


def test_linearization_of_a_model_linear_in_its_parameters_is_the_model():
    model = mlp(depth=0, outputs=2).double()
    x = normal(5, 3)
    linear = linearize(model, {k: p.detach() for k, p in model.named_parameters()})
    other = {k: normal(*p.shape) for k, p in model.named_parameters()}
    torch.testing.assert_close(linear(other, x), functional_call(model, other, (x,)))


def test_linearized_module_trains_by_its_tangent_kernel():
    network, parameters, x1, x2 = setting("tied")
    module = LinearizedModule(network)
    torch.testing.assert_close(module(x1), network(x1))
    assert sum(p.numel() for p in module.parameters()) == sum(
        p.numel() for p in network.parameters()
    )
    # a gradient step of any length moves it exactly along the kernel
    vector = normal(4, 2, 2, seed=7)
    (module(x2) * vector).sum().backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 3 * parameter.grad
    change = 3 * ntk_vector_product(network, parameters, x1, x2, vector)
    torch.testing.assert_close(module(x1), network(x1) + change)
    restored = LinearizedModule(seeded(lambda: Tied().double()))
    restored.load_state_dict(module.state_dict())
    torch.testing.assert_close(restored(x1), module(x1))
    assert module.float()(x1.float()).dtype == torch.float32
    torch.testing.assert_close(module(x1.float()).double(), restored(x1), rtol=1e-4, atol=1e-4)
    assert next(network.parameters()).dtype == torch.float64


def within(estimate, error, exact, slack=1e-12):
    return bool(((estimate - exact).abs() <= 5 * error + slack).all())


@pytest.mark.parametrize("diag", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_one_hidden_layer_is_unbiased_at_any_width(name, diag):
    if name == "mlp":
        network, input_shape = mlp(depth=1, width=16, outputs=2), (3,)
    else:
        input_shape = (1, 3, 4)
        network = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 2),
        )
    prior = NetworkPrior(network, weight_var=1.8, bias_var=0.2, input_shape=input_shape)
    d = math.prod(input_shape)
    x1, x2 = normal(5, d), normal(5, d, seed=1)
    estimate = monte_carlo_kernels(
        prior, x1, x2, num_networks=300, generator=torch.Generator().manual_seed(0), diag=diag
    )
    nngp, ntk = (k.detach() for k in InfiniteNetwork(prior).kernels(x1, x2, diag=diag))
    assert not estimate.nngp.requires_grad
    assert within(estimate.nngp, estimate.nngp_error, nngp)
    assert within(estimate.ntk, estimate.ntk_error, ntk)
    # and the errors are small enough for that to mean something
    assert estimate.nngp_error.max() < 0.15 * nngp.abs().max()
    assert estimate.ntk_error.max() < 0.15 * ntk.abs().max()


def test_standard_errors_of_a_linear_model_in_closed_form():
    # f = w x with w ~ N(0, v): f^2 has variance 2 (v x^2)^2; the
    # estimate of that variance has relative variance (60 - 2^2) / 2^2 / S
    prior = NetworkPrior(nn.Sequential(nn.Linear(1, 1, bias=False)), weight_var=1.5)
    x, size = torch.tensor([[0.7], [-2.0]], dtype=torch.float64), 2000
    estimate = monte_carlo_kernels(
        prior, x, num_networks=size, generator=torch.Generator().manual_seed(0)
    )
    exact = math.sqrt(2 / size) * 1.5 * (x @ x.T).abs()
    relative = math.sqrt(56 / 4 / size) / 2
    torch.testing.assert_close(estimate.nngp_error, exact, rtol=5 * relative, atol=0)
    torch.testing.assert_close(estimate.ntk, 1.5 * x @ x.T, rtol=1e-6, atol=0)
    assert estimate.ntk_error.max() < 1e-12


@pytest.mark.slow
def test_standard_errors_are_the_spread_over_seeds():
    prior = NetworkPrior(mlp(nn.Tanh, width=6), weight_var=1.5, bias_var=0.1)
    x = normal(3, 3)
    runs = [
        monte_carlo_kernels(
            prior, x, num_networks=12, generator=torch.Generator().manual_seed(seed)
        )
        for seed in range(80)
    ]
    for name in ("nngp", "ntk"):
        spread = torch.stack([getattr(r, name) for r in runs]).var(0)
        stated = torch.stack([getattr(r, f"{name}_error") ** 2 for r in runs]).mean(0)
        ratio = (spread / stated).diagonal()
        # of a variance from 80 estimates: sqrt(2 / 79), and the stated one's error beside it
        assert ((ratio - 1).abs() < 5 * math.sqrt(2 / 79)).all()
        assert abs(ratio.mean() - 1) < 3 * math.sqrt(2 / 79)


def test_monte_carlo_is_reproducible_and_leaves_the_global_generator_alone():
    prior = NetworkPrior(mlp(outputs=2))
    x = normal(2, 3, 3)
    state = torch.random.get_rng_state()

    def run(seed, **arguments):
        generator = torch.Generator().manual_seed(seed)
        return monte_carlo_kernels(prior, x, num_networks=4, generator=generator, **arguments)

    first = run(0)
    assert first.nngp.shape == first.ntk.shape == (2, 3, 3)
    for arguments in ({}, {"max_bytes": 20_000}, {"method": "ntk_vector_products"}):
        again = run(0, **arguments)
        torch.testing.assert_close(again.nngp, first.nngp, rtol=0, atol=0)
        torch.testing.assert_close(again.ntk, first.ntk, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(again.ntk_error, first.ntk_error, rtol=1e-8, atol=1e-12)
    assert not torch.equal(run(1).nngp, first.nngp)
    without = run(0, ntk=False)
    assert without.ntk is without.ntk_error is None
    assert torch.equal(without.nngp, first.nngp)
    assert torch.equal(state, torch.random.get_rng_state())


def test_deep_wide_network_approaches_the_limit():
    prior = NetworkPrior(mlp(nn.Tanh, width=256), weight_var=1.5, bias_var=0.1)
    x = normal(4, 3)
    estimate = monte_carlo_kernels(
        prior, x, num_networks=24, generator=torch.Generator().manual_seed(0)
    )
    nngp, ntk = (k.detach() for k in InfiniteNetwork(prior).kernels(x))
    assert within(estimate.nngp, estimate.nngp_error, nngp)
    assert within(estimate.ntk, estimate.ntk_error, ntk)
    assert (estimate.ntk_error < 0.1 * ntk.diagonal().max()).all()


def test_bias_of_a_narrow_layer_in_closed_form():
    # sin layers: given the mean q of sin(z)^2 over the first layer's units the second has
    # E[sin^2] = (1 - exp(-2 q)) / 2, and E[exp(-2 q)] is one integral to the power of the width
    for width in (1, 3):
        network = nn.Sequential(
            nn.Linear(1, width), Sine(), nn.Linear(width, 32), Sine(), nn.Linear(32, 16)
        )
        prior = NetworkPrior(network, bias_var=0.0)
        x = torch.tensor([[1.3]], dtype=torch.float64)
        estimate = monte_carlo_kernels(
            prior, x, num_networks=3000, ntk=False, generator=torch.Generator().manual_seed(0)
        )
        integral = integrate.quad(
            lambda z, n=width: math.exp(-2 / n * math.sin(1.3 * z) ** 2 - z**2 / 2), -10, 10
        )[0]
        exact = (1 - (integral / math.sqrt(2 * math.pi)) ** width) / 2
        assert within(estimate.nngp, estimate.nngp_error, exact)
        limit = InfiniteNetwork(prior).nngp(x).detach()
        assert not within(estimate.nngp, estimate.nngp_error, limit)


def test_invalid_arguments_are_named():
    network = mlp(outputs=2)
    parameters = {k: p.detach() for k, p in network.named_parameters()}
    x = normal(3, 3, dtype=torch.float32)
    with pytest.raises(ValueError, match="method must be one of"):
        empirical_ntk(network, parameters, x, method="exact")
    with pytest.raises(ValueError, match="output 2 does not exist; the network has 2"):
        empirical_ntk(network, parameters, x, output=2)
    with pytest.raises(ValueError, match='"all", "mean" or an index'):
        empirical_ntk(network, parameters, x, output="trace")
    with pytest.raises(ValueError, match=r"The module has no \['3.weight'\]"):
        empirical_ntk(network, {"3.weight": x}, x)
    with pytest.raises(ValueError, match="no parameters to differentiate with respect to"):
        empirical_ntk(network, {}, x)
    with pytest.raises(ValueError, match="agree in all but the number of rows"):
        empirical_ntk(network, parameters, x, x[:, :2])
    with pytest.raises(ValueError, match="x1 has 3 and x2 2"):
        empirical_ntk(network, parameters, x, x[:2], diag=True)
    with pytest.raises(ValueError, match=r"must have shape \[n, \*input_shape\], got \(\)"):
        empirical_ntk(network, parameters, x[0, 0])
    with pytest.raises(ValueError, match="no rows"):
        empirical_ntk(network, parameters, x[:0])
    with pytest.raises(TypeError, match="x2 must be a tensor, got list"):
        empirical_ntk(network, parameters, x, [[1.0]])
    with pytest.raises(ValueError, match="the Jacobians of 2 examples take"):
        empirical_ntk(network, parameters, x, method="jacobian_contraction", max_bytes=1000)
    with pytest.raises(ValueError, match="a row for each of n inputs; one input gave"):
        empirical_ntk(lambda p, x: network(x).sum(), parameters, x)
    with pytest.raises(ValueError, match="the shape of the outputs at x2"):
        ntk_vector_product(network, parameters, x, x, x)
    with pytest.raises(ValueError, match="The expansion is in the parameters"):
        linearize(network, parameters)({}, x)
    for make in (LinearizedModule, EmpiricalNTKKernel):
        with pytest.raises(ValueError, match="Sequential has no parameters"):
            make(nn.Sequential(nn.ReLU()))
        with pytest.raises(ValueError, match="run the module once"):
            make(nn.Sequential(nn.LazyLinear(2)))
        with pytest.raises(ValueError, match="The module has parameters"):
            make(network, parameters={"weight": x})
    with pytest.raises(ValueError, match='must be "ntk" or "standard"'):
        EmpiricalNTKKernel(network, parameterization="mup")
    with pytest.raises(ValueError, match='"mean" or the index of an output'):
        EmpiricalNTKKernel(network, output="all")
    with pytest.raises(ValueError, match="method must be one of"):
        EmpiricalNTKKernel(network, method="exact")
    with pytest.raises(ValueError, match="in the NTK parametrisation only"):
        EmpiricalNTKKernel(network, parameterization="standard", weight_var=2.0)
    with pytest.raises(ValueError, match="shares its variances"):
        EmpiricalNTKKernel(NetworkPrior(network), weight_var=2.0)
    with pytest.raises(ValueError, match="expected .*, after batch dimensions"):
        EmpiricalNTKKernel(network, parameters={k: p[..., :1] for k, p in parameters.items()})
    mixed = {k: p.expand(2 + i, *p.shape) for i, (k, p) in enumerate(parameters.items())}
    with pytest.raises(ValueError, match=r"batch shape \(4,\)"):
        LinearizedModule(network, {k: p.expand(4, *p.shape) for k, p in parameters.items()})
    with pytest.raises(ValueError, match="differ in their batch dimensions"):
        EmpiricalNTKKernel(network, parameters=mixed)
    with pytest.raises(NotImplementedError, match="last_dim_is_batch"):
        EmpiricalNTKKernel(network).forward(x, x, last_dim_is_batch=True)
    with pytest.raises(ValueError, match="num_networks >= 2, got 1"):
        monte_carlo_kernels(NetworkPrior(network), x, num_networks=1)
