"""Ensembles trained by gradient descent against matrix exponentials and trained networks."""

import math

import numpy as np
import pytest
import torch
from botorch.acquisition import qKnowledgeGradient
from botorch.sampling.normal import SobolQMCNormalSampler
from scipy.linalg import expm
from torch import nn
from torch.distributions.transforms import ExpTransform

from bayes import GaussianProcess, GradientDescentEnsemble, stack
from bayes.gradient_descent.filters import trained_weights
from priors import InfiniteNetwork, NetworkPrior, NNGPKernel, NTKKernel
from priors.random_state import seeded
from priors.testing import ModelContract

TIMES = [(0.0, 0.0), (0.3, 0.0), (2.0, 0.1), (1e4, 1e-3), (math.inf, 0.0), (math.inf, 0.2)]
times = pytest.mark.parametrize(("time", "ridge"), TIMES)


def data(n=9, m=1, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    Y = torch.stack([4 + 3 * torch.sin((k + 1) * X[:, 0]) + X[:, 1] for k in range(m)], dim=-1)
    Y = Y + 0.3 * torch.randn(n, m, generator=generator, dtype=torch.float64)
    return X.to(dtype), Y.to(dtype)


def network(trained=None, activation=nn.ReLU):
    """A perceptron, of which all layers are trained or the named ones alone."""
    with seeded(0):
        module = nn.Sequential(
            nn.Linear(2, 8), activation(), nn.Linear(8, 8), activation(), nn.Linear(8, 1)
        )
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(trained is None or name.startswith(trained))
    return module


def untransformed(X, Y, module, **options):
    return GradientDescentEnsemble(
        X, Y, module, input_transform=None, outcome_transform=None, **options
    )


def filtered(A, time):
    """(I - exp(-time A)) A^-1, by a matrix exponential."""
    eye = np.eye(len(A))
    return np.linalg.solve(A, eye - (expm(-A * time) if time < math.inf else 0))


class TestGradientDescentEnsemble(ModelContract):
    def make_model(self, dtype):
        return GradientDescentEnsemble(*data(m=2, dtype=dtype), network(), time=2.0, ridge=0.1)

    def make_X(self, dtype):
        return data(6, dtype=dtype, seed=1)[0].reshape(2, 3, 2)


@times
@torch.no_grad()
def test_the_law_is_that_of_lee_et_al(time, ridge):
    (X, Y), (Xs, _) = data(m=2), data(4, seed=1)
    model = untransformed(X, Y, network(), time=time, ridge=ridge, learning_rate=0.5)
    K, theta = (k.numpy() for k in model.network.kernels(X))
    Ks, theta_s = (k.numpy() for k in model.network.kernels(Xs, X))
    T = theta_s @ filtered(theta + ridge * np.eye(len(X)), 0.5 * time)
    covariance = model.network.nngp(Xs).numpy() - T @ Ks.T - Ks @ T.T + T @ K @ T.T
    posterior = model.posterior(Xs)
    np.testing.assert_allclose(posterior.mean, T @ Y.numpy(), rtol=1e-9, atol=1e-9)
    blocks = posterior.distribution.covariance_matrix.reshape(2, 4, 2, 4)  # output by output
    for k in range(2):
        np.testing.assert_allclose(blocks[k, :, k], covariance, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(blocks[k, :, 1 - k], 0, atol=1e-12)
    alone = model.posterior(Xs[:, None])
    np.testing.assert_allclose(alone.variance[:, 0, 1], covariance.diagonal(), rtol=1e-8, atol=1e-9)
    noisy = model.posterior(Xs, observation_noise=True).variance
    assert torch.allclose(noisy, posterior.variance + model.noise)


@times
def test_rows_left_out_are_those_of_training_without_them(time, ridge):
    X, Y = data(m=2)
    model = GradientDescentEnsemble(X, Y, network(), time=time, ridge=ridge)
    found = model.leave_one_out()
    rows = torch.arange(len(X))
    with torch.no_grad():
        for i in rows.tolist():
            others = model._of_rows(X[rows != i], Y[rows != i])
            alone = others.posterior(X[i : i + 1], observation_noise=True)
            assert torch.allclose(found.mean[i], alone.mean[0], rtol=1e-8)
            assert torch.allclose(found.variance[i], alone.variance[0], rtol=1e-8)
    assert torch.allclose(model.log_score(), found.log_prob(Y).sum(), rtol=1e-10)


@torch.no_grad()
def test_an_untrained_ensemble_is_the_prior():
    (X, Y), (Xs, _) = data(), data(4, seed=1)
    posterior = untransformed(X, Y, network(), time=0.0).posterior(Xs)
    assert torch.allclose(posterior.mean, torch.zeros(4, 1, dtype=X.dtype))
    assert torch.allclose(
        posterior.distribution.covariance_matrix, InfiniteNetwork(network()).nngp(Xs)
    )


@torch.no_grad()
def test_trained_to_the_end_every_member_goes_through_the_rows():
    X, Y = data()
    posterior = GradientDescentEnsemble(X, Y, network()).posterior(X)
    assert torch.allclose(posterior.mean, Y)
    assert (posterior.variance / Y.var() < 1.1e-10).all()  # the least that GPyTorch has


@torch.no_grad()
def test_repeated_rows_are_fitted_by_their_mean():
    X, Y = data(4)
    Y2 = Y + torch.tensor([[1.0], [-1.0], [2.0], [0.5]], dtype=X.dtype)
    model = GradientDescentEnsemble(torch.cat([X, X]), torch.cat([Y, Y2]), network())
    assert torch.allclose(model.posterior(X).mean, (Y + Y2) / 2)
    later = GradientDescentEnsemble(torch.cat([X, X]), torch.cat([Y, Y2]), network(), time=1e9)
    assert torch.allclose(later.posterior(X).mean, (Y + Y2) / 2)


@torch.no_grad()
def test_of_a_trained_readout_alone_it_is_the_posterior_of_the_process():
    (X, Y), (Xs, _) = data(m=2), data(4, seed=1)
    model = untransformed(X, Y, network(trained="4"))
    K, Ks = model.network.nngp(X), model.network.nngp(Xs, X)
    weights = torch.linalg.solve(K, Ks.mT).mT
    posterior = model.posterior(Xs)
    assert torch.allclose(posterior.mean, weights @ Y)
    covariance = model.network.nngp(Xs) - weights @ Ks.mT
    found = posterior.distribution.covariance_matrix[:4, :4]
    assert torch.allclose(found, covariance, rtol=1e-8, atol=1e-10)
    with_ridge = GradientDescentEnsemble(X, Y, network(trained="4"), ridge=0.3)
    process = GaussianProcess(X, Y, NNGPKernel(network()))
    process.likelihood.noise = 0.3  # of which the ridge gives the mean, not the variance
    assert torch.allclose(with_ridge.posterior(Xs).mean, process.posterior(Xs).mean, rtol=1e-6)


def trained_networks(X, Y, Xs, *, members, width, steps, rate, ridge):
    """Values `[members, q]` of networks of one hidden layer after steps of gradient descent."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(members, width, 2), (members, width, 1), (members, 1, width), (members, 1, 1)]
    start = [torch.randn(shape, generator=generator, dtype=X.dtype) for shape in shapes]
    weights = [value.clone().requires_grad_() for value in start]

    def function(x):
        W, b, V, c = weights
        h = (W @ x.mT / 2**0.5 + 0.1**0.5 * b).relu()
        return ((2 / width) ** 0.5 * V @ h + 0.1**0.5 * c)[:, 0]

    for _ in range(steps):
        loss = 0.5 * (function(X) - Y.mT).square().sum()
        loss = loss + 0.5 * ridge * sum(
            (w - w0).square().sum() for w, w0 in zip(weights, start, strict=True)
        )
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for w, gradient in zip(weights, gradients, strict=True):
                w -= rate * gradient
    return function(Xs).detach()


def check_against_trained(members, width, steps, rate, bias):
    """Means and covariances within five standard errors and the finite width's bias."""
    (X, Y), (Xs, _) = data(5), data(3, seed=1)
    Y = (Y - Y.mean()) / Y.std()
    module = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
    model = untransformed(X, Y, module, time=steps, learning_rate=rate, ridge=0.2)
    assert rate < 0.1 * model.max_learning_rate
    values = trained_networks(
        X, Y, Xs, members=members, width=width, steps=steps, rate=rate, ridge=0.2
    )
    with torch.no_grad():
        posterior = model.posterior(Xs)
        mean, covariance = posterior.mean[:, 0], posterior.distribution.covariance_matrix
    untrained = model.network.nngp(Xs).detach()
    scale = covariance.diagonal().sqrt()
    error = (values.mean(0) - mean) / scale
    assert (error.abs() < 5 / members**0.5 + bias).all(), error
    off = (values.mT.cov() - covariance) / (scale[:, None] * scale)
    assert (off.abs() < 5 * (2 / members) ** 0.5 + bias).all(), off
    assert (covariance.diagonal() < 0.7 * untrained.diagonal()).all()  # training mattered


def test_networks_that_were_trained_follow_the_law():
    check_against_trained(members=150, width=256, steps=40, rate=0.005, bias=0.1)


@pytest.mark.slow
def test_many_wide_networks_that_were_trained_follow_the_law():
    check_against_trained(members=2000, width=1024, steps=40, rate=0.005, bias=0.03)


@torch.no_grad()
def test_steps_above_the_largest_rate_diverge():
    X, Y = data(5)
    model = untransformed(X, Y, network(), ridge=0.2)
    A = model.network.ntk(X) + 0.2 * torch.eye(5, dtype=X.dtype)
    sizes = []
    for factor in (0.98, 1.02):
        a = torch.zeros_like(Y)
        for _ in range(400):
            a = a - factor * model.max_learning_rate * (A @ a - Y)
        sizes.append(float((A @ a - Y).norm() / Y.norm()))
    assert sizes[0] < 1
    assert sizes[1] > 1e3


@torch.no_grad()
def test_time_and_ridge_may_be_set():
    (X, Y), (Xs, _) = data(), data(4, seed=1)
    model = GradientDescentEnsemble(X, Y, network())
    rows = model._rows()
    for time, ridge in TIMES:
        model.time, model.ridge = time, ridge
        assert (model.time, model.ridge) == (pytest.approx(time), pytest.approx(ridge))
        fresh = GradientDescentEnsemble(X, Y, network(), time=time, ridge=ridge).posterior(Xs)
        assert torch.allclose(model.posterior(Xs).mean, fresh.mean, rtol=1e-12)
        assert model._rows() is rows  # of the one decomposition
    model.network.variances.set("weight", "0", 2.0)
    assert model._rows() is not rows


@pytest.mark.filterwarnings("ignore:The fit of")
def test_fit_learns_what_is_finite_and_improves_the_score():
    X, Y = data(20)
    for options, learnt in (
        ({}, {"time": False, "ridge": False}),
        ({"time": 1.0}, {"time": True, "ridge": False}),
        ({"ridge": 0.1}, {"time": False, "ridge": True}),
    ):
        model = GradientDescentEnsemble(X, Y, network(), **options)
        before, start = model.log_score(), (model.time, model.ridge)
        model.fit(max_iter=4, progress=False)
        assert model.log_score() > before
        assert (model.time != start[0]) == learnt["time"]
        assert (model.ridge != start[1]) == learnt["ridge"]


def test_gradients_of_the_objective_are_those_of_differences():
    """With repeated rows, of which the matrix has equal eigenvalues."""
    X, Y = data(5)
    X, Y = torch.cat([X, X[:2]]), torch.cat([Y, Y[:2] + 1])
    module = network(activation=nn.GELU)  # smooth where rows coincide
    model = GradientDescentEnsemble(X, Y, module, time=2.0, ridge=0.1).double()
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(model._objective(), parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            value = parameter.flatten()[0].clone()
            ends = []
            for step in (1e-5, -1e-5):
                parameter.view(-1)[0] = value + step
                ends.append(float(model._objective()))
            parameter.view(-1)[0] = value
            slope = (ends[0] - ends[1]) / 2e-5
            assert float(gradient.flatten()[0]) == pytest.approx(slope, rel=1e-5, abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("time", [1e-8, 1e-3, 1.0, 1e3, 1e8, math.inf])
def test_resolvents_sum_up_to_the_filter(time):
    X, _ = data(6)
    theta = InfiniteNetwork(network()).ntk(X)
    found = trained_weights(theta, theta.new_tensor(0.1), theta.new_tensor(time))
    values, vectors = torch.linalg.eigh(theta + 0.1 * torch.eye(6, dtype=X.dtype))
    truth = vectors * (-torch.expm1(-time * values) / values) @ vectors.mT
    assert torch.allclose(found, truth, rtol=1e-10, atol=1e-10 * float(truth.abs().max()))


@torch.no_grad()
def test_further_rows_and_batches():
    (X, Y), (Xs, _) = data(m=2), data(4, seed=1)
    one = untransformed(X[:6], Y[:6], network(), time=2.0)
    whole = untransformed(X, Y, network(), time=2.0)
    more = one.condition_on_observations(X[6:], Y[6:])
    assert torch.allclose(more.posterior(Xs).mean, whole.posterior(Xs).mean)
    batch = untransformed(torch.stack([X, X + 1]), torch.stack([Y, 2 * Y]), network(), time=2.0)
    assert batch.batch_shape == (2,)
    other = untransformed(X + 1, 2 * Y, network(), time=2.0)
    for k, alone in enumerate((whole, other)):
        assert torch.allclose(batch.posterior(Xs).mean[k], alone.posterior(Xs).mean)
        assert torch.allclose(batch.posterior(Xs).variance[k], alone.posterior(Xs).variance)
        assert torch.allclose(batch.leave_one_out().mean[k], alone.leave_one_out().mean)
    fantasies = one.fantasize(X[6:], SobolQMCNormalSampler(torch.Size([3]), seed=0))
    assert fantasies.batch_shape == (3,)
    assert fantasies.posterior(Xs).mean.shape == (3, 4, 2)


@pytest.mark.parametrize("time", [2.0, math.inf])
def test_gradients_reach_the_rows_of_fantasies(time):
    X, Y = data(6)
    model = GradientDescentEnsemble(X, Y, network(), time=time)
    acquisition = qKnowledgeGradient(model, num_fantasies=2)
    candidates = data(3, seed=1)[0].requires_grad_()
    (slope,) = torch.autograd.grad(acquisition(candidates[None]).sum(), candidates)
    steps = []
    for step in (1e-5, -1e-5):
        moved = candidates.detach().clone()
        moved[0, 0] += step
        steps.append(float(acquisition(moved[None]).sum().detach()))
    assert float(slope[0, 0]) == pytest.approx((steps[0] - steps[1]) / 2e-5, rel=1e-3)


@torch.no_grad()
def test_many_queries_have_a_covariance_of_their_own():
    X, Y = data()
    model = GradientDescentEnsemble(X, Y, network(), time=2.0)
    Xs = data(600, seed=1)[0]
    posterior, few = model.posterior(Xs), model.posterior(Xs[:4])
    assert torch.allclose(posterior.mean[:4], few.mean)
    assert torch.allclose(posterior.variance[:4], few.variance)
    covariance = posterior.distribution.covariance_matrix[:4, :4]
    assert torch.allclose(covariance, few.distribution.covariance_matrix)
    later = model.posterior(Xs)
    model.time = 3.0
    with pytest.raises(ValueError, match="has changed since"):
        later.rsample()


def test_a_stack_takes_it_with_its_rows_left_out():
    X, Y = data(20)
    models = {
        "trained": GradientDescentEnsemble(X, Y, network(), time=2.0),
        "process": GaussianProcess(X, Y, NNGPKernel(network())),
    }
    scores = stack(models, X, Y, progress=False).log_scores
    assert torch.allclose(scores[:, 0], models["trained"].leave_one_out().log_prob(Y)[:, 0])


@pytest.mark.filterwarnings("ignore:The fit of")
@pytest.mark.parametrize("outcome_transform", ["default", ExpTransform()])
def test_models_are_stored(tmp_path, outcome_transform):
    given = {} if outcome_transform == "default" else {"outcome_transform": outcome_transform}
    (X, Y), (Xs, _) = data(), data(4, seed=1)
    Y = Y.abs() + 1
    path = tmp_path / "ensemble.safetensors"
    for options in ({"time": 2.0, "ridge": 0.1}, {}):
        model = GradientDescentEnsemble(X, Y, network(), learning_rate=0.5, **options, **given)
        model.fit(max_iter=2, progress=False)
        model.save(path)
        again = GradientDescentEnsemble.load(path, network(), **given)
        for name in ("time", "ridge", "learning_rate"):
            assert getattr(again, name) == getattr(model, name)
        ours, theirs = (m.posterior(Xs, observation_noise=True) for m in (model, again))
        assert torch.allclose(ours.log_prob(Y[:4]), theirs.log_prob(Y[:4]))
        assert repr(again) == repr(model)
        assert torch.allclose(again.log_score(), again.leave_one_out().log_prob(Y).sum())
    with pytest.raises(TypeError, match="needs the network as well"):
        GradientDescentEnsemble.load(path)
    with pytest.raises(ValueError, match="computes other values"):
        GradientDescentEnsemble.load(path, network(activation=nn.Tanh), **given)


@pytest.mark.filterwarnings("ignore:The fit of")
def test_variances_are_taken_and_the_network_is_copied():
    X, Y = data()
    prior = NetworkPrior(network(), weight_var=3.0, bias_var=0.2)
    model = GradientDescentEnsemble(X, Y, prior)
    assert model.network.variances.value("weight", "2").item() == pytest.approx(3.0)
    model.fit(max_iter=2, progress=False)
    assert prior.variances.value("weight", "2").item() == pytest.approx(3.0)
    assert "ridge: 0" in repr(model)
    assert "time: inf" in repr(model)


def test_errors_say_what_to_do():
    X, Y = data()
    with pytest.raises(TypeError, match="needs a torch module"):
        GradientDescentEnsemble(X, Y, "relu")
    with pytest.raises(TypeError, match=r"got the kernel NTKKernel; pass .*kernel\.network"):
        GradientDescentEnsemble(X, Y, NTKKernel(network()))
    for options in ({"time": -1.0}, {"ridge": -1.0}, {"ridge": math.inf}, {"time": math.nan}):
        with pytest.raises(ValueError, match=f"needs a {next(iter(options))} >= 0"):
            GradientDescentEnsemble(X, Y, network(), **options)
    with pytest.raises(ValueError, match="positive learning_rate"):
        GradientDescentEnsemble(X, Y, network(), learning_rate=0.0)
    batch = InfiniteNetwork(network(), batch_shape=torch.Size([2]))
    with pytest.raises(ValueError, match="takes one network"):
        GradientDescentEnsemble(X, Y, batch)
    model = GradientDescentEnsemble(X, Y, network())
    with pytest.raises(ValueError, match="max_iter >= 1"):
        model.fit(max_iter=0)
    with pytest.raises(ValueError, match="2 input columns"):
        model.posterior(X[:, :1])
