"""Kernels in the whole range of the dtype, and under the transforms of torch.func."""

import pytest
import torch
from torch import nn

from priors import InfiniteNetwork, Nonlinearity
from priors.gaussian.activations import Erf, RectifiedPower

ACTIVATIONS = {
    "relu": nn.ReLU(),
    "leaky": nn.LeakyReLU(0.1),
    "elu": nn.ELU(),
    "selu": nn.SELU(),
    "celu": nn.CELU(2.0),
    "gelu": nn.GELU(),
    "erf": Nonlinearity(Erf()),
    "step": Nonlinearity(RectifiedPower(2)),
}


def network(name, bias=False):
    phi = ACTIVATIONS[name]
    layers = nn.Linear(3, 8, bias), phi, nn.Linear(8, 8, bias), phi, nn.Linear(8, 1, bias)
    return InfiniteNetwork(nn.Sequential(*layers), weight_var=2.0).double()


def points(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=generator, dtype=torch.float64)


@pytest.mark.covering
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("power", [-18, -15, -12, -10, 10, 12, 15, 18])
@pytest.mark.parametrize("name", ["relu", "leaky"])
def test_kernels_of_any_size_in_single_precision(name, power, gradients):
    made, x = network(name), points(4)
    scale = 10.0**power  # kernels are of its square, and homogeneous
    small = (x * scale).float().requires_grad_(gradients)
    with torch.set_grad_enabled(gradients):
        found = made.kernels(small)
    for kernel, reference in zip(found, made.kernels(x), strict=True):
        expected = reference.detach() * scale * scale
        assert ((kernel.detach().double() - expected) / expected).abs().max() < 3e-6
    if gradients:
        # a kernel of size scale^2 has gradients of size scale
        (slope,) = torch.autograd.grad(found[1].sum() / scale, small)
        exact = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(made.kernels(exact)[1].sum(), exact)
        assert (slope.double() - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.covering
@pytest.mark.parametrize("name", ["elu", "selu", "celu"])
@pytest.mark.parametrize("power", [20, 60, 100, 160, 300])
def test_exponential_units_at_huge_inputs(name, power):
    made, x = network(name), points(3)
    phi = ACTIVATIONS[name]
    kernels = made.kernels(x * 10.0**power)
    if 2 * power < 300:  # there they are rectifiers
        scale = phi(torch.tensor(1.0, dtype=torch.float64)).item()
        expected = network("relu").kernels(x)
        for kernel, other in zip(kernels, expected, strict=True):
            found = kernel / scale**4 / 10.0**power / 10.0**power
            torch.testing.assert_close(found, other, rtol=1e-9, atol=0)


def by_differences(function, x, step=1e-4):
    rows = []
    for k in range(x.numel()):
        change = torch.zeros(x.numel(), dtype=x.dtype)
        change[k] = step
        change = change.view_as(x)
        rows.append((function(x + change) - function(x - change)).detach() / (2 * step))
    return torch.stack(rows)


@pytest.mark.fast_for("elu-ntk", "gelu-ntk", "leaky-nngp", "step-ntk")
@pytest.mark.parametrize("kind", ["nngp", "ntk"])
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_transforms_of_torch_func(name, kind):
    made = network(name, bias=True)
    kernel = getattr(made, kind)
    x, z = points(2), points(3, seed=1)

    def total(x):
        weights = torch.arange(1.0, 4.0, dtype=x.dtype)
        return (1 + (weights * kernel(x, z)) ** 2).log().sum()

    each = torch.func.vmap(lambda row: kernel(row[None], z)[0])(x)
    torch.testing.assert_close(each, kernel(x, z))
    slope = by_differences(total, x).view_as(x)
    for transform in (torch.func.jacrev, torch.func.jacfwd, torch.func.grad):
        torch.testing.assert_close(transform(total)(x), slope, rtol=1e-5, atol=1e-6)
    curvature = by_differences(torch.func.grad(total), x).view(6, 6)
    found = torch.func.hessian(total)(x).reshape(6, 6)
    torch.testing.assert_close(found, curvature, rtol=1e-4, atol=1e-4)
    of_each = torch.func.vmap(torch.func.hessian(lambda row: kernel(row[None], z).sum()))(x)
    assert of_each.shape == (2, 3, 3)
    torch.testing.assert_close(of_each, of_each.mT)


def test_transforms_of_convolutions_and_normalisation():
    module = nn.Sequential(
        nn.Unflatten(1, (1, 3)),
        nn.Conv1d(1, 4, 2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(2),
        nn.Flatten(),
        nn.Linear(8, 8),
        nn.LayerNorm(8),
        nn.Linear(8, 1),
    )
    made, x = InfiniteNetwork(module, input_shape=(3,)).double(), points(2)

    def total(x):
        return made.ntk(x).sin().sum()

    found = torch.func.jacrev(total)(x)
    torch.testing.assert_close(found, by_differences(total, x).view_as(x), rtol=1e-5, atol=1e-7)
    each = torch.func.vmap(lambda row: made.ntk(row[None])[0])(x)[..., 0]
    torch.testing.assert_close(each, made.ntk(x, diag=True))
