"""Further observations, fantasies, warm starts and kept factors, against dense solves by NumPy."""

import copy
import warnings

import numpy as np
import pytest
import torch
from botorch import settings
from botorch.acquisition import qKnowledgeGradient
from botorch.acquisition.objective import ScalarizedPosteriorTransform
from botorch.models.transforms.input import Normalize
from botorch.sampling.normal import SobolQMCNormalSampler
from gpytorch.kernels import MaternKernel, RBFKernel, ScaleKernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood, GaussianLikelihood
from torch.distributions.transforms import AffineTransform, ExpTransform

from bayes import GaussianProcess, StudentTProcess
from priors import NNGPKernel
from priors.posteriors.acquisition import GaussianApproximation

PROCESSES = [GaussianProcess, StudentTProcess]
A, B = 1.5, 0.7  # of the Student t


def rows(n=10, m=1, seed=0, d=2):
    generator = torch.Generator().manual_seed(seed)
    X = 3 * torch.rand(n, d, generator=generator, dtype=torch.float64)
    Y = torch.stack([torch.sin((k + 1) * X[:, 0]) + X[:, 1] for k in range(m)], dim=-1)
    return X, 4 + 10 * Y + 0.5 * torch.randn(n, m, generator=generator, dtype=torch.float64)


def kernel(lengthscale=0.8):
    made = RBFKernel()
    made.lengthscale = lengthscale
    return made


def likelihood(noise=0.05):
    made = GaussianLikelihood()
    made.noise = noise
    return made


def make(process, X, Y, **given):
    if process is StudentTProcess:
        given |= {"concentration": A, "rate": B}
    if "train_Yvar" not in given:
        given.setdefault("likelihood", likelihood())
    return process(X, Y, kernel(), **given)


class Dense:
    """The conditional Gaussian or t by NumPy, in the units of the first rows."""

    def __init__(self, X, Y):
        self.units = [value.numpy() for value in (X.mean(-2), X.std(-2), Y.mean(-2), Y.std(-2))]

    def __call__(self, process, X, Y, Xs, *, noise=0.05, lengthscale=0.8):
        """Mean `[q, m]` and covariance `[m, q, q]` of f; noise is relative, a number or `[n, m]`."""
        center, scale, location, spread = self.units
        X, Xs = ((value.detach().numpy() - center) / scale for value in (X, Xs))
        Z = (Y.detach().numpy() - location) / spread
        noise = np.broadcast_to(noise, Z.shape)

        def k(a, b):
            distance = ((a[:, None] - b[None]) ** 2).sum(-1)
            return np.exp(-0.5 * distance / lengthscale**2)

        means, covariances, quadratic = [], [], 0.0
        for output in range(Z.shape[-1]):
            K = k(X, X) + np.diag(noise[:, output])
            solved = np.linalg.solve(K, np.concatenate([k(X, Xs), Z[:, [output]]], -1))
            means.append(k(Xs, X) @ solved[:, -1])
            covariances.append(k(Xs, Xs) - k(Xs, X) @ solved[:, :-1])
            quadratic += Z[:, output] @ solved[:, -1]
        factor = 1.0
        if process is StudentTProcess:  # variance of the t
            df = 2 * A + Z.size
            factor = (2 * B + quadratic) / df * df / (df - 2)
        mean = location + spread * np.stack(means, -1)
        return mean, factor * np.stack(covariances) * (spread**2)[:, None, None]


def agree(posterior, truth, rtol=1e-6):
    mean, covariance = truth
    np.testing.assert_allclose(posterior.mean.detach().numpy(), mean, rtol=rtol)
    variance = np.diagonal(covariance, axis1=-2, axis2=-1).T
    size = np.abs(variance).max()
    found = posterior.variance.detach().numpy()
    np.testing.assert_allclose(found, variance, rtol=rtol, atol=1e-9 * size)


