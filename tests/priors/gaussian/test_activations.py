"""Activations against two-dimensional numerical integration."""

import itertools
import math

import numpy
import pytest
import torch
from scipy import integrate, special

from priors.gaussian.activations import (
    ELU,
    GELU,
    ABReLU,
    Erf,
    Exp,
    Gabor,
    Gaussian,
    Hermite,
    Numerical,
    Polynomial,
    Probit,
    RectifiedPower,
    Sign,
    Sine,
    Smooth,
)

FUNCTIONS = {
    "relu": ABReLU(),
    "leaky": ABReLU(0.2, 1.0),
    "abs": ABReLU(-1.0, 1.0),
    "sign": Sign(),
    **{f"power{n}": RectifiedPower(n) for n in range(5)},
    "polynomial": Polynomial((0.5, -1.0, 0.3, 0.2)),
    "hermite": Hermite(3),
    "erf": Erf(),
    "probit": Probit(),
    "gelu": GELU(),
    "sin": Sine(0.3),
    "sine": Sine(0.7, 1.5),
    "exp": Exp(0.6),
    "gaussian": Gaussian(),
    "gabor": Gabor(),
    "elu": ELU(),
    "selu": ELU(1.6732632423543772, 1.0507009873554805),
    "celu": ELU(0.7, rate=1 / 0.7),
    "tanh": Smooth(torch.tanh),
}
QUADRATURE = [("selu", "relu"), ("elu", "tanh")]  # with a kink
CROSS = [
    ("relu", "leaky"),
    ("relu", "sign"),
    ("abs", "power2"),
    ("leaky", "polynomial"),
    ("sign", "hermite"),
    ("polynomial", "hermite"),
    ("power0", "power3"),
    ("leaky", "tanh"),
    ("gelu", "relu"),
    ("erf", "gelu"),
    ("probit", "erf"),
    ("sin", "sine"),
    ("gabor", "gaussian"),
    ("sign", "erf"),
    ("celu", "selu"),
    *QUADRATURE,
]
PAIRS = [(name, name) for name in FUNCTIONS] + CROSS
REGIMES = [
    (1.3, 0.8, -0.5),
    (0.4, 2.0, 0.85),
    (1.0, 1.0, 0.0),
    (0.7, 1.5, 0.999),
    (1.1, 1.1, 1 - 1e-10),
    (0.5, 1.5, -1 + 1e-6),
    (0.9, 1.4, 1.0),
]


def double(value):
    return torch.tensor(value, dtype=torch.float64)


def expectation(f, g, q1, q2, rho):
    """Independent of the package: the lines u = 0 and v = 0 cut the plane into sectors whose
    integrands are smooth; polar coordinates, Gauss-Legendre in each sector and in the radius."""
    # u = sqrt(q1) r cos(t), v = sqrt(q2) r cos(t - acos(rho))
    shift = math.acos(rho)
    right = math.pi / 2, 3 * math.pi / 2
    edges = sorted({x % (2 * math.pi) for x in right + tuple(x + shift for x in right)})
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


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivative_is_the_slope_of_the_function(name):
    x = torch.tensor([-2.3, -0.4, 0.3, 1.7], dtype=torch.float64)
    step = 1e-6
    slope = (FUNCTIONS[name](x + step) - FUNCTIONS[name](x - step)) / (2 * step)
    torch.testing.assert_close(FUNCTIONS[name].derivative(x), slope, atol=1e-8, rtol=1e-8)


def test_modules_of_torch_agree():
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    for name, module in (
        ("elu", torch.nn.ELU()),
        ("selu", torch.nn.SELU()),
        ("celu", torch.nn.CELU(0.7)),
        ("leaky", torch.nn.LeakyReLU(0.2)),
        ("gelu", torch.nn.GELU()),
    ):
        torch.testing.assert_close(FUNCTIONS[name](x), module(x), atol=1e-14, rtol=1e-14)
    values = special.eval_hermitenorm(3, x.numpy()) / math.sqrt(6)
    torch.testing.assert_close(FUNCTIONS["hermite"](x), torch.tensor(values))
    torch.testing.assert_close(Polynomial(Hermite(7).monomials)(x), Hermite(7)(x))


@pytest.mark.covering
@pytest.mark.parametrize(("a", "b"), PAIRS)
@pytest.mark.parametrize(("q1", "q2", "rho"), REGIMES)
def test_dual_and_dual_derivative(a, b, q1, q2, rho):
    phi, psi = FUNCTIONS[a], FUNCTIONS[b]
    arguments = double(q1), double(q2), double(rho * math.sqrt(q1 * q2))
    # of pairs with a kink by quadrature, those near |rho| = 1 are integrated directly
    tolerance = 1e-8 if (a, b) in QUADRATURE else 1e-9 if abs(rho) > 0.99 else 1e-11
    # an arcsine at 1 - rho of 1e-10 has lost digits of rho itself
    rounding = 2e-11 if rho == 1 - 1e-10 else 1e-8 if rho == 1.0 else 0
    value = phi.dual(psi, *arguments).item()
    expected = expectation(phi, psi, q1, q2, rho)
    assert value == pytest.approx(expected, rel=tolerance, abs=tolerance + rounding)
    slope = phi.dual_derivative(psi, *arguments).item()
    expected = expectation(phi.derivative, psi.derivative, q1, q2, rho)
    assert slope == pytest.approx(expected, rel=tolerance, abs=tolerance + rounding)
    both = phi.duals(psi, *arguments)
    assert both[0].item() == pytest.approx(value, abs=1e-14)
    assert both[1].item() == pytest.approx(slope, abs=1e-14)


