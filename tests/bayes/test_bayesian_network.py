"""Bayesian networks against the conjugate posterior of linear regression, and their contract."""

import copy
import dataclasses
import math
import random

import numpy as np
import pyro
import pytest
import torch
from botorch.acquisition import qLogExpectedImprovement
from gpytorch.kernels import RBFKernel
from pyro.infer.util import is_validation_enabled
from torch.distributions.transforms import ExpTransform

from bayes.inference import NUTS, Draws, MeanField
from bayes.inference.convergence import warn_unless_converged
from bayes.networks.bayesian_network import BayesianNetwork
from bayes.processes.gaussian_process import GaussianProcess
from priors.networks.finite import NetworkPrior
from priors.posteriors.draws import EmpiricalPosterior
from priors.posteriors.transformed import TransformedPosterior
from priors.testing import ModelContract

FAST = MeanField(num_steps=40, num_draws=20, progress=False)
pytestmark = pytest.mark.usefixtures("without_graphs")


def module(inputs=2, width=6, outputs=2, activation=None):
    return torch.nn.Sequential(
        torch.nn.Linear(inputs, width),
        torch.nn.Tanh() if activation is None else activation,
        torch.nn.Linear(width, outputs),
    )


def data(dtype=torch.float64, n=15, m=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, 2, generator=generator)
    Y = torch.stack([X[:, 0] - X[:, 1] + 5, 10 * torch.sin(X[:, 0])], dim=-1)[:, :m]
    Y = Y + 0.2 * torch.randn(n, m, generator=generator)
    return X.to(dtype), Y.to(dtype)


def small(dtype=torch.float64, m=2):
    prior = NetworkPrior(module(outputs=m), weight_var=2.0, bias_var=0.5)
    return BayesianNetwork(*data(dtype, m=m), prior)


class TestContract(ModelContract):
    prior = NetworkPrior(module(), weight_var=2.0, bias_var=0.5)  # making a module draws weights

    def make_model(self, dtype):
        return BayesianNetwork(*data(dtype), self.prior).fit(FAST)

    def make_X(self, dtype):
        return data(dtype, n=6, seed=1)[0].reshape(2, 3, 2)


def linear(n=30):
    """A linear "network" with known noise, and its conjugate posterior of (weights, bias)."""
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(n, 3, generator=generator, dtype=torch.float64) + 0.5
    Y = X @ torch.tensor([[1.0], [-2.0], [0.5]]).double()
    Y = Y + 0.5 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    prior = NetworkPrior(torch.nn.Linear(3, 1), weight_var=3.0, bias_var=0.5)
    model = BayesianNetwork(
        X,
        Y,
        prior,
        train_Yvar=torch.full_like(Y, 0.25),
        input_transform=None,
        outcome_transform=None,
    )
    design = torch.cat([X, torch.ones(n, 1, dtype=torch.float64)], dim=-1)
    # weight_var / fan_in = 1
    prior_precision = torch.diag(torch.tensor([1.0, 1.0, 1.0, 2.0]).double())
    precision = design.T @ design / 0.25 + prior_precision
    mean = torch.linalg.solve(precision, design.T @ Y / 0.25)[:, 0]
    return model, mean, precision


def weights(model):
    drawn = model.parameters_of_draws()
    return torch.cat([drawn["weight"].flatten(1), drawn["bias"].flatten(1)], dim=-1)


@pytest.mark.slow
def test_nuts_against_the_conjugate_posterior():
    model, mean, precision = linear()
    model.fit(NUTS(num_samples=300, num_warmup=150, num_chains=2, progress=False))
    inference = model.to_arviz()
    import arviz

    covariance = torch.linalg.inv(precision)
    drawn = weights(model)
    ess = arviz.ess(inference, var_names=["weight", "bias"])
    size = float(min(ess["weight"].min(), ess["bias"].min()))
    assert size > 100
    std = covariance.diag().sqrt()
    assert ((drawn.mean(0) - mean).abs() < 4.5 * std / math.sqrt(size)).all()
    # Standard error of a sample variance is var * sqrt(2 / size).
    assert ((drawn.var(0) / std**2 - 1).abs() < 4.5 * math.sqrt(2 / size)).all()
    truth = covariance / std / std[:, None]
    assert ((torch.corrcoef(drawn.T) - truth).abs() < 4.5 / math.sqrt(size)).all()
    assert not inference.sample_stats["diverging"].any()


