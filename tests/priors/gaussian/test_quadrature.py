"""Gaussian quadrature against integrals done another way, from rho = 0 to rho = 1."""

import itertools
import math

import numpy
import pytest
import torch
from scipy import stats

import priors.gaussian.quadrature as quadrature
from priors.gaussian.activations import GELU, ABReLU, RectifiedPower
from priors.gaussian.quadrature import detect_kinks, gaussian_expectation, gaussian_mean, jumps

F = torch.nn.functional


def double(value):
    return torch.tensor(value, dtype=torch.float64)


def piecewise_linear(kinks, q1, q2, gap, sign=1):
    """E[f(u) f(v)] and E[f'(u) f'(v)] at rho = sign (1 - gap) for f with f' = 0 left of the first
    kink and slopes jumping by `kinks[t]`.

    Plackett's identity: d/dc E[f' f'] = sum of jump_i jump_j times the density at (t_i, t_j); with
    c = sqrt(q1 q2) sin(theta) the integrand is smooth. E[f'] and E[f] give the value at c = 0.
    """
    r1, r2 = math.sqrt(q1), math.sqrt(q2)

    def mean_slope(r):
        return sum(jump * stats.norm.sf(t / r) for t, jump in kinks.items())

    def mean(r):  # of the sum of jump max(u - t, 0)
        return sum(
            jump * (r * stats.norm.pdf(t / r) - t * stats.norm.sf(t / r))
            for t, jump in kinks.items()
        )

    # theta = pi/2 - x, in which the end near rho = 1 is exact
    end = 2 * math.asin(math.sqrt(gap / 2))
    slope = mean_slope(r1) * mean_slope(r2)
    value = mean(r1) * mean(r2) + sign * r1 * r2 * (1 - gap) * slope
    ends = sorted({end, math.pi / 2, *(y for y in (1e-3, 1e-2, 0.1, 0.5) if y > end)})
    nodes, masses = numpy.polynomial.legendre.leggauss(150)
    low, high = numpy.array(ends[:-1])[:, None], numpy.array(ends[1:])[:, None]
    x, mass = (low + high) / 2 + (high - low) / 2 * nodes, (high - low) / 2 * masses
    drop = 2 * numpy.sin((x + end) / 2) * numpy.sin((x - end) / 2)  # cos(end) - cos(x)
    for (t1, a), (t2, b) in itertools.product(kinks.items(), repeat=2):
        t, s = t1 / r1, sign * t2 / r2
        exponent = (t - s) ** 2 / (2 * numpy.sin(x) ** 2) + t * s / (2 * numpy.cos(x / 2) ** 2)
        weighted = mass * numpy.exp(-exponent) / (2 * math.pi)
        slope += sign * a * b * weighted.sum()
        value += a * b * r1 * r2 * (weighted * drop).sum()
    return value, slope


KINKED = {
    "hardtanh": (F.hardtanh, {-1.0: 1.0, 1.0: -1.0}, -1.0),
    "relu6": (F.relu6, {0.0: 1.0, 6.0: -1.0}, 0.0),
    "shifted relu": (lambda x: torch.relu(x + 0.7), {-0.7: 1.0}, 0.0),
}
GAPS = [0.7, 0.1, 0.02, 1e-4, 1e-8, 1e-12, 0.0]


@pytest.mark.covering
@pytest.mark.parametrize("name", KINKED)
@pytest.mark.parametrize(("q1", "q2"), [(1.0, 1.0), (0.5, 3.0), (1e-4, 2.0), (1e4, 1e4), (50, 1e3)])
def test_piecewise_linear_functions(name, q1, q2):
    function, kinks, lowest = KINKED[name]
    places = tuple(kinks)
    root = math.sqrt(q1 * q2)
    gaps = torch.tensor(GAPS, dtype=torch.float64)
    first, second = double(q1).expand(len(GAPS)), double(q2).expand(len(GAPS))
    options = {"f_kinks": places, "g_kinks": places}
    slope = quadrature.derivative_of(function)
    for sign in (1, -1):
        c = sign * root * (1 - gaps)
        value = gaussian_expectation(function, function, first, second, c, **options)
        slopes = gaussian_expectation(slope, slope, first, second, c, **options)
        for i, gap in enumerate(GAPS):
            expected, expected_slope = piecewise_linear(kinks, q1, q2, gap, sign)
            if lowest:  # f itself is lower by a constant than the sum of max(u - t, 0)
                expected += lowest * (mean_of(kinks, q1) + mean_of(kinks, q2)) + lowest**2
            scale = max(1.0, abs(expected))
            assert value[i].item() == pytest.approx(expected, abs=1e-8 * scale), (sign, gap)
            # the slope has a cusp at rho = 1: a rounding of c by 1e-16 moves it by 1e-8
            assert slopes[i].item() == pytest.approx(expected_slope, abs=1e-7), (sign, gap)


