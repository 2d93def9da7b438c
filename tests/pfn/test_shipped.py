"""The shipped network: it loads, says how good it is, and infers."""

import math

import pytest
import torch
from sklearn.datasets import load_diabetes

import pfn
from pfn.checkpoints.regression import certificate
from priors import score


@pytest.fixture(scope="module")
def regression():
    return pfn.load("regression")


def test_metadata(regression):
    assert regression.architecture.max_features == 10
    assert regression.max_context == 256
    assert regression.metadata["command"].startswith("python -m pfn.checkpoints.regression")
    assert regression.metadata["training"]["tasks"] > 100_000
    assert regression.certificate.reference == "upper bound"
    assert list(regression.certificate.by_context) == [0, 5, 20, 80, 256]


def test_its_certificate_is_reproducible(regression):
    """A fresh, smaller measurement agrees with the stored one within its standard errors."""
    measured = certificate(regression, num_tasks=96, progress=False)
    for size, row in measured.by_context.items():
        stored = regression.certificate.by_context[size]
        slack = 4 * math.hypot(row.gap_error, stored.gap_error)
        assert abs(row.gap - stored.gap) < slack
        assert abs(row.coverage90 - 0.9) < 0.05


def test_diabetes_beats_the_training_mean_by_a_wide_margin(regression):
    X, y = load_diabetes(return_X_y=True, scaled=False)
    X, y = torch.tensor(X), torch.tensor(y)[:, None]
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, test = order[:256], order[256:]
    posterior = regression.condition(X[train], y[train]).posterior(X[test], observation_noise=True)
    scores = score(posterior, y[test])
    mean = torch.distributions.Normal(y[train].mean(), y[train].std())
    baseline = -mean.log_prob(y[test]).mean()
    assert scores.nlpd < baseline - 0.2
    assert scores.rmse < 0.8 * (y[test] - y[train].mean()).square().mean().sqrt()
    assert 0.8 < scores.coverage < 0.97


@pytest.mark.parametrize("d", [1, 4])
def test_a_smooth_function_is_learnt_and_uncertainty_grows_away_from_data(regression, d):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(100, d, generator=generator)
    y = torch.sin(2 * X[:, :1]) + 0.1 * torch.randn(100, 1, generator=generator)
    model = regression.condition(X, y)
    Q = torch.randn(200, d, generator=generator)
    f = model.posterior(Q)
    truth = torch.sin(2 * Q[:, :1])
    explained = 1 - (f.mean - truth).square().mean() / truth.var()
    assert explained > 0.7  # a linear model explains less than a third
    far = model.posterior(6 + torch.rand(20, d, generator=generator))
    assert far.variance.mean() > 3 * f.variance.mean()
