"""Drawn hyperparameters: their density in closed form, their predictions as an average."""

import math
import warnings

import pytest
import torch
from botorch.acquisition import (
    qKnowledgeGradient,
    qLogExpectedImprovement,
    qUpperConfidenceBound,
)
from gpytorch.kernels import LinearKernel, MaternKernel, RBFKernel, ScaleKernel
from gpytorch.priors import GammaPrior, LogNormalPrior
from torch import nn

from bayes import NUTS, ChEES, GaussianProcess, SaasPrior
from bayes.inference.log_density import value_and_gradient
from bayes.processes.hyperparameters import HyperparameterPosterior
from bayes.testing import moments_in_errors
from priors import NNGPKernel
from priors.posteriors.batch_mixture import BatchMixturePosterior
from priors.testing import PosteriorContract

FAST = ChEES(num_chains=8, num_warmup=12, num_samples=4, progress=False)


def data(n=12, d=2, m=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(n, d, generator=generator, dtype=torch.float64)
    Y = torch.sin(5 * X[:, :1]) + torch.arange(m) * X[:, -1:] + 3
    return X, Y + 0.1 * torch.randn(n, m, generator=generator, dtype=torch.float64)


def matern(d=2):
    return ScaleKernel(
        MaternKernel(ard_num_dims=d, lengthscale_prior=LogNormalPrior(0.0, 1.0)),
        outputscale_prior=GammaPrior(2.0, 0.15),
    ).double()


def drawn(model, method=FAST, num_draws=8):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This GaussianProcess may not", UserWarning)
        return model.fit(method=method, num_draws=num_draws)


def given(model, size=8):
    """As if drawn: hyperparameters around where they start."""
    dimension = HyperparameterPosterior(model).dimension
    generator = torch.Generator().manual_seed(0)
    u = 0.3 * torch.randn(size, dimension, generator=generator, dtype=torch.float64) - 0.5
    model._use(u.to(model.train_X))
    return model


def test_the_density_is_likelihood_times_priors_times_jacobian():
    """Against a dense computation at one point, of logarithms of positive numbers."""
    X, Y = data()
    model = GaussianProcess(X, Y, matern(), input_transform=None, outcome_transform=None)
    target = HyperparameterPosterior(model)
    density = target.log_density()
    u = torch.tensor([[0.3, -0.2, 0.5, -1.0], [0.1, 0.0, -0.4, -2.0]], dtype=torch.float64)
    value, gradient = value_and_gradient(density.function, u)
    names = [slot.name for slot in target.slots]
    assert names[0].endswith("raw_outputscale")
    assert names[2].endswith("raw_noise")
    noise_at = target.slots[2].part
    scale_at = target.slots[1].part
    lower = model.likelihood.noise_covar.raw_noise_constraint.lower_bound.item()

    def truth(u):
        outputscale, lengthscale = u[0].exp(), u[scale_at].exp()
        noise = lower + u[noise_at].exp()
        r = 5**0.5 * ((X[:, None] - X) / lengthscale).square().sum(-1).clamp_min(1e-30).sqrt()
        K = outputscale * (1 + r + r.square() / 3) * (-r).exp()
        K = K + noise * torch.eye(len(X), dtype=torch.float64)
        law = torch.distributions.MultivariateNormal(torch.zeros(len(X)).double(), K)
        prior = torch.distributions.Gamma(2.0, 0.15).log_prob(outputscale) + u[0]
        prior = prior + torch.distributions.Normal(0.0, 1.0).log_prob(u[scale_at]).sum()
        noise_prior = model.likelihood.noise_covar.noise_prior.log_prob(noise).sum()
        return law.log_prob(Y[:, 0]) + prior + noise_prior + u[noise_at].sum()

    for k in range(2):
        at = u[k].clone().requires_grad_()
        expected = truth(at)
        (slope,) = torch.autograd.grad(expected, at)
        assert value[k].item() == pytest.approx(expected.item(), rel=1e-6)
        assert torch.allclose(gradient[k], slope, rtol=1e-5, atol=1e-6)


def test_predictions_average_over_all_draws():
    """One process for each draw, made by hand, averaged."""
    X, Y = data(m=2)
    model = given(GaussianProcess(X, Y, matern()))
    values = model.hyperparameter_draws()
    Q = data(n=4, seed=1)[0]
    posterior = model.posterior(Q, observation_noise=True)
    means, variances, densities = [], [], []
    y = data(n=4, m=2, seed=1)[1]
    for k in range(8):
        one = GaussianProcess(X, Y, matern())
        one.covar_module.outputscale = values["kernel.outputscale"][k]
        one.covar_module.base_kernel.lengthscale = values["kernel.base_kernel.lengthscale"][k]
        one.likelihood.noise = values["likelihood.noise_covar.noise"][k]
        each = one.posterior(Q, observation_noise=True)
        means.append(each.mean)
        variances.append(each.variance)
        densities.append(each.log_prob(y))
    mean = torch.stack(means).mean(0)
    spread = torch.stack(means).square().mean(0) - mean.square()
    assert torch.allclose(posterior.mean, mean)
    assert torch.allclose(posterior.variance, torch.stack(variances).mean(0) + spread)
    density = torch.stack(densities).logsumexp(0) - math.log(8)
    assert torch.allclose(posterior.log_prob(y), density)


@pytest.mark.usefixtures("without_graphs")
def test_fit_keeps_draws_evenly():
    X, Y = data(n=6)
    model = drawn(GaussianProcess(X, Y, matern()))
    every = model.draws.samples["position"].flatten(0, 1)
    assert every.shape == (32, 4)
    assert torch.equal(model._drawn[[0, -1]], every[[0, -1]])
    assert len(model._drawn) == 8
    assert isinstance(model.posterior(X), BatchMixturePosterior)
    assert not isinstance(model.fit().posterior(X), BatchMixturePosterior)


def test_saved_and_loaded_it_averages_over_the_same_draws(tmp_path):
    X, Y = data()
    model = given(GaussianProcess(X, Y, matern()))
    model.save(tmp_path / "model.safetensors")
    loaded = GaussianProcess.load(tmp_path / "model.safetensors", matern())
    Q = data(n=3, seed=1)[0]
    assert torch.equal(loaded.posterior(Q).mean, model.posterior(Q).mean)
    assert isinstance(loaded.posterior(Q), BatchMixturePosterior)
    loaded.load_state_dict(model.state_dict())
    assert not isinstance(loaded.posterior(Q), BatchMixturePosterior)


def test_further_observations_condition_every_draw():
    X, Y = data()
    model = given(GaussianProcess(X, Y, matern()))
    further = model.condition_on_observations(X[:2] + 0.03, Y[:2])
    both = GaussianProcess(
        torch.cat([X, X[:2] + 0.03]),
        torch.cat([Y, Y[:2]]),
        matern(),
        input_transform=model.input_transform,
        outcome_transform=model.outcome_transform.transform,
    )
    both._use(model._drawn)
    Q = data(n=3, seed=1)[0]
    assert torch.allclose(further.posterior(Q).mean, both.posterior(Q).mean)


@pytest.mark.parametrize("observation_noise", [False, True])
def test_shapes(observation_noise):
    X, Y = data(m=2)
    model = given(GaussianProcess(X, Y, matern()))
    posterior = model.posterior(torch.rand(5, 3, 2).double(), observation_noise=observation_noise)
    assert posterior.mean.shape == posterior.shape == (5, 3, 2)
    assert posterior.rsample(torch.Size([7])).shape == (7, 5, 3, 2)
    assert posterior.joint_log_prob(posterior.mean).shape == (5,)
    one = model.posterior(torch.rand(3, 2).double(), output_indices=[1])
    assert one.mean.shape == (3, 1)


def test_acquisition_functions_take_it():
    X, Y = data()
    model = given(GaussianProcess(X, Y, matern()))
    candidates = torch.rand(3, 2, 2, dtype=torch.float64, requires_grad=True)
    for acquisition in (
        qLogExpectedImprovement(model, Y.max()),
        qUpperConfidenceBound(model, 2.0),
    ):
        value = acquisition(candidates)
        assert value.shape == (3,)
        (gradient,) = torch.autograd.grad(value.sum(), candidates)
        assert bool(gradient.isfinite().all())
    look_ahead = qKnowledgeGradient(model, num_fantasies=2)
    assert look_ahead(torch.rand(2, 3, 2, dtype=torch.float64)).isfinite().all()
    from priors.posteriors.acquisition import ExpectedImprovement

    exact = ExpectedImprovement(model, Y.max())(candidates[:, :1])
    samples = model.posterior(candidates[:, :1]).rsample(torch.Size([20000]))
    sampled = (samples - Y.max()).clamp_min(0)[..., 0, 0]
    error = sampled.std(0) / 20000**0.5
    assert bool(((exact - sampled.mean(0)).abs() < 4 * error + 1e-6).all())


class TestBatchMixture(PosteriorContract):
    def make_posterior(self, dtype):
        X, Y = data(m=2)
        model = given(GaussianProcess(X.to(dtype), Y.to(dtype), matern().to(dtype)), 5)
        Q = data(n=6, seed=1)[0].to(dtype)
        return model.posterior(Q.reshape(2, 3, 2), observation_noise=True)


@pytest.mark.usefixtures("without_graphs")
def test_networks_are_drawn_too():
    """Variances of layers under their own priors of logarithms, length scales beside them."""
    X, Y = data(n=8)
    network = nn.Sequential(nn.LazyLinear(1), nn.ReLU(), nn.Linear(1, 1))
    kernel = NNGPKernel(network, ard_num_dims=2).double()
    model = drawn(
        GaussianProcess(X, Y, kernel),
        ChEES(num_chains=4, num_warmup=6, num_samples=2, progress=False),
        4,
    )
    assert model.posterior(X[:2]).mean.shape == (2, 1)
    assert all(value.shape[0] == 4 for value in model.hyperparameter_draws().values())


def test_what_cannot_be_drawn_is_told():
    X, Y = data()
    with pytest.raises(ValueError, match="raw_lengthscale.* has no prior"):
        GaussianProcess(X, Y, RBFKernel()).fit(method=FAST)
    with pytest.raises(TypeError, match="num_restarts"):
        GaussianProcess(X, Y, matern()).fit(method=FAST, num_restarts=2)
    with pytest.raises(NotImplementedError, match="batch"):
        GaussianProcess(X.expand(2, -1, -1), Y.expand(2, -1, -1), matern()).fit(method=FAST)
    with pytest.raises(RuntimeError, match="not drawn"):
        GaussianProcess(X, Y, matern()).hyperparameter_draws()
    with pytest.raises(ValueError, match="shrinkage"):
        SaasPrior(0.0)


def test_the_saas_prior_integrates_to_one_and_is_what_it_draws():
    prior = SaasPrior(0.5).double()
    grid = torch.linspace(-25, 25, 20001, dtype=torch.float64)
    density = (prior.log_prob(grid.exp()[:, None]) + grid[:, None]).exp()
    assert torch.trapezoid(density.squeeze(), grid).item() == pytest.approx(1, abs=1e-4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = prior.sample(torch.Size([4000]))
    p = torch.trapezoid  # distribution function by quadrature, at the median of the draws
    below = grid < draws.log().median()
    assert p(density.squeeze()[below], grid[below]).item() == pytest.approx(0.5, abs=0.04)


def saas_truth(X, Y, noise, shrinkage):
    """Means and variances of log tau and log length scales, by quadrature over logarithms.

    With rho_i ~ HalfCauchy(tau) and length scale rho_i^-1/2, the likelihood depends on two numbers
    and the prior on three.
    """
    log_rho = torch.linspace(-24, 16, 161, dtype=torch.float64)
    log_tau = torch.linspace(-20, 12, 161, dtype=torch.float64)
    square = (X[:, None] - X).square()  # [n, n, 2]
    rho = torch.cartesian_prod(log_rho, log_rho).exp()
    r = (5 * (square @ rho.mT)).sqrt().permute(2, 0, 1)
    K = (1 + r + r.square() / 3) * (-r).exp() + noise * torch.eye(len(X), dtype=torch.float64)
    zero = torch.zeros(len(X), dtype=torch.float64)
    likelihood = torch.distributions.MultivariateNormal(zero, K).log_prob(Y[:, 0])
    tau = log_tau.exp()
    prior = -tau.log() - torch.log1p((log_rho.exp()[:, None] / tau).square()) + log_rho[:, None]
    top = -torch.log1p((tau / shrinkage).square()) + log_tau
    log = likelihood.reshape(161, 161, 1) + prior[:, None] + prior[None] + top
    weight = (log - log.max()).exp()
    weight = weight / weight.sum()
    marginals = [weight.sum((0, 1)), weight.sum((1, 2)), weight.sum((0, 2))]
    values = [log_tau, -0.5 * log_rho, -0.5 * log_rho]
    means = [(w * v).sum() for w, v in zip(marginals, values, strict=True)]
    spreads = [
        (w * (v - m).square()).sum() for w, v, m in zip(marginals, values, means, strict=True)
    ]
    return torch.stack(means), torch.stack(spreads).sqrt()


@pytest.mark.slow
def test_sums_of_kernels_are_drawn_and_predict_as_each_of_their_draws():
    """GPyTorch expands no part of a sum: see `expanded_kernel`."""
    X, Y = data()
    linear = LinearKernel(variance_prior=GammaPrior(2.0, 1.0)).double()
    model = GaussianProcess(X, Y, matern() + linear, input_transform=None, outcome_transform=None)
    target = HyperparameterPosterior(model)
    u = torch.randn(3, target.dimension, generator=torch.Generator().manual_seed(2)).double()
    density = target.log_density().function(u)
    model._use(u)
    drawn = model.hyperparameter_draws()
    posterior = model.posterior(X[:4])
    for number in range(3):
        kernel = matern() + LinearKernel(variance_prior=GammaPrior(2.0, 1.0)).double()
        one = GaussianProcess(X, Y, kernel, input_transform=None, outcome_transform=None)
        one.covar_module.kernels[0].outputscale = drawn["kernel.kernels.0.outputscale"][number]
        lengthscale = drawn["kernel.kernels.0.base_kernel.lengthscale"][number]
        one.covar_module.kernels[0].base_kernel.lengthscale = lengthscale
        one.covar_module.kernels[1].variance = drawn["kernel.kernels.1.variance"][number]
        one.likelihood.noise = drawn["likelihood.noise_covar.noise"][number]
        assert torch.allclose(posterior.components.mean[number], one.posterior(X[:4]).mean)
        alone = HyperparameterPosterior(one).log_density().function(u[number : number + 1])
        assert torch.allclose(alone, density[number])
        prior = sum(
            prior.log_prob(closure(module)).sum()
            for part in (one.covar_module, one.likelihood)
            for _, module, prior, closure, _ in part.named_priors()
        )
        lower = one.likelihood.noise_covar.raw_noise_constraint.lower_bound
        jacobian = u[number].sum()  # all are logarithms, above their lower bounds
        truth = one.log_marginal_likelihood() + prior + jacobian
        assert float(lower) > 0
        assert torch.allclose(density[number], truth, atol=1e-6)


def test_the_saas_posterior_is_that_of_quadrature():
    """Of six rows at two inputs, one of which matters."""
    X = torch.tensor([[0.0, 0.3], [0.2, 0.9], [0.4, 0.1], [0.6, 0.7], [0.8, 0.5], [1.0, 0.2]])
    X = X.double()
    Y = torch.sin(6 * X[:, :1])
    model = GaussianProcess(
        X,
        Y,
        MaternKernel(ard_num_dims=2, lengthscale_prior=SaasPrior(0.5)).double(),
        train_Yvar=torch.full_like(Y, 0.01),
        input_transform=None,
        outcome_transform=None,
    )
    method = ChEES(num_chains=64, num_warmup=80, num_samples=30, progress=False)
    draws = drawn(model, method, 64 * 30).hyperparameter_draws()
    mean, std = saas_truth(X, Y, 0.01, 0.5)
    tau = draws["kernel.lengthscale_prior.tau"].reshape(64, 30, 1)
    length = draws["kernel.lengthscale"].reshape(64, 30, 2)
    first, second = moments_in_errors(torch.cat([tau, length], -1).log(), mean, std)
    assert float(first.abs().max()) < 4
    assert float(second.abs().max()) < 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This run of NUTS")  # whose errors are reckoned with
def test_the_saas_posterior_is_that_of_pyros_nuts():
    """The same density written out as a Pyro model of its own."""
    import pyro
    import pyro.distributions as dist

    X, Y = data(n=15, d=3)
    kernel = ScaleKernel(
        MaternKernel(ard_num_dims=3, lengthscale_prior=SaasPrior(0.1)),
        outputscale_prior=GammaPrior(2.0, 0.15),
    ).double()
    model = GaussianProcess(X, Y, kernel)
    method = ChEES(
        num_chains=32, num_warmup=300, num_samples=200, target_accept_prob=0.9, progress=False
    )
    drawn(model, method, 6400)
    ours = {name: value.log() for name, value in model.hyperparameter_draws().items()}
    inputs, targets = model.train_inputs[0].detach(), model.train_targets
    noise_prior = model.likelihood.noise_covar.noise_prior

    def written_out():
        one = X.new_ones(())
        scale = pyro.sample("outputscale", dist.Gamma(2.0 * one, 0.15 * one))
        tau = pyro.sample("tau", dist.HalfCauchy(0.1 * one))
        rho = pyro.sample("rho", dist.HalfCauchy(X.new_ones(3)).to_event(1))
        noise = pyro.sample("noise", dist.LogNormal(noise_prior.loc * one, noise_prior.scale * one))
        weighted = inputs * (tau * rho).sqrt()
        r = (5 * (weighted[:, None] - weighted).square().sum(-1)).clamp_min(1e-20).sqrt()
        K = scale * (1 + r + r.square() / 3) * (-r).exp()
        K = K + (noise + 1e-8) * torch.eye(len(X), dtype=X.dtype)
        zero = torch.zeros_like(targets)
        pyro.sample("y", dist.MultivariateNormal(zero, K), obs=targets)

    theirs = (
        NUTS(num_samples=600, num_warmup=300, num_chains=2, progress=False)
        .run(written_out, X)
        .samples
    )
    pairs = {
        "kernel.outputscale": theirs["outputscale"].log(),
        "kernel.base_kernel.lengthscale_prior.tau": theirs["tau"].log(),
        "likelihood.noise_covar.noise": theirs["noise"].log(),
        "kernel.base_kernel.lengthscale": -0.5
        * (theirs["tau"].unsqueeze(-1) * theirs["rho"]).log(),
    }
    import arviz

    for name, reference in pairs.items():
        reference = reference.reshape(2, 600, -1)
        effective = arviz.ess({"z": reference.numpy()})["z"].to_numpy().reshape(-1)
        error = reference.flatten(0, 1).std(0) / torch.as_tensor(effective).sqrt()
        mean = ours[name].reshape(6400, -1).mean(0)
        own = ours[name].reshape(32, 200, -1).mean(1).std(0) / 32**0.5
        off = (mean - reference.flatten(0, 1).mean(0)) / (error.square() + own.square()).sqrt()
        assert float(off.abs().max()) < 4, name
