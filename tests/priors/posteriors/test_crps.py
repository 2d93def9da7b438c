"""CRPS against its definition, known values, and the energy form by Monte Carlo."""

import math

import pytest
import torch
from gpytorch.distributions import MultivariateNormal
from torch.distributions.transforms import AffineTransform, ExpTransform

from bayes import StudentTPosterior
from priors import (
    EmpiricalPosterior,
    GaussianMixturePosterior,
    GaussianPosterior,
    MixturePosterior,
    PoissonMixturePosterior,
    StudentTMixturePosterior,
    TransformedPosterior,
)
from priors.posteriors.batch_mixture import BatchMixturePosterior
from priors.posteriors.crps import crps_of_gaussians, knot_probabilities
from priors.posteriors.protocol import PredictivePosterior

F64 = torch.float64
LOC = torch.tensor([0.3, -2.0, 50.0], dtype=F64)
SCALE = torch.tensor([0.5, 3.0, 1e-3], dtype=F64)


def gaussian(loc=LOC, scale=SCALE):
    return GaussianPosterior(MultivariateNormal(loc, torch.diag_embed(scale.square())))


def student(df=3.0):
    return StudentTPosterior(MultivariateNormal(LOC, torch.diag(SCALE.square())), df)


def mixture(size=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(size, 4, 1, generator=generator, dtype=F64)
    variances = torch.rand(size, 4, 1, generator=generator, dtype=F64) ** 2 + 1e-3
    return GaussianMixturePosterior(means, variances, torch.arange(size, dtype=F64))


def draws():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(7, 4, 1, generator=generator, dtype=F64)
    return EmpiricalPosterior(values, torch.arange(7, dtype=F64))


POSTERIORS = {
    "gaussian": gaussian,
    "t": student,
    "t of 1.2 degrees": lambda: student(1.2),
    "mixture": mixture,
    "many components": lambda: mixture(65),
    "t mixture": lambda: StudentTMixturePosterior(
        mixture().means, mixture().scales, torch.tensor(2.5, dtype=F64)
    ),
    "draws": draws,
    "pool": lambda: MixturePosterior(
        [gaussian(), gaussian(LOC + 1, SCALE / 100), student()], torch.zeros(3, dtype=F64)
    ),
    "batch": lambda: BatchMixturePosterior(gaussian(torch.stack([LOC, LOC + SCALE]), SCALE)),
    "batch of weights": lambda: BatchMixturePosterior(
        gaussian(torch.stack([LOC, LOC + SCALE, LOC - 4 * SCALE]), SCALE),
        torch.arange(9, dtype=F64).reshape(3, 3, 1) % 4,  # those of each point
    ),
    "batch of data sets": lambda: BatchMixturePosterior(
        gaussian(LOC + SCALE * torch.arange(4, dtype=F64).reshape(2, 2, 1), SCALE)
    ),
    "affine": lambda: TransformedPosterior(
        student(), AffineTransform(torch.tensor(1.0, dtype=F64), torch.tensor(-10.0, dtype=F64))
    ),
    "log-normal": lambda: TransformedPosterior(
        gaussian(torch.zeros(3, dtype=F64), torch.tensor([0.1, 0.5, 1.0], dtype=F64)),
        ExpTransform(),
    ),
}


def simpson(posterior, left, right, upper):
    sides = [posterior.cdf(z) for z in (left, (left + right) / 2, right)]
    first, middle, last = (((1 - F) if upper else F).square() for F in sides)
    return ((first + 4 * middle + last) / 6 * (right - left)).sum(0)


def by_definition(posterior, Y, span=1e-9, size=2_001):
    """Simpson's rule of (F - 1{z >= y})^2 on both sides of y, fine where quantiles are."""
    p = torch.linspace(math.log(span), -math.log(span), size, dtype=F64).sigmoid()
    z = posterior.quantile(p)
    found = torch.zeros_like(Y)
    for part, upper in ((z.minimum(Y), False), (z.maximum(Y), True)):
        ends = (part, Y.unsqueeze(0)) if not upper else (Y.unsqueeze(0), part)
        part = torch.cat(ends)
        found += simpson(posterior, part[:-1], part[1:], upper)
    return found


@pytest.mark.fast_for("t", "t of 1.2 degrees", "mixture", "pool", "log-normal")
@pytest.mark.parametrize("name", [name for name in POSTERIORS if name != "draws"])
def test_the_definition(name):
    posterior = POSTERIORS[name]()
    unit = posterior.quantile(torch.tensor([0.25, 0.75], dtype=F64)).diff(dim=0)[0]
    for Y in posterior.quantile(torch.tensor([1e-5, 0.3, 0.97], dtype=F64)):
        expected = by_definition(posterior, Y, size=301 if "many" in name else 2_001)
        tolerance = 1e-3 if "1.2" in name or "many" in name else 2e-4
        assert ((posterior.crps(Y) - expected).abs() < tolerance * unit).all()


@pytest.mark.parametrize("name", [name for name in POSTERIORS if "1.2" not in name])
def test_the_energy_form(name):
    """E|X - y| - E|X - X'| / 2 within 5 standard errors."""
    posterior = POSTERIORS[name]()
    if posterior.shape[-2] == 3 and not name.startswith("batch"):
        size = 20_000
    else:
        size = 5_000
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = (posterior.rsample(torch.Size([size])) for _ in range(2))
    Y = posterior.quantile(torch.tensor(0.7, dtype=F64)) + 0.1
    values = ((first - Y).abs() + (second - Y).abs() - (first - second).abs()) / 2
    error = values.std(0) / size**0.5
    assert ((values.mean(0) - posterior.crps(Y)).abs() < 5 * error + 1e-12).all()


def test_known_values():
    unit = gaussian(torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64))
    expected = (math.sqrt(2) - 1) / math.sqrt(math.pi)  # at the mean
    assert float(unit.crps(torch.zeros(1, 1, dtype=F64))) == pytest.approx(expected)
    point = EmpiricalPosterior(torch.full((1, 1, 1), 2.0, dtype=F64))
    assert float(point.crps(torch.full((1, 1), 5.5, dtype=F64))) == pytest.approx(3.5)
    nearly = student(1e7)
    at = LOC[:, None]
    torch.testing.assert_close(nearly.crps(at), gaussian().crps(at), rtol=1e-6, atol=0)


