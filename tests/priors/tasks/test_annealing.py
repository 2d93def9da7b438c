"""The annealed sampler against conjugate posteriors and brute force."""

import dataclasses
import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from priors import OptimizationSize, OptimizationTaskPrior, RandomKernelTaskPrior, TaskSize
from priors.tasks.annealing import AnnealedSampler
from priors.tasks.noise import RandomNoise


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_normal_mean_has_its_conjugate_posterior_and_evidence():
    y = torch.tensor([[0.3, -0.2], [4.0, 5.0], [-2.0, -2.1]]).double()
    S, variance = 2000, 0.05
    sampler = AnnealedSampler(particles=S, moves=30, final_moves=20)

    def log_likelihood(latents):
        mean = latents["mean"].view(len(y), S, 1)
        return (
            torch.distributions.Normal(mean, variance**0.5).log_prob(y[:, None]).sum(-1).flatten()
        )

    drawn, evidence = sampler.run(lambda d, rows: {"mean": d.normal(rows)}, log_likelihood, len(y))
    mean = drawn["mean"].view(len(y), S)
    precision = 1 + 2 / variance
    expected = y.sum(-1) / variance / precision
    # 5 standard errors of S / 4 independent draws
    assert ((mean.mean(-1) - expected).abs() < 5 * (4 / S / precision) ** 0.5).all()
    assert ((mean.var(-1) * precision - 1).abs() < 5 * (8 / S) ** 0.5).all()
    marginal = MultivariateNormal(torch.zeros(2).double(), variance * torch.eye(2).double() + 1)
    torch.testing.assert_close(evidence, marginal.log_prob(y), rtol=0, atol=0.25)


def test_discrete_draws_have_their_posterior_probabilities():
    prior = torch.tensor([0.5, 0.25, 0.25]).double()
    likelihood = torch.tensor([[0.9, 0.05, 1e-3], [1e-4, 0.02, 0.01]]).double()
    S = 4000

    def program(draws, rows):
        split = draws.bernoulli(0.5, rows)
        return {"k": torch.where(split, 0, 1 + draws.integers(2, rows))}

    def log_likelihood(latents):
        return likelihood.gather(1, latents["k"].view(2, S)).log().flatten()

    drawn, evidence = AnnealedSampler(S, 10, 20).run(program, log_likelihood, 2)
    found = torch.stack([(drawn["k"].view(2, S) == k).double().mean(-1) for k in range(3)], -1)
    joint = prior * likelihood
    expected = joint / joint.sum(-1, keepdim=True)
    assert ((found - expected).abs() < 5 * (expected * (1 - expected) * 4 / S).sqrt() + 1e-3).all()
    torch.testing.assert_close(evidence, joint.sum(-1).log(), rtol=0, atol=0.15)


def test_all_the_numbers_of_a_row_are_its_own():
    """With a flat likelihood what is drawn has the prior, and neighbours stay independent."""
    S = 3000

    def program(draws, rows):
        return {"u": draws.uniform(rows, 2), "g": draws.gamma(1.5, rows), "z": draws.normal(rows)}

    drawn, evidence = AnnealedSampler(S, 2, 30).run(program, lambda d: 0.0 * d["z"], 1)
    assert float(evidence) == pytest.approx(0, abs=1e-9)
    columns = torch.stack([*drawn["u"].mT, drawn["g"], drawn["z"]])
    expected = torch.tensor([0.5, 0.5, 1.5, 0.0]).double()
    error = torch.tensor([1 / 12, 1 / 12, 1.5, 1.0]).double().sqrt() / S**0.5
    assert ((columns.mean(1) - expected).abs() < 4.5 * error).all()
    assert (torch.corrcoef(columns).fill_diagonal_(0).abs() < 5 / S**0.5).all()
    shifted = torch.corrcoef(torch.stack([drawn["z"][1:], drawn["z"][:-1]]))[0, 1]
    assert abs(float(shifted)) < 5 / S**0.5


def gaussian_context_density(prior, task, drawn):
    n, rows = task.num_context, len(drawn.y)
    X = task.X[:, :n].double().expand(rows, -1, -1)
    if isinstance(prior, OptimizationTaskPrior):
        K = prior.covariance(X, X, drawn.latents)
    else:
        K = prior.covariance(X, drawn.latents)
    noise = drawn.noise_var.double()
    K = K + torch.diag_embed(noise[:, None].expand(-1, n) + 1e-8)
    return MultivariateNormal(torch.zeros(n).double(), K).log_prob(task.y[:, :n, 0].double())