@pytest.fixture(scope="module")
def independent():
    """The linear network with independent Gaussians, and its conjugate posterior."""
    model, mean, precision = linear()
    return model.fit(MeanField(num_steps=900, num_draws=4000, progress=False)), mean, precision


def test_mean_field_against_its_optimum(independent):
    """The closest independent Gaussians have the exact means and the conditional deviations."""
    model, mean, precision = independent
    drawn = weights(model)
    std = precision.diag().rsqrt()
    assert ((drawn.mean(0) - mean).abs() < 0.25 * std).all()
    assert ((drawn.std(0) / std - 1).abs() < 0.1).all()
    bound = model.draws.history
    assert bound[-100:].mean() > bound[:100].mean() + 10


def test_mean_field_is_too_wide_where_weights_share_a_task():
    """Of k weights in parallel the sum keeps 1 / (1 + S / k) of its variance; 1 / (1 + S) is left.

    Both are closed forms of a linear model.
    """
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(12, 1, generator=generator, dtype=torch.float64)
    Y = 0.7 * x + 0.5 * torch.randn(12, 1, generator=generator, dtype=torch.float64)
    S, k = float(x.square().sum() / 0.25), 16
    model = BayesianNetwork(
        x.expand(12, k).contiguous(),
        Y,
        NetworkPrior(torch.nn.Linear(k, 1, bias=False), weight_var=1.0),
        train_Yvar=torch.full_like(Y, 0.25),
        input_transform=None,
        outcome_transform=None,
    )
    model.fit(MeanField(num_steps=1000, num_draws=4000, progress=False))
    f = model.posterior(torch.ones(1, k, dtype=torch.float64))
    wide, right = 1 / (1 + S / k), 1 / (1 + S)
    assert abs(f.mean.item() - float((x * Y).sum() / 0.25) * right) < 0.15 * wide**0.5
    assert f.variance.item() == pytest.approx(wide, rel=0.15)
    assert f.variance.item() > 5 * right


def test_mean_field_bound_stays_below_the_evidence_and_comes_near(independent):
    model, mean, precision = independent
    X, Y = model.train_X, model.train_Y
    covariance = X @ X.T + 0.5 + 0.25 * torch.eye(len(X), dtype=torch.float64)
    zero = torch.zeros(len(X), dtype=torch.float64)
    evidence = torch.distributions.MultivariateNormal(zero, covariance).log_prob(Y[:, 0])
    # The gap of the best independent Gaussians is known: log of the ratio of volumes.
    gap = 0.5 * (precision.diag().log().sum() - torch.logdet(precision))
    last = model.draws.history[-300:]
    error = last.std() / math.sqrt(300)
    assert last.mean() < evidence - gap + 5 * error
    assert last.mean() > evidence - gap - 0.1 - 5 * error


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This BayesianNetwork may not have converged")
def test_prior_only_draws_follow_the_prior():
    """With noise that hides the data, NUTS returns the prior of weights and noise."""
    X, Y = data(m=1)
    prior = NetworkPrior(module(width=3, outputs=1), weight_var=2.0, bias_var=0.5)
    model = BayesianNetwork(X, Y, prior, train_Yvar=torch.full_like(Y, 1e8))
    model.fit(NUTS(num_samples=250, num_warmup=80, num_chains=1, progress=False))
    for name, value in model.parameters_of_draws().items():
        expected = prior.parameter_std()[name]
        assert (value.std() / expected - 1).abs() < 0.15, name


def test_pyro_density_by_hand():
    model = small()
    trace = pyro.poutine.trace(model.pyro_model).get_trace()
    eps, log_noise = (trace.nodes[name]["value"] for name in ("eps", "log_noise_var"))
    shapes = [(6, 2), (6,), (2, 6), (2,)]
    stds = [1.0, math.sqrt(0.5), math.sqrt(2 / 6), math.sqrt(0.5)]
    parts = eps.split([12, 6, 12, 2])
    W1, b1, W2, b2 = (s * p.reshape(v) for s, p, v in zip(stds, parts, shapes, strict=True))
    X, Y = data()
    Z = (X - X.mean(0)) / X.std(0)
    f = torch.tanh(Z @ W1.T + b1) @ W2.T + b2
    y = (Y - Y.mean(0)) / Y.std(0)
    normal = torch.distributions.Normal
    truth = (
        normal(0.0, 1.0).log_prob(eps).sum()
        + normal(-2.0, 1.5).log_prob(log_noise).sum()
        + normal(f, (0.5 * log_noise).exp()).log_prob(y).sum()
    )
    assert torch.allclose(trace.log_prob_sum(), truth)


