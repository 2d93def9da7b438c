"""Closed forms, their gradients and second derivatives at variances near the ends of the range.

The truth there: smooth functions are their Taylor polynomials at small variances; at large ones
they are rectifiers or steps off |rho| = 1, and at rho = +-1 one integral over the line where the
function is not yet its limit. By Price's theorem d/dc E[f g] = E[f' g'] and d/dq1 E[f g] =
E[f'' g] / 2, so one function of the derivatives' orders gives every slope.
"""

import itertools
import math

import numpy
import pytest
import torch
from scipy import special

from priors.gaussian.activations import (
    ELU,
    GELU,
    ABReLU,
    Erf,
    Exp,
    Gabor,
    Gaussian,
    Hermite,
    Polynomial,
    Probit,
    RectifiedPower,
    Sign,
    Sine,
)
from priors.programs.rules.elementwise import _FUNCTIONS

CLOSED = {
    "relu": ABReLU(),
    "leaky": ABReLU(0.2, 1.0),
    "abs": ABReLU(-1.0, 1.0),
    "sign": Sign(),
    **{f"power{n}": RectifiedPower(n) for n in range(5)},
    "quadratic": Polynomial((0.5, -1.0, 0.3)),
    "hermite": Hermite(4),
    "erf": Erf(),
    "probit": Probit(),
    "gelu": GELU(),
    "sine": Sine(0.7, 1.5),
    "exp": Exp(0.6),
    "gaussian": Gaussian(),
    "gabor": Gabor(),
    "elu": ELU(),
    "selu": ELU(1.6732632423543772, 1.0507009873554805),
    "celu": ELU(0.7, rate=1 / 0.7),
}
DTYPES = {torch.float32: (36, 20, 12), torch.float64: (200, 120, 60)}
CORRELATIONS = (-1, -0.999999, 0, 0.999999, 1)
SLOPES = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
SLOPES += [(2, 0, 0), (1, 1, 0), (1, 0, 1), (0, 2, 0), (0, 1, 1), (0, 0, 2)]


def pairs(powers, correlations, dtype, base=10.0):
    """q1, q2 and c of all correlations of pairs of variances, given by their powers."""
    cases = [(base**a, base**b, rho) for a, b in powers for rho in correlations]
    q1, q2, rho = torch.tensor(cases, dtype=torch.float64).to(dtype).unbind(1)
    root = torch.where(q1 == q2, q1, q1.sqrt() * q2.sqrt())
    return q1, q2, root * rho


def slopes(function, arguments):
    """The values, gradients and second derivatives of an elementwise function, by their orders."""
    inputs = [x.clone().requires_grad_() for x in arguments]
    value = function(*inputs)

    def slope(value, of):
        if not value.requires_grad:
            return torch.zeros_like(inputs[of])
        (found,) = torch.autograd.grad(
            value.sum(), inputs[of], create_graph=True, allow_unused=True
        )
        return torch.zeros_like(inputs[of]) if found is None else found

    found = {}
    for orders in SLOPES:
        if len(orders) > len(inputs) and any(orders[len(inputs) :]):
            continue
        result = value
        for k, times in enumerate(orders):
            for _ in range(times):
                result = slope(result, k)
        found[orders] = result.detach()
    return found


def by_price(expectation, orders, derivative):
    """The truth of a slope of E[phi phi], or of E[phi' phi']: `expectation(j, k)` =
    E[phi^(j)(u) phi^(k)(v)]."""
    a, b, c = orders
    return expectation(derivative + 2 * a + c, derivative + 2 * b + c) / 2 ** (a + b)


def check(found, expected, rtol, atol=0.0):
    """`found` is `expected`, float64, as far as its dtype holds that."""
    limits = torch.finfo(found.dtype)
    found, expected = found.double(), torch.as_tensor(expected, dtype=torch.float64)
    expected = expected.expand_as(found)
    beyond = expected.abs() > limits.max / 10
    assert (found[beyond].abs() > limits.max / 100).all()
    # seven digits of the range are left for intermediate results
    allowed = rtol * expected.abs() + torch.as_tensor(atol) + limits.tiny * 1e7
    wrong = ~((found - expected).abs() <= allowed) & ~beyond
    assert not wrong.any(), (found[wrong], expected[wrong])