@pytest.mark.covering
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

    phi, variance = FUNCTIONS[name], double(q)
    for value, f in (
        (phi.mean(variance), phi),
        (phi.mean_derivative(variance), phi.derivative),
        (phi.second_moment(variance), lambda x: phi(x) ** 2),
        (phi.second_moment_derivative(variance), lambda x: phi.derivative(x) ** 2),
        (phi.stein(variance), lambda x: x * phi(x) / q),
    ):
        assert value.item() == pytest.approx(mean(f), rel=1e-9, abs=1e-12)


DEFINED = {"check_undefined_grad": False}  # the first check of each pair does


@pytest.mark.fast_for(
    "relu-relu",
    "sign-sign",
    "power3-power3",
    "polynomial-polynomial",
    "hermite-hermite",
    "erf-erf",
    "gelu-gelu",
    "sin-sin",
    "exp-exp",
    "gaussian-gaussian",
    "gabor-gabor",
    "elu-elu",
    "selu-selu",
    "tanh-tanh",
    "relu-leaky",
    "abs-power2",
    "leaky-polynomial",
    "sign-hermite",
    "power0-power3",
    "leaky-tanh",
    "gelu-relu",
    "erf-gelu",
    "sin-sine",
    "gabor-gaussian",
    "sign-erf",
    "celu-selu",
)
@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_gradients_of_both_orders(a, b):
    q = [double(v).requires_grad_() for v in (1.3, 0.8, -0.5)]

    def dual(*arguments):
        return FUNCTIONS[a].dual(FUNCTIONS[b], *arguments)

    def dual_derivative(*arguments):
        return FUNCTIONS[a].dual_derivative(FUNCTIONS[b], *arguments)

    torch.autograd.gradcheck(dual, q, eps=1e-5, atol=1e-7)
    if not {a, b} & {"sign", "power0"}:  # their derivative is constant
        torch.autograd.gradcheck(dual_derivative, q, eps=1e-5, atol=1e-7, **DEFINED)
    if (a, b) not in QUADRATURE:
        torch.autograd.gradgradcheck(dual, q, eps=1e-5, atol=1e-6, **DEFINED)


@pytest.mark.covering
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_at_the_singular_places(name, dtype):
    # u = v, u = -v, q = 0 of one or both, and a covariance beyond its bound by rounding
    q1 = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0], dtype=dtype, requires_grad=True)
    q2 = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0], dtype=dtype, requires_grad=True)
    c = torch.tensor([1.0, -1.0, 0.0, 0.0, 1.0 + 1e-6], dtype=dtype, requires_grad=True)
    phi = FUNCTIONS[name]
    for value in (*phi.duals(phi, q1, q2, c), phi.second_moment(q1), phi.mean(q1)):
        assert value.dtype == dtype
        assert value.isfinite().all()
        if value.requires_grad:
            grads = torch.autograd.grad(
                value.sum(), (q1, q2, c), allow_unused=True, retain_graph=True
            )
            for grad in grads:
                assert grad is None or grad.isfinite().all()


CONSTANTS = {"polynomial of degree 0": Polynomial((1.5,)), "hermite of degree 0": Hermite(0)}