def mean_of(kinks, q):
    r = math.sqrt(q)
    return sum(
        jump * (r * stats.norm.pdf(t / r) - t * stats.norm.sf(t / r)) for t, jump in kinks.items()
    )


def trapezoid(f, g, q1, q2, rho, step):
    """On the axes of u and of the part of v independent of u: exponentially accurate for
    functions analytic around the real line, once the step resolves them."""
    z = torch.arange(-9, 9 + step / 2, step, dtype=torch.float64)
    weight = step * torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    s = math.sqrt(1 - rho**2)
    total = 0.0
    for part, mass in zip(z.split(500), weight.split(500), strict=True):
        v = math.sqrt(q2) * (rho * part[:, None] + s * z[None, :])
        total += float(mass * f(math.sqrt(q1) * part) @ (g(v) @ weight))
    return total


SMOOTH = {
    "tanh": torch.tanh,
    "silu": F.silu,
    "softplus": lambda x: F.softplus(x, beta=2.0),
    "sigmoid": torch.sigmoid,
    "mish": F.mish,
}


@pytest.mark.covering
@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize(("q1", "q2"), [(1e-4, 1e-2), (1.0, 0.5), (6.0, 2.0), (40.0, 40.0)])
@pytest.mark.parametrize("rho", [0.0, 0.6, -0.99, 1 - 1e-12, 1.0])
def test_smooth_functions(name, q1, q2, rho):
    function = SMOOTH[name]
    slope = quadrature.derivative_of(function)
    arguments = double(q1), double(q2), double(rho * math.sqrt(q1 * q2))
    step = 0.25 / max(1.0, math.sqrt(max(q1, q2)))
    for f in (function, slope):
        value = gaussian_expectation(f, f, *arguments).item()
        expected = trapezoid(f, f, q1, q2, rho, step)
        assert value == pytest.approx(expected, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("rho", [0.5, 0.98, 1 - 1e-5, -1.0])
def test_a_smooth_function_as_steep_as_a_step(rho):
    q = 1e4
    value = gaussian_expectation(torch.tanh, torch.tanh, double(q), double(q), double(rho * q))
    expected = trapezoid(torch.tanh, torch.tanh, q, q, rho, 0.006)
    assert value.item() == pytest.approx(expected, abs=1e-7)


def test_means():
    for q in (1e-4, 1.0, 1e4):
        value = gaussian_mean(F.relu6, double(q), kinks=(0.0, 6.0)).item()
        assert value == pytest.approx(mean_of({0.0: 1.0, 6.0: -1.0}, q), rel=1e-10)
        assert gaussian_mean(torch.tanh, double(q)).item() == pytest.approx(0, abs=1e-14)
        value = gaussian_mean(lambda x: (x > 0.3).double(), double(q), kinks=(0.3,)).item()
        assert value == pytest.approx(stats.norm.sf(0.3 / math.sqrt(q)), rel=1e-10, abs=1e-30)
    assert gaussian_mean(torch.sigmoid, double(0.0)).item() == pytest.approx(0.5, abs=1e-15)


def test_several_kinks_in_one_panel_and_none():
    kinks = (0.11, 0.13, 0.1301, -0.2)

    def f(x):
        return sum((x > t).double() * (i + 1) for i, t in enumerate(kinks))

    q = torch.tensor([0.5, 2.0], dtype=torch.float64)
    missing = torch.tensor([0.7, math.nan], dtype=torch.float64)
    value = gaussian_mean(f, q, kinks=(*kinks, missing))
    for i in range(2):
        expected = sum(
            (k + 1) * stats.norm.sf(t / math.sqrt(q[i].item())) for k, t in enumerate(kinks)
        )
        assert value[i].item() == pytest.approx(expected, rel=1e-11)


def test_parameters_of_each_point():
    # max(u - t, 0) with thresholds by row, times slope * v by column
    thresholds = torch.tensor([[-0.5], [0.3]], dtype=torch.float64)
    slopes = torch.tensor([[0.5, 1.0, 2.0]], dtype=torch.float64)
    q1, q2 = double([[1.0], [2.0]]), double([[1.0, 0.5, 3.0]])
    for rho in (0.3, 0.995):
        c = rho * (q1 * q2).sqrt()
        value = gaussian_expectation(
            lambda x, t: torch.relu(x - t), lambda x, a: a * x, q1, q2, c,
            f_parameters=(thresholds,), g_parameters=(slopes,), f_kinks=(thresholds,),
        )  # fmt: skip
        # Stein: E[max(u - t, 0) v] = c P(u > t)
        expected = slopes * c * torch.special.ndtr(-thresholds / q1.sqrt())
        torch.testing.assert_close(value, expected, atol=1e-10, rtol=1e-9)


FUNCTIONS = {
    "tanh": (torch.tanh, ()),
    "hardtanh": (F.hardtanh, (-1.0, 1.0)),
    "elu": (lambda x: F.elu(x, 1.7), (0.0,)),
    "jump": (lambda x: torch.where(x > 0.4, torch.cos(x), 0.0), (0.4,)),
}


@pytest.mark.covering
@pytest.mark.parametrize("a", FUNCTIONS)
@pytest.mark.parametrize("b", FUNCTIONS)
@pytest.mark.parametrize("rho", [pytest.param(0.4, marks=pytest.mark.slow), -0.985])
def test_gradients(a, b, rho):
    (f, f_kinks), (g, g_kinks) = FUNCTIONS[a], FUNCTIONS[b]
    q1, q2 = 1.3, 0.8
    q = [double(x).requires_grad_() for x in (q1, q2, rho * math.sqrt(q1 * q2))]
    for first, second in ((f, g), tuple(map(quadrature.derivative_of, (f, g)))):

        def value(q1, q2, c, first=first, second=second):
            return gaussian_expectation(first, second, q1, q2, c, f_kinks=f_kinks, g_kinks=g_kinks)

        # all differences in one call: gradcheck makes one for each
        moved = torch.stack([torch.stack(q).detach()] * 6)
        moved += 1e-5 * torch.cat([torch.eye(3), -torch.eye(3)]).double()
        up, down = value(*moved.unbind(-1)).split(3)
        gradient = torch.stack(torch.autograd.grad(value(*q), q))
        torch.testing.assert_close(gradient, (up - down) / 2e-5, atol=2e-7, rtol=1e-5)


def test_gradients_of_parameters():
    q1, q2, c = (
        double(x).requires_grad_()
        for x in ([[1.0], [0.6]], [[1.2, 0.7]], [[0.5, 0.3], [0.6, 0.64]])
    )
    a = double([[0.2], [0.3]]).requires_grad_()
    b = double([[1.1, 0.4]]).requires_grad_()

    def value(q1, q2, c, a, b):
        return gaussian_expectation(
            lambda x, a: torch.where(x > 0, x, a * x),
            lambda x, b: torch.tanh(b * x), q1, q2, c,
            f_parameters=(a,), g_parameters=(b,), f_kinks=(0.0,),
        )  # fmt: skip

    torch.autograd.gradcheck(value, (q1, q2, c, a, b), eps=1e-5, atol=1e-7)


@pytest.mark.covering
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_at_the_singular_places(name, dtype):
    f, kinks = FUNCTIONS[name]
    q1 = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=dtype, requires_grad=True)
    q2 = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=dtype, requires_grad=True)
    c = torch.tensor([1.0, -1.0, 0.0, 0.0], dtype=dtype, requires_grad=True)
    for function in (f, quadrature.derivative_of(f)):
        value = gaussian_expectation(function, function, q1, q2, c, f_kinks=kinks, g_kinks=kinks)
        assert value.dtype == dtype
        for x in (value, *torch.autograd.grad(value.sum(), (q1, q2, c))):
            assert x.isfinite().all()