def test_absent_biases_stay_zero():
    X, Y = data()
    model = BayesianNetwork(X, Y, NetworkPrior(module(), bias_var={"0": 1.0, "2": 0.0})).fit(FAST)
    drawn = model.parameters_of_draws()
    assert (drawn["2.bias"] == 0).all()
    assert (drawn["0.bias"] != 0).all()
    assert model.draws.samples["eps"].shape[-1] == 12 + 6 + 12


def test_posteriors_are_the_draws_in_units_of_y():
    model = small().fit(FAST)
    X = data(n=4, seed=2)[0]
    f = model.posterior(X)
    assert isinstance(f, TransformedPosterior)
    assert isinstance(f.base, EmpiricalPosterior)
    train_X, train_Y = data()
    Z = (X - train_X.mean(0)) / train_X.std(0)
    z = model.prior.apply_parameters(model.parameters_of_draws(), Z)
    functions = train_Y.mean(0) + train_Y.std(0) * z
    assert torch.allclose(f.mean, functions.mean(0))
    assert torch.allclose(f.variance, functions.var(0, correction=0))
    noise = train_Y.std(0) * model.noise_var_of_draws().sqrt().unsqueeze(1)
    y = model.posterior(X, observation_noise=True)
    Y = functions.mean(0) + 1.0
    truth = torch.distributions.Normal(functions, noise).log_prob(Y)
    assert torch.allclose(y.log_prob(Y), truth.logsumexp(0) - math.log(20))
    only = model.posterior(X, output_indices=[1], observation_noise=True)
    assert torch.allclose(only.log_prob(Y[:, 1:]), y.log_prob(Y)[:, 1:])
    with pytest.raises(NotImplementedError, match="observation_noise=True"):
        f.log_prob(Y)


def test_positive_outcomes():
    X, Y = data(m=1)
    prior = NetworkPrior(module(outputs=1), bias_var=1.0)
    model = BayesianNetwork(X, Y.exp(), prior, outcome_transform=ExpTransform()).fit(FAST)
    quantiles = model.posterior(X, observation_noise=True).quantile(torch.tensor([0.01, 0.5]))
    assert (quantiles > 0).all()


@pytest.mark.filterwarnings("ignore:This BayesianNetwork may not have converged")
@pytest.mark.parametrize("method", [FAST, NUTS(5, 5, 2, max_tree_depth=3, progress=False)])
def test_fit_repeats_and_leaves_global_state_alone(method):
    X, Y = data()
    prior = NetworkPrior(module(), bias_var=1.0)
    before = {name: value.clone() for name, value in prior.state_dict().items()}
    pyro.get_param_store().clear()
    pyro.param("eps.loc", torch.zeros(1))
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    python_state, validation = random.getstate(), is_validation_enabled()
    first = BayesianNetwork(X, Y, prior).fit(method)
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert random.getstate() == python_state
    assert is_validation_enabled() == validation
    assert list(pyro.get_param_store().keys()) == ["eps.loc"]
    pyro.get_param_store().clear()
    torch.manual_seed(1234)
    second = BayesianNetwork(X, Y, prior).fit(method)
    assert torch.equal(first.draws.samples["eps"], second.draws.samples["eps"])
    for name, value in prior.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.requires_grad for parameter in prior.parameters())


