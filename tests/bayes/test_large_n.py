"""Gaussian processes of many rows against exact ones and dense algebra."""

import warnings

import pytest
import torch
from gpytorch.kernels import LinearKernel, RBFKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from torch import nn
from torch.distributions.transforms import ExpTransform

from bayes import (
    GaussianProcess,
    StudentTProcess,
    VariationalGaussianProcess,
    WeightSpaceProcess,
    gaussian_process_for,
)
from priors.kernels.network import NNGPKernel, NTKKernel
from priors.kernels.random_features import (
    FeatureMap,
    NNGPFeatures,
    RandomFeatureKernel,
    random_features,
)
from priors.testing import ModelContract


def data(n=40, m=1, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    Y = torch.stack([torch.sin((k + 1) * X[:, 0]) + X[:, 1] for k in range(m)], dim=-1)
    Y = 4 + 10 * Y + 3 * torch.randn(n, m, generator=generator, dtype=torch.float64)
    return X.to(dtype), Y.to(dtype)


def network():
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))


def features(size=25):
    return NNGPFeatures(
        2, size, weight_var=[1.0, 2.0], bias_var=[0.1, 0.1],
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip


def exact(X, Y, scale, noise, **options):
    """The exact process with the kernel of the features."""
    kernel = ScaleKernel(RandomFeatureKernel(features())).double()
    kernel.outputscale = scale
    likelihood = GaussianLikelihood()
    likelihood.noise = noise
    return GaussianProcess(X, Y, kernel, likelihood=likelihood, **options)


class TestWeightSpaceProcess(ModelContract):
    def make_model(self, dtype):
        return WeightSpaceProcess(*data(m=2, dtype=dtype), features())

    def make_X(self, dtype):
        return data(6, dtype=dtype, seed=1)[0].reshape(2, 3, 2)


@torch.no_grad()
@pytest.mark.parametrize("n", [10, 40])
def test_weight_space_is_the_exact_process_of_its_kernel(n):
    X, Y = data(n, m=2)
    model = WeightSpaceProcess(X, Y, features())
    model.outputscale.fill_(1.7)
    model.noise.fill_(0.2)
    truth = exact(X, Y, 1.7, 0.2)
    Xs = data(5, seed=1)[0]
    for noisy in (False, True):
        one, two = (p.posterior(Xs, observation_noise=noisy) for p in (model, truth))
        assert torch.allclose(one.mean, two.mean, rtol=1e-6)
        assert torch.allclose(one.variance, two.variance, rtol=1e-6)
    Ys = two.mean + 1
    assert torch.allclose(one.joint_log_prob(Ys), two.joint_log_prob(Ys), rtol=1e-6)
    evidence = truth.log_marginal_likelihood()
    assert torch.allclose(model.log_marginal_likelihood(), evidence, rtol=1e-8)


def test_fit_finds_the_maximum_of_the_evidence():
    X, Y = data(60, m=2)
    model = WeightSpaceProcess(X, Y, features()).fit()
    best = float(model.log_marginal_likelihood())
    for name in ("outputscale", "noise"):
        for k in range(2):
            for factor in (0.9, 1.1):
                other = WeightSpaceProcess(X, Y, features())
                other.outputscale.copy_(model.outputscale)
                other.noise.copy_(model.noise)
                getattr(other, name)[k] *= factor
                assert float(other.log_marginal_likelihood()) < best


@torch.no_grad()
def test_further_rows_are_conditioned_on_exactly():
    X, Y = data(30)
    options = {"input_transform": None, "outcome_transform": ExpTransform()}
    Y = Y.exp().clamp(0.1, 9.0)
    one = WeightSpaceProcess(X[:20], Y[:20], features(), **options)
    whole = WeightSpaceProcess(X, Y, features(), **options)
    more = one.condition_on_observations(X[20:29], Y[20:29])
    more = more.condition_on_observations(X[29:], Y[29:])
    Xs = data(5, seed=1)[0]
    assert torch.allclose(more.posterior(Xs).base.mean, whole.posterior(Xs).base.mean)
    assert torch.allclose(more.log_marginal_likelihood(), whole.log_marginal_likelihood())
    assert (one.num_rows, more.num_rows) == (20, 30)


@torch.no_grad()
def test_paths_are_draws_of_the_posterior():
    X, Y = data(20, m=2)
    model = WeightSpaceProcess(X, Y, features())
    path = model.sample_path(torch.Size([20_000]), generator=torch.Generator().manual_seed(0))
    Xs = data(3, seed=1)[0]
    draws, posterior = path(Xs), model.posterior(Xs)
    assert draws.shape == (20_000, 3, 2)
    error = posterior.variance.sqrt() / 20_000**0.5
    assert ((draws.mean(0) - posterior.mean).abs() < 4 * error).all()
    assert torch.allclose(draws.var(0), posterior.variance, rtol=0.05)
    assert path(Xs[None].expand(4, 3, 2)).shape == (20_000, 4, 3, 2)


@pytest.mark.parametrize("make", [NNGPKernel, NTKKernel])
def test_features_of_network_kernels(make, tmp_path):
    X, Y = data(30)
    kernel = make(network())
    model = WeightSpaceProcess(X, Y, kernel, num_features=300)
    Xs = data(5, seed=1)[0]
    with torch.no_grad():
        z = model._z(Xs)
        assert torch.allclose(z @ z.mT, kernel((Xs - X.mean(0)) / X.std(0)).to_dense(), atol=0.6)
    model.save(tmp_path / "w.safetensors")
    again = WeightSpaceProcess.load(tmp_path / "w.safetensors", kernel)
    assert torch.equal(again.posterior(Xs).mean, model.posterior(Xs).mean)
    assert again.num_rows == 30
    with pytest.raises(ValueError, match="different feature map"):
        WeightSpaceProcess.load(tmp_path / "w.safetensors", features(20))
    assert isinstance(random_features(kernel.network, 4), FeatureMap)


@pytest.mark.parametrize("kind", [GaussianProcess, StudentTProcess])
def test_hyperparameters_of_some_rows_condition_all(kind):
    X, Y = data(60)
    model = kind(X, Y, RBFKernel().double())
    start = model.covar_module.lengthscale.item()
    model.fit(max_rows=20)
    assert model.covar_module.lengthscale.item() != start
    assert len(model.train_X) == 60
    # a model of all rows with those hyperparameters
    other = kind(X, Y, RBFKernel().double())
    other.load_state_dict(model.state_dict())
    assert torch.allclose(other.posterior(X).mean, model.posterior(X).mean)
    # those of the subset's own fit, in the units of all rows
    chosen = torch.randperm(60, generator=torch.Generator().manual_seed(0))[:20].sort().values
    small = kind(X, Y, RBFKernel().double())._copied()
    small._condition_on(X[chosen], Y[chosen], None, None)
    small.fit()
    found = (m.covar_module.lengthscale.item() for m in (small, model))
    assert next(found) == pytest.approx(next(found))
    whole = kind(X, Y, RBFKernel().double()).fit(max_rows=60)
    assert torch.equal(
        whole.covar_module.lengthscale,
        kind(X, Y, RBFKernel().double()).fit().covar_module.lengthscale,
    )
    with pytest.raises(ValueError, match="max_rows >= 1"):
        model.fit(max_rows=0)


def test_known_noise_stays_with_its_rows():
    X, Y = data(30)
    noise = torch.linspace(1, 9, 30, dtype=torch.float64).unsqueeze(-1)
    model = GaussianProcess(X, Y, RBFKernel().double(), train_Yvar=noise).fit(max_rows=10)
    assert torch.equal(model.train_Yvar, noise)
    other = GaussianProcess(X, Y, RBFKernel().double(), train_Yvar=noise)
    other.covar_module.lengthscale = model.covar_module.lengthscale.item()
    assert torch.allclose(model.posterior(X).mean, other.posterior(X).mean)


def test_the_method_follows_the_number_of_rows(monkeypatch):
    X, Y = data(40)
    monkeypatch.setattr("bayes.large_n.choosing._EXACT", 10)
    monkeypatch.setattr("bayes.large_n.choosing._SUBSET", 30)
    options = {"max_iter": 1, "progress": False, "num_inducing": 5, "max_rows": 8}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* was stopped by max_iter")
        found = gaussian_process_for(X[:10], Y[:10], RBFKernel(), **options)
        assert isinstance(found, GaussianProcess)
        with pytest.warns(UserWarning, match='method="subset" for 30 rows.*8 random rows'):
            found = gaussian_process_for(X[:30], Y[:30], RBFKernel(), **options)
        assert isinstance(found, GaussianProcess)
        assert len(found.train_X) == 30
        with pytest.warns(UserWarning, match='method="inducing" for 40 rows.*5 inducing'):
            found = gaussian_process_for(X, Y, RBFKernel(), **options)
        assert isinstance(found, VariationalGaussianProcess)
        assert found.num_inducing == 5
        found = gaussian_process_for(X, Y, RBFKernel(), method="exact", **options)
        assert isinstance(found, GaussianProcess)
        found = gaussian_process_for(
            X, Y, NNGPKernel(network()), method="features", num_features=16, **options
        )
        assert isinstance(found, WeightSpaceProcess)
    with pytest.raises(ValueError, match="'inducing', 'features' or None"):
        gaussian_process_for(X, Y, RBFKernel(), method="sparse")


def test_what_a_method_refuses_is_refused_before_anything_is_fitted(monkeypatch):
    X, Y = data(10)

    def fit(*args, **kwargs):
        raise AssertionError("fitted")

    monkeypatch.setattr(GaussianProcess, "fit", fit)
    with pytest.raises(TypeError, match="needs an NNGPKernel, an NTKKernel"):
        gaussian_process_for(X, Y, RBFKernel(), method="features")
    with pytest.raises(ValueError, match="num_inducing >= 1, got 0"):
        gaussian_process_for(X, Y, RBFKernel(), method="inducing", num_inducing=0)
    for method in ("features", "inducing"):
        with pytest.raises(ValueError, match="takes one data set"):
            gaussian_process_for(X[None], Y[None], NNGPKernel(network()), method=method)


def test_errors():
    X, Y = data()
    with pytest.raises(TypeError, match="VariationalGaussianProcess takes every kernel"):
        WeightSpaceProcess(X, Y, LinearKernel())
    with pytest.raises(NotImplementedError, match="fully connected"):
        WeightSpaceProcess(X, Y, NNGPKernel(nn.Sequential(nn.Linear(2, 1))))
    with pytest.raises(ValueError, match="one data set"):
        WeightSpaceProcess(X[None], Y[None], features())
    model = WeightSpaceProcess(X, Y, features())
    with pytest.raises(NotImplementedError, match="observation_noise=True"):
        model.posterior(X, observation_noise=Y)
    with pytest.raises(NotImplementedError, match="one set of rows"):
        model.condition_on_observations(X[None], Y[None])