def test_gradient_at_coincident_inputs_is_that_of_the_closed_form():
    q1, q2, c = (double([1.3, 0.7]).requires_grad_() for _ in range(3))
    for closed, f, kinks in ((ABReLU(), torch.relu, (0.0,)), (GELU(), F.gelu, ())):
        value = gaussian_expectation(f, f, q1, q2, c, f_kinks=kinks, g_kinks=kinks)
        grads = torch.autograd.grad(value.sum(), (q1, q2, c))
        expected = torch.autograd.grad(closed.dual(closed, q1, q2, c).sum(), (q1, q2, c))
        for grad, exact in zip(grads, expected, strict=True):
            torch.testing.assert_close(grad, exact, atol=1e-8, rtol=1e-8)


def test_rows_and_columns_agree_with_a_list_of_pairs():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    c, q = x @ x.T, (x**2).sum(-1)
    for f, kinks in FUNCTIONS.values():
        options = {"f_kinks": kinks, "g_kinks": kinks}
        table = gaussian_expectation(f, f, q[:, None], q[None, :], c, **options)
        i, j = torch.meshgrid(torch.arange(7), torch.arange(7), indexing="ij")
        i, j = i.flatten(), j.flatten()
        pairs = gaussian_expectation(f, f, q[i], q[j], c[i, j], **options)
        torch.testing.assert_close(table.flatten(), pairs, atol=1e-9, rtol=1e-9)
        batch = gaussian_expectation(
            f, f, q[None, :, None], q[None, None, :], c.expand(2, 7, 7), **options
        )
        torch.testing.assert_close(batch, table.expand(2, 7, 7), atol=1e-12, rtol=1e-12)
        # of fewer dimensions than c
        batch = gaussian_expectation(f, f, q[:, None], q, c.expand(2, 7, 7), **options)
        torch.testing.assert_close(batch, table.expand(2, 7, 7), atol=1e-12, rtol=1e-12)


