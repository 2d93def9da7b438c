"""Kernels of networks in sums and products with others, in both exact engines."""

import itertools

import pytest
import torch
from botorch.models import MixedSingleTaskGP
from botorch.models.kernels.categorical import CategoricalKernel
from gpytorch.kernels import AdditiveKernel, MaternKernel, ProductKernel, RBFKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from torch import nn

from bayes import GaussianProcess, StudentTProcess
from priors import NNGPKernel, NTKKernel

PROCESSES = [GaussianProcess, StudentTProcess]


def network(inputs, activation=None):
    return nn.Sequential(nn.Linear(inputs, 4), activation or nn.ReLU(), nn.Linear(4, 1))


def data(n=24, seed=0, m=1):
    """Two numbers and a category of three levels, whose levels shift the outcome."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    X[:, 2] = torch.randint(0, 3, (n,), generator=generator).double()
    f = torch.stack([X[:, 0].sin() + k * X[:, 1] + 2 * (X[:, 2] == 1) for k in range(m)], -1)
    return X, f + 0.05 * torch.randn(n, m, generator=generator, dtype=torch.float64)


KERNELS = {
    "sum with an RBF": lambda: NNGPKernel(network(3), ard_num_dims=3) + RBFKernel(),
    "product with a Matern": lambda: ScaleKernel(NTKKernel(network(3)) * MaternKernel()),
    "scaled": lambda: ScaleKernel(NNGPKernel(network(3, nn.GELU()), ard_num_dims=3)),
    "additive networks": lambda: AdditiveKernel(
        *(NNGPKernel(network(1), active_dims=(k,), ard_num_dims=1) for k in range(3))
    ),
    "a category beside a network": lambda: (
        ScaleKernel(NNGPKernel(network(2), active_dims=(0, 1), ard_num_dims=2))
        + NNGPKernel(network(2), active_dims=(0, 1), ard_num_dims=2)
        * CategoricalKernel(ard_num_dims=1, active_dims=(2,))
    ),
}


def by_hand(kernel, x, z):
    """The matrix of a composed kernel from those of its parts."""
    if isinstance(kernel, ScaleKernel):
        return kernel.outputscale * by_hand(kernel.base_kernel, x, z)
    if isinstance(kernel, AdditiveKernel):
        return sum(by_hand(part, x, z) for part in kernel.kernels)
    if isinstance(kernel, ProductKernel):
        return torch.stack([by_hand(part, x, z) for part in kernel.kernels]).prod(0)
    dims = slice(None) if kernel.active_dims is None else kernel.active_dims
    return kernel.forward(x[:, dims], z[:, dims])


@pytest.mark.parametrize("name", sorted(KERNELS))
@pytest.mark.parametrize("process", PROCESSES)
def test_predictions_are_those_of_dense_algebra(process, name):
    X, Y = data()
    Xs, _ = data(6, seed=1)
    likelihood = GaussianLikelihood()
    likelihood.noise = 0.01
    model = process(X, Y, KERNELS[name](), likelihood=likelihood, input_transform=None)
    kernel = model.covar_module
    with torch.no_grad():
        K = by_hand(kernel, X, X) + 0.01 * torch.eye(24, dtype=torch.float64)
        Z = (Y - Y.mean()) / Y.std()
        expected = Y.mean() + Y.std() * by_hand(kernel, Xs, X) @ torch.linalg.solve(K, Z)
        torch.testing.assert_close(model.posterior(Xs).mean, expected)


FITTED = [(GaussianProcess, name, 1) for name in sorted(KERNELS)]
FITTED += [(StudentTProcess, "a category beside a network", 1)]


@pytest.mark.fast_for(
    "GaussianProcess-product with a Matern-1",
    "GaussianProcess-sum with an RBF-1",
    "StudentTProcess-a category beside a network-1",
)
@pytest.mark.parametrize(
    ("process", "name", "m"),
    [
        case if case in FITTED else pytest.param(*case, marks=pytest.mark.slow)
        for case in itertools.product(PROCESSES, sorted(KERNELS), (1, 2))
    ],
)
def test_all_are_fitted_together(process, name, m):
    X, Y = data(m=m)
    Xs, Ys = data(40, seed=1, m=m)
    model = process(X, Y, KERNELS[name]())
    before = {n: p.detach().clone() for n, p in model.covar_module.named_parameters()}
    start = model.log_marginal_likelihood()
    model.fit(progress=False)
    assert model.log_marginal_likelihood() > start
    after = dict(model.covar_module.named_parameters())
    assert all((after[n] != before[n]).any() for n in before)
    posterior = model.posterior(Xs, observation_noise=True)
    assert posterior.log_prob(Ys).isfinite().all()
    error = (posterior.mean - Ys).square().mean(0).sqrt()
    assert (error < Ys.std(0)).all()


@pytest.mark.parametrize("process", PROCESSES)
def test_composed_models_are_saved_with_all_values(process, tmp_path):
    X, Y = data()
    name = "a category beside a network"
    with pytest.warns(UserWarning, match="max_iter=3"):
        model = process(X, Y, KERNELS[name]()).fit(max_iter=3)
    model.save(tmp_path / "model.safetensors")
    loaded = process.load(tmp_path / "model.safetensors", KERNELS[name]())
    torch.testing.assert_close(loaded.posterior(X).variance, model.posterior(X).variance)
    network_kernel = model.covar_module.kernels[1].kernels[0]
    found = loaded.covar_module.kernels[1].kernels[0]
    torch.testing.assert_close(found.lengthscale, network_kernel.lengthscale)
    with pytest.raises(ValueError, match="different kernel"):
        process.load(tmp_path / "model.safetensors", NNGPKernel(network(3)))
    with pytest.raises(TypeError, match=r"load\(path, kernel\) with a AdditiveKernel"):
        process.load(tmp_path / "model.safetensors")


def test_a_mixed_model_of_botorch_takes_a_network_for_its_numbers():
    X, Y = data()

    def numbers(batch_shape, ard_num_dims, active_dims):
        return NNGPKernel(
            network(ard_num_dims),
            batch_shape=batch_shape,
            ard_num_dims=ard_num_dims,
            active_dims=tuple(active_dims),
        )

    model = MixedSingleTaskGP(X, Y, cat_dims=[2], cont_kernel_factory=numbers)
    posterior = model.posterior(X)
    assert posterior.mean.isfinite().all()
    process = GaussianProcess(X, Y, model.covar_module).fit(progress=False)
    assert process.posterior(X).mean.isfinite().all()
