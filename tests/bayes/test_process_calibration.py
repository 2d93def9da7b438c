"""Exact posteriors of processes over data of their own prior: simulation-based calibration.

A held-out outcome of data drawn from a model's prior has a uniform place in its prediction
(Talts et al. 2018, 1804.06788). Data sets are the columns or the batch of one model, whose
hyperparameters are those that the data were drawn with. Variational models of other than Gaussian
noise have no exact posterior, and are left out; networks are in `test_joint_distribution`.
"""

import pytest
import torch
from gpytorch.kernels import RBFKernel
from scipy import stats
from torch.distributions import InverseGamma

from bayes import (
    GaussianProcess,
    HeteroscedasticGaussianProcess,
    ScaleMixtureProcess,
    StudentTProcess,
    VariationalGaussianProcess,
    WeightSpaceProcess,
)
from priors import HalfCauchyVariance
from priors.kernels.random_features import NNGPFeatures

OFF = {"input_transform": None, "outcome_transform": None}
NOISE = 0.2


def kernel():
    made = RBFKernel()
    made.lengthscale = 0.3
    return made


def features():
    return NNGPFeatures(
        1, 12, weight_var=[1.0, 2.0], bias_var=[0.3, 0.1],
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip


class Drawn:
    """Data sets `[sets, n + 1]` of a process at the same inputs; the last row is held out."""

    def __init__(self, sets, n, seed, *, covariance=None, noise=NOISE, scale=None, scaled=False):
        self.generator = torch.Generator().manual_seed(seed)
        self.X = torch.rand(n + 1, 1, generator=self.generator, dtype=torch.float64)
        with torch.no_grad():
            K = kernel()(self.X).to_dense() if covariance is None else covariance(self.X)
            e = self.normal(sets, n + 1) * (noise(self.X) if callable(noise) else noise) ** 0.5
            f = self.normal(sets, n + 1) @ torch.linalg.cholesky(K + 1e-10 * torch.eye(n + 1)).mT
            s = torch.ones(sets, 1).double() if scale is None else scale(self.generator, sets)
            self.Y = s.sqrt() * f + (s.sqrt() if scaled else 1.0) * e

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def columns(self, make):
        """Places `[sets]` of held-out outcomes for a model of all sets as outputs."""
        model = make(self.X[:-1], self.Y[:, :-1].mT.contiguous())
        with torch.no_grad():
            found = model.posterior(self.X[-1:], observation_noise=True)
            return found.cdf(self.Y[:, -1:].mT)[0]

    def batch(self, make):
        """The same for a model of all sets as a batch: outputs would share the scale."""
        sets = len(self.Y)
        model = make(self.X[:-1].expand(sets, -1, -1), self.Y[:, :-1, None])
        with torch.no_grad():
            posterior = model.posterior(self.X[-1:].expand(sets, -1, -1), observation_noise=True)
            return posterior.cdf(self.Y[:, -1:, None])[:, 0, 0]


def with_noise(model):
    model.likelihood.noise = NOISE
    return model


def inverse_gamma(generator, sets):
    # a chi-square of 4 degrees of freedom as a sum of squares: IG(2, 1.5)
    z = torch.randn(sets, 4, generator=generator, dtype=torch.float64)
    return 1.5 / (z.square().sum(-1, keepdim=True) / 2)


def half_cauchy(generator, sets):
    u = torch.rand(sets, 1, generator=generator, dtype=torch.float64)
    return (torch.pi * u / 2).tan().square()


def of_gaussian(sets, n, seed):
    return Drawn(sets, n, seed).columns(
        lambda X, Y: with_noise(GaussianProcess(X, Y, kernel(), **OFF))
    )


def of_weights(sets, n, seed):
    weights = torch.linspace(0.2, 4.0, n + 1, dtype=torch.float64)
    weights[-1] = 1.0
    drawn = Drawn(sets, n, seed, noise=lambda X: NOISE / weights)
    return drawn.columns(
        lambda X, Y: with_noise(GaussianProcess(X, Y, kernel(), train_weights=weights[:-1], **OFF))
    )


def of_t(sets, n, seed):
    drawn = Drawn(sets, n, seed, scale=inverse_gamma, scaled=True)
    given = {"concentration": 2.0, "rate": 1.5, **OFF}
    return drawn.batch(lambda X, Y: with_noise(StudentTProcess(X, Y, kernel(), **given)))


def of_mixture(scale_noise, law, draw, sets, n, seed):
    drawn = Drawn(sets, n, seed, scale=draw, scaled=scale_noise)
    given = {"scale": law, "scale_noise": scale_noise, **OFF}
    return drawn.batch(lambda X, Y: with_noise(ScaleMixtureProcess(X, Y, kernel(), **given)))


def of_noise_of_inputs(sets, n, seed):
    def noise(X):
        return (-2.0 + 2 * X[:, 0]).exp()

    def make(X, Y):
        model = HeteroscedasticGaussianProcess(X, Y, kernel(), num_noise_points=1, **OFF)
        of_inputs = model.likelihood.noise_covar
        of_inputs.log_variance = lambda X: noise(X.reshape(-1, 1)).log().reshape(X.shape[:-1])
        return model

    return Drawn(sets, n, seed, noise=noise).columns(make)


def of_inducing_points(sets, n, seed):
    def make(X, Y):
        model = VariationalGaussianProcess(X, Y, kernel(), num_inducing=n, **OFF)
        model.law.log_noise_var.data.fill_(float(torch.tensor(NOISE).log()))
        return model

    return Drawn(sets, n, seed).columns(make)


def of_features(sets, n, seed):
    def covariance(X):
        z = features()(X).double()
        return 1.7 * z @ z.mT

    def make(X, Y):
        model = WeightSpaceProcess(X, Y, features(), **OFF)
        model.outputscale.fill_(1.7)
        model.noise.fill_(NOISE)
        return model

    return Drawn(sets, n, seed, covariance=covariance).columns(make)


IG = InverseGamma(*torch.tensor([2.0, 1.5], dtype=torch.float64))
HALF_CAUCHY = HalfCauchyVariance(1.0)
MODELS = {
    "gaussian": of_gaussian,
    "weights": of_weights,
    "t": of_t,
    "mixture": lambda *size: of_mixture(False, HALF_CAUCHY, half_cauchy, *size),
    "mixture of noise": lambda *size: of_mixture(True, HALF_CAUCHY, half_cauchy, *size),
    "mixture, inverse gamma": lambda *size: of_mixture(False, IG, inverse_gamma, *size),
    "noise of inputs": of_noise_of_inputs,
    "inducing points": of_inducing_points,
    "features": of_features,
}


def disagreement(places):
    assert ((places >= 0) & (places <= 1)).all()
    return stats.kstest(places.numpy(), "uniform").pvalue


@pytest.mark.parametrize("name", MODELS)
def test_calibrated_over_few_data_sets(name):
    # many scales for a batch of mixtures
    assert disagreement(MODELS[name](25 if "mixture" in name else 200, 4, 0)) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 8])
@pytest.mark.parametrize("name", MODELS)
def test_calibrated(name, n):
    assert disagreement(MODELS[name](400 if "mixture" in name else 3000, n, n)) > 1e-4


@pytest.mark.parametrize("noise", [0.01, 3.0])
def test_another_prior_is_found_out(noise):
    places = Drawn(400, 4, 0, noise=noise).columns(
        lambda X, Y: with_noise(GaussianProcess(X, Y, kernel(), **OFF))
    )
    assert disagreement(places) < 1e-4
