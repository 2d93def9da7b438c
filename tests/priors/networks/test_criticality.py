"""Criticality against closed forms, published values, numerical integration and finite networks."""

import math

import pytest
import torch
from scipy import integrate
from torch import nn
from torch.nn import functional as F

from priors.gaussian.activations import GELU, ABReLU, Erf, Sign, Sine
from priors.networks.criticality import (
    critical_initialisation,
    excess_kurtosis,
    four_point_vertex,
    optimal_depth_to_width,
    susceptibilities,
)

SMOOTH = {
    "tanh": (torch.tanh, math.tanh, lambda x: 1 - math.tanh(x) ** 2),
    "softplus": (
        F.softplus,
        lambda x: math.log1p(math.exp(-abs(x))) + max(x, 0.0),
        lambda x: 1 / (1 + math.exp(-x)),
    ),
    "elu": (
        F.elu,
        lambda x: x if x > 0 else math.expm1(x),
        lambda x: 1.0 if x > 0 else math.exp(x),
    ),
}


def expectation(function, variance):
    def integrand(z):
        return function(math.sqrt(variance) * z) * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    parts = [
        integrate.quad(integrand, a, b, epsabs=1e-13, epsrel=1e-13, limit=400)[0]
        for a, b in [(-14, -3), (-3, 0), (0, 3), (3, 14)]
    ]
    return sum(parts)


@pytest.mark.parametrize("variance", [0.3, 2.0, 9.0])
@pytest.mark.parametrize("name", SMOOTH)
def test_susceptibilities_match_integration_of_their_definition(name, variance):
    function, scalar, slope = SMOOTH[name]
    parallel, perp = susceptibilities(function, variance, 1.7)
    by_definition = expectation(lambda x: scalar(x) ** 2 * (x * x - variance), variance)
    assert float(parallel) == pytest.approx(1.7 * by_definition / (2 * variance**2), abs=1e-10)
    assert float(perp) == pytest.approx(
        1.7 * expectation(lambda x: slope(x) ** 2, variance), abs=1e-10
    )


def test_susceptibilities_have_closed_forms():
    K = torch.tensor([[0.0, 0.4], [1.3, 50.0]], dtype=torch.float64)
    for value in susceptibilities(nn.ReLU(), K, 2.0):
        torch.testing.assert_close(value, torch.ones_like(K), rtol=1e-11, atol=1e-11)
    # sin: g = (1 - exp(-2K)) / 2 and E[cos^2] = (1 + exp(-2K)) / 2
    C_W = torch.tensor([0.5, 1.5], dtype=torch.float64)
    parallel, perp = susceptibilities(Sine(0.0), K, C_W)
    torch.testing.assert_close(parallel, C_W * torch.exp(-2 * K), rtol=0, atol=1e-10)
    torch.testing.assert_close(perp, C_W * (1 + torch.exp(-2 * K)) / 2, rtol=0, atol=1e-10)
    # erf: g = (2 / pi) asin(2K / (1 + 2K))
    parallel, _ = susceptibilities(Erf(), K, 1.0)
    expected = 4 / math.pi / ((1 + 2 * K) * torch.sqrt(1 + 4 * K))
    torch.testing.assert_close(parallel, expected, rtol=0, atol=1e-10)


def test_parallel_susceptibility_at_zero_when_the_function_is_not_zero_there():
    # cos: g = (1 + exp(-2K)) / 2, whose slope at 0 is -1
    parallel, perp = susceptibilities(torch.cos, 0.0, 1.0)
    assert float(parallel) == pytest.approx(-1, abs=1e-9)
    assert float(perp) == pytest.approx(0, abs=1e-9)


