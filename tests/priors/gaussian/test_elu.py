"""Exponential linear units against integrals over the second variable given the first."""

import itertools
import math

import numpy
import pytest
import torch
from scipy import special

from priors.gaussian.activations import ELU

UNITS = {
    "elu": ELU(),
    "selu": ELU(1.6732632423543772, 1.0507009873554805),
    "celu": ELU(0.7, rate=1 / 0.7),
    "steep": ELU(-0.4, 1.3, 3.0),
}
WITHOUT_KINK = ("elu", "celu")  # phi' is continuous
VARIANCES = (1e-8, 1e-3, 0.3, 1.0, 4.0, 25.0, 100.0)
CORRELATIONS = (-1.0, -0.999999, -0.95, -0.5, 0.0, 0.3, 0.93, 0.9999999, 1.0)
NODES, WEIGHTS = numpy.polynomial.legendre.leggauss(24)


def conditional(unit, mean, s):
    """E[phi(v)] and E[phi'(v)] for v of mean `mean` and standard deviation `s`."""
    mean, s = unit.rate * mean, unit.rate * s
    if s == 0:
        above, linear = mean > 0, numpy.maximum(mean, 0)
        exponential = numpy.exp(numpy.minimum(mean, 0)) * ~above
        below = numpy.expm1(numpy.minimum(mean, 0))
    else:
        z, shifted = mean / s, mean / s + s
        above, density = special.ndtr(z), numpy.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
        linear = mean * above + s * density
        # e^(mean + s^2 / 2) P(z + s < 0), where the normal tail is small by its scaled form
        exponential = numpy.where(
            shifted > 0,
            special.erfcx(numpy.maximum(shifted, 0) / math.sqrt(2)) / 2 * numpy.exp(-(z**2) / 2),
            numpy.exp(numpy.minimum(mean + s**2 / 2, 0)) * special.ndtr(-shifted),
        )
        below = exponential - special.ndtr(-z)
    value = unit.scale * (linear / unit.rate + unit.alpha * below)
    return value, unit.scale * (above + unit.alpha * unit.rate * exponential)


def expectations(unit, q1, q2, rho):
    """E[phi(u) phi(v)] and E[phi'(u) phi'(v)]."""
    r1, r2 = math.sqrt(q1), math.sqrt(q2)
    s = math.sqrt((1 - rho) * (1 + rho))
    ends = {0.0, *(sign * k for sign in (-1, 1) for k in (1, 2.5, 4, 6, 8, 10, 13))}
    ends |= {-k / (unit.rate * r1) for k in (1, 2, 4, 8)}
    if rho:  # the other variable's kink, smoothed over this width
        ends |= {sign * k * s / abs(rho) for sign in (-1, 1) for k in (1, 2, 4, 7, 11, 16)}
    ends = numpy.array(sorted(x for x in ends if abs(x) <= 13))
    width = numpy.diff(ends)[:, None]
    z = ends[:-1, None] + width * (NODES + 1) / 2
    mass = width * WEIGHTS / 2 * numpy.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    value, slope = conditional(unit, rho * r2 * z, s * r2)
    u = torch.tensor(r1 * z)
    return (mass * unit(u).numpy() * value).sum(), (mass * unit.derivative(u).numpy() * slope).sum()


def table(dtype=torch.float64):
    """The arguments of every case, and the cases."""
    cases = list(itertools.product(VARIANCES, VARIANCES, CORRELATIONS))
    q1, q2, rho = torch.tensor(cases, dtype=torch.float64).unbind(-1)
    return (q1.to(dtype), q2.to(dtype), (rho * (q1 * q2).sqrt()).to(dtype)), cases


@pytest.mark.parametrize("name", UNITS)
def test_duals_over_all_variances_and_correlations(name):
    unit = UNITS[name]
    (q1, q2, c), cases = table()
    exact = torch.tensor([expectations(unit, *case) for case in cases])
    value, derivative = unit.duals(unit, q1, q2, c)
    scale = (unit.second_moment(q1) * unit.second_moment(q2)).sqrt()
    assert ((value - exact[:, 0]) / scale).abs().max() < 1e-11
    scale = (unit.second_moment_derivative(q1) * unit.second_moment_derivative(q2)).sqrt()
    error = ((derivative - exact[:, 1]) / scale).abs()
    degenerate = torch.tensor([abs(rho) == 1 for _, _, rho in cases])
    assert error[~degenerate].max() < 1e-12
    # a jump of phi' makes an arcsine, which turns a rounding of c into its root
    assert error[degenerate].max() < (1e-14 if name in WITHOUT_KINK else 3e-8)


@pytest.mark.parametrize("name", UNITS)
def test_moments_are_those_of_equal_variables(name):
    unit = UNITS[name]
    q = torch.tensor(VARIANCES, dtype=torch.float64, requires_grad=True)
    exact = torch.tensor([expectations(unit, x, x, 1.0) for x in VARIANCES])
    moments = unit.second_moment(q), unit.second_moment_derivative(q)
    for moment, value in zip(moments, exact.T, strict=True):
        torch.testing.assert_close(moment, value, rtol=2e-12, atol=0)
    # both slopes by Price's theorem: along u = v that of the dual has no kink
    (slope,) = torch.autograd.grad(moments[0].sum(), q)
    (along,) = torch.autograd.grad(unit.dual(unit, q, q, q).sum(), q)
    rtol = 1e-11 if name in WITHOUT_KINK else 1e-7
    torch.testing.assert_close(slope, along, rtol=rtol, atol=1e-14)


