"""Random features against the exact kernels they estimate."""

import math

import gpytorch
import pytest
import torch
from gpytorch.kernels import Kernel
from linear_operator.operators import LowRankRootAddedDiagLinearOperator
from torch import nn

from bayes import GaussianProcess
from priors import InfiniteNetwork, NNGPKernel, NTKKernel
from priors.kernels.random_features import (
    NNGPFeatures,
    NTKFeatures,
    RandomFeatureKernel,
    feature_error,
    plot_feature_error,
    random_features,
)

KERNELS = {"nngp": NNGPKernel, "ntk": NTKKernel}


def network(depth=2, activation=None, d=4):
    layers = []
    for k in range(depth):
        layers += [nn.Linear(d if k == 0 else 8, 8), activation or nn.ReLU()]
    return InfiniteNetwork(nn.Sequential(*layers, nn.Linear(8, 1)), weight_var=1.7, bias_var=0.2)


def points(n=12, d=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, dtype=torch.float64, generator=generator)


def draws(made, kind, count, size):
    X = points()
    kernels = []
    with torch.no_grad():
        for seed in range(count):
            generator = torch.Generator().manual_seed(seed)
            z = random_features(made, size, kind=kind, generator=generator)(X)
            kernels.append(z @ z.mT)
    stacked = torch.stack(kernels)
    return stacked.mean(0), stacked.std(0) / count**0.5, getattr(made, kind)(X).detach()


@pytest.mark.covering
@pytest.mark.parametrize("kind", sorted(KERNELS))
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU()])
def test_one_hidden_layer_is_unbiased_at_any_width(kind, activation):
    mean, error, exact = draws(network(1, activation), kind, 400, 32)
    assert ((mean - exact).abs() < 5 * error).all()
    assert (error < 0.2 * exact.diagonal().max()).all()


@pytest.mark.parametrize("kind", sorted(KERNELS))
def test_deeper_networks_are_unbiased_to_one_over_width(kind):
    mean, error, exact = draws(network(3), kind, 100, 512)
    allowed = 5 * error + 4 / 512 * exact.abs().max()
    assert ((mean - exact).abs() < allowed).all()
    assert (allowed < 0.2 * exact.abs().max()).all()


@pytest.mark.parametrize("kind", sorted(KERNELS))
def test_the_error_falls_like_the_root_of_the_size(kind):
    made = network()

    def make(size, generator):
        return random_features(made, size, kind=kind, generator=generator)

    curve = feature_error(make, KERNELS[kind](made), points(30), [64, 256, 1024], repeats=20)
    slope = (curve.error[-1] / curve.error[0]).log() / math.log(16)
    assert -0.7 < slope < -0.3
    assert (curve.standard_error < 0.3 * curve.error).all()
    axes = plot_feature_error({kind: curve})
    assert axes.get_xscale() == axes.get_yscale() == "log"


def test_gaussian_process_is_ridge_regression_on_the_features():
    X = points(40)
    Y = X.sin().sum(-1, keepdim=True)
    features = NNGPFeatures(
        4,
        16,
        weight_var=[2.0, 1.0],
        bias_var=[0.1, 0.0],
        generator=torch.Generator().manual_seed(0),
    )
    model = GaussianProcess(
        X, Y, RandomFeatureKernel(features), input_transform=None, outcome_transform=None
    )
    model.likelihood.noise = 0.05
    z, t = features(X), features(points(5, seed=1))
    precision = z.mT @ z / 0.05 + torch.eye(17, dtype=torch.float64)
    weights = torch.linalg.solve(precision, z.mT @ Y / 0.05)
    posterior = model.posterior(points(5, seed=1))
    torch.testing.assert_close(posterior.mean.detach(), t @ weights, rtol=1e-4, atol=1e-5)
    variance = (t @ torch.linalg.solve(precision, t.mT)).diagonal()[:, None]
    torch.testing.assert_close(posterior.variance.detach(), variance, rtol=1e-3, atol=1e-5)


def test_kernel_is_low_rank_and_agrees_with_its_diagonal():
    kernel: Kernel = RandomFeatureKernel(random_features(network(), 32))
    X, Z = points(), points(5, seed=1)
    whole = kernel(X)
    torch.testing.assert_close(kernel(X, diag=True), whole.to_dense().diagonal())
    other = kernel(X, Z).to_dense()
    torch.testing.assert_close(other, kernel(Z, X).to_dense().mT)
    torch.testing.assert_close(
        kernel(X, X + 0.1, diag=True), kernel(X, X + 0.1).to_dense().diagonal()
    )
    batch = torch.stack([X, 2 * X])
    torch.testing.assert_close(kernel(batch).to_dense()[1], kernel(2 * X).to_dense())
    with gpytorch.settings.max_cholesky_size(1):
        assert whole.add_jitter(0.1).logdet().isfinite()


def test_likelihood_of_many_points_never_forms_their_kernel_matrix():
    n, noise = 20_000, 0.05  # a dense matrix would take 3.2 GB
    X = points(n)
    y = X[:, 0].sin()
    features = random_features(network(), 16, generator=torch.Generator().manual_seed(0))
    z = features(X)
    noisy = RandomFeatureKernel(features)(X).add_diagonal(X.new_tensor(noise))
    assert isinstance(noisy.evaluate_kernel(), LowRankRootAddedDiagLinearOperator)
    marginal = gpytorch.distributions.MultivariateNormal(torch.zeros_like(y), noisy)
    # importing BoTorch turns the low-rank path of the likelihood off
    with gpytorch.settings.fast_computations(log_prob=True):
        found = marginal.log_prob(y)
    exact = torch.distributions.LowRankMultivariateNormal(
        torch.zeros_like(y), z, torch.full_like(y, noise)
    ).log_prob(y)
    torch.testing.assert_close(found, exact, rtol=1e-8, atol=0)


@pytest.mark.parametrize("kind", sorted(KERNELS))
def test_dtype_gradient_and_state(kind):
    made = random_features(network(), 16, kind=kind, generator=torch.Generator().manual_seed(0))
    x = points().float().requires_grad_()
    z = made(x)
    assert z.dtype == torch.float32
    (gradient,) = torch.autograd.grad(z.square().sum(), x)
    assert gradient.isfinite().all()
    again = random_features(network(), 16, kind=kind, generator=torch.Generator().manual_seed(1))
    again.load_state_dict(made.state_dict())
    assert torch.equal(again(x), z)


def test_variances_of_the_network_are_taken_over():
    made = network()
    made.variances.weight_var["0"] = 3.0
    features = random_features(made, 8)
    assert features.weight_var == pytest.approx((3.0, 1.7, 1.7))
    assert features.bias_var == pytest.approx((0.2, 0.2, 0.2))


def test_errors():
    with pytest.raises(ValueError, match='"nngp" or "ntk"'):
        random_features(network(), 8, kind="both")
    layers = [nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 1)]
    mixed = InfiniteNetwork(nn.Sequential(*layers))
    with pytest.raises(NotImplementedError, match="single kind of nonlinearity"):
        random_features(mixed, 8)
    with pytest.raises(ValueError, match="one value per layer"):
        NTKFeatures(4, 8, weight_var=[1.0], bias_var=[0.0])
    features = random_features(network(), 8)
    with pytest.raises(ValueError, match="made for inputs with 4 features, got 3"):
        features(points(d=3))