@pytest.mark.fast_for(
    "relu",
    "sign",
    "power3",
    "polynomial",
    "erf",
    "gelu",
    "exp",
    "gabor",
    "elu",
    "tanh",
    "polynomial of degree 0",
    "hermite of degree 0",
)
@pytest.mark.parametrize(
    "phi", [*FUNCTIONS.values(), *CONSTANTS.values()], ids=[*FUNCTIONS, *CONSTANTS]
)
def test_variances_and_covariances_broadcast(phi):
    """Rows, columns and a number for all pairs give what the pairs one by one give."""
    parts = double([[0.6], [1.1], [1.7]]), double([[0.5, 0.9, 1.3, 2.0]]), double(0.4)
    pairs = [part.expand(3, 4).contiguous() for part in parts]
    for dual in (phi.dual, phi.dual_derivative):
        torch.testing.assert_close(dual(phi, *parts), dual(phi, *pairs), rtol=1e-9, atol=1e-12)
    for value, expected in zip(phi.duals(phi, *parts), phi.duals(phi, *pairs), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_single_precision(name):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    c = x @ x.T
    q = c.diagonal()
    phi = FUNCTIONS[name]
    for exact, single in zip(
        phi.duals(phi, q[:, None], q[None, :], c),
        phi.duals(phi, q.float()[:, None], q.float()[None, :], c.float()),
        strict=True,
    ):
        assert single.dtype == torch.float32
        scale = exact.diagonal().sqrt().clamp_min(1e-3)
        error = (single - exact).abs() / (scale[:, None] * scale)
        # asin at rho = 1 turns a rounding of rho by 1e-7 into one of 3e-4
        diagonal = error.diagonal().max()
        error = error - error.diagonal().diag()
        assert error.max() < 3e-6
        assert diagonal < 1e-3


def test_deep_ntk_in_single_precision():
    """A few roundings in each of 50 layers; how many depends on the processor's arithmetic."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(20, 8, generator=generator, dtype=torch.float64)
    phi = ABReLU()

    def ntk(x):
        nngp = theta = x @ x.T / x.shape[1]
        for _ in range(50):
            q = nngp.diagonal()
            value, slope = phi.duals(phi, q[:, None], q[None, :], nngp)
            # the diagonal exactly, as the kernels do
            value.diagonal().copy_(phi.second_moment(q))
            slope.diagonal().copy_(phi.second_moment_derivative(q))
            nngp, theta = 2 * value, 2 * value + 2 * slope * theta
        return theta

    exact = ntk(x)
    few = 4 * torch.finfo(torch.float32).eps
    assert ((ntk(x.float()) - exact).abs() / exact.abs()).max() < 50 * few


@pytest.mark.parametrize("name", ["relu", "gelu", "sin", "tanh", "elu"])
def test_shift_equals_the_shifted_function(name):
    shifted = FUNCTIONS[name].shifted(0.5).shifted(-0.1)
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(shifted(x), FUNCTIONS[name](x + 0.4))
    q1, q2, rho = 1.2, 0.7, 0.3
    value = shifted.dual(shifted, double(q1), double(q2), double(rho * math.sqrt(q1 * q2))).item()
    # Cartesian panels that meet at the kink of the shifted function
    nodes, weights = numpy.polynomial.legendre.leggauss(80)
    total = 0.0
    cut = -0.4 / math.sqrt(q1), -0.4 / math.sqrt(q2)
    for (a, b), (d, e) in itertools.product(
        itertools.pairwise((-9, cut[0], 9)), itertools.pairwise((-9, cut[1], 9))
    ):
        u = torch.tensor((nodes + 1) / 2 * (b - a) + a)[:, None]
        v = torch.tensor((nodes + 1) / 2 * (e - d) + d)[None, :]
        mass = torch.tensor(weights * (b - a) / 2)[:, None] * torch.tensor(weights * (e - d) / 2)
        density = torch.exp(-(u**2 - 2 * rho * u * v + v**2) / (2 * (1 - rho**2)))
        density = density / (2 * math.pi * math.sqrt(1 - rho**2))
        total += float(
            (mass * density * shifted(math.sqrt(q1) * u) * shifted(math.sqrt(q2) * v)).sum()
        )
    assert value == pytest.approx(total, abs=1e-9)


def test_power_of_the_rectifier_is_that_of_cho_and_saul():
    theta = torch.tensor([0.3, 1.2, 2.9], dtype=torch.float64)
    pi = math.pi
    j2 = 3 * theta.sin() * theta.cos() + (pi - theta) * (1 + 2 * theta.cos() ** 2)
    one = torch.ones_like(theta)
    value = RectifiedPower(2).dual(RectifiedPower(2), one, one, theta.cos())
    torch.testing.assert_close(value, j2 / (2 * pi), atol=1e-13, rtol=1e-12)


def test_hermite_dual_is_a_power():
    rho = torch.tensor([-0.9, 0.3, 1.0], dtype=torch.float64)
    one = torch.ones_like(rho)
    for n in (0, 1, 4, 9):
        torch.testing.assert_close(Hermite(n).dual(Hermite(n), one, one, rho), rho**n)


def test_jumps_enter_stein_alone():
    hard = Numerical(torch.nn.functional.hardshrink, (-0.5, 0.5))
    q = double(1.3)
    assert hard.mean_derivative(q).item() == pytest.approx(
        math.erfc(0.5 / math.sqrt(2 * 1.3)), abs=1e-10
    )
    second = integrate.quad(
        lambda z: z**2 * math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi), 0.5 / math.sqrt(1.3), 12
    )
    assert hard.stein(q).item() == pytest.approx(2 * second[0], abs=1e-9)


def test_invalid_arguments_are_named():
    with pytest.raises(ValueError, match="power >= 0, got -1"):
        RectifiedPower(-1)
    with pytest.raises(ValueError, match="degree >= 0, got -2"):
        Hermite(-2)
    with pytest.raises(ValueError, match="rate > 0, got 0"):
        ELU(rate=0)
    with pytest.raises(ValueError, match="at least one coefficient"):
        Polynomial(())