@pytest.mark.filterwarnings("ignore:This BayesianNetwork may not have converged")
def test_to_arviz_groups_and_values():
    import arviz

    model = small().fit(NUTS(7, 5, 2, max_tree_depth=4, progress=False))
    inference = model.to_arviz()
    assert set(inference.groups()) == {
        "posterior",
        "posterior_predictive",
        "log_likelihood",
        "sample_stats",
        "observed_data",
        "prior",
        "prior_predictive",
    }
    assert inference.posterior["0.weight"].shape == (2, 7, 6, 2)
    assert inference.posterior["noise_var"].shape == (2, 7, 2)
    assert inference.sample_stats["step_size"].shape == (2, 7)
    assert ((inference.sample_stats["acceptance_rate"] >= -1e-9).all()) & (
        (inference.sample_stats["acceptance_rate"] <= 1 + 1e-9).all()
    )
    stats = inference.sample_stats
    assert stats["diverging"].dtype == bool
    assert stats["n_steps"].dtype == stats["tree_depth"].dtype == int
    assert (stats["n_steps"] < 2 ** stats["tree_depth"]).all()
    assert (2 ** (stats["tree_depth"] - 1) <= stats["n_steps"]).all()
    assert (stats["energy"] > -stats["lp"]).all()
    assert 0 < float(arviz.bfmi(inference).min()) < 4
    for chain in range(2):
        site = {name: value[chain, 3] for name, value in model.draws.samples.items()}
        conditioned = pyro.condition(model.pyro_model, data=site)
        truth = pyro.poutine.trace(conditioned).get_trace().log_prob_sum().item()
        assert float(stats["lp"][chain, 3]) == pytest.approx(truth)
    # The pointwise likelihoods average to the predictive density of the training rows.
    X, Y = data()
    log_likelihood = torch.as_tensor(inference.log_likelihood["y"].values).flatten(0, 1)
    truth = model.posterior(X, observation_noise=True).log_prob(Y)
    assert torch.allclose(log_likelihood.logsumexp(0) - math.log(14), truth)
    assert np.allclose(inference.observed_data["y"].values, Y.numpy())
    predictive = inference.posterior_predictive["y"].values
    assert predictive.shape == (2, 7, 15, 2)
    assert abs(predictive[..., 0].mean() - 5) < 3
    assert "sample_stats" not in small().fit(FAST).to_arviz().groups()


def test_a_file_keeps_all_of_the_draws_and_the_memory(tmp_path):
    model = small().fit(FAST)
    samples = model.draws.samples
    every = Draws(
        samples,
        {"lp": torch.rand(1, 20)},
        history=torch.rand(5),
        num_gradients={"warmup": 7, "sampling": 9},
        center={name: value[0, 0] for name, value in samples.items()},
        log_evidence=-3.5,
        smaller_steps="lower step_size",
        members_apart=True,
    )
    model._keep(every)
    model.max_bytes = 12_345
    model.save(tmp_path / "m")
    loaded = BayesianNetwork.load(tmp_path / "m", small().prior)
    assert loaded.max_bytes == 12_345
    for part in dataclasses.fields(Draws):
        kept, found = getattr(every, part.name), getattr(loaded.draws, part.name)
        if part.name in ("smaller_steps", "members_apart"):
            assert found == kept
        elif part.name != "identity":
            torch.testing.assert_close(found, kept, rtol=0, atol=0, msg=part.name)


@pytest.mark.filterwarnings("ignore:This BayesianNetwork may not have converged")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_save_and_load(dtype, tmp_path):
    model = small(dtype).fit(NUTS(6, 5, 2, max_tree_depth=3, progress=False))
    path = tmp_path / "network.safetensors"
    model.save(path)
    loaded = BayesianNetwork.load(path, NetworkPrior(module(), weight_var=1.0, bias_var=1.0))
    X = data(dtype, n=4, seed=2)[0]
    before = model.posterior(X, observation_noise=True)
    after = loaded.posterior(X, observation_noise=True)
    assert torch.equal(before.mean, after.mean)
    assert torch.equal(before.variance, after.variance)
    assert torch.equal(model.draws.stats["lp"], loaded.draws.stats["lp"])
    with pytest.raises(ValueError, match="different network"):
        BayesianNetwork.load(path, NetworkPrior(module(width=7), bias_var=1.0))
    other = NetworkPrior(module(activation=torch.nn.ReLU()), bias_var=1.0)
    with pytest.raises(ValueError, match="different network"):
        BayesianNetwork.load(path, other)
    with pytest.raises(ValueError, match="input_transform default, load got off"):
        BayesianNetwork.load(path, NetworkPrior(module(), bias_var=1.0), input_transform=None)
    with pytest.raises(ValueError, match="does not fit"):
        BayesianNetwork.load(path, NetworkPrior(module(), bias_var=0.0))


