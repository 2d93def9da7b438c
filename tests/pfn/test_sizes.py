"""Networks as large as the time can train, and what is said when it has passed."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from gpytorch.kernels import RBFKernel
from torch.distributions import Uniform

import pfn
from pfn import ArchitectureConfig, TrainingConfig
from pfn.training import run, sizes
from pfn.training.fabric import make_fabric
from pfn.training.outcome import Gain, Outcome, measure_outcome
from pfn.training.start import initial_network
from pfn.training.tasks import fixed_tasks
from priors import FunctionTaskPrior, GaussianProcessPrior

NOISE_VAR = 0.05


def prior(**changes):
    options = {"num_points": 16, "noise_var": NOISE_VAR, **changes}
    return FunctionTaskPrior(
        GaussianProcessPrior(RBFKernel()),
        inputs=Uniform(torch.zeros(1), torch.ones(1)),
        **options,
    )


SMALL = ArchitectureConfig(max_features=1, embedding=16, layers=1, heads=2, hidden=16, bars=24)
LIMITED = TrainingConfig(time_limit=100.0, border_tasks=32, held_out_tasks=8)


def chosen(monkeypatch, rate, config):
    """The sizes on a device that trains so many tasks a second."""
    clock = itertools.count(step=sizes._MEASURED * 16 / rate)
    monkeypatch.setattr(sizes.time, "perf_counter", lambda: next(clock))
    return sizes.choose_sizes(prior(), config, make_fabric(torch.device("cpu"), "32-true"))


def test_more_time_and_faster_devices_train_larger_networks(monkeypatch):
    found = []
    for rate in (10.0, 200.0, 2_000.0, 20_000.0):
        config = chosen(monkeypatch, rate, LIMITED)
        found.append((config.architecture.embedding, config.architecture.layers, config.batch))
    assert found == [(32, 2, 8), (64, 3, 8), (64, 4, 32), (96, 6, 32)]
    longer = chosen(monkeypatch, 200.0, replace(LIMITED, time_limit=1_000.0))
    assert longer.architecture.layers == 4
    assert longer.held_out_batch == 32
    assert chosen(monkeypatch, 10.0, replace(LIMITED, batch=4)).batch == 4


def test_few_steps_are_longer_ones(monkeypatch):
    default = TrainingConfig()
    for rate, factor in ((10.0, 2), (200.0, 2), (2_000.0, 1)):
        config = chosen(monkeypatch, rate, LIMITED)
        assert config.learning_rate == factor * default.learning_rate
        assert config.matrix_learning_rate == factor * default.matrix_learning_rate
    given = chosen(monkeypatch, 200.0, replace(LIMITED, matrix_learning_rate=3e-3))
    assert given.matrix_learning_rate == 3e-3


class Wide:
    """Tasks of 12 features, or of one more in every other batch."""

    def __init__(self, more):
        self.more, self.drawn = more, 0

    def sample(self, batch, *, generator=None, device=None, dtype=None):
        task = prior().sample(batch, generator=generator, device=device, dtype=dtype)
        self.drawn += 1
        return replace(task, X=task.X.repeat(1, 1, 12 + self.more * (self.drawn % 2)))


def test_slots_are_as_many_as_the_features():
    default = ArchitectureConfig()
    assert sizes._with_slots(default, prior(), LIMITED).max_features == 1
    assert sizes._with_slots(default, Wide(0), LIMITED).max_features == 12
    assert sizes._with_slots(default, Wide(1), LIMITED).max_features == 10  # which is refused


def test_slots_that_are_given_stay(monkeypatch):
    given = replace(LIMITED, architecture=ArchitectureConfig(max_features=4))
    assert chosen(monkeypatch, 200.0, given).architecture.max_features == 4
    assert chosen(monkeypatch, 200.0, LIMITED).architecture.max_features == 1


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (2000.0, 2020.0), (-1e-3, 1e-3)])
def test_hidden_units_start_with_unit_variance_in_any_unit(low, high):
    inputs = Uniform(torch.full((3,), low), torch.full((3,), high))
    own = FunctionTaskPrior(
        GaussianProcessPrior(RBFKernel()), inputs=inputs, num_points=16, noise_var=NOISE_VAR
    )
    config = replace(LIMITED, architecture=replace(SMALL, max_features=5, hidden=400))
    made = initial_network(own, config, None)
    x = inputs.sample((4000,))
    first = made.network.embed_x[0]
    slots = torch.zeros(4000, 16)
    slots[:, :3], slots[:, -1] = x, 3 / 5
    with torch.no_grad():
        hidden = first(slots)
    # 400 units of 3 random weights: the mean of their variances within 4 standard errors
    assert hidden.var(0).mean().item() == pytest.approx(1, abs=4 * (2 / 3 / 400) ** 0.5 + 0.06)
    assert hidden.mean(0).abs().max() < 1.5


@pytest.mark.parametrize(
    "config",
    [
        TrainingConfig(),
        replace(LIMITED, steps=500),
        replace(LIMITED, architecture=SMALL),
    ],
)
def test_what_is_given_stays(config):
    assert not sizes.chosen_by_time(config)
    assert sizes.chosen_by_time(replace(LIMITED, architecture=ArchitectureConfig(bars=64)))


def test_a_resumed_training_keeps_its_sizes(monkeypatch, tmp_path):
    path, config = tmp_path / "state", replace(LIMITED, time_limit=1e-3)
    first = pfn.train(prior(), config=config, device="cpu", checkpoint=path, progress=False)
    assert (first.architecture.embedding, first.architecture.layers) == (32, 2)
    monkeypatch.setattr(run, "choose_sizes", None)
    again = pfn.train(
        prior(), config=config, device="cpu", checkpoint=path, resume=True, progress=False
    )
    assert again.architecture == first.architecture
    rates = [made.trainings[0]["config"]["learning_rate"] for made in (first, again)]
    assert rates == [2 * TrainingConfig().learning_rate] * 2


def test_the_outcome_is_the_distance_from_the_exact_posterior(capsys):
    """What contexts tell, against dense solves on other tasks."""
    config = TrainingConfig(
        architecture=SMALL,
        targets="raw",
        time_limit=1e-3,
        steps=2,
        border_tasks=64,
        held_out_tasks=0,
    )
    made = pfn.train(prior(), config=config, device="cpu", progress=True)
    outcome = made.trainings[0]["outcome"]
    assert "of little use yet" in capsys.readouterr().err
    told, generator = [], torch.Generator().manual_seed(5)
    for _ in range(60):
        task = prior().sample(4, generator=generator)
        n = task.num_context
        if n == 0:
            continue
        K = np.exp(-((task.X - task.X.mT).double().numpy() ** 2) / (2 * math.log(2) ** 2))
        inner = np.linalg.solve(K[:, :n, :n] + NOISE_VAR * np.eye(n), K[:, :n, n:])
        explained = np.einsum("bnm,bnm->bm", K[:, :n, n:], inner)
        variance = 1 + NOISE_VAR - explained
        told.append(0.5 * np.log((1 + NOISE_VAR) / variance).mean())
    error = np.std(told) / math.sqrt(len(told))
    assert abs(outcome["told"] - np.mean(told)) < 5 * 3 * error  # of 15 batches rather than 60
    # An untrained network knows about the prior, and misses what the contexts tell.
    assert abs(outcome["gap"] - outcome["told"]) < 0.4
    assert outcome["gap_error"] > 0


def noise_mixture(X, y, n, levels):
    """Log densities of the queries of one task and of nothing, the noise variance being unknown:
    a dense mixture over its levels, weighted by the evidence of the context."""
    K = np.exp(-((X - X.T) ** 2) / (2 * math.log(2) ** 2))
    evidence, density = [], []
    for level in levels:
        inner = K[:n, :n] + level * np.eye(n)
        weights = np.linalg.solve(inner, K[:n, n:])
        mean, variance = weights.T @ y[:n], 1 + level - (K[:n, n:] * weights).sum(0)
        _, log_det = np.linalg.slogdet(inner)
        evidence.append(-0.5 * (y[:n] @ np.linalg.solve(inner, y[:n]) + log_det))
        density.append(-0.5 * ((y[n:] - mean) ** 2 / variance + np.log(2 * math.pi * variance)))
    weight = np.exp(np.array(evidence) - max(evidence))
    return np.log((weight / weight.sum()) @ np.exp(np.array(density)))


@pytest.mark.filterwarnings("ignore:This network was trained")
def test_an_oracle_that_knows_more_bounds_the_distance():
    uncertain = prior(noise_var=Uniform(0.01, 0.5))
    config = replace(LIMITED, architecture=SMALL, steps=1, held_out_batch=4)
    made = pfn.train(uncertain, config=config, device="cpu", progress=False)
    outcome = measure_outcome(made, uncertain, config, torch.device("cpu"))
    assert not outcome.exact
    levels, exact, loss = np.linspace(0.01, 0.5, 60), [], []
    generator = torch.Generator().manual_seed(config.seed + 2**34)
    for task in fixed_tasks(uncertain, config, generator, 64):
        n, X, y = task.num_context, task.X.double().numpy(), task.y[..., 0].double().numpy()
        if n in (0, y.shape[1]):
            continue
        exact.append(-np.mean([noise_mixture(X[b], y[b], n, levels).mean() for b in range(4)]))
        posterior = made.condition(task.X[:, :n], task.y[:, :n]).posterior(
            task.X[:, n:], observation_noise=True
        )
        loss.append(-posterior.log_prob(task.y[:, n:]).mean().item())
    distances = np.array(loss) - np.array(exact)
    assert distances.mean() < outcome.gap  # on the same tasks
    error = distances.std() / math.sqrt(len(distances))
    assert outcome.gap - distances.mean() < 0.3 + 3 * error  # and the noise tells not so much


@pytest.mark.filterwarnings("ignore:This network was trained")
def test_without_an_oracle_the_gain_over_mean_and_deviation_is_told():
    class Cubes:
        """Functions whose posterior nobody knows."""

        def sample(self, batch, *, generator=None, device=None, dtype=None):
            task = prior().sample(batch, generator=generator, device=device, dtype=dtype)
            return replace(task, y=task.y**3, f=None)

    config = replace(LIMITED, architecture=SMALL, steps=1, held_out_batch=4)
    made = pfn.train(Cubes(), config=config, device="cpu", progress=False)
    assert "outcome" not in made.trainings[0]
    told = made.trainings[0]["gain"]
    generator = torch.Generator().manual_seed(config.seed + 2**34)
    gains = []
    for task in fixed_tasks(Cubes(), config, generator, 64):
        n, y = task.num_context, task.y[..., 0].double().numpy()
        if n < 3 or n == y.shape[1]:
            continue
        seen = y[:, :n]
        spread = seen.std(1, ddof=1, keepdims=True) * math.sqrt(1 + 1 / n)
        plain = scipy.stats.t.logpdf(y[:, n:], n - 1, seen.mean(1, keepdims=True), spread)
        posterior = made.condition(task.X[:, :n], task.y[:, :n]).posterior(
            task.X[:, n:], observation_noise=True
        )
        gains.append(posterior.log_prob(task.y[:, n:]).mean().item() - plain.mean())
    assert told["gain"] == pytest.approx(np.mean(gains), abs=1e-3)
    assert told["gain_error"] == pytest.approx(np.std(gains, ddof=1) / len(gains) ** 0.5, abs=1e-3)


def test_sentences_of_gains():
    assert "0.5 ± 0.1 nats per query better" in Gain(0.5, 0.1, 20.0).sentence(60.0)
    assert "may not use its inputs" not in Gain(0.5, 0.1, 20.0).sentence(60.0)
    assert "may not use its inputs" in Gain(0.1, 0.1, 20.0).sentence(60.0)


def test_sentences():
    good = Outcome(0.12, 0.02, 1.5, 20.0)
    assert good.sentence(100.0) == (
        "after 100 s: 0.12 ± 0.02 nats per query from the exact posterior, with 20 context rows "
        "on average, which tell 1.5 nats."
    )
    bad = Outcome(1.8, 0.1, 1.5, 20.0)
    assert bad.doubtful
    assert "of little use yet" in bad.sentence(100.0)


def test_sentences_of_bounds():
    good = Outcome(0.12, 0.02, 1.5, 20.0, exact=False)
    assert good.sentence(100.0) == (
        "after 100 s: at most 0.12 ± 0.02 nats per query from the exact posterior, with 20 context "
        "rows on average, which tell 1.5 nats, both to one who is also told each task's "
        "hyperparameters."
    )
    unsure = replace(good, gap=0.9).sentence(100.0)
    assert "may be of little use yet" in unsure
    assert "cannot be seen" in unsure
