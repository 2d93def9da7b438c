"""The references of the speed benchmark: samplers against quadrature, and against `bayes`."""

import json
import math

import pyro
import pytest
import torch

from bayes import NUTS, BayesianNetwork
from benchmarks.pfn import speed
from benchmarks.pfn.references import (
    GPTasks,
    NetworkTasks,
    diagnostics,
    grid,
    hmc,
    hyperparameters,
    matern,
    mixture_nll,
)


@pytest.fixture(scope="module")
def data():
    """One GP data set: context, queries."""
    tasks = GPTasks(features=2, max_context=12, queries=15, fixed=True)
    task = tasks.sample(1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return tasks, task.X[0, :12], task.y[0, :12, 0], task.X[0, 12:], task.y[0, 12:, 0]


def test_marginal_likelihood_and_prediction_are_those_of_the_joint_gaussian(data):
    tasks, X, y, queries, target = data
    z = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lengthscale, outputscale, noise = hyperparameters(z)
    rows = torch.cat([X, queries[:1]])
    joint = matern(rows, rows, lengthscale, outputscale) + noise[:, None, None] * torch.eye(
        13, dtype=torch.float64
    )
    values = torch.cat([y, target[:1]])

    def log_prob(k):
        zeros = torch.zeros(k, dtype=torch.float64)
        normal = torch.distributions.MultivariateNormal(zeros, joint[:, :k, :k])
        return normal.log_prob(values[:k])

    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    assert torch.allclose(tasks.log_density(z, X, y), log_prob(12) + prior, atol=1e-6)
    mean, variance = tasks.predictive(z, X, y, queries)
    predicted = torch.distributions.Normal(mean[:, 0], variance[:, 0].sqrt()).log_prob(target[0])
    assert torch.allclose(predicted, log_prob(13) - log_prob(12), atol=1e-5)


def test_the_tasks_have_the_stated_moments():
    tasks = GPTasks(max_context=5, queries=1, fixed=True)
    task = tasks.sample(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # E[outputscale] + E[noise] of lognormals
    expected = math.exp(0.6**2 / 2) + 0.03 * math.exp(0.5)
    squares = task.y.square().mean((1, 2))
    assert abs(squares.mean() - expected) < 4 * squares.std() / 4000**0.5


def test_the_grid_has_converged(data):
    tasks, X, y, queries, target = data

    def nll(points):
        nodes, log_weights = grid(tasks, X, y, points=points)
        return mixture_nll(*tasks.predictive(nodes, X, y, queries), target, log_weights)

    assert torch.allclose(nll(25), nll(17), atol=2e-3)


def test_hmc_agrees_with_the_grid(data):
    tasks, X, y, queries, target = data
    generator = torch.Generator().manual_seed(0)
    found = hmc(
        lambda z: tasks.log_density(z, X, y),
        torch.randn(32, 3, generator=generator, dtype=torch.float64),
        warmup=40,
        samples=60,
        generator=generator,
    )
    assert 0.6 < found.accepted < 0.97
    rhat, ess = diagnostics(found.draws)
    assert rhat < 1.05
    nodes, log_weights = grid(tasks, X, y, points=17)
    weights = log_weights.exp()
    mean = weights @ nodes
    std = (weights @ (nodes - mean).square()).sqrt()
    draws = found.draws.flatten(0, 1)
    assert bool(((draws.mean(0) - mean).abs() < 5 * std / ess**0.5).all())
    assert torch.allclose(draws.std(0), std, rtol=0.12)
    exact = mixture_nll(*tasks.predictive(nodes, X, y, queries), target, log_weights)
    sampled = mixture_nll(*tasks.predictive(draws, X, y, queries), target)
    assert float((sampled - exact).abs().median()) < 0.02


def test_hmc_samples_a_gaussian_of_unequal_scales():
    std = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    found = hmc(
        lambda z: -0.5 * (z / std).square().sum(-1),
        torch.randn(32, 3, generator=generator, dtype=torch.float64),
        warmup=100,
        samples=200,
        generator=generator,
    )
    assert torch.allclose(found.draws.flatten(0, 1).std(0), std, rtol=0.06)


def test_the_network_prior_is_that_of_bayes():
    """Coordinates, functions and joint density agree with BayesianNetwork's Pyro model."""
    tasks = NetworkTasks(features=2, width=5, max_context=9, queries=3, fixed=True)
    generator = torch.Generator().manual_seed(0)
    task = tasks.sample(1, generator=generator, dtype=torch.float64)
    X, y = task.X[0, :9], task.y[0, :9, 0]
    model = BayesianNetwork(
        X,
        y[:, None],
        tasks.prior(),
        log_noise_var_prior=tasks.log_noise_var_prior,
        input_transform=None,
        outcome_transform=None,
    )
    z = torch.randn(1, tasks.size, generator=generator, dtype=torch.float64)
    mean, std = tasks.log_noise_var_prior
    values = {"eps": z[0, :-1], "log_noise_var": mean + std * z[0, -1:]}
    trace = pyro.poutine.trace(pyro.condition(model.pyro_model, data=values)).get_trace()
    # theirs is a density of the log noise variance, ours of its standard normal coordinate
    expected = trace.log_prob_sum() + math.log(std)
    assert torch.allclose(tasks.log_density(z, X, y)[0], expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This run of NUTS")  # judged below
def test_nuts_agrees_with_the_grid(data):
    """The sampler of `bayes` on observed data; the released code of the PFN paper has none."""
    tasks, X, y, _, _ = data
    draws = NUTS(200, 200, 2, progress=False).run(tasks.pyro_model(X, y), X).samples["z"]
    rhat, ess = diagnostics(draws)
    assert rhat < 1.05
    assert ess > 50
    nodes, log_weights = grid(tasks, X, y, points=17)
    weights = log_weights.exp()
    mean = weights @ nodes
    std = (weights @ (nodes - mean).square()).sqrt()
    # the prior has mean 0 and deviation 1: a sampler that ignores the data fails here
    assert bool((mean.abs() > 5 / ess**0.5).any())
    assert bool(((draws.mean((0, 1)) - mean).abs() < 4 * std / ess**0.5).all())
    assert torch.allclose(draws.flatten(0, 1).std(0), std, rtol=0.15)


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path):
    options = ["--quick", "--minutes", "0.05", "--sets", "2", "--only", "gp", "--nuts-sets", "0"]
    assert speed.main([*options, "--out", str(tmp_path), "--networks", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "pfn_speed_gp_quick.json").read_text())["gp"]
    assert found["methods"]["PFN"]["data_sets"] == 2
    assert abs(found["methods"]["grid 9^3"]["gap"]) < 0.1
    assert set(found["at_equal_nll"]) == {"HMC", "MLE-II", "grid 9^3"}
