"""Task priors: what is drawn per task, and that it is what the task is made of."""

from dataclasses import replace

import pytest
import torch
from gpytorch.kernels import PolynomialKernel, RBFKernel, ScaleKernel
from gpytorch.means import LinearMean
from torch import nn
from torch.distributions import Gamma, InverseGamma, LogNormal, Normal, Uniform

from priors import (
    FunctionTaskPrior,
    GaussianProcessPrior,
    NetworkPrior,
    NNGPKernel,
    ScaleMixturePrior,
    TaskPrior,
)

UNIT = Uniform(torch.zeros(2), torch.ones(2))


def tasks(kernel=None, **changes):
    prior = GaussianProcessPrior(RBFKernel() if kernel is None else kernel)
    return FunctionTaskPrior(
        **{"function_prior": prior, "inputs": UNIT, "num_points": 6, "noise_var": 0.25, **changes}
    )


def test_shapes_and_protocol():
    prior = tasks()
    assert isinstance(prior, TaskPrior)
    task = prior.sample(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert task.X.shape == (5, 6, 2)
    assert task.y.shape == task.f.shape == (5, 6, 1)
    assert task.noise_var.shape == (5,)
    assert task.y.dtype == torch.float64
    assert ((task.X >= 0) & (task.X <= 1)).all()
    assert 0 <= task.num_context < 6


def test_context_sizes_cover_their_range():
    generator = torch.Generator().manual_seed(0)
    sizes = {tasks().sample(1, generator=generator).num_context for _ in range(100)}
    assert sizes == set(range(6))


def test_noise_has_its_variance():
    task = tasks().sample(4000, generator=torch.Generator().manual_seed(0))
    squares = (task.y - task.f).flatten() ** 2
    assert abs(squares.mean() - 0.25) < 4 * squares.std() / len(squares) ** 0.5
    drawn = tasks(noise_var=Gamma(2.0, 4.0)).sample(
        4000, generator=torch.Generator().manual_seed(1)
    )
    assert abs(drawn.noise_var.mean() - 0.5) < 4 * (2 / 16 / 4000) ** 0.5
    residuals = (drawn.y - drawn.f)[..., 0] / drawn.noise_var.sqrt()[:, None]
    assert abs(residuals.var() - 1) < 4 * (2 / residuals.numel()) ** 0.5


def test_hyperparameters_are_drawn_per_task_and_used():
    prior = tasks(
        ScaleKernel(RBFKernel()),
        inputs=lambda batch, points, **options: (
            torch.tensor([[0.0], [0.5]]).to(options["dtype"]).expand(batch, points, 1)
        ),
        num_points=2,
        hyperprior={
            "base_kernel.lengthscale": LogNormal(-0.5, 0.8),
            "outputscale": Gamma(3.0, 3.0),
        },
    )
    task = prior.sample(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ell, scale = task.latents["base_kernel.lengthscale"], task.latents["outputscale"]
    assert ell.shape == (20_000, 1, 1)
    assert abs(ell.log().mean() + 0.5) < 4 * 0.8 / 20_000**0.5
    assert abs(scale.mean() - 1) < 4 * (1 / 3 / 20_000) ** 0.5
    # f0 f1 has expectation s exp(-0.5^2 / 2 l^2) for the task's own s and l
    f = task.f[..., 0]
    residual = f[:, 0] * f[:, 1] - scale * torch.exp(-0.125 / ell[:, 0, 0] ** 2)
    assert abs(residual.mean()) < 4 * residual.std() / 20_000**0.5
    long = ell[:, 0, 0] > 1
    for chosen in (long, ~long):
        part = residual[chosen]
        assert abs(part.mean()) < 4 * part.std() / len(part) ** 0.5


def test_hyperparameters_of_a_sum_of_kernels_are_drawn_and_used():
    names = ["kernels.0.outputscale", "kernels.1.outputscale"]
    prior = tasks(
        ScaleKernel(RBFKernel()) + ScaleKernel(RBFKernel()),
        hyperprior={name: Gamma(1.0, 1.0) for name in names},
    )
    task = prior.sample(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    variance = task.latents[names[0]] + task.latents[names[1]]
    residual = task.f[:, 0, 0].square() - variance
    for chosen in (variance > 2, variance <= 2):
        part = residual[chosen]
        assert abs(part.mean()) < 4 * part.std() / len(part) ** 0.5


def test_hyperprior_of_a_vector_is_drawn_per_element():
    kernel = RBFKernel(ard_num_dims=2)
    task = tasks(kernel, hyperprior={"lengthscale": LogNormal(torch.zeros(2), torch.ones(2))})
    drawn = task.sample(8).latents["lengthscale"]
    assert drawn.shape == (8, 1, 2)
    assert (drawn[:, 0, 0] != drawn[:, 0, 1]).all()
    shared = tasks(kernel, hyperprior={"lengthscale": LogNormal(0.0, 1.0)}).sample(8)
    drawn = shared.latents["lengthscale"]
    assert torch.equal(drawn[:, 0, 0], drawn[:, 0, 1])


def test_hyperprior_of_a_network_kernel():
    network = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(1))
    kernel = NNGPKernel(network, weight_var=1.0, bias_var=0.1)
    prior = tasks(kernel, hyperprior={"network.variances.weight_var.0": Uniform(0.5, 4.0)})
    task = prior.sample(6000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = task.latents["network.variances.weight_var.0"]
    assert drawn.shape == (6000,)
    # E f^2 = E relu(z)^2 + 0.1 = (w |x|^2 / d + 0.1) / 2 + 0.1
    expected = (drawn[:, None] * task.X.square().mean(-1) + 0.1) / 2 + 0.1
    residual = (task.f[..., 0] ** 2 - expected)[:, 0]
    assert abs(residual.mean()) < 4 * residual.std() / 6000**0.5
    assert kernel.network.variances.weight_var["0"].item() == 1.0  # the user's kernel is untouched


@pytest.mark.parametrize("scale_noise", [True, False])
def test_scale_mixture_scales_the_noise_only_when_told(scale_noise):
    mixture = ScaleMixturePrior(RBFKernel(), InverseGamma(6.0, 5.0))
    prior = tasks(function_prior=mixture, scale_noise=scale_noise)
    task = prior.sample(3000, generator=torch.Generator().manual_seed(0))
    expected = 0.25 * task.latents["scale"] if scale_noise else torch.full((3000,), 0.25)
    torch.testing.assert_close(task.noise_var, expected)
    residuals = (task.y - task.f)[..., 0] / task.noise_var.sqrt()[:, None]
    assert abs(residuals.var() - 1) < 4 * (2 / residuals.numel()) ** 0.5


def test_finite_networks_and_one_dimensional_inputs():
    network = NetworkPrior(nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1)))
    task = tasks(function_prior=network, inputs=Normal(0.0, 1.0)).sample(3)
    assert task.X.shape == (3, 6, 1)
    assert not task.f.requires_grad


def test_every_task_has_a_network_of_its_own():
    network = NetworkPrior(nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1)))
    task = tasks(
        function_prior=network,
        inputs=lambda batch, points, **options: torch.ones(
            batch, points, 1, dtype=options["dtype"]
        ),
        num_points=1,
    ).sample(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    products = (task.f[1:] * task.f[:-1]).flatten()
    assert abs(products.mean()) < 4 * products.std() / len(products) ** 0.5


def test_tasks_on_another_device_than_the_prior(monkeypatch):
    # "meta" stands in for a GPU; it has no values to factorise
    monkeypatch.setattr("priors.functions.psd_safe_cholesky", lambda covariance: covariance)
    kernel = PolynomialKernel(2)
    for prior in (
        GaussianProcessPrior(kernel),
        ScaleMixturePrior(kernel, InverseGamma(6.0, 5.0)),
        NetworkPrior(nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))),
    ):
        for generator in (None, torch.Generator().manual_seed(0)):
            task = tasks(function_prior=prior, noise_var=Gamma(2.0, 4.0)).sample(
                3, generator=generator, device="meta"
            )
            assert task.X.is_meta
            assert task.y.is_meta
            assert task.noise_var.is_meta
    assert kernel.offset.device.type == "cpu"


