"""The probe: what it measures, and what it chooses."""

from dataclasses import replace

import pytest
import torch
from gpytorch.kernels import RBFKernel
from torch.distributions import Uniform

import pfn
from pfn import ArchitectureConfig, TrainingConfig, rates
from priors import FunctionTaskPrior, GaussianProcessPrior

PRIOR = FunctionTaskPrior(
    GaussianProcessPrior(RBFKernel()),
    inputs=Uniform(torch.zeros(1), torch.ones(1)),
    num_points=8,
    noise_var=0.1,
)
CONFIG = TrainingConfig(
    architecture=ArchitectureConfig(
        max_features=2, embedding=16, layers=1, heads=2, hidden=16, bars=24
    ),
    batch=4,
    border_tasks=8,
)


class UpToSixtyFour:
    """More tasks at once do not fit into the memory."""

    def sample(self, batch, **options):
        if batch > 64:
            raise torch.OutOfMemoryError
        return PRIOR.sample(batch, **options)


def made_up(speeds):
    """A measurement by batch, and by precision and compilation where they are named."""

    def measure(task_prior, config, device, initial, steps, batch, precision):
        speed = speeds.get((batch, precision, config.compile))
        if speed is None:
            return None
        return rates.Rate(batch, precision, config.compile, speed, 0.1, None)

    return measure


def test_a_probe_is_a_configuration_that_trains():
    prior = UpToSixtyFour()
    found = pfn.probe(prior, CONFIG, device="cpu", seconds=20.0, steps=2, progress=False)
    assert found.chosen in found.rates
    assert [rate.batch for rate in found.rates] in ([4, 16], [4, 16, 64])
    assert all(rate.tasks_per_second > 0 and 0 < rate.drawing <= 1 for rate in found.rates)
    assert found.config == replace(
        CONFIG,
        batch=found.chosen.batch,
        held_out_batch=4,
        evaluate_every=found.config.evaluate_every,
    )
    assert "tasks/s" in str(found)
    made = pfn.train(PRIOR, config=replace(found.config, steps=2), device="cpu", progress=False)
    assert made.metadata["training"]["tasks"] == 2 * found.chosen.batch


@pytest.mark.parametrize(
    ("speeds", "chosen"),
    [
        ((50.0, 90.0, 95.0, 500.0), 64),  # 64 gained too little to go on
        ((50.0, 90.0, 92.0, 500.0), 16),  # and here too little for a quarter of the steps
        ((800.0, 3200.0, 6000.0, 9000.0, 9100.0), 256),  # a GPU that is full at 1024
        ((800.0, 3200.0, 12800.0, 51200.0, 170000.0, 200000.0), 1024),
    ],
)
def test_the_batch_that_makes_most_progress_is_chosen(monkeypatch, speeds, chosen):
    full = "32-true"
    made = {(4 ** (k + 1), full, False): speed for k, speed in enumerate(speeds)}
    monkeypatch.setattr(rates, "_measure", made_up(made))
    found = rates.probe(PRIOR, CONFIG, device="cpu", progress=False)
    last = next(
        (k for k in range(1, len(speeds)) if speeds[k] < 1.1 * speeds[k - 1]), len(speeds) - 1
    )
    assert [rate.batch for rate in found.rates] == [4 ** (k + 1) for k in range(last + 1)]
    assert found.chosen.batch == chosen


def test_compilation_must_pay(monkeypatch):
    full = "32-true"
    for speed, compiled in ((100.0, False), (130.0, True)):
        speeds = {(4, full, False): 100.0, (4, full, True): speed}
        monkeypatch.setattr(rates, "_measure", made_up(speeds))
        found = rates.probe(PRIOR, CONFIG, device="cpu", try_compile=True, progress=False)
        assert found.config.compile is compiled


def test_a_gpu_tries_half_precision_first_and_stops_where_memory_ends(monkeypatch):
    half = "bf16-mixed"
    speeds = {(4, half, False): 100.0, (16, half, False): 300.0, (4, "32-true", False): 99.0}
    monkeypatch.setattr(rates, "_measure", made_up(speeds))
    found = rates.probe(PRIOR, CONFIG, device="cuda", progress=False)
    assert [(rate.batch, rate.precision) for rate in found.rates] == [
        (4, half),
        (16, half),
        (4, "32-true"),
    ]
    assert (found.config.batch, found.config.precision) == (16, half)
    monkeypatch.setattr(rates, "_measure", made_up({}))
    with pytest.raises(RuntimeError, match="does not fit into the memory"):
        rates.probe(PRIOR, CONFIG, device="cuda", progress=False)
