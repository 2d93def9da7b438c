"""Summaries of a prior against closed forms."""

import io
import math

import gpytorch
import pytest
import torch
from gpytorch.kernels import CosineKernel, LinearKernel, MaternKernel, RBFKernel, ScaleKernel
from matplotlib.figure import Figure
from torch import nn
from torch.distributions import InverseGamma

from priors.diagnostics.plots import lempel_ziv_complexity, plot_prior, prior_summary
from priors.figures import log_axis
from priors.functions import GaussianProcessPrior, ScaleMixturePrior
from priors.kernels.network import NNGPKernel
from priors.networks.finite import NetworkPrior
from priors.networks.infinite import InfiniteNetwork


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rbf(lengthscale):
    kernel = RBFKernel().double()
    kernel.lengthscale = lengthscale
    return kernel


def relu_network():
    module = nn.Sequential(nn.Linear(3, 8, bias=False), nn.ReLU(), nn.Linear(8, 1, bias=False))
    return InfiniteNetwork(module)


U3 = torch.tensor([1.0, 2.0, -2.0], dtype=torch.float64)


@pytest.mark.parametrize("lengthscale", [0.4, 1.1])
def test_rbf(lengthscale):
    summary = prior_summary(rbf(lengthscale), direction=U3, generator=seeded())
    # Rice: (1/pi) sqrt(-k''(0) / k(0))
    assert summary.zero_crossings == pytest.approx(1 / (math.pi * lengthscale), rel=1e-3)
    half = lengthscale * math.sqrt(2 * math.log(2))
    assert summary.half_correlation_distance == pytest.approx(half, rel=1e-3)
    # the chord of the angle on the circle of radius 3
    assert summary.half_correlation_angle == pytest.approx(2 * math.asin(half / 6), rel=1e-3)
    assert summary.functions.shape == (64, 256)


def test_zero_crossings_of_sampled_paths_agree():
    kernel = rbf(0.5)
    summary = prior_summary(kernel, num_functions=800, generator=seeded(1))
    signs = summary.functions > 0
    counts = (signs[:, 1:] != signs[:, :-1]).double().mean(-1) * 256 / 6
    error = float(counts.std() / math.sqrt(len(counts)))
    assert abs(float(counts.mean()) - summary.zero_crossings) < 5 * error


def test_rough_paths_cross_more_on_a_finer_grid():
    # arccos(exp(-h / lengthscale)) / pi per step, for the Ornstein-Uhlenbeck process
    kernel = MaternKernel(nu=0.5).double()
    kernel.lengthscale = 0.7
    h = 6 / 256
    expected = math.acos(math.exp(-h / 0.7)) / math.pi / h
    assert prior_summary(kernel, generator=seeded()).zero_crossings == pytest.approx(
        expected, rel=1e-6
    )


@pytest.mark.parametrize(("kind", "exponent"), [("nngp", 4), ("ntk", 2)])
def test_spectrum_of_one_hidden_relu_layer(kind, exponent):
    # On the circle E[relu relu] = (sin t + (pi - t) cos t) / (2 pi), whose Fourier coefficients
    # are proportional to (k^2 - 1)^-2 for even k and 0 for odd k > 1; the NTK adds
    # cos t (pi - t) / (2 pi), with a kink at t = 0 that decays like k^-2
    summary = prior_summary(relu_network(), direction=U3, kind=kind, generator=seeded())
    assert summary.spectrum_exponent == pytest.approx(exponent, abs=0.05)
    assert float(summary.power[2::2][:10].max()) < 1e-12
    if kind == "nngp":
        k = torch.tensor([2, 4, 10], dtype=torch.float64)
        ratio = summary.power[k.long() - 1] / summary.power[1]
        torch.testing.assert_close(ratio, 9 / (k**2 - 1) ** 2, rtol=1e-4, atol=0)


