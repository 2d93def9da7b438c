"""Functions drawn from exact processes: one function however it is asked, of the right law."""

import pytest
import torch
from gpytorch.kernels import MaternKernel
from torch import nn
from torch.distributions.transforms import ExpTransform

from bayes import GaussianProcess, ScaleMixtureProcess, StudentTProcess
from priors import HalfCauchyVariance, NNGPKernel

NETWORK = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))


def mixture(*args, **given):
    return ScaleMixtureProcess(*args, scale=HalfCauchyVariance(), **given)


def make(process=GaussianProcess, m=1, kernel=None):
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(8, 2, generator=generator, dtype=torch.float64)
    Y = 3 + torch.stack([torch.sin((4 + k) * X[:, 0]) for k in range(m)], -1)
    return process(X, Y, kernel or NNGPKernel(NETWORK))


Xs = torch.rand(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("process", [GaussianProcess, StudentTProcess, mixture])
@pytest.mark.parametrize("m", [1, 2])
def test_points_asked_together_or_one_after_another(process, m):
    model = make(process, m, MaternKernel())
    shape = torch.Size([3])
    with torch.no_grad():
        # the generator gives normals call by call: those of the first calls are equal
        once, apart = (
            model.sample_path(shape, generator=torch.Generator().manual_seed(0)) for _ in range(2)
        )
        first = once(torch.cat([Xs[:2], Xs[:1]]))
        assert torch.equal(first[:, 0], first[:, 2])
        first = first[:, :2]
        assert first.shape == (3, 2, m)
        assert torch.allclose(apart(Xs[:2]), first, atol=1e-6)
        for part in (Xs[2:3], Xs[3:]):
            apart(part)
        assert torch.allclose(apart(Xs[:2]), first, atol=1e-6)


def test_paths_have_the_joint_law_of_the_posterior():
    model = make()
    size = 4000
    with torch.no_grad():
        path = model.sample_path(torch.Size([size]), generator=torch.Generator().manual_seed(0))
        f = torch.cat([path(Xs[:2]), path(Xs[2:])], -2)[..., 0]
        posterior = model.posterior(Xs)
        covariance = posterior.distribution.covariance_matrix
    mean = posterior.mean[:, 0]
    assert ((f.mean(0) - mean).abs() < 4.5 * (covariance.diag() / size).sqrt()).all()
    products = (f - mean).unsqueeze(-1) * (f - mean).unsqueeze(-2)
    assert ((products.mean(0) - covariance).abs() < 4.5 * products.std(0) / size**0.5).all()


def test_gradients_and_refusals():
    model = make()
    path = model.sample_path(generator=torch.Generator().manual_seed(0))
    X = Xs.clone().requires_grad_()
    value = path(X)
    assert value.shape == (5, 1)
    (slope,) = torch.autograd.grad(value.sum(), X)
    assert slope.isfinite().all()
    assert torch.allclose(torch.autograd.grad(path(X).sum(), X)[0], slope)  # of points asked before
    with pytest.raises(ValueError, match="flatten"):
        path(Xs[None])
    model.likelihood.noise = 0.5
    with pytest.raises(ValueError, match="changed"):
        path(Xs)
    other = GaussianProcess(
        model.train_X, model.train_Y, MaternKernel(), outcome_transform=ExpTransform()
    )
    with pytest.raises(NotImplementedError, match="affine"):
        other.sample_path()