def test_dtype_follows_the_variance():
    parallel, perp = susceptibilities(torch.tanh, torch.ones(3), 1.0)
    assert parallel.dtype == perp.dtype == torch.float32
    assert parallel.shape == (3,)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (ABReLU(), (2.0, 0.0, 1.0)),
        (F.relu, (2.0, 0.0, 1.0)),
        (nn.LeakyReLU(0.1), (2 / 1.01, 0.0, 1.0)),
        (torch.tanh, (1.0, 0.0, 0.0)),
        (torch.sin, (1.0, 0.0, 0.0)),
        (F.elu, (1.0, 0.0, 0.0)),
        (Sine(0.0, 2.0), (0.25, 0.0, 0.0)),
        (Erf(), (math.pi / 4, 0.0, 0.0)),
    ],
)
def test_critical_initialisation_is_known(activation, expected):
    assert critical_initialisation(activation) == pytest.approx(expected, rel=1e-8, abs=1e-10)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        # Roberts et al. 2021, section 5.3.4, to the digits printed
        (F.silu, (1.988005, 0.555143, 14.3202)),
        (GELU(), (1.983058, 0.172922, 3.56155)),
    ],
)
def test_half_stable_values_are_those_of_the_book(activation, expected):
    weight_var, bias_var, variance = critical_initialisation(activation)
    assert (weight_var, bias_var) == pytest.approx(expected[:2], abs=1e-6)
    assert variance == pytest.approx(expected[2], rel=2e-6)
    for chi in susceptibilities(activation, variance, weight_var):
        assert float(chi) == pytest.approx(1, abs=1e-10)


def test_gelu_fixed_point_is_a_golden_number():
    # sqrt(17): 3.56155... = (3 + sqrt(17)) / 2, the book's closed form
    assert critical_initialisation(GELU())[2] == pytest.approx((3 + math.sqrt(17)) / 2, rel=1e-9)


@pytest.mark.fast_for("softplus", "cos")
@pytest.mark.parametrize("activation", [torch.sigmoid, F.softplus, torch.exp, torch.cos])
def test_no_critical_point(activation):
    with pytest.raises(ValueError, match="no critical initialisation"):
        critical_initialisation(activation)


def test_a_constant_is_refused():
    with pytest.raises(ValueError, match="constant"):
        critical_initialisation(torch.ones_like)


def test_a_jump_is_refused():
    with pytest.raises(ValueError, match="discontinuous"):
        critical_initialisation(Sign())


def test_vertex_of_relu_is_the_first_order_of_the_exact_product():
    # given |h_l|, |h_(l+1)|^2 of a bias-free ReLU network is an independent factor whose relative
    # variance is 5 / n, so E[variance^2] / E[variance]^2 = prod (1 + 5 / n_l) exactly
    widths = [1_000_000, 2_000_000, 3_000_000]
    K, v = four_point_vertex(nn.ReLU(), [1.3, 2.0, 0.7, 2.2], [0.0] * 4, widths, 0.6)
    exact = math.prod(1 + 5 / n for n in widths) - 1
    assert float(v / K**2) == pytest.approx(exact, rel=1e-5)
    assert float(K) == pytest.approx(1.3 * 0.6 * 2.0 * 0.7 * 2.2 / 8, rel=1e-12)


def test_vertex_of_tanh_grows_as_derived_at_criticality():
    # v n / K^2 = (2 / 3) l with corrections of order log(l) / l to the slope
    depth = 500
    slopes = []
    for layers in (depth, 2 * depth):
        K, v = four_point_vertex(Sine(0.0), [1.0] * layers, [0.0] * layers, [1] * (layers - 1), 1.0)
        slopes.append(float(v / K**2))
    assert (slopes[1] - slopes[0]) / depth == pytest.approx(2 / 3, rel=0.01)


def test_vertex_is_batched():
    C_W = torch.tensor([1.0, 2.0], dtype=torch.float64)
    q = torch.tensor([[0.5], [1.0], [2.0]], dtype=torch.float64)
    K, v = four_point_vertex(torch.tanh, [C_W, C_W], [0.1, 0.2], [16], q)
    assert K.shape == v.shape == (3, 2)
    for i in range(3):
        for j in range(2):
            one = four_point_vertex(
                torch.tanh, [float(C_W[j])] * 2, [0.1, 0.2], [16], float(q[i, 0])
            )
            assert float(K[i, j]) == pytest.approx(float(one[0]), rel=1e-12)
            assert float(v[i, j]) == pytest.approx(float(one[1]), rel=1e-12)


