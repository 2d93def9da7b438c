"""The exact references of the benchmarks of networks, against brute force."""

import json
import math
from functools import partial

import pytest
import torch
from gpytorch.kernels import MaternKernel, RBFKernel
from torch import nn
from torch.distributions import MultivariateNormal, Normal

from bayes import GaussianProcess, StudentTProcess
from benchmarks.pfn import linear, mimicry
from benchmarks.pfn.linear_attention import LinearTasks, train_linear_attention
from benchmarks.pfn.processes import Component, GaussianTasks, MixtureTasks, Sizes, matern52, rbf
from priors import NNGPKernel

SIZES = Sizes(2, (2.0,), max_context=6, queries=3, full=True)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(prior, batch=4, seed=0):
    return prior.sample(batch, generator=generator(seed), dtype=torch.float64)


def joint(K, noise_var):
    return MultivariateNormal(torch.zeros(len(K)).double(), K + noise_var * torch.eye(len(K)))


def mixture():
    components = tuple(
        Component(name, partial(kernel, lengthscale=length), noise)
        for name, kernel, length, noise in (
            ("smooth", rbf, 0.7, 0.01),
            ("rough", matern52, 0.3, 0.1),
        )
    )
    return MixtureTasks(components, SIZES)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(rbf, RBFKernel()), (matern52, MaternKernel(nu=2.5))],
    ids=["rbf", "matern52"],
)
def test_covariances_are_gpytorchs(ours, theirs):
    X = torch.randn(5, 2, generator=generator(), dtype=torch.float64)
    theirs = theirs.double()
    theirs.lengthscale = 0.4
    torch.testing.assert_close(ours(X, 0.4), theirs(X).to_dense().detach())


class TestGaussianTasks:
    def test_the_reference_is_the_quotient_of_joint_densities(self):
        prior = GaussianTasks(rbf, 0.05, SIZES)
        task = draw(prior)
        n, y = task.num_context, task.y[..., 0]
        found = prior.reference(task).log_prob(task.y[:, n:])[..., 0]
        for b in range(len(y)):
            for q in range(n, y.shape[1]):
                rows = [*range(n), q]
                K = rbf(task.X[b])
                expected = joint(K[rows][:, rows], 0.05).log_prob(y[b, rows])
                expected = expected - joint(K[:n, :n], 0.05).log_prob(y[b, :n])
                torch.testing.assert_close(found[b, q - n], expected)

    @pytest.mark.parametrize("concentration", [None, 2.5])
    def test_the_reference_is_that_of_the_package(self, concentration):
        prior = GaussianTasks(rbf, 0.05, SIZES, concentration=concentration)
        task = draw(prior)
        n = task.num_context
        kernel = RBFKernel().double()
        kernel.lengthscale = 1.0
        for b in range(2):
            X, y = task.X[b], task.y[b]
            options = {
                "train_Yvar": torch.full_like(y[:n], 0.05),
                "input_transform": None,
                "outcome_transform": None,
            }
            if concentration is None:
                model = GaussianProcess(X[:n], y[:n], kernel, **options)
            else:
                model = StudentTProcess(
                    X[:n], y[:n], kernel, concentration=2.5, rate=1.5, **options
                )
            noise = torch.full_like(y[n:], 0.05)
            expected = model.posterior(X[n:], observation_noise=noise).log_prob(y[n:])
            found = prior.reference(task).log_prob(task.y[:, n:])[b]
            torch.testing.assert_close(found, expected.detach(), rtol=1e-6, atol=1e-6)

    def test_without_context_the_scale_mixture_is_its_prior(self):
        prior = GaussianTasks(rbf, 0.1, SIZES, concentration=2.5)
        task = mimicry.part(draw(prior), 0, 3)
        expected = torch.distributions.StudentT(5.0, 0.0, math.sqrt(1.1 * 1.5 / 2.5))
        found = prior.reference(task).log_prob(task.y)
        torch.testing.assert_close(found, expected.log_prob(task.y))

    def test_draws_have_the_covariance(self):
        prior = GaussianTasks(rbf, 0.3, SIZES, concentration=6.0)
        y = draw(prior, 40_000).y[..., 0]
        variance = y.square().mean(0)
        assert ((variance - 1.3).abs() < 6 * y.square().std(0) / 200).all()

    def test_lengths_on_a_unit_cube_are_boxes_under_one_kernel(self):
        X = torch.rand(5, 2, generator=generator(), dtype=torch.float64)
        torch.testing.assert_close(rbf(X, 0.2), rbf((X - 0.5) / 0.2))
        prior = mimicry.gaussian(2)
        X = prior.full((5.0,)).sample(8, generator=generator()).X
        assert X.shape == (8, 104, 2)
        assert 2.4 < X.abs().max() <= 2.5

    def test_the_limit_of_a_network_is_that_of_the_package(self):
        prior = mimicry.network_limit()
        task = mimicry.part(draw(prior.full(), 2), 6, 3)
        layers = [nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)]
        kernel = NNGPKernel(nn.Sequential(*layers), weight_var=2.0, bias_var=0.1)
        X, y = task.X[0], task.y[0]
        model = GaussianProcess(
            X[:6],
            y[:6],
            kernel,
            train_Yvar=torch.full_like(y[:6], 0.01),
            input_transform=None,
            outcome_transform=None,
        )
        noise = torch.full_like(y[6:], 0.01)
        expected = model.posterior(X[6:], observation_noise=noise).log_prob(y[6:])
        found = prior.reference(task).log_prob(task.y[:, 6:])[0]
        torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)


