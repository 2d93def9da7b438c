"""Acquisition functions against closed forms, quadrature and draws."""

import math

import pytest
import torch
from gpytorch.kernels import MaternKernel
from torch import Generator

from bayes import GaussianProcess
from nas.proposals.acquisitions import (
    MaxValueEntropy,
    ThompsonSample,
    UpperConfidenceBound,
    _gumbel_maxima,
)


def model(noise=1e-4):
    X = torch.tensor([[0.0], [0.3], [0.9]], dtype=torch.float64)
    Y = torch.tensor([[0.2], [1.0], [-1.0]], dtype=torch.float64)
    kernel = MaternKernel(nu=2.5).double()
    kernel.lengthscale = 0.3
    Yvar = torch.full_like(Y, noise)
    return GaussianProcess(
        X, Y, kernel, train_Yvar=Yvar, input_transform=None, outcome_transform=None
    ).eval()


QUERIES = torch.linspace(0, 1.2, 7, dtype=torch.float64)[:, None, None]


def test_confidence_bound_by_hand():
    posterior = model().posterior(QUERIES)
    expected = posterior.mean[:, 0, 0] + 3.0 * posterior.variance[:, 0, 0].sqrt()
    torch.testing.assert_close(UpperConfidenceBound(model(), beta=9.0)(QUERIES), expected)


@pytest.mark.parametrize("acquisition", [UpperConfidenceBound, MaxValueEntropy])
def test_running_trials_count_as_known_whatever_they_give(acquisition):
    """The deviation is that of a process that has seen the running rows, at any value."""
    pending = torch.tensor([[0.6], [1.1]], dtype=torch.float64)
    process = model(noise=1e-6)
    value = acquisition(process, pending)(QUERIES)
    mean = process.posterior(pending).mean
    seen = GaussianProcess(
        torch.cat([process.train_X, pending]),
        torch.cat([process.train_Y, mean]),
        process.covar_module,
        train_Yvar=torch.full((5, 1), 1e-6, dtype=torch.float64),
        input_transform=None,
        outcome_transform=None,
    ).eval()
    known = acquisition(seen)
    if acquisition is MaxValueEntropy:
        known._maxima = _maxima_of(process)
    away = [0, 2, 4]  # elsewhere than the running rows, where both are 0 up to rounding
    torch.testing.assert_close(value[away], known(QUERIES)[away], rtol=1e-3, atol=1e-3)


def _maxima_of(process):
    posterior = process.posterior(QUERIES)
    return _gumbel_maxima(posterior.mean[:, 0, 0], posterior.variance[:, 0, 0].sqrt())


def test_max_value_entropy_by_quadrature():
    """Entropy of a Gaussian minus that of the one truncated at each maximum, on a grid."""
    process = model()
    found = MaxValueEntropy(process)(QUERIES).exp()
    posterior = process.posterior(QUERIES)
    for place in range(len(QUERIES)):
        mean, deviation = posterior.mean[place, 0, 0], posterior.variance[place, 0, 0].sqrt()
        normal = torch.distributions.Normal(mean, deviation)
        gains = []
        for maximum in _maxima_of(process):
            low = mean - 12 * deviation
            grid = torch.linspace(0, 1, 20_001, dtype=torch.float64) * (maximum - low) + low
            density = normal.log_prob(grid).exp()
            density = density / torch.trapezoid(density, grid)
            entropy = -torch.trapezoid(torch.special.xlogy(density, density), grid)
            gains.append(normal.entropy() - entropy)
        expected = torch.stack(gains).mean()
        torch.testing.assert_close(found[place], expected, rtol=1e-3, atol=2e-3)


def test_gumbel_law_of_the_maximum_of_independent_normals():
    """Its quartiles are those of the product of the distribution functions, by draws."""
    mean = torch.linspace(-1, 1, 50, dtype=torch.float64)
    deviation = torch.linspace(0.5, 1, 50, dtype=torch.float64)
    maxima = _gumbel_maxima(mean, deviation)
    noise = torch.randn(20_000, 50, generator=Generator().manual_seed(0), dtype=torch.float64)
    draws = (mean + deviation * noise).amax(1)
    levels = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    torch.testing.assert_close(maxima.quantile(levels), draws.quantile(levels), rtol=0, atol=0.03)


def test_a_thompson_sample_is_one_function():
    sample = ThompsonSample(model(), seed=3)
    first, second = sample(QUERIES[:3]), sample(QUERIES[3:])
    together = ThompsonSample(model(), seed=3)(QUERIES)
    both = torch.cat([first, second])
    torch.testing.assert_close(both, together, rtol=0, atol=1e-5)
    torch.testing.assert_close(sample(QUERIES[:3]), first, rtol=0, atol=1e-2)
    assert not torch.equal(ThompsonSample(model(), seed=4)(QUERIES), together)


def test_thompson_samples_have_the_joint_law_of_the_posterior():
    """Mean and covariance over 150 seeds, asked in two batches, within five standard errors."""
    process, num = model(), 150
    points = QUERIES[[2, 4, 6]]
    draws = []
    for seed in range(num):
        sample = ThompsonSample(process, seed)
        draws.append(torch.cat([sample(points[:1]), sample(points[1:])]))
    draws = torch.stack(draws).detach()
    posterior = process.posterior(points[:, 0])
    mean, covariance = posterior.mvn.mean, posterior.mvn.covariance_matrix
    error = (covariance.diagonal() / num).sqrt()
    assert bool(((draws.mean(0) - mean).abs() < 5 * error).all())
    size = covariance.diagonal()
    spread = (size[:, None] * size + covariance.square()).sqrt() / math.sqrt(num)
    assert bool(((torch.cov(draws.T) - covariance).abs() < 5 * spread).all())