def with_latents(task, drawn):
    """The data of one task with the hyperparameters of many."""
    rows = len(drawn.y)
    return dataclasses.replace(
        task,
        X=task.X.expand(rows, -1, -1),
        y=task.y.expand(rows, -1, -1),
        f=None,
        noise_var=drawn.noise_var,
        latents=drawn.latents,
        row_latents={},
    )


SIZE = TaskSize(num_context=3, num_queries=4, num_features=2)
PRIORS = {
    "kernels": RandomKernelTaskPrior(size=SIZE, noise=RandomNoise(low=0.05)),
    "t processes": RandomKernelTaskPrior(
        size=SIZE, noise=RandomNoise(low=0.05), scale_concentration=2.5
    ),
    "optimisation": OptimizationTaskPrior(
        size=OptimizationSize(num_context=3, num_queries=4, num_features=2), output_warping=0.0
    ),
}


# half a minute each
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("kernels", "t processes")]


@pytest.mark.parametrize("name", [*SLOW, "optimisation"])
def test_predictions_are_those_of_brute_force(name):
    """Densities of held-out values, by annealing and by weighting many draws of the prior."""
    prior = PRIORS[name]
    task = prior.sample(1, generator=seeded(1), dtype=torch.float64)
    n = task.num_context
    drawn = prior.sample(40_000, generator=seeded(6), dtype=torch.float64)
    many = with_latents(task, drawn)
    weights = gaussian_context_density(prior, task, drawn).softmax(0)
    effective = float(1 / weights.square().sum())
    assert effective > 300
    density = prior.oracle(many).log_prob(many.y[:, n:]).exp()[..., 0]
    expected = weights @ density
    spread = (weights @ (density - expected) ** 2).sqrt()
    S = 1000
    found = prior.annealed(task, AnnealedSampler(S, 10, 20)).log_prob(task.y[:, n:])[0, :, 0].exp()
    error = spread * (1 / effective + 4 / S) ** 0.5
    assert ((found - expected).abs() < 4.5 * error + 1e-9).all(), (found, expected, error)


def test_predictions_do_not_look_at_what_was_drawn():
    prior = PRIORS["kernels"]
    task = prior.sample(2, generator=seeded(1))
    other = dataclasses.replace(task, latents={}, noise_var=torch.full((2,), math.nan), f=None)
    sampler = AnnealedSampler(8, 1, 2)
    assert torch.equal(prior.annealed(task, sampler).mean, prior.annealed(other, sampler).mean)


def test_no_context_gives_the_prior():
    task = OptimizationTaskPrior(size=OptimizationSize(num_context=0), output_warping=0.0).sample(
        2, generator=seeded()
    )
    posterior = OptimizationTaskPrior(output_warping=0.0).annealed(task, AnnealedSampler(400))
    assert posterior.mean.abs().max() < 1e-6
    assert posterior.mean.dtype == task.y.dtype


@pytest.mark.parametrize(
    ("program", "likelihood", "message"),
    [
        (lambda d, r: {"z": d.normal(2)}, lambda x: x["z"], "arrays of 8 rows"),
        (lambda d, r: {"z": d.normal(r)}, lambda x: x["z"] * math.nan, "8 NaN"),
        (lambda d, r: {"z": d.normal(r)}, lambda x: x["z"][:3], r"shape \(3,\)"),
        (lambda d, r: {"z": d.normal(r)}, lambda x: x["z"] - math.inf, "positive likelihood"),
    ],
)
def test_bad_programs(program, likelihood, message):
    with pytest.raises(ValueError, match=message):
        AnnealedSampler(4, 1, 1).run(program, likelihood, 2)


def test_a_program_that_changes_its_draws():
    sizes = iter([1, 2, 3])
    with pytest.raises(ValueError, match="must always make the same draws"):
        AnnealedSampler(4, 1, 1).run(
            lambda d, r: {"z": d.normal(r, next(sizes))}, lambda x: x["z"].sum(-1), 1
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"particles": 1}, "particles"), ({"moves": -1}, "moves"), ({"effective": 1.0}, "effective")],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        AnnealedSampler(**changes)


def test_priors_that_are_not_gaussian_are_refused():
    task = PRIORS["kernels"].sample(1, generator=seeded())
    with pytest.raises(ValueError, match="outliers=0"):
        RandomKernelTaskPrior(noise=RandomNoise(outliers=0.1)).annealed(task)
    with pytest.raises(ValueError, match="output_warping=0"):
        OptimizationTaskPrior().annealed(task)