def test_reproducible_and_global_state_untouched():
    prior = tasks(noise_var=Gamma(2.0, 4.0), hyperprior={"lengthscale": LogNormal(0.0, 1.0)})
    before = torch.get_rng_state()
    one, two = (prior.sample(4, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one.y, two.y)
    assert one.num_context == two.num_context
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_points"):
        tasks(num_points=0)
    with pytest.raises(ValueError, match="variance"):
        tasks(noise_var=-1.0)
    with pytest.raises(ValueError, match="'lenghtscale', which RBFKernel does not have"):
        tasks(hyperprior={"lenghtscale": Gamma(1.0, 1.0)})
    with pytest.raises(ValueError, match="needs a ScaleMixturePrior"):
        tasks(scale_noise=True)
    network = NetworkPrior(nn.Sequential(nn.Linear(2, 1)))
    with pytest.raises(ValueError, match="needs a prior with a kernel"):
        tasks(function_prior=network, hyperprior={"lengthscale": Gamma(1.0, 1.0)})
    two = NetworkPrior(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="a single output"):
        tasks(function_prior=two).sample(1)


def dense(task, kernel, mean=0.0, scale=1.0):
    """Mean and variance of y at the queries by the textbook formulas, task by task."""
    found = []
    n = task.num_context
    for b in range(len(task.X)):
        X, y = task.X[b].double(), task.y[b, :n, 0].double()
        K = kernel(b, X) * (scale if isinstance(scale, float) else float(scale[b]))
        m = mean(X) if callable(mean) else torch.full((len(X),), mean, dtype=torch.float64)
        noise = float(task.noise_var[b])
        inverse = torch.linalg.inv(K[:n, :n] + noise * torch.eye(n, dtype=torch.float64))
        at = m[n:] + K[n:, :n] @ inverse @ (y - m[:n])
        spread = (K[n:, n:] - K[n:, :n] @ inverse @ K[:n, n:]).diagonal() + noise
        found.append(torch.stack([at, spread]))
    return torch.stack(found, dim=1)


def rbf(lengthscale):
    return lambda b, X: torch.exp(-(torch.cdist(X, X) ** 2) / (2 * float(lengthscale[b]) ** 2))


class TestOracle:
    def check(self, prior, expected, is_):
        task = prior.sample(4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        task = replace(task, num_context=4)
        posterior = prior.oracle(task)
        mean, variance = expected(task)
        torch.testing.assert_close(posterior.mean[..., 0], mean)
        torch.testing.assert_close(posterior.variance[..., 0], variance)
        assert prior.oracle_is == is_

    def test_of_a_fixed_kernel_is_exact(self):
        one = [1.0] * 4
        kernel = RBFKernel().double()
        kernel.lengthscale = 1.0
        self.check(tasks(kernel), lambda task: dense(task, rbf(one)), "exact")

    def test_mean(self):
        kernel, mean = RBFKernel().double(), LinearMean(2)
        kernel.lengthscale = 1.0
        function = GaussianProcessPrior(kernel, mean)

        def known(X):
            return (X @ mean.weights.double() + mean.bias.double())[:, 0].detach()

        prior = tasks(function_prior=function)
        self.check(prior, lambda task: dense(task, rbf([1.0] * 4), known), "exact")
        assert mean.weights.dtype == torch.float32  # the user's stays as it is

    def test_of_drawn_hyperparameters_and_noise_knows_them(self):
        prior = tasks(hyperprior={"lengthscale": Gamma(3.0, 6.0)}, noise_var=Uniform(0.1, 0.3))
        self.check(prior, lambda task: dense(task, rbf(task.latents["lengthscale"])), "upper bound")

    def test_of_scale_mixtures_knows_the_scale(self):
        kernel = RBFKernel().double()
        kernel.lengthscale = 1.0
        prior = tasks(function_prior=ScaleMixturePrior(kernel, InverseGamma(3.0, 2.0)))
        self.check(
            prior,
            lambda task: dense(task, rbf([1.0] * 4), scale=task.latents["scale"]),
            "upper bound",
        )

    def test_of_other_priors_is_refused(self):
        prior = tasks(function_prior=NetworkPrior(nn.Linear(2, 1), bias_var=0.1))
        with pytest.raises(ValueError, match="a ScaleMixturePrior, got NetworkPrior"):
            prior.oracle(prior.sample(2))