def test_a_few_pairs_that_need_more_terms_than_the_rest():
    # one large variance among many small ones, in a batch
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    x[3] *= 8
    c, q = x @ x.T, (x**2).sum(-1)
    table = gaussian_expectation(torch.tanh, torch.tanh, q[:, None], q, c.expand(2, 12, 12))
    for i, j in ((3, 3), (3, 5), (2, 7)):
        rho = min(1.0, (c[i, j] / (q[i] * q[j]).sqrt()).item())
        expected = trapezoid(torch.tanh, torch.tanh, q[i].item(), q[j].item(), rho, 0.01)
        assert table[1, i, j].item() == pytest.approx(expected, abs=1e-10)


def test_no_pairs():
    empty = torch.zeros(0, 3, dtype=torch.float64)
    value = gaussian_expectation(torch.tanh, torch.tanh, empty[:, :1], double([[1.0] * 3]), empty)
    assert value.shape == (0, 3)


def test_detected_kinks():
    assert detect_kinks(torch.tanh) == ()
    assert detect_kinks(F.gelu) == ()
    assert detect_kinks(lambda x: torch.full_like(x, 2.0)) == ()
    assert detect_kinks(torch.relu) == (0.0,)
    assert detect_kinks(F.hardtanh) == (-1.0, 1.0)
    assert detect_kinks(F.relu6) == (0.0, 6.0)
    assert detect_kinks(F.hardswish) == (-3.0, 3.0)
    assert detect_kinks(F.hardshrink) == (-0.5, 0.5)
    assert detect_kinks(F.elu) == (0.0,)  # of the second derivative
    assert detect_kinks(RectifiedPower(0)) == (0.0,)
    (found,) = detect_kinks(lambda x: (x - math.sqrt(2)).abs())
    assert found == pytest.approx(math.sqrt(2), abs=1e-7)
    with pytest.raises(ValueError, match="more than 64 kinks"):
        detect_kinks(lambda x: torch.frac(50 * x))


def test_jumps():
    assert jumps(F.hardshrink, (-0.5, 0.5)) == pytest.approx([0.5, 0.5], abs=1e-9)
    assert jumps(F.hardtanh, (-1.0, 1.0)) == [0.0, 0.0]
    assert jumps(numpy.sin, ()) == []