def test_draws_follow_the_model_to_another_dtype():
    model = small().fit(FAST)
    X = data(n=4, seed=2)[0]
    wide = model.posterior(X, observation_noise=True).mean
    narrow = model.float().posterior(X.float(), observation_noise=True).mean
    assert narrow.dtype == torch.float32
    assert torch.allclose(wide.float(), narrow, rtol=1e-4, atol=1e-4)


def test_chains_that_have_not_converged_are_told():
    """Too few draws, chains apart, divergences; and nothing of those that have."""
    few = NUTS(8, 5, 2, max_tree_depth=3, progress=False)
    with pytest.warns(UserWarning, match=r"R-hat up to .* of 16 in 2 chains .*num_warmup"):
        small().fit(few)
    tiny = NUTS(num_samples=2, num_warmup=2, num_chains=2, progress=False)
    with pytest.warns(UserWarning, match="2 draws are too few to tell"):
        small().fit(tiny)
    generator = torch.Generator().manual_seed(0)
    good = torch.randn(4, 500, 3, generator=generator, dtype=torch.float64)
    warn_unless_converged("Model", good, {"diverging": torch.zeros(4, 500)})
    warn_unless_converged("Model", good[..., :1] * 0, {})
    apart = good + torch.arange(4.0).reshape(4, 1, 1)
    with pytest.warns(UserWarning, match=r"R-hat up to 1\.\d+ .*wanted: at most 1\.01"):
        warn_unless_converged("Model", apart, {})
    with pytest.warns(UserWarning, match=r"one chain .* num_chains of 2 or more\)\.$"):
        warn_unless_converged("Model", good[:1], {})
    with pytest.warns(UserWarning, match="one chain .* and has from .* effective draws .*: 100"):
        warn_unless_converged("Model", good[:1].cumsum(1), {})
    slow = good.cumsum(1) / 500**0.5
    with pytest.warns(UserWarning, match="effective draws"):
        warn_unless_converged("Model", slow, {})
    diverging = {"diverging": torch.eye(4, 500)}
    with pytest.warns(UserWarning, match=r"4 of 2000 draws diverged \(take smaller steps\)"):
        warn_unless_converged("Model", good, diverging)
    with pytest.warns(UserWarning, match=r"diverged \(lower step_size below 0.05\)"):
        warn_unless_converged("Model", good, diverging, smaller_steps="lower step_size below 0.05")
    good[2, 7, 1] = torch.nan
    with pytest.warns(UserWarning, match=r"converged: some draws are not finite \(check the"):
        warn_unless_converged("Model", good, {})


def test_it_is_always_in_evaluation_mode():
    """Also as a part of others, which BoTorch puts into it."""
    model = small().fit(FAST)
    before = model.posterior(data(n=4, seed=2)[0]).mean
    for part in (model.train(), model.eval(), model.subset_output([0, 1]).train().model):
        assert not part.training
        assert not part.input_transform.training
        assert torch.equal(part.posterior(data(n=4, seed=2)[0]).mean, before)


def test_some_outputs():
    model = small().fit(FAST)
    X, Y = data(n=4, seed=2)
    every = model.posterior(X, observation_noise=True)
    second = model.subset_output([1])
    assert (second.num_outputs, second.batch_shape) == (1, torch.Size())
    found = second.posterior(X, observation_noise=True)
    assert torch.equal(found.mean, every.mean[:, 1:])
    assert torch.equal(found.log_prob(Y[:, 1:]), every.log_prob(Y)[:, 1:])
    swapped = model.subset_output([1, 0])
    assert torch.equal(swapped.subset_output([-1]).posterior(X).mean, every.mean[:, :1])
    noise = torch.tensor([[2.0, 3.0]], dtype=torch.float64)
    whole = model.posterior(X, observation_noise=noise.flip(-1))
    assert torch.allclose(
        swapped.posterior(X, observation_noise=noise).variance, whole.variance[:, [1, 0]]
    )
    with pytest.raises(ValueError, match="has 2 outputs"):
        model.subset_output([2])
    with pytest.raises(NotImplementedError, match="on all 2, then take the subset"):
        second.condition_on_observations(X, Y)
    assert qLogExpectedImprovement(second, best_f=0.0)(X[:1]).isfinite().all()