@pytest.mark.parametrize(
    ("activation", "weight_var", "bias_var"), [(torch.relu, 2.0, 0.0), (torch.tanh, 1.5, 0.1)]
)
def test_excess_kurtosis_of_finite_networks(activation, weight_var, bias_var):
    # Given the last hidden layer the output is N(0, s): moments of s have less noise than z's.
    width, hidden, size = 32, 4, 40_000
    generator = torch.Generator().manual_seed(0)
    x = torch.tensor([0.7, -1.1, 0.4])
    batches = []
    for _ in range(size // 4000):
        h = x.expand(4000, 3)
        for _ in range(hidden):
            fan_in = h.shape[-1]
            W = torch.randn(4000, width, fan_in, generator=generator)
            z = (W @ h[..., None])[..., 0] * math.sqrt(weight_var / fan_in)
            z = z + math.sqrt(bias_var) * torch.randn(4000, width, generator=generator)
            h = activation(z)
        batches.append(bias_var + weight_var * (h**2).mean(-1))
    s = torch.cat(batches).double()
    mean = s.mean()
    ratio = 3 * (s**2).mean() / mean**2
    # delta method: the influence of one draw on 3 E[s^2] / E[s]^2
    influence = 3 * (s**2 / mean**2 - 2 * (s**2).mean() * s / mean**3)
    error = float(influence.std() / math.sqrt(size))
    predicted = float(
        excess_kurtosis(
            activation,
            [weight_var] * (hidden + 1),
            [bias_var] * (hidden + 1),
            [width] * hidden,
            float((x**2).mean()),
        )
    )
    # the second order in 1/n: for ReLU exactly 3 prod(1 + 5/n) - 3 - predicted; about
    # (predicted / 3)^2 in general
    second_order = 3 * (1 + 5 / width) ** hidden - 3 - 60 / width
    allowance = second_order if activation is torch.relu else predicted**2 / 3
    difference = float(ratio) - 3 - predicted
    assert abs(difference) < 5 * error + 1.1 * allowance
    if activation is torch.relu:
        assert abs(difference - second_order) < 5 * error


@pytest.mark.parametrize(
    ("activation", "nu"),
    [(F.relu, 5.0), (torch.tanh, 2 / 3), (torch.sin, 2 / 3), (nn.Identity(), 2.0)],
)
def test_aspect_ratio(activation, nu):
    assert optimal_depth_to_width(activation) == pytest.approx(4 / 23 / nu, rel=1e-9)
    assert optimal_depth_to_width(activation, num_outputs=10) == pytest.approx(
        4 / 50 / nu, rel=1e-9
    )


def test_half_stable_nu_is_the_slope_of_the_vertex():
    C_W, C_b, K = critical_initialisation(GELU())
    _, near = four_point_vertex(GELU(), [C_W] * 5, [C_b] * 5, [1] * 4, (K - C_b) / C_W)
    nu = 4 / 23 / optimal_depth_to_width(GELU())
    assert float(near) / K**2 / 4 == pytest.approx(nu, rel=1e-8)


def test_errors():
    with pytest.raises(ValueError, match="hidden widths"):
        four_point_vertex(torch.tanh, [1.0], [0.0], [8], 1.0)
    with pytest.raises(ValueError, match="at least 1"):
        four_point_vertex(torch.tanh, [1.0, 1.0], [0.0, 0.0], [0], 1.0)
    with pytest.raises(ValueError, match=">= 0"):
        susceptibilities(torch.tanh, -1.0, 1.0)
    with pytest.raises(ValueError, match="num_outputs"):
        optimal_depth_to_width(torch.tanh, num_outputs=0)
    for kinked in (F.selu, F.elu):
        with pytest.raises(ValueError, match="kink at 0"):
            optimal_depth_to_width(kinked)
    with pytest.raises(TypeError, match="elementwise"):
        critical_initialisation("relu")