def test_angle_of_the_linear_kernel_is_sixty_degrees():
    summary = prior_summary(LinearKernel().double(), direction=U3, generator=seeded())
    assert summary.half_correlation_angle == pytest.approx(math.pi / 3, rel=1e-3)
    torch.testing.assert_close(summary.angular_correlation, summary.angle.cos())
    # straight lines through the origin: one crossing between the first and last of 256 midpoints
    # of an interval of length 6, and order 1
    assert summary.zero_crossings == pytest.approx(256 / 255 / 6, rel=1e-6)
    assert summary.polynomial_order == pytest.approx(1, abs=0.05)
    assert float(summary.power[0]) == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize(("nu", "exponent"), [(0.5, 2), (1.5, 4)])
def test_spectrum_along_the_line(nu, exponent):
    # Matern in one dimension: power (1 + (f / f0)^2)^-(nu + 1/2), far above f0 a power law
    kernel = MaternKernel(nu=nu).double()
    kernel.lengthscale = 6.0
    summary = prior_summary(kernel, generator=seeded())
    assert summary.spectrum_exponent == pytest.approx(exponent, abs=0.15)
    assert summary.half_correlation_angle is None


def test_analytic_functions_have_no_exponent():
    assert prior_summary(rbf(4.0), direction=U3, generator=seeded()).spectrum_exponent == math.inf


@pytest.mark.parametrize("periods", [6, 15])
def test_mean_frequency_of_a_sinusoid(periods):
    kernel = CosineKernel().double()
    kernel.period_length = 3.0 / periods
    summary = prior_summary(kernel, num_functions=8, generator=seeded())
    # the sampler's jitter of 1e-8 is white noise, of about 1e-4 of the amplitude per harmonic
    assert summary.mean_frequency == pytest.approx(periods / 6, rel=0.03)
    assert int(summary.power.argmax()) + 1 == periods
    # Hann's three lines: 1/6, 2/3, 1/6 of the power
    lines = summary.power[periods - 2 : periods + 1]
    expected = torch.tensor([1 / 6, 2 / 3, 1 / 6], dtype=torch.float64)
    torch.testing.assert_close(lines, expected, rtol=1e-6, atol=1e-9)


def test_complexities_order_priors():
    summaries = [prior_summary(rbf(scale), generator=seeded()) for scale in (3.0, 0.8, 0.2)]
    for name in ("mean_frequency", "polynomial_order", "lz_complexity", "zero_crossings"):
        values = [getattr(summary, name) for summary in summaries]
        assert values == sorted(values)
        assert values[0] < 0.7 * values[2]


@pytest.mark.parametrize(
    ("text", "phrases"),
    # the first is the worked example of Kaspar & Schuster 1987: 0.001.10.100.1000.101
    [("0001101001000101", 6), ("01" * 20, 3), ("0" * 30, 2)],
)
def test_lempel_ziv_phrases(text, phrases):
    n = len(text)
    value = lempel_ziv_complexity(torch.tensor([c == "1" for c in text]))
    assert value == pytest.approx(phrases * math.log2(n) / n)


def test_lempel_ziv_of_random_bits_is_near_one():
    bits = torch.rand(4000, generator=seeded()) > 0.5
    assert 0.95 < lempel_ziv_complexity(bits) < 1.2


def test_a_finite_network_estimates_what_the_infinite_one_computes():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))
    u = torch.tensor([1.0, 0.0])
    options = {"direction": u, "generator": seeded()}
    finite = prior_summary(NetworkPrior(module), num_functions=500, **options)
    infinite = prior_summary(InfiniteNetwork(module), **options)
    # the standard error of a correlation is at most 1 / sqrt(500) for one near 0
    difference = (finite.correlation - infinite.correlation).abs().max()
    assert float(difference) < 5 / math.sqrt(500)
    assert finite.zero_crossings == pytest.approx(infinite.zero_crossings, rel=0.1)


