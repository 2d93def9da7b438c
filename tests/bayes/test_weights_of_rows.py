"""Weights of rows: noise variances divided by them, or log likelihoods multiplied."""

import math

import pytest
import torch
from botorch.sampling.normal import SobolQMCNormalSampler
from gpytorch.kernels import RBFKernel, ScaleKernel

from bayes import (
    GaussianProcess,
    GaussianProcessClassifier,
    HeteroscedasticGaussianProcess,
    ScaleMixtureProcess,
    StudentTProcess,
    VariationalGaussianProcess,
)
from priors import HalfCauchyVariance

OFF = {"input_transform": None, "outcome_transform": None}
Xs = torch.tensor([[0.1], [0.7], [2.0]], dtype=torch.float64)


def data(n=7, m=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(n, 1, generator=generator, dtype=torch.float64)
    Y = (3 * X).sin() * torch.arange(1, m + 1).double()
    Y = Y + 0.3 * torch.randn(n, m, generator=generator, dtype=torch.float64)
    return X, Y, 0.2 + 3 * torch.rand(n, generator=generator, dtype=torch.float64)


def kernel():
    made = RBFKernel()
    made.lengthscale = 0.4
    return made


EXACT = {
    "gaussian": GaussianProcess,
    "t": StudentTProcess,
    "mixture": lambda *given, **more: ScaleMixtureProcess(
        *given, scale=HalfCauchyVariance(1.0), **more
    ),
    "mixture of noise": lambda *given, **more: ScaleMixtureProcess(
        *given, scale=HalfCauchyVariance(1.0), scale_noise=True, **more
    ),
}


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("name", EXACT)
def test_they_divide_the_learnt_noise(name, m):
    X, Y, weights = data(m=m)
    model = EXACT[name](X, Y, kernel(), train_weights=weights, **OFF)
    model.likelihood.noise = 0.3
    noise = (0.3 / weights)[:, None].expand(-1, m)
    truth = EXACT[name](X, Y, kernel(), train_Yvar=noise, **OFF)
    torch.testing.assert_close(model.log_marginal_likelihood(), truth.log_marginal_likelihood())
    for found, wanted in (
        (model.posterior(Xs), truth.posterior(Xs)),
        (model.leave_one_out(), truth.leave_one_out()),
        (model.posterior(Xs, observation_noise=True), truth.posterior(Xs, None, Xs * 0 + 0.3)),
    ):
        torch.testing.assert_close(found.mean, wanted.mean)
        torch.testing.assert_close(found.variance, wanted.variance)
    # queries that are as many as the rows have the noise of weight 1 as well
    at = model.posterior(X, observation_noise=True).variance
    torch.testing.assert_close(at, truth.posterior(X, None, torch.full_like(Y, 0.3)).variance)


def test_two_equal_rows_are_one_of_twice_the_weight():
    X, Y, _ = data()
    once = torch.ones(7, dtype=torch.float64)
    once[2] = 2.0
    one = GaussianProcess(X, Y, kernel(), train_weights=once, **OFF).posterior(Xs)
    index = [0, 1, 2, 2, 3, 4, 5, 6]
    two = GaussianProcess(X[index], Y[index], kernel(), **OFF).posterior(Xs)
    torch.testing.assert_close(one.mean, two.mean)
    torch.testing.assert_close(one.variance, two.variance)


def test_further_rows_have_a_weight_of_one():
    X, Y, weights = data()
    model = GaussianProcess(X[:4], Y[:4], kernel(), train_weights=weights[:4], **OFF)
    more = model.condition_on_observations(X[4:], Y[4:])
    weights[4:] = 1.0
    truth = GaussianProcess(X, Y, kernel(), train_weights=weights, **OFF).posterior(Xs)
    torch.testing.assert_close(more.posterior(Xs).mean, truth.mean)
    torch.testing.assert_close(more.posterior(Xs).variance, truth.variance)
    fantasies = model.fantasize(Xs, SobolQMCNormalSampler(torch.Size([3]), seed=0))
    assert fantasies.posterior(Xs).mean.shape == (3, 3, 1)
    known = model.condition_on_observations(X[4:], Y[4:], noise=torch.full_like(Y[4:], 0.1))
    variances = torch.cat([0.1 / weights[:4], torch.full((3,), 0.1, dtype=torch.float64)])
    assert float(model.likelihood.noise.detach()) == pytest.approx(0.1)
    truth = GaussianProcess(X, Y, kernel(), train_Yvar=variances[:, None], **OFF).posterior(Xs)
    torch.testing.assert_close(known.posterior(Xs).variance, truth.variance)


@pytest.mark.parametrize("name", EXACT)
def test_they_come_back_from_a_file(name, tmp_path):
    X, Y, weights = data()
    model = EXACT[name](X, Y, kernel(), train_weights=weights)
    model.save(tmp_path / "model.safetensors")
    loaded = type(model).load(tmp_path / "model.safetensors", kernel())
    torch.testing.assert_close(loaded.posterior(Xs).variance, model.posterior(Xs).variance)
    torch.testing.assert_close(loaded.train_weights, weights[:, None])
    other = type(model).load_state_dict  # onto rows of other weights
    again = EXACT[name](X, Y, kernel(), train_weights=torch.ones_like(weights))
    other(again, model.state_dict())
    assert not torch.allclose(again.posterior(Xs).variance, model.posterior(Xs).variance)


def test_hyperparameters_of_some_rows_have_their_weights():
    X, Y, weights = data(40)
    weights = torch.where(torch.arange(40) < 20, 1e-6, weights)
    Y[:20] += 100.0  # of no weight
    model = GaussianProcess(X, Y, ScaleKernel(kernel()), train_weights=weights)
    model.fit(max_rows=30, progress=False)
    assert model.train_weights.shape == (40, 1)
    assert (model.posterior(X[20:]).mean - Y[20:]).abs().mean() < 1.0


def test_they_divide_the_noise_that_inputs_give():
    X, Y, weights = data()
    model = HeteroscedasticGaussianProcess(
        X, Y, kernel(), num_noise_points=3, train_weights=weights
    )
    noise = model.noise_variance(X) / weights[:, None]
    truth = GaussianProcess(X, Y, kernel(), train_Yvar=noise)
    torch.testing.assert_close(model.posterior(Xs).mean, truth.posterior(Xs).mean)


@pytest.mark.parametrize("likelihood", ["gaussian", "student_t", "categorical"])
def test_two_equal_rows_have_twice_the_log_likelihood(likelihood):
    X, Y, _ = data()
    if likelihood == "categorical":
        Y = (Y > Y.median()).double()
    index = [0, 1, 2, 2, 3, 4, 4, 5, 6]
    weights = torch.tensor([1.0, 1, 2, 1, 2, 1, 1]).double()
    given = {"likelihood": likelihood, "inducing_points": X[:4], **OFF}
    one = VariationalGaussianProcess(X, Y, kernel(), train_weights=weights, **given)
    two = VariationalGaussianProcess(X[index], Y[index], kernel(), **given)
    a, b = one.evidence_lower_bound(), two.evidence_lower_bound()
    assert float(a) == pytest.approx(float(b), abs=1e-6)
    torch.testing.assert_close(one.posterior(Xs).mean, two.posterior(Xs).mean, atol=1e-5, rtol=1e-5)
    # per row of the fit's objective, the bound and its gradient
    each = [model._objective() * len(model.train_X) for model in (one, two)]
    slopes = [
        torch.autograd.grad(v, m.covar_module.raw_lengthscale)[0]
        for v, m in zip(each, (one, two), strict=True)
    ]
    torch.testing.assert_close(*each, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(*slopes, atol=1e-4, rtol=1e-3)
    more = [m.condition_on_observations(X[:1], Y[:1]).evidence_lower_bound() for m in (one, two)]
    assert float(more[0]) == pytest.approx(float(more[1]), abs=1e-6)


@pytest.mark.parametrize("likelihood", ["softmax", "dirichlet"])
def test_classifiers(likelihood, tmp_path):
    X, Y, weights = data(12)
    Y = (Y > Y.median()).double()
    model = GaussianProcessClassifier(X, Y, kernel(), likelihood=likelihood, train_weights=weights)
    plain = GaussianProcessClassifier(X, Y, kernel(), likelihood=likelihood)
    assert not torch.allclose(model.posterior(Xs).mean, plain.posterior(Xs).mean, atol=1e-3)
    model.save(tmp_path / "model.safetensors")
    loaded = GaussianProcessClassifier.load(tmp_path / "model.safetensors", kernel())
    torch.testing.assert_close(loaded.posterior(Xs).mean, model.posterior(Xs).mean)
    if likelihood == "dirichlet":  # a label counts as often as its weight: eq. 6 of the paper
        concentration = model.alpha + float(weights[0])
        variance = model.process.train_Yvar[0, int(Y[0])]
        assert float(variance) == pytest.approx(math.log(1 / concentration + 1))


def test_what_is_refused():
    X, Y, weights = data()
    for wrong, message in (
        (weights[:-1], r"train_weights \(7,\) on cpu"),
        (weights - 10, "finite train_weights > 0"),
    ):
        with pytest.raises(ValueError, match=message):
            GaussianProcess(X, Y, kernel(), train_weights=wrong)
    with pytest.raises(TypeError, match=r"train_weights as a tensor of torch\.float64"):
        VariationalGaussianProcess(X, Y, kernel(), train_weights=weights.float())
    with pytest.raises(ValueError, match="divide known noise variances by the weights"):
        GaussianProcess(X, Y, kernel(), train_Yvar=0.1 * Y.abs(), train_weights=weights)
    model = GaussianProcess(X, Y, kernel(), train_weights=weights)
    with pytest.raises(ValueError, match="has weights of 7 rows"):
        model.set_train_data(X[:4], Y[:4], strict=False)