@pytest.mark.covering
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CLOSED)
def test_right_or_refused_but_never_nan(name, dtype):
    phi = CLOSED[name]
    largest = DTYPES[dtype][: 1 if isinstance(phi, ELU) else 2]
    powers = [0, *(s * p for p in largest for s in (1, -1))]
    arguments = pairs(itertools.product(powers, powers), CORRELATIONS, dtype)
    if name == "hermite" and dtype == torch.float64:
        with pytest.raises(ValueError, match="leave the range"):
            phi.duals(phi, *arguments)
        return
    for k in range(2):
        found = slopes(lambda *x, k=k: phi.duals(phi, *x)[k], arguments)
        assert not found[0, 0, 0].isnan().any()
        logs = [q.double().log2() for q in arguments[:2]]
        of_one = phi.second_moment_derivative if k else phi.second_moment
        size = sum(of_one(q).double().log2() for q in arguments[:2]) / 2
        for (a, b, n), slope in found.items():
            # slopes of kinks at small variances may be beyond the range
            log = size - (a + n / 2) * logs[0] - (b + n / 2) * logs[1]
            held = (log < math.log2(torch.finfo(dtype).max) - 10) | (a + b + n == 0)
            assert not slope[held].isnan().any(), (a, b, n)
    for of_one in (phi.mean, phi.mean_derivative, phi.second_moment, phi.second_moment_derivative):
        found = slopes(of_one, [torch.tensor([10.0**p for p in powers], dtype=dtype)])
        for orders, slope in found.items():
            assert not slope[found[0, 0, 0].isfinite()].isnan().any(), (of_one, orders)


# The derivatives' orders from which on a function vanishes far from 0, and the derivatives.
def of_normal(k, x):
    return (-1) ** k * special.eval_hermitenorm(k, x) * numpy.exp(-(x**2) / 2) / math.sqrt(math.tau)


def of_bell(k, x):
    return (-1) ** k * special.eval_hermite(k, x) * numpy.exp(-(x**2))


def of_wave(k, x):
    # the real part of a bell at a complex place: exp(-x^2) sin x = Im exp(-(x - i/2)^2) e^(-1/4)
    z = x - 0.5j
    return ((-1) ** k * numpy.polynomial.hermite.Hermite.basis(k)(z) * numpy.exp(-(z**2))).imag / (
        math.exp(0.25)
    )


def of_gelu(k, x):
    if k < 2:
        return x * special.ndtr(x) if k == 0 else special.ndtr(x) + x * of_normal(0, x)
    return of_normal(k - 2, x) - of_normal(k, x)


def of_erf(k, x):
    return special.erf(x) if k == 0 else 2 / math.sqrt(math.pi) * of_bell(k - 1, x)


def of_probit(k, x):
    return special.ndtr(x) if k == 0 else of_normal(k - 1, x)


SMOOTH = {
    "gelu": (of_gelu, 2, 1e-13),
    "erf": (of_erf, 1, 1e-13),
    "probit": (of_probit, 1, 1e-13),
    "gaussian": (of_bell, 0, 1e-13),
    "gabor": (of_wave, 0, 1e-12),
}
LINE = numpy.linspace(-40, 40, 16001)


@pytest.mark.covering
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SMOOTH)
def test_slopes_at_equal_and_opposite_variables_of_large_variance(name, dtype, sign):
    derivatives, local, tolerance = SMOOTH[name]
    phi = CLOSED[name]
    tolerance = 1e-5 if dtype == torch.float32 else tolerance
    arguments = pairs([(p, p) for p in DTYPES[dtype]], [sign], dtype)
    density = 1 / (math.tau * arguments[0].double()).sqrt()

    def expectation(j, k):
        product = derivatives(j, LINE) * derivatives(k, sign * LINE)
        return product.sum() * (LINE[1] - LINE[0]) * density

    for i in (0, 1):
        found = slopes(lambda *x, i=i: phi.duals(phi, *x)[i], arguments)
        for orders in SLOPES:
            a, b, c = orders
            if max(i + 2 * a + c, i + 2 * b + c) >= local:
                expected = by_price(expectation, orders, i)
                # values near opposite variables are differences of large numbers, and what is odd
                # integrates to 0
                rest = tolerance * (1 if sum(orders) == 0 else density)
                check(found[orders], expected, 20 * tolerance, 20 * rest)


