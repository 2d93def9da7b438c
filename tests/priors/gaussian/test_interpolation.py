"""Expectations from tables against dense quadrature done another way, in value and in slope."""

import copy
import functools
import math
import pickle

import pytest
import torch

from priors.gaussian.activations import ABReLU, Numerical, Smooth
from priors.gaussian.interpolation import store
from priors.gaussian.quadrature import derivative_of, gaussian_expectation
from priors.programs.rules.elementwise import _FUNCTIONS

F = torch.nn.functional
double = torch.float64


def mish(x):
    return x * torch.tanh(F.softplus(x))


def square_of_sine(x):
    return torch.sin(x) ** 2


FUNCTIONS = {
    "tanh": torch.tanh,
    "silu": F.silu,
    "softplus": _FUNCTIONS["softplus"]().function,  # torch's own has a jump at 20
    "sigmoid": torch.sigmoid,
    "mish": F.mish,
    "tanh gelu": lambda x: F.gelu(x, approximate="tanh"),
    "sin^2": square_of_sine,
}
CORRELATIONS = (0.0, 0.4, -0.9, 0.999, 1 - 1e-12, -1 + 1e-12, 1.0, -1.0)


@pytest.fixture(autouse=True)
def _always(monkeypatch):
    """Tables from the first pair on."""
    monkeypatch.setattr(store, "MIN_PAIRS", 1)
    monkeypatch.setattr(store, "MIN_POINTS", 1)


def dense(f, g, q1, q2, rho):
    """E[f(u) g(v)] by the trapezoidal rule on the axes u + v and u - v, standardised.

    For functions analytic around the real line it converges exponentially in the step.
    """
    parts = []
    for share in ((1 + rho) / 2, (1 - rho) / 2):
        step = min(0.7, 0.25 / math.sqrt(max(q1, q2) * share + 1e-3))
        z = torch.arange(-8, 8 + step / 2, step, dtype=double)
        weight = step * torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
        parts.append((math.sqrt(share) * z, weight))
    (s, ws), (d, wd) = parts
    total = 0.0
    for row, weight in zip(s.split(200), ws.split(200), strict=True):
        u, v = row[:, None] + d, row[:, None] - d
        total += float(weight @ (f(math.sqrt(q1) * u) * g(math.sqrt(q2) * v)) @ wd)
    return total


@functools.cache
def root(f, q):
    return math.sqrt(dense(f, f, q, q, 1.0))


# the others take the same paths, and tables of large variances are large
FAST = [("tanh", 1e-3, 0.5), ("silu", 1e-3, 0.5), ("sin^2", 1e-3, 0.5), ("tanh", 0.4, 20.0)]
CASES = [(name, *ends) for name in FUNCTIONS for ends in ((1e-3, 0.5), (0.4, 20.0))]


@pytest.mark.fast_for("tanh-0.001-0.5", "silu-0.001-0.5")
@pytest.mark.parametrize(
    ("name", "low", "high"),
    [c if c in FAST else pytest.param(*c, marks=pytest.mark.slow) for c in CASES],
)
def test_values_and_slopes(name, low, high):
    f = FUNCTIONS[name]
    check(f, f, low, high, CORRELATIONS)


@pytest.mark.slow
@pytest.mark.parametrize("high", [100.0, 3000.0])
@pytest.mark.parametrize("name", ["tanh", "silu", "softplus"])
def test_up_to_the_largest_variances(name, high):
    check(FUNCTIONS[name], FUNCTIONS[name], 30.0, high, (0.3, 0.99, -1.0))


def test_two_functions():
    check(torch.tanh, torch.sigmoid, 0.2, 4.0, CORRELATIONS)


