"""The SAAS process beside BoTorch's: that the prior is the same, and so is the posterior."""

import math

import pytest
import torch
from torch.distributions import Gamma, HalfCauchy, MultivariateNormal

from bayes import ChEES
from bayes.processes.hyperparameters import HyperparameterPosterior
from benchmarks import records
from benchmarks.bayes import saas


def botorchs(u, X, Y):
    """Log density of logarithms: of output scale, length scales, tau and noise above its least.

    As BoTorch's model says it, its mean integrated out.
    """
    outputscale, length, tau, noise = u[0].exp(), u[1:9].exp(), u[9].exp(), u[10].exp()
    r = math.sqrt(5) * ((X[:, None] - X) / length).square().sum(-1).clamp_min(1e-30).sqrt()
    K = outputscale * (1 + r + r.square() / 3) * (-r).exp() + 1  # of the mean, N(0, 1)
    K = K + (saas.LEAST_NOISE + noise) * torch.eye(len(X)).to(X)
    likelihood = MultivariateNormal(torch.zeros(len(X)).to(X), K).log_prob(Y[:, 0])
    inverse = length**-2 / tau  # half-Cauchy of scale 1, of which the logarithm moves by -2
    prior = (
        Gamma(2.0, 0.15).log_prob(outputscale)
        + HalfCauchy(0.1).log_prob(tau)
        + HalfCauchy(1.0).log_prob(inverse).sum()
        + Gamma(0.9, 10.0).log_prob(noise)
    )
    jacobian = u[0] + u[9] + u[10] + (2 * inverse).log().sum()
    return likelihood + prior + jacobian


def test_the_prior_is_botorchs():
    X, Y, _ = saas.problem()
    density = HyperparameterPosterior(saas.ours(X, Y)).log_density()
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(4, 11, generator=generator, dtype=torch.float64)
    truth = torch.stack([botorchs(row, X, Y) for row in u])
    assert torch.allclose(density.function(u), truth, rtol=1e-6)


def record(method, means, **other):
    numbers = {"effective": 400.0, "draws": 800, "seconds": [2.0, 2.0], "errors": [0.3, 0.4]}
    return {"method": method, "means": means, **numbers, **other}


def test_the_table_says_how_far_means_are_apart():
    found = [record(saas.OURS, [1.0, 2.0])]
    assert saas.distances(found, saas.OURS) is None
    found += [record(saas.BOTORCH, [1.0, 4.0])]
    text = saas.table(found)
    assert f"at most {2 / (0.4 * 2**0.5):.1f} standard errors, 2 of them" in text
    assert "     100.0  2.0, 2.0" in text  # effective draws a second


def test_functions_are_those_of_each_draw():
    X, Y, test_X = saas.problem()
    method = ChEES(num_chains=2, num_warmup=3, num_samples=4, max_steps=4, progress=False)
    values = saas.quantities(saas.ours(X, Y), method, test_X[:3])
    assert values.shape == (2, 4, 10 + 3)
    assert values.isfinite().all()


@pytest.mark.slow
def test_the_posterior_is_that_of_botorchs_model():
    """Means of hyperparameters and functions within four errors of what BoTorch's NUTS gave."""
    found = [r for r in records.read(saas.RESULT) if r["method"] == saas.BOTORCH]
    X, Y, test_X = saas.problem()
    method = ChEES(num_chains=16, num_warmup=300, num_samples=200, seed=1, progress=False)
    values = saas.quantities(saas.ours(X, Y), method, test_X)
    far = saas.distances([*found, {"method": saas.OURS, **saas.summary(values)}], saas.OURS)
    assert float(far.max()) < 4
