"""Samples of a Gaussian copula from a few joint ones, against the joint they come from."""

import pytest
import torch
from botorch.acquisition.utils import prune_inferior_points
from botorch.models.model import Model
from botorch.sampling.get_sampler import get_sampler
from botorch.sampling.normal import SobolQMCNormalSampler
from gpytorch.distributions import MultivariateNormal
from torch.distributions import Normal
from torch.distributions.transforms import AffineTransform, ExpTransform

from priors.posteriors.copula import CopulaSampler
from priors.posteriors.gaussian import GaussianPosterior
from priors.posteriors.protocol import PredictivePosterior
from priors.posteriors.transformed import TransformedPosterior

MEAN = torch.tensor([0.0, 0.4, -0.3, 0.2], dtype=torch.float64)
ROOT = torch.tensor(
    [[1.0, 0.0, 0.0, 0.0], [0.9, 0.3, 0.0, 0.0], [-0.5, 0.2, 0.6, 0.0], [0.0, 0.1, 0.2, 0.7]],
    dtype=torch.float64,
)


class Costly(PredictivePosterior):
    """A Gaussian that counts the joint samples drawn from it."""

    def __init__(self, drawn, dependent=True):
        self.drawn, self.dependent = drawn, dependent

    @property
    def mean(self):
        return MEAN[:, None]

    @property
    def variance(self):
        return ROOT.square().sum(-1)[:, None]

    @property
    def _normal(self):
        return Normal(self.mean, self.variance.sqrt())

    def log_prob(self, Y):
        return self._normal.log_prob(Y)

    def cdf(self, Y):
        return self._normal.cdf(Y)

    def quantile(self, value):
        return self._normal.icdf(value[..., None, None])

    def rsample_from_base_samples(self, sample_shape, base_samples):
        if not self.dependent:
            return self.mean + self.variance.sqrt() * base_samples
        self.drawn.append(sample_shape.numel())
        return self.mean + ROOT @ base_samples

    def independent(self):
        return Costly(self.drawn, dependent=False)


@pytest.mark.parametrize("transformed", [False, True])
def test_marginals_are_exact_and_correlations_those_of_the_joint(transformed):
    drawn = []
    posterior = Costly(drawn)
    if transformed:
        posterior = TransformedPosterior(posterior, ExpTransform())
    sampler = CopulaSampler(torch.Size([2, 2048]), num_joint=256, seed=0)
    samples = sampler(posterior)
    assert drawn == [256]
    assert samples.shape == (2, 2048, 4, 1)
    values = (samples.log() if transformed else samples).flatten(0, 1)[..., 0]
    scale = ROOT.square().sum(-1).sqrt()
    assert ((values.mean(0) - MEAN) / scale).abs().max() < 4 / 4096**0.5
    assert (values.std(0) / scale - 1).abs().max() < 4 / (2 * 4096) ** 0.5
    expected = ROOT @ ROOT.mT / scale / scale[:, None]
    error = (torch.corrcoef(values.mT) - expected).abs()
    assert (error < 4 * (1 - expected**2) * (1 / 256 + 1 / 4096) ** 0.5 + 1e-12).all()


def test_pruning_draws_few_joint_samples_and_keeps_what_may_be_best():
    drawn = []

    class Fixed(Model):
        num_outputs = 1

        def posterior(self, X, **keywords):
            return TransformedPosterior(Costly(drawn), AffineTransform(1.0, 0.1))

    X = torch.arange(4.0, dtype=torch.float64)[:, None]
    kept = prune_inferior_points(Fixed(), X)
    assert drawn == [128]
    joint = MEAN + torch.randn(20000, 4, dtype=torch.float64) @ ROOT.mT
    share = joint.argmax(1).bincount(minlength=4) / 20000
    assert set(kept[:, 0].tolist()) >= set(torch.nonzero(share > 0.02)[:, 0].double().tolist())


def test_other_samplers_are_botorchs():
    posterior = Costly([])
    assert isinstance(get_sampler(posterior, torch.Size([2048])), CopulaSampler)
    assert isinstance(get_sampler(posterior, torch.Size([512])), SobolQMCNormalSampler)
    gaussian = GaussianPosterior(MultivariateNormal(MEAN, ROOT @ ROOT.mT))
    assert isinstance(get_sampler(gaussian, torch.Size([2048])), SobolQMCNormalSampler)
    with pytest.raises(ValueError, match="independent points"):
        CopulaSampler(torch.Size([8]))(gaussian)