def test_the_kinds_of_prior_agree():
    kernel = NNGPKernel(relu_network())
    summaries = [
        prior_summary(prior, direction=U3, generator=seeded())
        for prior in (
            relu_network(),
            kernel,
            GaussianProcessPrior(kernel),
            ScaleMixturePrior(kernel, InverseGamma(torch.tensor(3.0), torch.tensor(2.0))),
            ScaleKernel(kernel),
        )
    ]
    for summary in summaries[1:]:
        torch.testing.assert_close(summary.correlation, summaries[0].correlation)
        torch.testing.assert_close(summary.power, summaries[0].power)
        assert summary.zero_crossings == pytest.approx(summaries[0].zero_crossings, rel=1e-6)


def test_same_generator_same_summary_and_global_state_untouched():
    state = torch.get_rng_state()
    first, second = (
        prior_summary(rbf(1.0), num_functions=3, direction=U3, generator=seeded(5))
        for _ in range(2)
    )
    assert torch.equal(first.functions, second.functions)
    assert first.lz_complexity == second.lz_complexity
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("direction", [None, U3.float()])
def test_figure(direction):
    figure = plot_prior(rbf(1.0), num_functions=4, direction=direction, generator=seeded())
    paths, ray, sphere, spectrum = figure.axes
    assert len(paths.lines) == 4
    assert "zero crossings expected per unit" in ray.get_title()
    assert sphere.get_xlabel() == (
        "function f"
        if direction is None
        else "angle between inputs on a circle around the origin, radians"
    )
    assert "RBFKernel" in figure.get_suptitle()
    assert all(ax.get_title() and ax.get_xlabel() and ax.get_ylabel() for ax in figure.axes)
    assert spectrum.get_xscale() == spectrum.get_yscale() == "log"
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    assert buffer.getvalue().startswith(b"\x89PNG")


def test_a_given_figure_is_drawn_on_and_kinds_are_named():
    figure = Figure(figsize=(9, 7))
    network = InfiniteNetwork(relu_network().module)
    drawn = plot_prior(network, kind="ntk", direction=U3, figure=figure, generator=seeded())
    assert drawn is figure
    assert "the NTK kernel of an InfiniteNetwork" in figure.get_suptitle()


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ((9.0, 85.0), ["10", "20", "50"]),
        ((0.1, 3.0), ["0.1", "0.2", "0.5", "1", "2"]),
        ((120.0, 180.0), None),
    ],
)
def test_logarithmic_axes_have_few_plain_ticks(values, ticks):
    ax = Figure(layout="constrained").subplots()
    ax.plot(values, [1e-6, 1.0])
    log_axis(ax.xaxis)
    log_axis(ax.yaxis)
    ax.figure.canvas.draw()
    low, high = ax.get_xlim()
    every = zip(ax.get_xticklabels(), ax.get_xticks(), strict=True)
    labels = [label.get_text() for label, place in every if low <= place <= high]
    if ticks is not None:
        assert labels == ticks
    assert 2 <= len(labels) <= 6
    assert not any(label.get_text() for label in ax.get_xticklabels(minor=True))
    assert ax.get_xscale() == ax.get_yscale() == "log"


def test_errors():
    kernel = rbf(1.0)
    with pytest.raises(ValueError, match="low < high"):
        prior_summary(kernel, domain=(1.0, 1.0))
    with pytest.raises(ValueError, match="nonzero vector"):
        prior_summary(kernel, direction=torch.zeros(2))
    with pytest.raises(ValueError, match="InfiniteNetwork"):
        plot_prior(kernel, kind="ntk")
    with pytest.raises(ValueError, match="batch"):
        prior_summary(gpytorch.kernels.RBFKernel(batch_shape=torch.Size([2])))
    with pytest.raises(ValueError, match="num_functions"):
        prior_summary(kernel, num_functions=0)
    with pytest.raises(TypeError, match="sample"):
        prior_summary(3)