def test_counts():
    posterior = PoissonMixturePosterior(torch.tensor([[[0.5], [2.0]], [[1.0], [-1.0]]], dtype=F64))
    Y = torch.tensor([[1.0], [9.0]], dtype=F64)
    k = torch.arange(100, dtype=F64).reshape(-1, 1, 1)
    square = (posterior.cdf(k.expand(100, 2, 1)) - (Y <= k).double()).square()
    torch.testing.assert_close(posterior.crps(Y), square.sum(0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", POSTERIORS)
def test_targets_broadcast_and_scale(name):
    posterior = POSTERIORS[name]()
    Y = posterior.quantile(torch.tensor([0.1, 0.9], dtype=F64))
    together = posterior.crps(Y)
    assert together.shape == (2, *posterior.shape)
    torch.testing.assert_close(together[1], posterior.crps(Y[1]))
    unit = torch.tensor(1e6, dtype=F64)
    wide = TransformedPosterior(posterior, AffineTransform(torch.zeros((), dtype=F64), unit))
    torch.testing.assert_close(wide.crps(unit * Y), unit * together)


def test_a_pool_of_many_components_is_integrated_as_they_are():
    """By quadrature, which takes some of their knots, against the closed form."""
    stds = torch.cat([torch.logspace(-1, 1, 40, dtype=F64), torch.tensor([1e-3], dtype=F64)])
    loc = torch.linspace(-1, 1, 41, dtype=F64)
    each = gaussian(loc[:, None].expand(41, 3) * LOC, stds[:, None].expand(41, 3))
    weights = torch.zeros(41, dtype=F64)
    weights[-1] = 3.0  # a third of the mass in a spike
    made = BatchMixturePosterior(each, weights)
    assert len(made._knots(knot_probabilities(F64, torch.device("cpu")))) < 500
    pool = MixturePosterior([made, made])
    Y = made.quantile(torch.tensor([0.01, 0.5, 0.8], dtype=F64))
    unit = made.quantile(torch.tensor([0.25, 0.75], dtype=F64)).diff(dim=0)[0]
    assert ((pool.crps(Y) - made.crps(Y)).abs() < 2e-4 * unit).all()


def test_single_precision():
    found = gaussian(LOC[:2].float(), SCALE[:2].float())
    pool = MixturePosterior([found, found])
    Y = (LOC[:2] + 0.5 * SCALE[:2])[:, None]
    torch.testing.assert_close(pool.crps(Y.float()), found.crps(Y.float()), rtol=1e-4, atol=1e-5)
    assert pool.crps(Y.float()).dtype == torch.float32


class Modes(PredictivePosterior):
    """Known by its distribution function and quantiles alone, as a network's."""

    def __init__(self, known):
        self.known = known

    mean = property(lambda self: self.known.mean)
    variance = property(lambda self: self.known.variance)

    def cdf(self, Y):
        return self.known.cdf(Y)

    def quantile(self, value):
        return self.known.quantile(value)

    def log_prob(self, Y):
        return self.known.log_prob(Y)

    def rsample_from_base_samples(self, sample_shape, base_samples):
        return self.known.rsample_from_base_samples(sample_shape, base_samples)


@pytest.mark.parametrize("num", [2, 8, 40])
@pytest.mark.parametrize("spread", [0.3, 3.0, 100.0])
def test_a_pool_of_gaussians_has_the_closed_form(num, spread):
    """Alike or far apart; within 1e-4 standard deviations, as `crps` says."""
    generator = torch.Generator().manual_seed(num)
    means, noise = (torch.randn(num, 50, 1, generator=generator, dtype=F64) for _ in range(2))
    means, stds = spread * means, torch.exp(0.5 * noise)
    weights = torch.rand(num, generator=generator, dtype=F64).log()
    parts = [gaussian(m[:, 0], s[:, 0]) for m, s in zip(means, stds, strict=True)]
    pool = MixturePosterior(parts, weights)
    unit = pool.variance.sqrt()
    for Y in (pool.mean, pool.mean - 1.5 * unit):
        exact = crps_of_gaussians(means, stds.square(), pool.log_weights, Y)
        assert ((pool.crps(Y) - exact).abs() < 1e-4 * unit).all()


def test_components_with_the_same_narrow_modes():
    """Twelve quantiles of each pass over a mode, those of all do not."""
    modes = torch.tensor([0.0, 0.7, 1.0, 3.0], dtype=F64)[:, None, None]
    weights = torch.tensor([0.2, 0.3, 0.25, 0.25], dtype=F64).log()
    stds = torch.full_like(modes, 0.02)
    parts = [Modes(GaussianMixturePosterior(modes + 0.01 * i, stds, weights)) for i in range(8)]
    pool = MixturePosterior(parts)
    shifts = 0.01 * torch.arange(8, dtype=F64)[:, None, None, None]
    means = (modes + shifts).flatten(0, 1)
    log_weights = weights.repeat(8) - math.log(8)
    for y in (-0.5, 0.5, 2.0):
        Y = torch.full((1, 1), y, dtype=F64)
        exact = crps_of_gaussians(means, torch.full_like(means, 4e-4), log_weights, Y)
        assert abs(pool.crps(Y) - exact) < 2e-2 * pool.variance.sqrt()


def test_many_components_are_asked_at_few_values():
    """Of eight, at no more than four for each of 96 quantiles of all and the target."""
    asked = []

    class Asked(Modes):
        def cdf(self, Y):
            asked.append(len(Y))
            return super().cdf(Y)

    parts = [Asked(gaussian(LOC + i, SCALE)) for i in range(8)]
    MixturePosterior(parts).crps(LOC[:, None])
    assert sum(asked) <= 8 * 4 * 97
