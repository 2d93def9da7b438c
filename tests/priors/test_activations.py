"""Dual activations against two-dimensional numerical integration."""

import itertools
import math

import numpy
import pytest
import torch
from scipy import integrate

from priors.activations import GELU, ABReLU, Erf, Sine, Smooth

FUNCTIONS = {
    "relu": ABReLU(),
    "leaky": ABReLU(0.2, 1.0),
    "erf": Erf(),
    "gelu": GELU(),
    "sin": Sine(0.3),
    "tanh": Smooth(torch.tanh),
}
DERIVATIVES = {
    "relu": lambda x: (x > 0).double(),
    "leaky": lambda x: 0.2 + 0.8 * (x > 0).double(),
    "erf": lambda x: 2 / math.sqrt(math.pi) * torch.exp(-(x**2)),
    "gelu": lambda x: (
        0.5 * (1 + torch.erf(x / math.sqrt(2)))
        + x * torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    ),
    "sin": lambda x: torch.cos(x + 0.3),
    "tanh": lambda x: 1 - torch.tanh(x) ** 2,
}
PAIRS = [(a, b) for a in FUNCTIONS for b in FUNCTIONS]


def double(value):
    return torch.tensor(value, dtype=torch.float64)


def expectation(f, g, q1, q2, c):
    """Independent of the package: the lines u = 0 and v = 0 cut the plane into six sectors whose
    integrands are smooth; polar coordinates, Gauss-Legendre in each sector and in the radius."""
    rho = c / math.sqrt(q1 * q2)
    # u = sqrt(q1) r cos(t), v = sqrt(q2) r cos(t - acos(rho))
    shift = math.acos(rho)
    edges = sorted(
        {x % (2 * math.pi) for x in (math.pi / 2, 3 * math.pi / 2)}
        | {(x + shift) % (2 * math.pi) for x in (math.pi / 2, 3 * math.pi / 2)}
    )
    edges.append(edges[0] + 2 * math.pi)
    nodes, weights = numpy.polynomial.legendre.leggauss(120)
    radius, radius_weight = torch.tensor((nodes + 1) * 6), torch.tensor(weights * 6)
    total = 0.0
    for low, high in itertools.pairwise(edges):
        t = torch.tensor((nodes + 1) / 2 * (high - low) + low)
        t_weight = torch.tensor(weights / 2 * (high - low))
        r, angle = radius[:, None], t[None, :]
        u = math.sqrt(q1) * r * torch.cos(angle)
        v = math.sqrt(q2) * r * torch.cos(angle - shift)
        density = r * torch.exp(-(r**2) / 2) / (2 * math.pi)
        total += float((f(u) * g(v) * density * radius_weight[:, None] * t_weight).sum())
    return total


@pytest.mark.parametrize(("a", "b"), PAIRS)
@pytest.mark.parametrize(("q1", "q2", "c"), [(1.3, 0.8, -0.5), (0.4, 2.0, 0.85), (1.0, 1.0, 0.0)])
def test_dual_and_dual_derivative(a, b, q1, q2, c):
    arguments = double(q1), double(q2), double(c)
    value = FUNCTIONS[a].dual(FUNCTIONS[b], *arguments).item()
    assert value == pytest.approx(expectation(FUNCTIONS[a], FUNCTIONS[b], q1, q2, c), abs=1e-11)
    value = FUNCTIONS[a].dual_derivative(FUNCTIONS[b], *arguments).item()
    expected = expectation(DERIVATIVES[a], DERIVATIVES[b], q1, q2, c)
    assert value == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("q", [0.01, 1.0, 5.0])
def test_moments_of_one_variable(name, q):
    def mean(f):
        def integrand(z):
            return (
                f(double(math.sqrt(q) * z)).item() * math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
            )

        return (
            integrate.quad(integrand, -12, 0, epsabs=1e-13)[0]
            + integrate.quad(integrand, 0, 12, epsabs=1e-13)[0]
        )

    phi, slope = FUNCTIONS[name], DERIVATIVES[name]
    assert phi.second_moment(double(q)).item() == pytest.approx(
        mean(lambda x: phi(x) ** 2), rel=1e-10
    )
    expected = mean(lambda x: slope(x) ** 2)
    assert phi.second_moment_derivative(double(q)).item() == pytest.approx(expected, rel=1e-10)
    assert phi.mean_derivative(double(q)).item() == pytest.approx(mean(slope), rel=1e-10)


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_gradients_of_both_orders(a, b):
    q = [double(v).requires_grad_() for v in (1.3, 0.8, -0.5)]

    def dual(*arguments):
        return FUNCTIONS[a].dual(FUNCTIONS[b], *arguments)

    def dual_derivative(*arguments):
        return FUNCTIONS[a].dual_derivative(FUNCTIONS[b], *arguments)

    torch.autograd.gradcheck(dual, q, eps=1e-5, atol=1e-7)
    torch.autograd.gradcheck(dual_derivative, q, eps=1e-5, atol=1e-7)
    torch.autograd.gradgradcheck(dual, q, eps=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["gelu", "sin", "tanh"])
def test_shift_equals_the_shifted_function(name):
    if name == "sin":
        shifted = FUNCTIONS[name].shifted(0.4)
    else:
        shifted = FUNCTIONS[name].shifted(0.5).shifted(-0.1)
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(shifted(x), FUNCTIONS[name](x + 0.4))
    arguments = 1.2, 0.7, 0.3
    value = shifted.dual(shifted, *map(double, arguments)).item()
    assert value == pytest.approx(expectation(shifted, shifted, *arguments), abs=1e-10)


def test_too_large_a_variance_for_the_quadrature_warns():
    q = double(1e4)
    with pytest.warns(UserWarning, match="too large for the quadrature"):
        FUNCTIONS["tanh"].dual(FUNCTIONS["tanh"], q, q, 0.9 * q)


def test_a_kink_cannot_be_shifted():
    with pytest.raises(NotImplementedError, match="moves its kink"):
        ABReLU().shifted(1.0)
