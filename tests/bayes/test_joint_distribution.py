"""The posterior of hyperparameters, tested by what it must leave alone: the joint distribution.

If theta is from the prior and y from the likelihood at theta, then theta is a draw from the
posterior given y. So a transition of a sampler leaves it distributed as the prior (Geweke 2004,
"Getting it right"), and its rank among draws from the posterior is uniform (simulation-based
calibration, Talts et al. 2018, 1804.06788). Every chain has data of its own. Priors and likelihood
are written out here; only the density is that of the package.
"""

import math

import pytest
import torch
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.priors import GammaPrior, LogNormalPrior

from bayes import HMC, MCLMC, ChEES, GaussianProcess, LogDensity
from bayes.inference.evaluation import Evaluation
from bayes.processes import hyperparameters
from bayes.processes.hyperparameters import HyperparameterPosterior
from bayes.testing import moments_in_errors

X = torch.linspace(0, 1, 5, dtype=torch.float64).unsqueeze(-1)
LOWER = 1e-3  # of the noise variance
SHORT = HMC(trajectory_length=1.8)


def posterior():
    """Of output scale, length scale and noise variance."""
    kernel = ScaleKernel(
        MaternKernel(lengthscale_prior=LogNormalPrior(-1.0, 0.7)),
        outputscale_prior=GammaPrior(3.0, 2.0),
    ).double()
    likelihood = GaussianLikelihood(
        noise_prior=LogNormalPrior(-2.0, 0.8), noise_constraint=GreaterThan(LOWER)
    ).double()
    model = GaussianProcess(
        X,
        torch.zeros_like(X),
        kernel,
        likelihood=likelihood,
        input_transform=None,
        outcome_transform=None,
    )
    target = HyperparameterPosterior(model)
    parts = ("noise_covar", "lengthscale", "outputscale")
    order = [next(p for p in parts if p in slot.name) for slot in target.slots]
    return target, order


def from_prior(number, order, generator):
    """Unconstrained numbers `[number, 3]`: the noise's prior holds above its lower bound."""

    def normal(mean, std, size):
        drawn = torch.randn(size, generator=generator, dtype=torch.float64)
        return (mean + std * drawn).exp()

    noise = normal(-2.0, 0.8, 4 * number)
    noise = noise[noise > LOWER][:number]
    uniform = torch.rand(3, number, generator=generator, dtype=torch.float64)
    drawn = {
        "noise_covar": (noise - LOWER).log(),
        "lengthscale": normal(-1.0, 0.7, number).log(),
        "outputscale": (-uniform.log().sum(0) / 2.0).log(),  # Gamma(3, 2), of three exponentials
    }
    return torch.stack([drawn[name] for name in order], -1)


def outcomes(u, order, generator):
    """Draws of y `[number, 5]` given the hyperparameters."""
    value = dict(zip(order, u.exp().unbind(-1), strict=True))
    length, scale = value["lengthscale"][:, None, None], value["outputscale"][:, None, None]
    r = math.sqrt(5) * (X - X.T).abs() / length
    covariance = scale * (1 + r + r.square() / 3) * (-r).exp()
    noise = LOWER + value["noise_covar"][:, None, None]
    root = torch.linalg.cholesky(covariance + noise * torch.eye(5, dtype=torch.float64))
    drawn = torch.randn(len(u), 5, 1, generator=generator, dtype=torch.float64)
    return (root @ drawn).squeeze(-1)


def geweke(method, iterations, chains=200):
    """Largest error of first, second and mixed moments, in standard errors."""
    target, order = posterior()
    generator = torch.Generator().manual_seed(0)
    density = target.log_density()
    evaluation = Evaluation(density, compile=False)
    kernel = method._kernel(evaluation)
    # The data change: graphs would hold the first.
    evaluation._graph = lambda position: evaluation._plain
    if isinstance(method, MCLMC):
        kernel._step = kernel._plain_step
    u = from_prior(chains, order, generator)
    reference = from_prior(200_000, order, generator)
    with torch.no_grad():
        target.targets = outcomes(u, order, generator).unsqueeze(1)
        state = kernel.start(u, generator)
        state["log_step"], kept = math.log(0.6), []
        for _ in range(iterations):
            target.targets = outcomes(state["position"], order, generator).unsqueeze(1)
            state["lp"], state["gradient"] = evaluation(state["position"])
            state, _ = kernel.sample(state, generator)
            kept.append(state["position"])
    centre, scale = reference.mean(0), reference.std(0)
    found = (torch.stack(kept, 1) - centre) / scale
    reference = (reference - centre) / scale
    worst = 0.0
    for function in (lambda z: z, torch.square, lambda z: z * z.roll(1, -1)):
        truth = function(reference)
        each = function(found).mean(1)
        error = (each.var(0) / len(each) + truth.var(0) / len(truth)).sqrt()
        worst = max(worst, float(((each.mean(0) - truth.mean(0)) / error).abs().max()))
    return worst


