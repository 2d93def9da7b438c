"""Function priors against the moments that they state."""

import pytest
import torch
from gpytorch.kernels import PolynomialKernel, RBFKernel, ScaleKernel
from gpytorch.means import ConstantMean
from torch import nn
from torch.distributions import Gamma, InverseGamma

from priors import FunctionPrior, GaussianProcessPrior, NetworkPrior, ScaleMixturePrior
from priors.functions import draw


def rbf(lengthscale=0.7):
    kernel = RBFKernel()
    kernel.lengthscale = lengthscale
    return kernel.requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gaussian_process_has_the_moments_of_its_kernel(dtype):
    mean = ConstantMean().requires_grad_(False)
    mean.constant.fill_(0.5)
    prior = GaussianProcessPrior(rbf(), mean)
    X = torch.linspace(0, 2, 5, dtype=dtype)[:, None]
    f = prior.sample(X, torch.Size([20_000]), generator=torch.Generator().manual_seed(0))[..., 0]
    assert f.dtype == dtype
    assert ((f.mean(0) - 0.5).abs() < 4 / 20_000**0.5).all()
    centred = f.double() - 0.5
    products = centred[:, :, None] * centred[:, None, :]
    error = products.std(0) / 20_000**0.5
    expected = torch.exp(-((X - X.T) ** 2) / (2 * 0.7**2)).double()
    assert ((products.mean(0) - expected).abs() < 4.5 * error).all()


def test_batches_and_shapes():
    prior = GaussianProcessPrior(rbf())
    assert prior.sample(torch.rand(3, 4, 2), torch.Size([5, 6])).shape == (5, 6, 3, 4, 1)
    assert prior.sample(torch.rand(4, 2)).shape == (4, 1)
    assert prior.distribution(torch.rand(3, 4, 2)).event_shape == (4,)
    batched = GaussianProcessPrior(RBFKernel(batch_shape=torch.Size([3])).requires_grad_(False))
    assert batched.sample(torch.rand(4, 2)).shape == (3, 4, 1)


def test_many_close_points_in_float32_give_finite_smooth_functions():
    X = torch.linspace(0, 1, 300)[:, None]
    f = GaussianProcessPrior(rbf()).sample(X, generator=torch.Generator().manual_seed(0))
    assert f.isfinite().all()
    assert f.diff(dim=0).abs().max() < 0.05


def test_scale_mixture_is_a_student_t_at_one_point():
    # sigma^2 ~ IG(4, 4): f ~ t with 8 degrees of freedom and scale 1
    prior = ScaleMixturePrior(rbf(), InverseGamma(4.0, 4.0))
    X = torch.tensor([[0.0], [5.0]], dtype=torch.float64)
    f, variance = prior.sample_with_scale(
        X, torch.Size([40_000]), generator=torch.Generator().manual_seed(0)
    )
    f = f[..., 0]
    assert variance.shape == (40_000,)
    squares = f**2
    error = squares.std(0) / 40_000**0.5
    assert ((squares.mean(0) - 8 / 6).abs() < 4 * error).all()
    # one scale for the whole function: squares of far-apart values are correlated
    both = squares[:, 0] * squares[:, 1]
    expected = 16 / (3 * 2)  # E[sigma^4] = b^2 / ((a - 1)(a - 2)), correlation of g is e^-25
    assert abs(both.mean() - expected) < 4 * both.std() / 40_000**0.5
    inside = (f[:, 0].abs() < 1.859548).double().mean()  # 90% of a t with 8 degrees of freedom
    assert abs(inside - 0.9) < 4 * (0.09 / 40_000) ** 0.5


def test_generators_reproduce_and_leave_the_global_state_alone():
    prior = ScaleMixturePrior(ScaleKernel(rbf()).requires_grad_(False), Gamma(2.0, 2.0))
    before = torch.get_rng_state()
    draws = [
        prior.sample(torch.rand(3, 1, generator=g), torch.Size([2]), generator=g)
        for g in (torch.Generator().manual_seed(3), torch.Generator().manual_seed(3))
    ]
    assert torch.equal(*draws)
    assert torch.equal(torch.get_rng_state(), before)
    g = torch.Generator().manual_seed(0)
    one = draw(Gamma(2.0, 1.0), torch.Size([4]), generator=g)
    two = draw(Gamma(2.0, 1.0), torch.Size([4]), generator=g)
    assert not torch.equal(one, two)


def test_all_are_function_priors():
    network = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    for prior in (GaussianProcessPrior(rbf()), NetworkPrior(network)):
        assert isinstance(prior, FunctionPrior)


def test_inputs_on_another_device_are_answered_there(monkeypatch):
    # "meta" stands in for a GPU; it has no values to factorise
    monkeypatch.setattr("priors.functions.psd_safe_cholesky", lambda covariance: covariance)
    kernel, mean = PolynomialKernel(2), ConstantMean()
    network = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    X = torch.rand(3, 5, 2, device="meta")
    for prior in (
        GaussianProcessPrior(kernel, mean),
        ScaleMixturePrior(kernel, Gamma(2.0, 2.0)),
        NetworkPrior(network),
    ):
        f = prior.sample(X, torch.Size([6]), generator=torch.Generator().manual_seed(0))
        assert f.is_meta
        assert f.shape == (6, 3, 5, 1)
    assert GaussianProcessPrior(kernel, mean).distribution(X).mean.is_meta
    for module in (kernel, mean, network):
        assert {p.device.type for p in module.parameters()} == {"cpu"}


@pytest.mark.parametrize("size", [(), (2,)])
def test_batch_elements_get_independent_functions(size):
    module = nn.Linear(2, 1, bias=False)
    X = torch.tensor([[1.0, 0.5], [-0.3, 2.0]], dtype=torch.float64).expand(10_000, 2, 2)
    for prior in (
        GaussianProcessPrior(rbf()),
        ScaleMixturePrior(rbf(), InverseGamma(9.0, 8.0)),
        NetworkPrior(module),
    ):
        f = prior.sample(X, torch.Size(size), generator=torch.Generator().manual_seed(0))
        assert f.shape == (*size, 10_000, 2, 1)
        f = f[..., 0].reshape(-1, 2).detach()
        products = f[1:] * f[:-1]  # of neighbours in the batch
        assert (products.mean(0).abs() < 4 * products.std(0) / len(products) ** 0.5).all()
        if isinstance(prior, NetworkPrior):
            products = f[:, :, None] * f[:, None, :]
            expected = X[0] @ X[0].T / 2
            error = products.std(0) / len(f) ** 0.5
            assert ((products.mean(0) - expected).abs() < 4 * error).all()


def test_bad_input():
    with pytest.raises(ValueError, match=r"\[..., n, d\]"):
        GaussianProcessPrior(rbf()).sample(torch.rand(3))
    with pytest.raises(ValueError, match="a single number"):
        ScaleMixturePrior(rbf(), Gamma(torch.ones(2), torch.ones(2)))