def check(f, g, low, high, correlations):
    """Values, and slopes by Price's theorem, at every correlation and some pairs of variances."""
    phi, psi = Numerical(f), Numerical(g)
    ends = [(low, high), (high, high), (high, low), (low, low), (1.1 * low, 0.9 * high)]
    pairs = [(*ends[i % len(ends)], rho) for i, rho in enumerate(correlations)]
    q1, q2, rho = (torch.tensor(x, dtype=double) for x in zip(*pairs, strict=True))
    c = rho * (q1 * q2).sqrt()
    for x in (q1, q2, c):
        x.requires_grad_()
    value, slope = phi.duals(psi, q1, q2, c)
    assert interpolated(phi, psi)
    grads = torch.autograd.grad(value.sum(), (q1, q2, c))
    df, dg = derivative_of(f), derivative_of(g)
    results = [
        (value, 1.0, f, g),
        (slope, 1.0, df, dg),
        (grads[0], 0.5, derivative_of(df), g),
        (grads[1], 0.5, f, derivative_of(dg)),
        (grads[2], 1.0, df, dg),
    ]
    for found, share, first, second in results:
        for i, (a, b, r) in enumerate(pairs):
            expected = share * dense(first, second, a, b, r)
            scale = root(first, a) * root(second, b)
            assert abs(found[i].item() - expected) <= 1e-10 * scale, (a, b, r)


def interpolated(phi, psi):
    """Whether there are tables of the pair."""
    return any(key[0] == psi for key in phi.tables._stacks)


def points(n, dtype=double, seed=0):
    x = torch.randn(n, 4, dtype=dtype, generator=torch.Generator().manual_seed(seed)) / 2
    c = x @ x.mT + 0.05
    q = c.diagonal().clone()
    return q[:, None], q[None, :], c


@pytest.mark.parametrize("order", ["dual", pytest.param("dual_derivative", marks=pytest.mark.slow)])
def test_automatic_gradients_of_both_orders(order):
    phi = Numerical(torch.tanh)
    q1, q2, c = (
        torch.tensor(x, dtype=double, requires_grad=True)
        for x in ([[0.7]], [[1.1, 0.5]], [[0.3, -0.4]])
    )

    def value(*arguments):
        return getattr(phi, order)(phi, *arguments)

    torch.autograd.gradcheck(value, (q1, q2, c))
    torch.autograd.gradgradcheck(value, (q1, q2, c), check_undefined_grad=False)