def step_slopes(q1, q2, c):
    """Slopes of P(u > 0, v > 0) to the first order, q1 q2 being beyond the range."""
    r1, r2 = q1.sqrt(), q2.sqrt()
    rho = c / r1 / r2
    density = 1 / ((1 - rho) * (1 + rho)).sqrt() / r1 / r2 / math.tau
    return {
        (0, 0, 0): 0.25 + rho.asin() / math.tau,
        (0, 0, 1): density,
        (1, 0, 0): -c / q1 / 2 * density,
        (0, 1, 0): -c / q2 / 2 * density,
    }


def relu_slopes(q1, q2, c):
    """Slopes of E[max(u, 0) max(v, 0)], Cho & Saul 2009, by d/dq1 = sin / (4 pi) sqrt(q2 / q1)."""
    r1, r2 = q1.sqrt(), q2.sqrt()
    rho = c / r1 / r2
    sine = ((1 - rho) * (1 + rho)).sqrt()
    step = step_slopes(q1, q2, c)
    return {
        (0, 0, 0): r1 * (sine / math.tau + rho * step[0, 0, 0]) * r2,
        (0, 0, 1): step[0, 0, 0],
        (1, 0, 0): sine * r2 / r1 / 2 / math.tau,
        (0, 1, 0): sine * r1 / r2 / 2 / math.tau,
        (0, 0, 2): step[0, 0, 1],
        (1, 0, 1): step[1, 0, 0],
        (0, 1, 1): step[0, 1, 0],
        (1, 1, 0): step[0, 0, 1] / 4,
    }


@pytest.mark.covering
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "scale"), [("gelu", 1), ("relu", 1), ("elu", 1), ("selu", 1.05)])
def test_rectifiers_at_large_variances(name, scale, dtype):
    phi = CLOSED[name]
    scale = 1.0507009873554805 if scale != 1 else 1
    powers = itertools.product(DTYPES[dtype], DTYPES[dtype])
    arguments = pairs(powers, CORRELATIONS[1:4], dtype)
    exact = [x.double() for x in arguments]
    size = exact[0].sqrt() * exact[1].sqrt()
    # single precision's variances of 1e12 are not so large
    tolerance = 3e-5 if dtype == torch.float32 else 1e-8
    near = 0.03 if dtype == torch.float32 and name != "relu" else tolerance
    for i, of in enumerate((relu_slopes, step_slopes)):
        found = slopes(lambda *x, i=i: phi.duals(phi, *x)[i], arguments)
        for orders, expected in of(*exact).items():
            a, b, k = orders
            natural = size ** (1 - i - k) / exact[0] ** a / exact[1] ** b
            if sum(orders) == 0:  # near opposite variables a difference of large numbers
                rtol, rest = tolerance, tolerance
            elif isinstance(phi, ELU):  # whose slopes have four digits of their own size there
                rtol, rest = 0.05, 1e-4
            else:
                rtol, rest = near if sum(orders) + i > 1 else tolerance, 0
            check(found[orders], scale**2 * expected, rtol, rest * natural)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "limit"), [("erf", "sign"), ("probit", "power0")])
def test_steps_at_large_variances(name, limit, dtype):
    powers = [(p, p - 3) for p in DTYPES[dtype]]
    arguments = pairs(powers, CORRELATIONS[1:4], dtype)
    expected = step_slopes(*(x.double() for x in arguments))
    tolerance = 1e-3 if dtype == torch.float32 else 1e-8  # variances of 1e9 are not so large
    scale, offset = (4, -1) if limit == "sign" else (1, 0)
    for phi in (CLOSED[name], CLOSED[limit]):
        found = slopes(lambda *x, f=phi: f.dual(f, *x), arguments)
        for orders, value in expected.items():
            rest = tolerance if sum(orders) == 0 else 0
            check(found[orders], scale * value + (0 if sum(orders) else offset), tolerance, rest)
        slope = phi.dual_derivative(phi, *arguments)
        if phi is CLOSED[name]:  # the jump has become a delta
            check(slope, scale * expected[0, 0, 1], tolerance)
        else:
            assert (slope == 0).all()