def test_noise_of_queries_in_the_units_of_y():
    model = small().fit(FAST)
    X = data(n=4, seed=2)[0]
    variances = 1 + torch.rand(4, 2, dtype=torch.float64)
    f, y = (model.posterior(X, observation_noise=noise) for noise in (False, variances))
    assert torch.allclose(y.variance - f.variance, variances)
    only = model.posterior(X, output_indices=[1], observation_noise=variances)
    assert torch.allclose(only.variance, y.variance[:, 1:])
    with pytest.raises(ValueError, match="observation_noise of shape"):
        model.posterior(X, observation_noise=variances[:, :0])


def test_draws_of_another_prior_are_refused():
    """Their meaning is that of the prior under which they were drawn."""
    model = small().fit(FAST)
    X = data(n=4, seed=2)[0]
    before = model.posterior(X).mean
    assert torch.equal(copy.deepcopy(model).posterior(X).mean, before)
    model.prior.variances.weight_var["0"] = 5.0
    with pytest.raises(RuntimeError, match=r"has changed since fit\(\)"):
        model.posterior(X)
    model.fit(FAST)
    assert model.posterior(X).mean.isfinite().all()
    model.load_state_dict(small().state_dict())
    with pytest.raises(RuntimeError, match="no posterior yet"):
        model.posterior(X)


def test_inputs_are_checked():
    X, Y = data()
    prior = NetworkPrior(module(), bias_var=1.0)
    with pytest.raises(TypeError, match="NetworkPrior"):
        BayesianNetwork(X, Y, module())
    with pytest.raises(ValueError, match="must have 1 output"):
        BayesianNetwork(X, Y[:, :1], prior)
    with pytest.raises(ValueError, match="one data set"):
        BayesianNetwork(X.expand(2, 15, 2), Y.expand(2, 15, 2), prior)
    with pytest.raises(ValueError, match="NaN"):
        BayesianNetwork(X, Y * torch.nan, prior)
    with pytest.raises(ValueError, match="std > 0"):
        BayesianNetwork(X, Y, prior, log_noise_var_prior=(0.0, 0.0))
    model = BayesianNetwork(X, Y, prior)
    with pytest.raises(RuntimeError, match=r"call fit\(\)"):
        model.posterior(X)
    process = GaussianProcess(X, Y[:, :1], RBFKernel())
    for fit in (model.fit, lambda method: process.fit(method=method)):
        with pytest.raises(TypeError, match=r"NUTS\(...\) with its settings, got the class"):
            fit(NUTS)
        with pytest.raises(TypeError, match=r"such as bayes.ChEES\(\), got 'chees'"):
            fit("chees")
    model.fit(FAST)
    with pytest.raises(ValueError, match="2 input columns"):
        model.posterior(X[:, :1])
    with pytest.raises(ValueError, match="has 2 outputs"):
        model.posterior(X, output_indices=[2])
    with pytest.raises(ValueError, match="num_steps"):
        MeanField(num_steps=0)
    with pytest.raises(ValueError, match="target_accept_prob"):
        NUTS(target_accept_prob=1.0)


def test_moving_a_model_does_not_bring_old_draws_up_to_date():
    model = small().fit(FAST)
    model.to("cpu").fitted_draws()
    with torch.no_grad():
        for parameter in model.prior.variances.parameters():
            parameter.add_(1.0)
    model.to("cpu")
    with pytest.raises(RuntimeError, match="out of date"):
        model.fitted_draws()


def test_noise_of_variance_0_is_refused():
    X, Y = data()
    prior = NetworkPrior(module(), weight_var=2.0, bias_var=0.5)
    with pytest.raises(ValueError, match="train_Yvar > 0"):
        BayesianNetwork(X, Y, prior, train_Yvar=torch.zeros_like(Y))


def test_parameters_of_a_module_keep_their_place_beside_those_of_the_likelihood():
    class Scaled(torch.nn.Module):
        """With a parameter that is named as one of the likelihood."""

        def __init__(self):
            super().__init__()
            self.noise_var = torch.nn.Linear(2, 6)
            self.last = torch.nn.Linear(6, 2)

        def forward(self, x):
            return self.last(torch.tanh(self.noise_var(x)))

    model = BayesianNetwork(*data(), NetworkPrior(Scaled())).fit(FAST)
    posterior = model.to_arviz().posterior
    assert posterior["noise_var.weight"].shape[2:] == (6, 2)
    assert posterior["noise_var"].dims[2:] == ("output",)