def test_gradient_of_a_symmetric_matrix():
    # rows and columns share one evaluation there; the weights are not symmetric
    phi = Numerical(torch.tanh)
    q1, q2, c = (x.clone().requires_grad_() for x in points(40))
    weights = torch.randn(40, 40, dtype=double, generator=torch.Generator().manual_seed(1))
    f, g = torch.tanh, torch.tanh
    value, slope = phi.duals(phi, q1, q2, c)
    total = (value * weights).sum() + (slope * weights.square()).sum()
    df = derivative_of(f)
    expected = (gaussian_expectation(f, g, q1, q2, c) * weights).sum()
    expected = expected + (gaussian_expectation(df, df, q1, q2, c) * weights.square()).sum()
    for mine, theirs in zip(
        torch.autograd.grad(total, (q1, q2, c)),
        torch.autograd.grad(expected, (q1, q2, c)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=2e-9, rtol=0)


def test_identical_and_opposite_points_have_finite_gradients():
    phi = Numerical(F.silu)
    x = torch.tensor([[0.5, 1.0], [0.5, 1.0], [-0.5, -1.0]], dtype=double, requires_grad=True)
    c = x @ x.mT
    value = phi.dual(phi, c.diagonal()[:, None], c.diagonal()[None, :], c)
    (grad,) = torch.autograd.grad(value.sum(), x)
    assert interpolated(phi, phi)
    assert grad.isfinite().all()
    # E[phi(u)^2] of one point and its own gradient
    q = torch.tensor(1.25, dtype=double, requires_grad=True)
    torch.testing.assert_close(value[0, 1], phi.second_moment(q), atol=1e-10, rtol=0)


def test_variances_that_no_table_covers():
    phi = Numerical(torch.tanh)
    q1, q2, c = points(30)
    scale = torch.ones(30, dtype=double)
    scale[4], scale[11], scale[12] = 0.0, 1e-3, 200.0
    q1, q2, c = q1 * scale[:, None] ** 2, q2 * scale**2, c * scale * scale[:, None]
    q1, q2, c = (t.requires_grad_() for t in (q1, q2, c))
    value = phi.dual(phi, q1, q2, c)
    exact = gaussian_expectation(torch.tanh, torch.tanh, q1, q2, c)
    torch.testing.assert_close(value, exact, atol=1e-10, rtol=0)
    for mine, theirs in zip(
        torch.autograd.grad(value.sum(), (q1, q2, c)),
        torch.autograd.grad(exact.sum(), (q1, q2, c)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-8, rtol=0)


@pytest.mark.parametrize("orders", ["mean", "mean_derivative", "second_moment"])
def test_expectations_of_one_variable(orders):
    f = torch.sigmoid
    phi = Numerical(f)
    functions = {
        "mean": f,
        "mean_derivative": derivative_of(f),
        "second_moment": lambda x: f(x) ** 2,
    }
    q = torch.tensor([0.0, 1e-3, 0.3, 2.0, 90.0, 5000.0], dtype=double, requires_grad=True)
    value = getattr(phi, orders)(q)
    (grad,) = torch.autograd.grad(value.sum(), q)
    h = functions[orders]
    bend = derivative_of(derivative_of(h))
    one = torch.ones_like
    for i, v in enumerate(q.tolist()):
        assert value[i].item() == pytest.approx(dense(h, one, v, v, 1.0), abs=1e-10)
        assert grad[i].item() == pytest.approx(dense(bend, one, v, v, 1.0) / 2, abs=1e-10)


@pytest.mark.parametrize("orders", [(0,), (1,), (2,), (0, 0), (0, 2), (1, 1), (2, 2)])
@pytest.mark.parametrize("name", ["softplus", "mish"])
def test_means_of_all_orders_come_from_tables(name, orders):
    phi = Numerical({"softplus": FUNCTIONS["softplus"], "mish": mish}[name])
    made = store.Tables().mean(phi, orders, -6, 7, torch.device("cpu"))
    assert made is not None
    functions = [phi.derivative_function(m) for m in orders]
    one = torch.ones_like
    for q in (0.02, 1.0, 100.0):
        exact = dense(lambda x: math.prod(f(x) for f in functions), one, q, q, 1.0)
        size = math.prod(root(f, q) for f in functions)
        assert made(torch.tensor([q], dtype=double)).item() == pytest.approx(
            exact, abs=1e-10 * size
        )


def test_means_of_oscillations_have_tables_of_small_variances():
    # at large ones there are too many oscillations for a table
    calls = []

    def counted(x):
        calls.append(x.numel())
        return torch.sin(x) ** 2

    phi = Smooth(counted)
    q = torch.tensor([0.1, 0.7, 4.0], dtype=double)
    torch.testing.assert_close(phi.mean(q), (1 - (-2 * q).exp()) / 2, atol=1e-10, rtol=0)
    calls.clear()
    torch.testing.assert_close(phi.mean(2 * q), (1 - (-4 * q).exp()) / 2, atol=1e-10, rtol=0)
    assert sum(calls) < 100
    large = torch.tensor([0.1, 300.0], dtype=double)
    torch.testing.assert_close(phi.mean(large), (1 - (-2 * large).exp()) / 2, atol=1e-8, rtol=0)


def test_dimensions_of_batches_and_positions():
    phi = Numerical(F.silu)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 5, 3, 4, dtype=double, generator=generator)  # batch, points, positions
    q = x.square().sum(-1)
    full = torch.einsum("bipd,bjqd->bijpq", x, x)
    every = phi.dual(phi, q[:, :, None, :, None], q[:, None, :, None, :], full)
    same = full.diagonal(dim1=-2, dim2=-1)
    equal = phi.dual(phi, q[:, :, None], q[:, None], same)
    torch.testing.assert_close(every.diagonal(dim1=-2, dim2=-1), equal, atol=1e-11, rtol=0)
    paired = phi.dual(phi, q[:, :4], q[:, 1:], same[:, range(4), range(1, 5)])
    torch.testing.assert_close(paired, equal[:, range(4), range(1, 5)], atol=1e-11, rtol=0)
    exact = gaussian_expectation(
        F.silu, F.silu, q[:, :, None, :, None], q[:, None, :, None, :], full
    )
    torch.testing.assert_close(every, exact, atol=1e-9, rtol=0)


def test_single_precision():
    phi = Numerical(torch.tanh)
    q1, q2, c = points(20, torch.float32)
    c = c.requires_grad_()
    value = phi.dual(phi, q1, q2, c)
    assert value.dtype == torch.float32
    exact = phi.dual(phi, q1.double(), q2.double(), c.double())
    torch.testing.assert_close(value.double(), exact, atol=1e-7, rtol=1e-6)
    (grad,) = torch.autograd.grad(value.sum(), c)
    assert grad.dtype == torch.float32
    assert grad.isfinite().all()


@pytest.mark.parametrize("kinks", [(-1.0, 1.0), ()])
def test_kinked_functions_are_left_to_quadrature(kinks):
    # with kinks known, and with kinks that nobody has told of
    phi = Numerical(F.hardtanh, kinks)
    q1, q2, c = points(6)
    phi.dual(phi, q1, q2, c)
    assert not interpolated(phi, phi)


def test_tables_are_used_instead_of_the_function():
    calls = []

    def counted(x):
        calls.append(x.numel())
        return torch.tanh(x)

    phi = Smooth(counted)
    q1, q2, c = points(300)
    first = phi.dual(phi, q1, q2, c)
    calls.clear()
    # other pairs in the same range of variances
    again = phi.dual(phi, q1, q2, 0.9 * c)
    assert sum(calls) < 100
    assert not torch.equal(first, again)


def test_equal_activations_share_tables():
    assert Numerical(torch.tanh).tables is Numerical(torch.tanh).tables
    assert Numerical(torch.tanh).tables is not Numerical(torch.tanh, (0.0,)).tables


def test_a_few_pairs_are_not_worth_a_table(monkeypatch):
    store._shared.cache_clear()
    monkeypatch.setattr(store, "MIN_PAIRS", 1000)
    phi = Numerical(torch.tanh)
    q1, q2, c = points(20)
    c.requires_grad_()
    for enough in (False, False, True):
        phi.dual(phi, q1, q2, c)
        assert interpolated(phi, phi) is enough


def test_a_changed_function_gets_new_tables():
    slope = torch.tensor(1.0, dtype=double)
    phi = Smooth(lambda x: torch.tanh(slope * x))
    q1, q2, c = points(10)
    phi.dual(phi, q1, q2, c)
    slope.fill_(0.5)
    expected = Numerical(torch.tanh).dual(Numerical(torch.tanh), q1 / 4, q2 / 4, c / 4)
    torch.testing.assert_close(phi.dual(phi, q1, q2, c), expected, atol=1e-10, rtol=0)


def test_tables_are_not_copied_or_pickled():
    phi = Numerical(torch.tanh)
    phi.dual(phi, *points(10))
    size = len(pickle.dumps(Numerical(torch.tanh)))
    for other in (copy.deepcopy(phi), pickle.loads(pickle.dumps(phi))):
        assert other == phi
        assert len(pickle.dumps(other)) < size + 200
        q1, q2, c = points(10)
        torch.testing.assert_close(
            other.dual(other, q1, q2, c), phi.dual(phi, q1, q2, c), atol=1e-12, rtol=0
        )


def test_a_vanishing_derivative():
    phi = Numerical(lambda x: 0 * x + 2.0)
    q1, q2, c = points(6)
    value, slope = phi.duals(phi, q1, q2, c)
    torch.testing.assert_close(value, torch.full_like(c, 4.0), atol=1e-10, rtol=0)
    torch.testing.assert_close(slope, torch.zeros_like(c), atol=0, rtol=0)


def test_closed_forms_of_mixed_kind_have_their_kinks():
    relu, tanh = ABReLU(), Numerical(torch.tanh)
    q1, q2, c = points(6)
    tanh.dual(relu, q1, q2, c)
    assert not interpolated(tanh, relu)


def test_exchanging_the_points_changes_nothing():
    phi = Numerical(torch.tanh)
    q1, q2, c = points(20)
    one, other = (q1[:5], q2[:, 5:], c[:5, 5:]), (q2.mT[5:], q1.mT[:, :5], c.mT[5:, :5])
    rounded = c * (1 + 1e-16 * torch.arange(20, dtype=double))
    for order in (phi.dual, phi.dual_derivative):
        found, expected = order(phi, *one), order(phi, *other).mT
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
        square = order(phi, q1, q2, rounded)
        assert torch.equal(square, square.mT)