class TestMixtureTasks:
    def test_the_reference_is_the_quotient_of_mixture_densities(self):
        prior = mixture()
        task = draw(prior)
        n, y = task.num_context, task.y[..., 0]
        found = prior.reference(task).log_prob(task.y[:, n:])[..., 0]
        for b in range(len(y)):
            for q in range(n, y.shape[1]):

                def density(rows, b=b):
                    return sum(
                        joint(c.covariance(task.X[b])[rows][:, rows], c.noise_var)
                        .log_prob(y[b, rows])
                        .exp()
                        for c in prior.components
                    )

                context = list(range(n))
                expected = (density([*context, q]) / density(context)).log()
                torch.testing.assert_close(found[b, q - n], expected)

    def test_the_average_beats_single_components_on_average(self):
        prior = mixture()
        task = draw(prior, 4_000)
        y = task.y[:, task.num_context :]
        exact = prior.reference(task).log_prob(y)
        for other in (prior.best_component(task), prior.true_component(task)):
            difference = (exact - other.log_prob(y)).mean((1, 2))
            error = difference.std() / math.sqrt(len(difference))
            sign = 1 if other.mean.equal(prior.best_component(task).mean) else -1
            assert sign * difference.mean() > 3 * error

    def test_maximum_likelihood_climbs(self):
        task = draw(mimicry.mixture().full(), 3)
        asked = mimicry.part(task, 40)
        fitted = mimicry.maximum_likelihood(asked)
        assert isinstance(fitted, Normal)
        y = asked.y[:, 40:]
        exact = mimicry.mixture().reference(asked).log_prob(y)
        assert (fitted.log_prob(y) - exact).mean().abs() < 0.5


class TestLinear:
    def test_the_prior_is_bayesian_linear_regression(self):
        prior = linear.linear_prior().full()
        task = mimicry.part(draw(prior), 7, 4)
        mean = prior.reference(task).mean[..., 0]
        torch.testing.assert_close(mean, linear.ridge(task, 0.5))
        X = task.X[0]
        precision = X[:7].mT @ X[:7] / 0.1 + 5 * torch.eye(5)
        variance = (X[7:] @ precision.inverse() * X[7:]).sum(-1) + 0.1
        torch.testing.assert_close(prior.reference(task).variance[0, :, 0], variance)

    def test_some_training_tasks_have_few_features(self):
        prior = linear.linear_prior()
        used = (draw(prior, 400).X != 0).any(1)
        assert (used[:, 0]).all()
        assert 0.4 < used.all(-1).double().mean() < 0.7
        assert (draw(prior.full(), 20).X != 0).all()

    @pytest.mark.parametrize("name", list(linear.TASKS))
    def test_the_step_size_is_the_minimum_of_the_risk(self, name):
        tasks = linear.TASKS[name]
        A = torch.diag(tasks.step_size()).requires_grad_()
        (slope,) = torch.autograd.grad(tasks.risk(A), A)
        assert slope.abs().max() < 1e-6

    @pytest.mark.parametrize("name", list(linear.TASKS))
    def test_the_risk_is_that_of_simulation(self, name):
        tasks = linear.TASKS[name]
        X, y, target = tasks.sample(200_000, generator())
        squares = (tasks.gradient_step(X, y) - target).square()
        error = float(squares.std()) / math.sqrt(len(squares))
        expected = float(tasks.risk(torch.diag(tasks.step_size())))
        assert abs(float(squares.mean()) - expected) < 4 * error

    def test_a_layer_with_the_weights_of_the_theory_is_a_gradient_step(self):
        tasks = LinearTasks((2.0, 0.5), 0.5, 0.1, 6)
        layer = train_linear_attention(tasks, steps=4, batch=8, seed=0)
        with torch.no_grad():
            layer.value.copy_(torch.tensor([0.0, 0.0, 2.0]))
            layer.key_query.zero_()
            layer.key_query[:2] = torch.diag(tasks.step_size()) / 2
        X, y, _ = tasks.sample(5, generator())
        torch.testing.assert_close(layer(X, y), tasks.gradient_step(X, y))
        torch.testing.assert_close(layer.preconditioner(), torch.diag(tasks.step_size()))
        assert max(layer.other_entries().values()) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "module"), [("mimicry", mimicry), ("linear", linear)])
def test_quick_runs(name, module, tmp_path):
    options = ["--quick", "--out", str(tmp_path), "--networks", str(tmp_path)]
    assert module.main(options) == 0
    record = json.loads((tmp_path / f"pfn_{name}_quick.json").read_text())
    assert record["quick"] is True
    if name == "mimicry":
        assert set(mimicry.PARTS) <= set(record)
        assert (tmp_path / "pfn_mimicry_quick.png").exists()
