import math

import pytest
import torch
from botorch.sampling.get_sampler import get_sampler
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from torch.distributions import Normal
from torch.distributions.transforms import AffineTransform, ExpTransform, SigmoidTransform

from priors.posterior import GaussianPosterior, TransformedPosterior, score
from priors.testing import PosteriorContract


def covariance(batch, n, dtype, seed=0):
    root = torch.randn(*batch, n, n, generator=torch.Generator().manual_seed(seed))
    root = root.to(dtype)
    return root @ root.mT + 0.5 * torch.eye(n, dtype=dtype)


def single(dtype, batch=(3,), n=4):
    mean = torch.linspace(-1, 2, n, dtype=dtype).expand(*batch, n)
    return GaussianPosterior(MultivariateNormal(mean, covariance(batch, n, dtype)))


def several(dtype, interleaved=False):
    """Two outputs, three points; independent outputs in either storage order."""
    parts = [single(dtype, (2,), 3).distribution, single(dtype, (2,), 3).distribution * 2.0]
    joint = MultitaskMultivariateNormal.from_independent_mvns(parts)
    if interleaved:
        order = torch.arange(6).reshape(2, 3).T.flatten()
        dense = joint.covariance_matrix[..., order, :][..., order]
        joint = MultitaskMultivariateNormal(joint.mean, dense)
    return GaussianPosterior(joint)


class TestGaussian(PosteriorContract):
    def make_posterior(self, dtype):
        return single(dtype)


class TestSeveralGaussianOutputs(PosteriorContract):
    def make_posterior(self, dtype):
        return several(dtype)


class TestAffine(PosteriorContract):
    def make_posterior(self, dtype):
        loc, scale = torch.tensor([[5.0, -1.0]]).to(dtype), torch.tensor([[0.1, 3.0]]).to(dtype)
        return TransformedPosterior(several(dtype), AffineTransform(loc, scale))


class TestDecreasing(PosteriorContract):
    def make_posterior(self, dtype):
        return TransformedPosterior(single(dtype), AffineTransform(1.0, -2.0))


class TestSigmoid(PosteriorContract):
    def make_posterior(self, dtype):
        return TransformedPosterior(single(dtype), SigmoidTransform())


def test_log_normal_against_torch():
    base = single(torch.float64)
    posterior = TransformedPosterior(base, ExpTransform())
    truth = torch.distributions.LogNormal(base.mean, base.variance.sqrt())
    Y = truth.icdf(torch.tensor(0.3, dtype=torch.float64))
    assert torch.allclose(posterior.log_prob(Y), truth.log_prob(Y))
    assert torch.allclose(posterior.cdf(Y), truth.cdf(Y))
    with pytest.raises(NotImplementedError, match="qLogExpectedImprovement"):
        posterior.log_expected_improvement(0.0)


@pytest.mark.parametrize("interleaved", [False, True])
def test_joint_density_of_several_outputs_is_the_product(interleaved):
    posterior = several(torch.float64, interleaved)
    Y = posterior.mean + torch.randn(2, 3, 2, dtype=torch.float64)
    expected = sum(
        torch.distributions.MultivariateNormal(part.mean, part.covariance_matrix).log_prob(
            Y[..., k]
        )
        for k, part in enumerate(
            [
                single(torch.float64, (2,), 3).distribution,
                single(torch.float64, (2,), 3).distribution * 2.0,
            ]
        )
    )
    assert torch.allclose(posterior.joint_log_prob(Y), expected)


def test_joint_density_carries_the_jacobian():
    base = several(torch.float64)
    scale = torch.tensor([[0.1, 3.0]], dtype=torch.float64)
    posterior = TransformedPosterior(base, AffineTransform(torch.zeros(1, 2).double(), scale))
    Z = base.mean + 0.3
    jacobian = 3 * scale.log().sum()
    assert torch.allclose(posterior.joint_log_prob(Z * scale), base.joint_log_prob(Z) - jacobian)


@pytest.mark.parametrize("maximize", [True, False])
def test_expected_improvement_against_integration(maximize):
    posterior = TransformedPosterior(single(torch.float64), AffineTransform(5.0, 2.0))
    best = 6.5
    y = torch.linspace(-60, 70, 400_001, dtype=torch.float64)
    normal = Normal(posterior.mean.unsqueeze(-1), posterior.variance.sqrt().unsqueeze(-1))
    gain = (y - best if maximize else best - y).clamp_min(0)
    truth = torch.trapezoid(gain * normal.log_prob(y).exp(), y)
    found = posterior.log_expected_improvement(best, maximize).exp()
    assert torch.allclose(found, truth, rtol=1e-8)


def test_sampler_is_registered_and_shares_base_samples_over_the_t_batch():
    posterior = TransformedPosterior(single(torch.float64), AffineTransform(0.0, 2.0))
    sampler = get_sampler(posterior, torch.Size([16]), seed=0)
    assert sampler(posterior).shape == (16, 3, 4, 1)
    assert sampler.base_samples.shape[1] == 1


def test_scores_of_known_numbers():
    mean = torch.zeros(4, dtype=torch.float64)
    posterior = GaussianPosterior(MultivariateNormal(mean, torch.eye(4, dtype=torch.float64)))
    Y = torch.tensor([[0.0], [1.0], [-1.0], [3.0]], dtype=torch.float64)
    scores = score(posterior, Y, level=0.9)
    assert math.isclose(scores.rmse, math.sqrt(11 / 4))
    assert math.isclose(scores.nlpd, 0.5 * math.log(2 * math.pi) + 11 / 8)
    assert scores.coverage == 0.75
    with pytest.raises(ValueError, match="shape"):
        score(posterior, Y[:3])
    with pytest.raises(ValueError, match="level"):
        score(posterior, Y, level=1.0)


def test_wrong_transforms_are_refused():
    with pytest.raises(ValueError, match="elementwise"):
        TransformedPosterior(
            single(torch.float64), torch.distributions.transforms.SoftmaxTransform()
        )
    mixed = AffineTransform(0.0, torch.tensor([[1.0, -1.0]], dtype=torch.float64))
    with pytest.raises(NotImplementedError, match="one sign"):
        TransformedPosterior(several(torch.float64), mixed).quantile(torch.tensor(0.3))
    with pytest.raises(NotImplementedError, match="positive affine scale"):
        TransformedPosterior(several(torch.float64), mixed).log_expected_improvement(0.0)
