import functools
import math

import pytest
import torch
from botorch.acquisition import qLogExpectedImprovement
from botorch.exceptions import UnsupportedError
from botorch.models import SingleTaskGP
from botorch.optim import optimize_acqf
from gpytorch.kernels import RBFKernel
from gpytorch.likelihoods import GaussianLikelihood

from bayes.inference import MeanField
from bayes.networks.bayesian_network import BayesianNetwork
from bayes.processes.gaussian_process import GaussianProcess
from bayes.processes.student_t_process import StudentTProcess
from priors.networks.finite import NetworkPrior
from priors.posteriors.acquisition import (
    ExpectedImprovement,
    GaussianApproximation,
    LogExpectedImprovement,
    LogProbabilityOfImprovement,
    ProbabilityOfImprovement,
    UpperConfidenceBound,
)


def data():
    X = torch.linspace(0, 1, 7, dtype=torch.float64).unsqueeze(-1)
    return X, torch.sin(6 * X) + 0.3 * X


def process(kind):
    kernel = RBFKernel()
    kernel.lengthscale = 0.6
    likelihood = GaussianLikelihood()
    likelihood.noise = 1e-3
    return kind(*data(), kernel, likelihood=likelihood)


@functools.cache
def network():
    """Fitted once: no test changes it."""
    module = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    prior = NetworkPrior(module, weight_var={"0": 4.0, "2": 1.0}, bias_var=1.0)
    model = BayesianNetwork(*data(), prior)
    return model.fit(MeanField(num_steps=800, num_draws=64, learning_rate=0.05, progress=False))


MODELS = {
    "gp": lambda: process(GaussianProcess),
    "t": lambda: process(StudentTProcess),
    "network": network,
}
BOUNDS = torch.tensor([[0.0], [1.0]], dtype=torch.float64)


@pytest.mark.parametrize("name", MODELS)
def test_optimize_acqf_finds_the_maximum_of_the_exact_expected_improvement(name):
    model = MODELS[name]()
    best = data()[1].max() + 0.05
    acquisition = LogExpectedImprovement(model, best)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        candidate, value = optimize_acqf(acquisition, BOUNDS, q=1, num_restarts=4, raw_samples=32)
    grid = torch.linspace(0, 1, 501, dtype=torch.float64).reshape(-1, 1, 1)
    with torch.no_grad():
        values = acquisition(grid)
        assert value >= values.max() - 1e-4
        assert torch.allclose(acquisition(candidate.unsqueeze(0)), value)
        linear = ExpectedImprovement(model, best)(grid)
    assert torch.allclose(linear, values.exp())


@pytest.mark.parametrize("name", MODELS)
def test_monte_carlo_acquisition_agrees_with_the_exact_one(name):
    model = MODELS[name]()
    best = data()[1].max() - 0.1
    X = torch.tensor([[[0.2]], [[0.33]], [[0.45]]], dtype=torch.float64)
    posterior = model.posterior(X)
    size = 2**14
    generator = torch.Generator().manual_seed(0)
    shape = torch.Size([size])
    base = torch.randn(shape + posterior.base_sample_shape, generator=generator).double()
    with torch.no_grad():
        gain = (posterior.rsample_from_base_samples(shape, base) - best).clamp_min(0)[..., 0, 0]
        exact = ExpectedImprovement(model, best)(X)
    error = gain.std(0) / math.sqrt(size)
    assert ((gain.mean(0) - exact).abs() < 5 * error + 1e-6).all()