Xs = rows(n=5, seed=7)[0]


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("fitted", [False, True])
def test_further_rows_in_the_units_of_the_first(process, m, fitted):
    """Also before any `posterior`, which GPyTorch needs, and after a fit."""
    X, Y = rows(m=m)
    more_X, more_Y = rows(n=3, m=m, seed=1)
    model = make(process, X, Y)
    if fitted:  # with nothing to learn
        model.requires_grad_(False).fit()
    truth = Dense(X, Y)(process, torch.cat([X, more_X]), torch.cat([Y, more_Y]), Xs)
    grown = model.condition_on_observations(more_X, more_Y)
    agree(grown.posterior(Xs), truth)
    assert grown.train_X.shape == (13, 2)
    assert "13 rows" in repr(grown)
    one_by_one = model
    for k in range(3):
        one_by_one.posterior(Xs)
        one_by_one = one_by_one.condition_on_observations(more_X[[k]], more_Y[[k]])
    agree(one_by_one.posterior(Xs), truth)
    agree(model.posterior(Xs), Dense(X, Y)(process, X, Y, Xs))


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("batch", [(), (1,), (2,), (3,), (2, 1), (1, 2), (1, 1)], ids=str)
@pytest.mark.parametrize("q", [1, 2])
def test_fantasies_of_any_batch(process, m, batch, q):
    X, Y = rows(m=m)
    model = make(process, X, Y)
    candidates = rows(n=6, seed=3)[0].repeat(2, 1)[: q * int(np.prod(batch))]
    candidates = candidates.reshape(*batch, q, 2)
    sampler = SobolQMCNormalSampler(torch.Size([4]), seed=0)
    fantasies = model.fantasize(candidates, sampler)
    assert fantasies.batch_shape == (4, *batch)
    drawn = fantasies.train_Y[..., -q:, :]
    expected = sampler(model.posterior(candidates, observation_noise=True))
    assert torch.allclose(drawn, expected)
    dense = Dense(X, Y)
    together = fantasies.posterior(Xs)
    apart = fantasies.posterior(Xs.expand(4, *batch, 5, 2))
    assert together.mean.shape == (4, *batch, 5, m)
    for index in np.ndindex(4, *batch):
        truth = dense(
            process,
            torch.cat([X, candidates[index[1:]]]),
            torch.cat([Y, drawn[index]]),
            Xs,
        )
        for posterior in (together, apart):
            np.testing.assert_allclose(posterior.mean[index].detach(), truth[0], rtol=1e-6)
            variance = np.diagonal(truth[1], axis1=-2, axis2=-1).T
            found = posterior.variance[index].detach()
            np.testing.assert_allclose(found, variance, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_data_batches(process, m, batch):
    """Each data set by itself, its further rows and its fantasies."""
    if process is StudentTProcess and batch > 1:
        shared = "sigma^2 of a batch"
    sets = [rows(m=m, seed=seed) for seed in range(batch)]
    X, Y = (torch.stack(parts) for parts in zip(*sets, strict=True))
    model = make(process, X, Y)
    more = [rows(n=2, m=m, seed=10 + seed) for seed in range(batch)]
    more_X, more_Y = (torch.stack(parts) for parts in zip(*more, strict=True))
    before = model.posterior(Xs)
    grown = model.condition_on_observations(more_X, more_Y).posterior(Xs)
    shared = model.condition_on_observations(more_X[0], more_Y[0]).posterior(Xs)
    sampler = SobolQMCNormalSampler(torch.Size([4]), seed=0)
    fantasies = model.fantasize(more_X[:, :1], sampler)
    imagined = fantasies.posterior(Xs)
    assert fantasies.batch_shape == (4, batch)
    for k, (Xk, Yk) in enumerate(sets):
        dense = Dense(Xk, Yk)
        for posterior, extra in (
            (before, None),
            (grown, more[k]),
            (shared, more[0]),
            (imagined, (more_X[k, :1], fantasies.train_Y[2, k, -1:])),
        ):
            at = (2, k) if posterior is imagined else k
            all_X = Xk if extra is None else torch.cat([Xk, extra[0]])
            all_Y = Yk if extra is None else torch.cat([Yk, extra[1]])
            mean, covariance = dense(process, all_X, all_Y, Xs)
            variance = np.diagonal(covariance, axis1=-2, axis2=-1).T
            np.testing.assert_allclose(posterior.mean[at].detach(), mean, rtol=1e-6)
            found = posterior.variance[at].detach()
            np.testing.assert_allclose(found, variance, rtol=1e-6, atol=1e-6)


def test_fantasies_of_fantasies():
    """A look two steps ahead, as BoTorch's multi-step acquisition takes it."""
    X, Y = rows(m=2)
    model = make(GaussianProcess, X, Y)
    first = model.fantasize(Xs[:1], SobolQMCNormalSampler(torch.Size([3]), seed=0))
    second = first.fantasize(
        Xs[1:2].expand(3, 1, 2), SobolQMCNormalSampler(torch.Size([2]), seed=1)
    )
    assert second.batch_shape == (2, 3)
    found = second.posterior(Xs[2:])
    for index in np.ndindex(2, 3):
        truth = Dense(X, Y)(GaussianProcess, second.train_X[index], second.train_Y[index], Xs[2:])
        np.testing.assert_allclose(found.mean[index].detach(), truth[0], rtol=1e-6)
    nothing = model.fantasize(Xs[:0], SobolQMCNormalSampler(torch.Size([3]), seed=0))
    agree(
        nothing.posterior(Xs),
        [t[None].repeat(3, 0) for t in Dense(X, Y)(GaussianProcess, X, Y, Xs)],
    ) if False else None
    assert nothing.batch_shape == (3,)
    assert torch.allclose(nothing.posterior(Xs).mean, model.posterior(Xs).mean)