def test_large_variances():
    # phi is ABReLU in the limit; 1e9 is beyond the range of exp(q / 2)
    unit = ELU(1.6)
    q = torch.tensor([1e4, 1e6, 1e9], dtype=torch.float64, requires_grad=True)
    for rho in (-0.9, 0.0, 0.99):
        value, derivative = unit.duals(unit, q, q, rho * q)
        angle = math.pi / 2 + math.asin(rho)
        limit = q * (math.sqrt(1 - rho**2) + rho * angle) / (2 * math.pi)
        gap = (value - limit) / q.sqrt()
        # next order: twice -alpha E[max(u, 0) 1(v < 0)]
        expected = -1.6 * (1 - rho) / math.sqrt(2 * math.pi)
        torch.testing.assert_close(gap, torch.full_like(gap, expected), rtol=0, atol=0.03)
        assert (derivative - angle / (2 * math.pi)).abs().max() < 0.05
        assert torch.autograd.grad(value.sum() + derivative.sum(), q)[0].isfinite().all()


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("celu", "steep"),
        pytest.param("elu", "elu", marks=pytest.mark.slow),
        pytest.param("selu", "elu", marks=pytest.mark.slow),
    ],
)
def test_gradients_of_tables(a, b):
    q1 = torch.tensor([[0.3], [4.0]], dtype=torch.float64, requires_grad=True)
    q2 = torch.tensor([[1.0, 0.05, 30.0]], dtype=torch.float64, requires_grad=True)
    rho = torch.tensor([[0.95, -0.8, 0.1], [-0.97, 0.6, 0.0]], dtype=torch.float64)
    c = (rho * (q1 * q2).sqrt()).detach().requires_grad_()

    def duals(*arguments):
        return UNITS[a].duals(UNITS[b], *arguments)

    assert torch.autograd.gradcheck(duals, (q1, q2, c), eps=1e-6, atol=1e-7)
    assert torch.autograd.gradgradcheck(
        duals, (q1, q2, c), eps=1e-6, atol=1e-5, check_undefined_grad=False
    )


@pytest.mark.parametrize("name", UNITS)
def test_different_units_by_quadrature(name):
    other = UNITS["selu"]
    q1, q2, c = (torch.tensor(x, dtype=torch.float64) for x in (0.8, 1.7, 0.5))
    closed = UNITS[name].duals(other, q1, q2, c)
    general = super(ELU, other)
    swapped = general.dual(UNITS[name], q2, q1, c), general.dual_derivative(UNITS[name], q2, q1, c)
    torch.testing.assert_close(closed, swapped, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_second_order_is_finite_at_the_singular_places(name, dtype):
    # u = v, u = -v, q = 0 of one or both, and a covariance beyond its bound by rounding
    q1 = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0], dtype=dtype, requires_grad=True)
    q2 = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0], dtype=dtype, requires_grad=True)
    c = torch.tensor([1.0, -1.0, 0.0, 0.0, 1.0 + 1e-6], dtype=dtype, requires_grad=True)
    unit = UNITS[name]
    for value in (*unit.duals(unit, q1, q2, c), unit.second_moment(q1), unit.mean(q1)):
        grads = torch.autograd.grad(
            value.sum(), (q1, q2, c), create_graph=True, allow_unused=True, materialize_grads=True
        )
        assert all(grad.isfinite().all() for grad in grads)
        total = sum(grad.sum() for grad in grads)
        again = torch.autograd.grad(total, (q1, q2, c), allow_unused=True, retain_graph=True)
        for grad in again:
            assert grad is None or grad.isfinite().all()


@pytest.mark.parametrize("name", UNITS)
def test_single_precision_over_all_variances(name):
    unit = UNITS[name]
    (q1, q2, c), cases = table()
    inside = torch.tensor([abs(rho) < 0.99 for _, _, rho in cases])
    single = unit.duals(unit, *(x.float() for x in (q1, q2, c)))
    for value, exact, moment in zip(
        single,
        unit.duals(unit, q1, q2, c),
        (unit.second_moment, unit.second_moment_derivative),
        strict=True,
    ):
        assert value.dtype == torch.float32
        error = (value - exact).abs() / (moment(q1) * moment(q2)).sqrt()
        assert error[inside].max() < 1e-6
        assert error.max() < 1e-3


def test_empty_and_scalar_arguments():
    unit = ELU()
    empty = torch.zeros(0, 3, dtype=torch.float64)
    assert unit.duals(unit, empty, empty, empty)[0].shape == (0, 3)
    one = torch.ones((), dtype=torch.float64)
    assert unit.duals(unit, one, one, one / 2)[1].shape == ()
    assert unit.second_moment(one).shape == ()
