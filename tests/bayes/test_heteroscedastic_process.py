"""Noise as a function of the inputs, against simulated truth and dense algebra."""

import math

import numpy as np
import pytest
import torch
from gpytorch.kernels import MaternKernel, RBFKernel, ScaleKernel

from bayes import GaussianProcess, HeteroscedasticGaussianProcess
from priors import TailCompression


def truth(x):
    """Mean and standard deviation of y."""
    return torch.sin(3 * x), 0.05 + 0.45 * torch.sigmoid(3 * x)


def data(n=70, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = 4 * torch.rand(n, 1, generator=generator, dtype=torch.float64) - 2
    mean, std = truth(x)
    y = mean + std * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    return x.to(dtype), y.to(dtype)


def kernel():
    return ScaleKernel(MaternKernel(nu=2.5))


@pytest.fixture(scope="module")
def fitted():
    X, Y = data()
    return HeteroscedasticGaussianProcess(X, Y, kernel(), num_noise_points=10).fit(progress=False)


@torch.no_grad()
def test_the_noise_is_found(fitted):
    grid = torch.linspace(-1.8, 1.8, 19, dtype=torch.float64)[:, None]
    ratio = fitted.noise_variance(grid).sqrt() / truth(grid)[1]
    assert ratio.log().square().mean().sqrt() < math.log(1.4)
    assert ratio.log().abs().max() < math.log(2.2)


@torch.no_grad()
def test_it_predicts_better_than_one_noise_for_all(fitted):
    X, Y = data(n=2000, seed=1)
    plain = GaussianProcess(fitted.train_X, fitted.train_Y, kernel())
    with torch.enable_grad():
        plain.fit(progress=False)
    gain = fitted.posterior(X, observation_noise=True).log_prob(Y) - plain.posterior(
        X, observation_noise=True
    ).log_prob(Y)
    assert gain.mean() - 4 * gain.std() / len(gain) ** 0.5 > 0.1
    at = fitted.posterior(X, observation_noise=True).cdf(Y)
    for part in (X < 0, X >= 0):  # where there is little noise, and much
        inside = ((at[part] > 0.05) & (at[part] < 0.95)).double().mean()
        assert 0.8 < inside < 0.96


@torch.no_grad()
@pytest.mark.parametrize("outputs", [1, 2])
def test_given_the_noise_it_is_a_process_of_known_variances(outputs):
    X, Y = data(12)
    Y = torch.cat([Y, 2 + 3 * Y.cos()], -1)[:, :outputs]
    model = HeteroscedasticGaussianProcess(
        X, Y, kernel(), noise_kernel=RBFKernel(), num_noise_points=5
    )
    generator = torch.Generator().manual_seed(1)
    v = model.likelihood.noise_covar.whitened
    v.copy_(torch.randn(v.shape, generator=generator, dtype=v.dtype))
    known = GaussianProcess(X, Y, kernel(), train_Yvar=model.noise_variance(X))
    queries = X[:4] + 0.3
    one, other = model.posterior(queries), known.posterior(queries)
    torch.testing.assert_close(one.mean, other.mean)
    torch.testing.assert_close(one.variance, other.variance)
    torch.testing.assert_close(model.leave_one_out().mean, known.leave_one_out().mean)
    noisy = model.posterior(queries, observation_noise=True).variance
    torch.testing.assert_close(noisy, one.variance + model.noise_variance(queries))
    more = model.condition_on_observations(X[:2] + 0.1, Y[:2])
    assert more.posterior(queries).mean.shape == (4, outputs)


@torch.no_grad()
@pytest.mark.parametrize("outputs", [1, 2])
def test_the_evidence_is_that_of_the_integral_over_noise(outputs):
    """By importance sampling, of noise functions about the most likely one."""
    X, Y = data(40)
    Y = torch.cat([Y, Y.flip(0)], -1)[:, :outputs]
    noise_kernel = ScaleKernel(RBFKernel())
    model = HeteroscedasticGaussianProcess(
        X,
        Y,
        kernel(),
        noise_kernel=noise_kernel,
        num_noise_points=4,
        outcome_transform=None,
    )
    noise = model.likelihood.noise_covar
    for parameter in model.parameters():
        parameter.requires_grad_(parameter is noise.whitened)
    with torch.enable_grad():
        model.fit(progress=False)
    known = GaussianProcess(X, Y, kernel(), train_Yvar=torch.ones_like(Y), outcome_transform=None)

    def given(v):
        noise.whitened.copy_(v)
        known.likelihood.noise = model.noise_variance(X).mT.reshape(known.likelihood.noise.shape)
        known._clear_cache()
        return known.log_marginal_likelihood()

    found, mode = model.log_marginal_likelihood(), noise.whitened.clone()
    generator = torch.Generator().manual_seed(0)
    around = torch.distributions.StudentT(4.0, mode, 0.8)
    logs = []
    for _ in range(400):
        step = torch.randn(mode.shape, generator=generator, dtype=mode.dtype)
        chi = torch.randn(4, *mode.shape, generator=generator, dtype=mode.dtype).square().mean(0)
        v = mode + 0.8 * step / chi.sqrt()
        prior = torch.distributions.Normal(0.0, 1.0).log_prob(v).sum()
        logs.append(given(v) + prior - around.log_prob(v).sum())
    truth = torch.stack(logs).logsumexp(0) - math.log(len(logs))
    assert found.item() == pytest.approx(truth.item(), abs=0.5 * outputs)
    assert given(mode) - 0.5 * mode.square().sum() > truth + 1.0 * outputs, "without the integral"


@pytest.mark.parametrize("seed", [0, 1])
def test_noise_that_is_the_same_everywhere_is_found_to_be(seed):
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(100, 1, generator=generator, dtype=torch.float64)
    Y = torch.sin(8 * X) + 0.1 * torch.randn(100, 1, generator=generator, dtype=torch.float64)
    model = HeteroscedasticGaussianProcess(X, Y, kernel()).fit()
    grid = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)[:, None]
    with torch.no_grad():
        ratio = model.noise_variance(grid).sqrt() / 0.1
    assert ratio.log().abs().max() < math.log(1.5)