@pytest.mark.covering
@pytest.mark.parametrize("maximize", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_probability_and_bound_against_samples(name, maximize):
    model = MODELS[name]()
    best = data()[1].max() - 0.1
    X = torch.tensor([[[0.2]], [[0.27]], [[0.35]]], dtype=torch.float64)
    with torch.no_grad():
        probability = ProbabilityOfImprovement(model, best, maximize)(X)
        logarithm = LogProbabilityOfImprovement(model, best, maximize)(X)
        bound = UpperConfidenceBound(model, level=0.8, maximize=maximize)(X)
        sign = 1 if maximize else -1
        posterior = model.posterior(X)
        shape = torch.Size([2**14])
        generator = torch.Generator().manual_seed(0)
        base = torch.randn(shape + posterior.base_sample_shape, generator=generator).double()
        samples = posterior.rsample_from_base_samples(shape, base)[..., 0, 0]
    assert torch.allclose(logarithm.exp(), probability)
    error = 5 * 0.5 / math.sqrt(2**14)
    improves = (sign * samples > sign * best).double().mean(0)
    assert ((improves - probability).abs() < error).all()
    below = (sign * samples <= bound).double().mean(0)
    # A network's 64 draws are steps of 1/64.
    assert ((below - 0.8).abs() < error + (1 / 64 if name == "network" else 0)).all()


@pytest.mark.parametrize("name", MODELS)
def test_optimize_acqf_of_probability_and_bound(name):
    model = MODELS[name]()
    grid = torch.linspace(0, 1, 201, dtype=torch.float64).reshape(-1, 1, 1)
    for acquisition in (
        LogProbabilityOfImprovement(model, data()[1].max() - 0.01),
        UpperConfidenceBound(model, 2.0),
    ):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            _, value = optimize_acqf(acquisition, BOUNDS, q=1, num_restarts=4, raw_samples=64)
        # A probability of finitely many draws is flat between its steps.
        assert value >= acquisition(grid).max() - (0.05 if name == "network" else 1e-4)


def test_bound_needs_one_of_two():
    model = process(GaussianProcess)
    for wrong in ({}, {"beta": 1.0, "level": 0.9}, {"beta": -1.0}, {"level": 1.0}):
        with pytest.raises(ValueError, match="beta|level|probability"):
            UpperConfidenceBound(model, **wrong)


@pytest.mark.parametrize("maximize", [True, False])
@pytest.mark.parametrize(
    ("dtype", "beta", "expected", "tolerance"),
    [
        (torch.float64, 36.0, 6.0, 1e-6),
        (torch.float64, 100.0, 8.2, 0.02),
        (torch.float32, 16.0, 4.0, 1e-2),
        (torch.float32, 100.0, 5.3, 0.05),
    ],
)
def test_bound_of_large_beta_has_a_gradient(dtype, beta, expected, tolerance, maximize):
    X, Y = (values.to(dtype) for values in data())
    model = GaussianProcess(X, Y, RBFKernel())
    points = torch.tensor([[[0.05]], [[0.62]]], dtype=dtype, requires_grad=True)
    value = UpperConfidenceBound(model, beta, maximize)(points)
    posterior = model.posterior(points.detach())
    mean, std = posterior.mean[:, 0, 0].detach(), posterior.variance[:, 0, 0].sqrt().detach()
    found = (value.detach() - (mean if maximize else -mean)) / std
    assert torch.allclose(found, found.new_tensor(expected), atol=tolerance)
    (slope,) = torch.autograd.grad(value.sum(), points)
    assert slope.isfinite().all()
    assert (slope != 0).all()


def test_pending_points_are_refused():
    acquisition = LogExpectedImprovement(process(GaussianProcess), 0.5)
    acquisition.set_X_pending(None)
    with pytest.raises(UnsupportedError, match="qLogExpectedImprovement"):
        acquisition.set_X_pending(data()[0][:1])
    with pytest.raises(UnsupportedError, match="pending"):
        optimize_acqf(acquisition, BOUNDS, q=2, num_restarts=1, raw_samples=4, sequential=True)


def test_the_best_value_is_as_exact_as_it_was_given():
    model = process(GaussianProcess)
    X = torch.tensor([[[0.4]]], dtype=torch.float64)
    best = torch.tensor(1.0 + 1e-9, dtype=torch.float64)
    value = LogExpectedImprovement(model, best.item())(X)
    assert torch.equal(value, LogExpectedImprovement(model, best)(X))
    assert (value < LogExpectedImprovement(model, 1.0)(X)).all()


@pytest.mark.parametrize("name", MODELS)
def test_botorch_monte_carlo_acquisition_optimises_jointly(name):
    model = MODELS[name]()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        acquisition = qLogExpectedImprovement(model, best_f=data()[1].max())
        candidates, value = optimize_acqf(acquisition, BOUNDS, q=2, num_restarts=2, raw_samples=16)
        again = acquisition(candidates)
    assert candidates.shape == (2, 1)
    assert value.isfinite()
    assert torch.equal(again, acquisition(candidates))  # the same base samples


def test_minimising_mirrors_maximising():
    X, Y = data()
    kernel = RBFKernel()
    up = LogExpectedImprovement(GaussianProcess(X, Y, kernel), 1.0)
    down = LogExpectedImprovement(GaussianProcess(X, -Y, kernel), -1.0, maximize=False)
    grid = torch.linspace(0, 1, 11, dtype=torch.float64).reshape(-1, 1, 1)
    assert torch.allclose(up(grid), down(grid))


def test_several_outputs_are_refused():
    X, Y = data()
    model = GaussianProcess(X, Y.repeat(1, 2), RBFKernel())
    with pytest.raises(ValueError, match="one output, the model has 2"):
        LogExpectedImprovement(model, 0.0)


@pytest.mark.parametrize("m", [1, 2])
def test_gaussian_approximation_has_the_moments(m):
    X, Y = data()
    Y = torch.cat([Y, Y.square()], dim=-1)[:, :m]
    model = StudentTProcess(X, Y, RBFKernel())
    approximation = GaussianApproximation(model)
    queries = X.reshape(7, 1, 1)
    truth, found = model.posterior(queries), approximation.posterior(queries)
    assert approximation.num_outputs == m
    assert torch.allclose(found.mean, truth.mean)
    assert torch.allclose(found.variance, truth.variance)


def test_gaussian_approximation_refuses_infinite_variances():
    class Heavy(StudentTProcess):
        def posterior(self, X, *args, **kwargs):
            posterior = super().posterior(X, *args, **kwargs)
            posterior.df = 1.5
            return posterior

    with pytest.raises(ValueError, match="finite variances"):
        GaussianApproximation(Heavy(*data(), RBFKernel())).posterior(data()[0])


@pytest.mark.parametrize("maximize", [True, False])
def test_a_plain_botorch_model_gives_botorchs_value(maximize):
    from botorch.acquisition import LogExpectedImprovement as BoTorchLogExpectedImprovement
    from botorch.acquisition import UpperConfidenceBound as BoTorchUpperConfidenceBound
    from botorch.acquisition.analytic import (
        LogProbabilityOfImprovement as BoTorchLogProbabilityOfImprovement,
    )

    generator = torch.Generator().manual_seed(0)
    X = torch.rand(8, 2, dtype=torch.float64, generator=generator)
    model = SingleTaskGP(X, X.sum(-1, keepdim=True).sin())
    points = torch.rand(20, 1, 2, dtype=torch.float64, generator=generator)
    best = torch.tensor(0.7, dtype=torch.float64)  # theirs rounds a number to float32
    ours = LogExpectedImprovement(model, best_f=best, maximize=maximize)(points)
    theirs = BoTorchLogExpectedImprovement(model, best_f=best, maximize=maximize)(points)
    torch.testing.assert_close(ours, theirs)
    ours = LogProbabilityOfImprovement(model, best_f=best, maximize=maximize)(points)
    theirs = BoTorchLogProbabilityOfImprovement(model, best_f=best, maximize=maximize)(points)
    torch.testing.assert_close(ours, theirs)
    ours = UpperConfidenceBound(model, 3.0, maximize)(points)
    theirs = BoTorchUpperConfidenceBound(model, beta=3.0, maximize=maximize)(points)
    torch.testing.assert_close(ours, theirs)
