"""Samplers that nothing rejects: how large their steps are, and what bias that brings."""

import math
import warnings

import pytest
import torch

from bayes import MCLMC, SGHMC, LangevinEnsemble, LogDensity, Rows

LIKE = torch.zeros(1, dtype=torch.float64)


def run(method, density):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This run of", UserWarning)
        return method.run(density, LIKE)


def normal(std):
    return LogDensity(lambda x: -0.5 * (x / std).square().sum(-1), len(std))


def mean_square(x):
    """Of draws `[chains, draws, d]` whose coordinates are alike, and its standard error."""
    each = x.square().mean((1, 2))
    return float(each.mean()), float(each.std()) / len(each) ** 0.5


@pytest.mark.parametrize("energy_var", [pytest.param(1e-2, marks=pytest.mark.slow), 1e-4])
@pytest.mark.parametrize("kind", ["MCLMC", "LangevinEnsemble"])
def test_step_sizes_have_the_energy_error_aimed_at(kind, energy_var):
    """However far from it the warm-up begins: at scales of 1, or at steps of 0.005."""
    settings = {"num_samples": 40, "num_warmup": 250, "num_chains": 64, "num_steps": 1}
    settings |= {"energy_var": energy_var, "progress": False}
    std = torch.ones(5, dtype=torch.float64)
    if kind == "MCLMC":
        std = torch.logspace(-1, 1, 5, dtype=torch.float64)
        method = MCLMC(**settings)
    else:
        method = LangevinEnsemble(**settings, num_training_steps=50, learning_rate=0.1)
    error = run(method, normal(std)).stats["energy_error"]
    found = float((error.square().mean(1) / 5).median())
    assert 0.5 < found / energy_var < 2


@pytest.mark.slow
def test_members_stay_in_the_modes_to_which_they_were_trained():
    """Of 1,024 modes 0.4 apart; a first step of sqrt(d) / 4 would be 0.8 and pass over."""

    def log_prob(x):
        return torch.logaddexp(-1250 * (x - 0.2).square(), -1250 * (x + 0.2).square()).sum(-1)

    density = LogDensity(log_prob, 10)
    method = LangevinEnsemble(
        num_samples=10,
        num_warmup=40,
        num_steps=4,
        num_training_steps=80,
        learning_rate=0.1,
        progress=False,
    )
    trained = method._initial(density, torch.Generator().manual_seed(method.seed), LIKE)
    x = run(method, density).samples["x"]
    assert torch.equal(x.sign(), trained.sign().unsqueeze(1).expand_as(x))
    assert float((x - 0.2 * x.sign()).std()) > 0.01  # and there they move


@pytest.mark.parametrize(("friction", "step_size"), [(0.1, 0.3), (0.6, 0.5)])
def test_the_bias_of_stochastic_gradients_is_that_of_the_step_alone(friction, step_size):
    """The stationary variance of a Gaussian in closed form, from its three linear equations.

    With c = 1 - a and h = e^2 M, it is 1 / (1 - h / (2 + 2 c)): no friction leaves a bias where
    the step is small.
    """
    density = normal(torch.ones(20, dtype=torch.float64))
    method = SGHMC(
        step_size=step_size,
        friction=friction,
        num_steps=10,
        num_warmup=60,
        num_samples=40,
        num_chains=64,
        progress=False,
    )
    found, error = mean_square(run(method, density).samples["x"])
    variance = 1.0
    for _ in range(50):  # the gradient's mean square, of which M is, is the variance itself
        variance = 1 / (1 - step_size**2 * variance**-0.5 / (4 - 2 * friction))
    assert abs(found - variance) < 4 * error
    assert error < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["friction", "minibatches"])
def test_the_bias_goes_to_zero_with_the_step(kind):
    """With slope 0.8 at least, from steps that double; at the default, deviations are right to 10%.

    Standard normal in 40 dimensions, with strong friction, or with gradients of two rows of 20.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(20, 40, generator=generator, dtype=torch.float64)
    rows = rows - rows.mean(0)

    def of_rows(x, index):
        return -0.5 * x.square().sum(-1) + x @ rows[index].mean(0)

    density = LogDensity(lambda x: -0.5 * x.square().sum(-1), 40, rows=Rows(20, of_rows))
    settings = {"num_samples": 400, "num_warmup": 100, "num_chains": 64, "progress": False}
    more = {"friction": 0.5} if kind == "friction" else {"batch_size": 2}
    steps, biases = [0.2, 0.4, 0.8], []
    for step in steps:
        method = SGHMC(step_size=step, **settings, **more)
        biases.append(abs(mean_square(run(method, density).samples["x"])[0] - 1))
    assert math.log(biases[-1] / biases[0]) / math.log(4) > 0.8
    default = SGHMC(**settings | {"num_samples": 200}, **{} if kind == "friction" else more)
    assert mean_square(run(default, density).samples["x"])[0] ** 0.5 == pytest.approx(1, abs=0.1)