@torch.no_grad()
def test_the_log_noise_is_the_conditional_mean_of_its_process():
    X, Y = data(8)
    model = HeteroscedasticGaussianProcess(
        X, Y, kernel(), noise_kernel=RBFKernel(), outcome_transform=None
    )
    part = model.likelihood.noise_covar
    part.whitened.copy_(torch.linspace(-1, 1, 8, dtype=torch.float64))
    at_points = part.log_variance(part.points) - part.log_mean
    grid = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    K = part.kernel(part.points).to_dense().numpy() + 1e-6 * np.eye(8)
    cross = part.kernel(grid, part.points).to_dense().numpy()
    root = np.linalg.cholesky(K)
    values = root @ part.whitened.numpy()
    np.testing.assert_allclose(at_points, values, atol=1e-4)
    expected = cross @ np.linalg.solve(K, values)
    np.testing.assert_allclose(part.log_variance(grid) - part.log_mean, expected, rtol=1e-6)


@torch.no_grad()
def test_saved_and_loaded(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    read = HeteroscedasticGaussianProcess.load(tmp_path / "model", kernel())
    grid = torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]
    one, other = (m.posterior(grid, observation_noise=True) for m in (fitted, read))
    torch.testing.assert_close(one.mean, other.mean)
    torch.testing.assert_close(one.variance, other.variance)
    with pytest.raises(TypeError, match="needs the kernel as well"):
        HeteroscedasticGaussianProcess.load(tmp_path / "model")


@torch.no_grad()
def test_float32_follows_float64():
    found = []
    for dtype in (torch.float32, torch.float64):
        X, Y = data(15, dtype=dtype)
        model = HeteroscedasticGaussianProcess(X, Y, kernel(), noise_kernel=RBFKernel())
        posterior = model.posterior(X[:3] + 0.2, observation_noise=True)
        assert posterior.mean.dtype == dtype
        found.append(torch.cat([posterior.mean, posterior.variance]).double())
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_what_is_refused():
    X, Y = data(5)
    with pytest.raises(TypeError, match="noise_kernel as a gpytorch kernel or None, got str"):
        HeteroscedasticGaussianProcess(X, Y, kernel(), noise_kernel="rbf")
    with pytest.raises(ValueError, match="num_noise_points >= 1, got 0"):
        HeteroscedasticGaussianProcess(X, Y, kernel(), num_noise_points=0)
    with pytest.raises(ValueError, match="takes one data set"):
        HeteroscedasticGaussianProcess(X.expand(2, -1, -1), Y.expand(2, -1, -1), kernel())
    model = HeteroscedasticGaussianProcess(X, Y, kernel(), outcome_transform=TailCompression(Y))
    with pytest.raises(NotImplementedError, match="needs an affine outcome transform"):
        model.noise_variance(X)