def test_transitions_leave_the_joint_distribution():
    assert geweke(SHORT, 8) < 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [HMC(), ChEES(), MCLMC(adjusted=True)], ids=["HMC", "ChEES", "MCLMC"]
)
def test_many_transitions_leave_the_joint_distribution(method):
    """50,000 draws, of which more than 10,000 count."""
    assert geweke(method, 50, chains=1000) < 4


def test_a_wrong_jacobian_of_a_prior_is_noticed(monkeypatch):
    """Of the value a prior is a density of, by the number that moves."""

    def mutated(parts, values, derivatives):
        inverse = tuple(1 / slope for slope in derivatives)
        return right(parts, values, inverse)

    right = hyperparameters._log_priors
    monkeypatch.setattr(hyperparameters, "_log_priors", mutated)
    assert geweke(SHORT, 8) > 4


def test_a_missing_accept_step_is_noticed(monkeypatch):
    right = torch.rand

    def mutated(*sizes, **options):
        if len(sizes) == 1:  # one for each chain, below every probability
            return torch.zeros(*sizes, dtype=torch.float64)
        return right(*sizes, **options)

    monkeypatch.setattr(torch, "rand", mutated)
    assert geweke(SHORT, 8) > 4


def calibration(method, number, ranks, thin):
    """Largest distance of ranks from the uniform distribution, over its critical value at 0.1%."""
    target, order = posterior()
    generator = torch.Generator().manual_seed(1)
    truth = from_prior(number, order, generator)
    target.targets = outcomes(truth, order, generator).unsqueeze(1)
    density = LogDensity(
        target.log_density().function,
        target.dimension,
        initial=lambda generator, number: from_prior(number, order, generator),
        identified=False,
    )
    draws = method.run(density, truth).samples["x"][:, thin - 1 :: thin]
    assert draws.shape[1] == ranks
    rank = (draws < truth.unsqueeze(1)).sum(1).double()  # 0 to ranks, [number, 3]
    steps = torch.arange(ranks + 1, dtype=torch.float64)
    found = (rank.unsqueeze(0) <= steps.view(-1, 1, 1)).double().mean(1)
    distance = (found - ((steps + 1) / (ranks + 1)).unsqueeze(-1)).abs().max()
    return float(distance) / math.sqrt(math.log(2 / 1e-3) / (2 * number))


@pytest.mark.slow
def test_ranks_are_uniform():
    """100 data sets, one a chain, at once."""
    method = ChEES(num_chains=100, num_warmup=40, num_samples=57, progress=False)
    assert calibration(method, 100, 19, 3) < 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", [HMC, ChEES, MCLMC])
def test_ranks_of_many_data_sets_are_uniform(kind):
    """1,000 data sets, 99 draws of each."""
    more = {"adjusted": True} if kind is MCLMC else {}
    method = kind(num_chains=1000, num_warmup=150, num_samples=495, progress=False, **more)
    assert calibration(method, 1000, 99, 5) < 1


@pytest.mark.slow
def test_ranks_of_another_likelihood_are_not(monkeypatch):
    """One that counts every row five times."""
    right = HyperparameterPosterior._log_likelihood
    monkeypatch.setattr(
        HyperparameterPosterior, "_log_likelihood", lambda self, parts: 5 * right(self, parts)
    )
    method = ChEES(num_chains=400, num_warmup=40, num_samples=57, progress=False)
    assert calibration(method, 400, 19, 3) > 1


def test_prior_draws_are_the_priors():
    """Of this module: logarithms of Gamma(3, 2) and of the log normal."""
    generator = torch.Generator().manual_seed(0)
    u = from_prior(40_000, ["noise_covar", "lengthscale", "outputscale"], generator)
    draws = u[:, 1:].reshape(200, 200, 2)
    mean = torch.tensor([-1.0, float(torch.digamma(torch.tensor(3.0))) - math.log(2.0)])
    std = torch.tensor([0.7, math.sqrt(math.pi**2 / 6 - 1 - 1 / 4)])
    first, second = moments_in_errors(draws, mean, std)
    assert float(first.abs().max()) < 4
    assert float(second.abs().max()) < 4
