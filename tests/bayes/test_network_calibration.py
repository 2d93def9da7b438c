"""Posteriors of small networks, tested by ranks: simulation-based calibration.

Weights and parameters of the likelihood are drawn from the prior, outcomes from the likelihood,
both as written out here; the rank of what was drawn among draws from the posterior is then uniform
(Talts et al. 2018, 1804.06788). Every chain has data of its own. Weights have symmetries, so what
is ranked are function values, and the likelihood's parameters.
"""

import math

import pytest
import torch
from torch import nn

from bayes import BayesianNetwork, ChEES, LogDensity
from bayes.likelihoods import Gaussian, StudentT
from bayes.networks.density import NetworkPosterior
from priors import NetworkPrior

X = torch.tensor([[-1.5], [-0.7], [0.0], [0.4], [1.1], [1.9]], dtype=torch.float64)
ASKED = torch.tensor([[-1.0], [0.6], [2.5]], dtype=torch.float64)
WIDTH = 3


def model_of(likelihood):
    module = nn.Sequential(nn.Linear(1, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
    prior = NetworkPrior(module, weight_var={"0": 2.0, "2": 1.5}, bias_var={"0": 0.5, "2": 0.3})
    return BayesianNetwork(
        X,
        torch.zeros_like(X),
        prior,
        likelihood=likelihood,
        input_transform=None,
        outcome_transform=None,
    )


def functions(eps, x):
    """The network's values `[..., n]` of whitened weights `[..., 3 WIDTH + 1]`."""
    first, shift, last, constant = eps.split([WIDTH, WIDTH, WIDTH, 1], -1)
    hidden = math.sqrt(2.0) * x * first.unsqueeze(-2) + math.sqrt(0.5) * shift.unsqueeze(-2)
    out = (hidden.tanh() * last.unsqueeze(-2)).sum(-1) * math.sqrt(1.5 / WIDTH)
    return out + math.sqrt(0.3) * constant


def normal(*shape, generator):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class OfGaussian:
    """log of the noise variance ~ N(-2, 1)."""

    likelihood = Gaussian(log_noise_var_prior=(-2.0, 1.0))
    parameters = 1

    @staticmethod
    def from_prior(number, generator):
        return -2.0 + normal(number, 1, generator=generator)

    @staticmethod
    def noise(parameters, size, generator):
        return (0.5 * parameters).exp() * normal(*size, generator=generator)


class OfStudentT:
    """log scale ~ N(-1, 0.75), four degrees of freedom."""

    likelihood = StudentT(df=4.0, log_scale_prior=(-1.0, 0.75))
    parameters = 1

    @staticmethod
    def from_prior(number, generator):
        return -1.0 + 0.75 * normal(number, 1, generator=generator)

    @staticmethod
    def noise(parameters, size, generator):
        chi_square = normal(4, *size, generator=generator).square().sum(0)
        return parameters.exp() * normal(*size, generator=generator) * (4 / chi_square).sqrt()


def distance(kind, number, ranks, thin, copies=1):
    """Largest distance of ranks from the uniform distribution, over its critical value at 0.1%.

    Args:
        kind: Of noise.
        number: Data sets.
        ranks: Draws of each.
        thin: Iterations between them.
        copies: How often the sampler is told each row.
    """
    generator = torch.Generator().manual_seed(0)

    def from_prior(generator, number):
        eps = normal(number, 3 * WIDTH + 1, generator=generator)
        return torch.cat([eps, kind.from_prior(number, generator)], -1)

    truth = from_prior(generator, number)
    eps, parameters = truth.split([3 * WIDTH + 1, kind.parameters], -1)
    Y = functions(eps, X) + kind.noise(parameters, (number, len(X)), generator)
    model = model_of(kind.likelihood)
    model.targets = lambda: (Y.unsqueeze(-1), None)
    posterior = NetworkPosterior(model)

    def density(position):
        likelihood = posterior.log_likelihood(position).sum((-2, -1))
        return copies * likelihood + posterior.log_prior(position)

    target = LogDensity(density, posterior.dimension, initial=from_prior, identified=False)
    method = ChEES(
        num_chains=number,
        num_warmup=200,
        num_samples=ranks * thin,
        max_steps=64,
        progress=False,
        compile=False,
    )
    draws = method.run(target, truth).samples["x"][:, thin - 1 :: thin]

    def asked(position):
        eps, parameters = position.split([3 * WIDTH + 1, kind.parameters], -1)
        return torch.cat([functions(eps, ASKED), parameters], -1)

    rank = (asked(draws) < asked(truth).unsqueeze(1)).sum(1).double()  # 0 to ranks
    steps = torch.arange(ranks + 1, dtype=torch.float64)
    found = (rank.unsqueeze(0) <= steps.view(-1, 1, 1)).double().mean(1)
    furthest = (found - ((steps + 1) / (ranks + 1)).unsqueeze(-1)).abs().max()
    return float(furthest) / math.sqrt(math.log(2 / 1e-3) / (2 * number))


def test_functions_are_those_of_the_network():
    position = normal(4, 3 * WIDTH + 2, generator=torch.Generator().manual_seed(0))
    found = NetworkPosterior(model_of(OfGaussian.likelihood)).functions(position)
    torch.testing.assert_close(found.squeeze(-1), functions(position[:, :-1], X))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [OfGaussian, OfStudentT])
def test_ranks_are_uniform(kind):
    assert distance(kind, 200, 19, 10) < 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", [OfGaussian, OfStudentT])
def test_ranks_of_many_data_sets_are_uniform(kind):
    assert distance(kind, 1000, 99, 5) < 1


@pytest.mark.slow
def test_ranks_of_another_likelihood_are_not():
    """One that counts every row five times."""
    assert distance(OfStudentT, 100, 19, 2, copies=5) > 1
