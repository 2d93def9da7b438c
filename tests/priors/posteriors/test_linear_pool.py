"""The linear pool of posteriors against its closed form."""

import pytest
import torch
from gpytorch.distributions import MultivariateNormal
from torch.distributions.transforms import AffineTransform

from priors import GaussianPosterior, TransformedPosterior
from priors.posteriors.gaussian_mixture import GaussianMixturePosterior
from priors.posteriors.linear_pool import MixturePosterior
from priors.testing import PosteriorContract

MEANS = torch.tensor([[0.0, 1.0, -2.0], [0.5, 1.0, -1.0], [0.2, 0.3, -1.5]], dtype=torch.float64)
STDS = torch.tensor([[1.0, 0.6, 0.8], [0.7, 0.5, 1.2], [0.6, 1.0, 1.0]], dtype=torch.float64)
LOG_WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()


def gaussians(dtype=torch.float64):
    """Three components of two batch elements and three points."""
    components = []
    for mean, std in zip(MEANS.to(dtype), STDS.to(dtype), strict=True):
        covariance = torch.diag(std.square()).expand(2, 3, 3)
        components.append(GaussianPosterior(MultivariateNormal(mean.expand(2, 3), covariance)))
    return components


def closed_form():
    shape = (3, 2, 3, 1)
    means, stds = (v[:, None, :, None].expand(shape) for v in (MEANS, STDS))
    return GaussianMixturePosterior(means, stds**2, LOG_WEIGHTS)


class TestGaussianMixture(PosteriorContract):
    def make_posterior(self, dtype):
        return MixturePosterior(gaussians(dtype), LOG_WEIGHTS)


class TestTransformedComponents(PosteriorContract):
    def make_posterior(self, dtype):
        one, two, three = gaussians(dtype)
        two = TransformedPosterior(two, AffineTransform(0.5, 0.8))
        three = TransformedPosterior(three, AffineTransform(0.1, -1.2))
        return MixturePosterior([one, two, three])


def test_equals_the_mixture_of_gaussians():
    pool, truth = MixturePosterior(gaussians(), LOG_WEIGHTS), closed_form()
    Y = torch.linspace(-3, 3, 6, dtype=torch.float64).reshape(2, 3, 1)
    p = torch.tensor([0.01, 0.5, 0.9], dtype=torch.float64)
    torch.testing.assert_close(pool.mean, truth.mean)
    torch.testing.assert_close(pool.variance, truth.variance)
    torch.testing.assert_close(pool.log_prob(Y), truth.log_prob(Y))
    torch.testing.assert_close(pool.joint_log_prob(Y), truth.joint_log_prob(Y))
    torch.testing.assert_close(pool.cdf(Y), truth.cdf(Y))
    torch.testing.assert_close(pool.quantile(p), truth.quantile(p))
    for maximize in (True, False):
        torch.testing.assert_close(
            pool.log_excess(0.4, 1, maximize),
            truth.log_excess(0.4, 1, maximize),
        )
        torch.testing.assert_close(
            pool.log_excess(0.4, 0, maximize),
            truth.log_excess(0.4, 0, maximize),
        )


def test_quantiles_are_differentiable():
    def quantile(shift):
        base = gaussians()
        moved = TransformedPosterior(base[0], AffineTransform(shift, 1.0))
        return MixturePosterior([moved, *base[1:]]).quantile(torch.tensor(0.3).double())

    shift = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(quantile, (shift,), atol=1e-6)


def test_one_component_is_itself():
    base = gaussians()[1]
    pool = MixturePosterior([base])
    p = torch.tensor([0.1, 0.6], dtype=torch.float64)
    assert torch.equal(pool.mean, base.mean)
    assert torch.equal(pool.variance, base.variance)
    assert torch.equal(pool.quantile(p), base.quantile(p))


def test_errors():
    with pytest.raises(ValueError, match="at least one component"):
        MixturePosterior([])
    with pytest.raises(ValueError, match=r"log_weights must be \[3\]"):
        MixturePosterior(gaussians(), LOG_WEIGHTS[:2])
    single = GaussianPosterior(MultivariateNormal(torch.zeros(2), torch.eye(2)))
    with pytest.raises(ValueError, match="one shape"):
        MixturePosterior([gaussians()[0], single])