@pytest.mark.covering
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", range(5))
def test_powers_of_rectifiers_scale(n, dtype):
    phi = RectifiedPower(n)
    units = [x.double() for x in pairs([(0, 0)], CORRELATIONS, dtype)]
    unit = slopes(lambda *x: phi.dual(phi, *x), units)
    of = DTYPES[dtype]
    powers = [(i, k * j) for i, j in itertools.product(of, of) for k in (1, -1)]
    powers += [(-a, -b) for a, b in powers]
    # sizes that are powers of two change no rounding
    found = slopes(lambda *x: phi.dual(phi, *x), pairs(powers, CORRELATIONS, dtype, base=4.0))
    for (a, b, c), slope in found.items():
        scaled = [s * (n - 2 * a - c) + t * (n - 2 * b - c) for s, t in powers]
        scale = torch.tensor(scaled, dtype=torch.float64).clamp(-1074, 1023).exp2()
        held = scale < torch.finfo(dtype).max / 1e9  # small moments are of large powers
        found_of_each = slope.view(len(powers), -1)
        check(found_of_each[held], torch.outer(scale, unit[a, b, c])[held], 1e-5)


@pytest.mark.covering
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*SMOOTH, "sine", "exp"])
def test_taylor_polynomials_at_small_variances(name, dtype):
    phi = CLOSED[name]
    if name == "sine":
        at_zero = [1.5**k * math.sin(0.7 + k * math.pi / 2) for k in range(8)]
    elif name == "exp":
        at_zero = [0.6**k for k in range(8)]
    else:
        at_zero = [float(SMOOTH[name][0](k, 0.0)) for k in range(8)]
    powers = [(-p, -r) for p, r in itertools.product(DTYPES[dtype], DTYPES[dtype])]
    arguments = pairs(powers, CORRELATIONS, dtype)
    q1, q2, c = (x.double() for x in arguments)

    def expectation(j, k):
        f, g = at_zero[j : j + 3], at_zero[k : k + 3]
        return f[0] * g[0] + c * f[1] * g[1] + (q1 * f[2] * g[0] + q2 * f[0] * g[2]) / 2

    for i in (0, 1):
        found = slopes(lambda *x, i=i: phi.duals(phi, *x)[i], arguments)
        for orders in SLOPES:
            # the next order, of the value or of a slope
            rest = 1e3 * (q1 + q2) ** (1 if sum(orders) else 2)
            check(found[orders], by_price(expectation, orders, i), 1e-5, rest)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "name", ["tanh", "sigmoid", "silu", "mish", "softplus", "logsigmoid", "tanhshrink", "atan"]
)
def test_derivatives_far_from_zero_are_those_of_the_asymptote(name, dtype):
    # quadrature goes there at large variances; torch's Mish has a second derivative of NaN
    phi = _FUNCTIONS[name]()
    x = torch.tensor([-3e4, -1e3, -200.0, 200.0, 1e3, 3e4], dtype=dtype)
    first, second, third = (phi.derivative_function(order)(x) for order in (1, 2, 3))
    below, above = {
        "silu": (0, 1),
        "mish": (0, 1),
        "softplus": (0, 1),
        "logsigmoid": (1, 0),
        "tanhshrink": (1, 1),
    }.get(name, (0, 0))
    slopes = torch.tensor([below] * 3 + [above] * 3, dtype=dtype)
    torch.testing.assert_close(first, slopes, atol=3e-5, rtol=0)  # arctan' is 1 / (1 + x^2)
    assert second.abs().max() < 1e-6
    assert third.abs().max() < 1e-6


def test_softplus_is_the_logarithm_beyond_torch_s_threshold_too():
    phi = _FUNCTIONS["softplus"](beta=2.0)
    x = torch.linspace(7.0, 25.0, 37, dtype=torch.float64)
    rest = 1 / (1 + (2 * x).exp())
    expected = [
        x + torch.log1p((-2 * x).exp()) / 2,
        1 - rest,
        2 * rest * (1 - rest),
        4 * rest * (1 - rest) * (2 * rest - 1),
    ]
    for order, values in enumerate(expected):
        found = phi.derivative_function(order)(x)
        torch.testing.assert_close(found, values, rtol=1e-13, atol=1e-15)


def test_a_threshold_that_shows_is_a_kink():
    phi = _FUNCTIONS["softplus"](threshold=1.0)
    assert phi.kinks == (1.0,)
    z = torch.linspace(-10, 10, 200001, dtype=torch.float64)
    q = torch.tensor(1.7, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    exact = torch.trapezoid(phi(q.sqrt() * z) ** 2 * density, z)
    torch.testing.assert_close(phi.dual(phi, q, q, q), exact, atol=1e-5, rtol=0)
