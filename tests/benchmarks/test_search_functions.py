"""Known functions: the same for every method, and of the networks that parameters stand for."""

import numpy as np
import optuna
import pytest

from benchmarks.nas.functions import FUNCTIONS, ONE_NETWORK, Function, run


def function(name, seed=3):
    return FUNCTIONS[name](np.random.default_rng(seed))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_trial_has_the_value_of_its_parameters(name):
    """And another function of the same seed is the same, the minimum is not at every point."""
    known = function(name)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(known, n_trials=6)
    for trial in study.trials:
        assert function(name)._value(known._alone(trial.params)) == trial.value
    assert len({trial.value for trial in study.trials}) > 3
    np.testing.assert_array_equal(known.random(20), function(name).random(20))


@pytest.mark.parametrize("name", ["sizes", "widths", "wave"])
def test_layers_that_are_not_there_change_nothing(name):
    known = function(name)
    values = {"depth": 1, "activation": "relu", "residual": False, "layer_norm": False}
    values |= {f"width_{layer}": 64 for layer in range(1, 5)}
    values |= {"learning_rate": 1e-3, "optimizer": "adam"}
    other = {**values, "width_3": 16, "residual": True}
    assert known._value(known._alone(values)) == known._value(known._alone(other))


def test_the_minimum_of_six_numbers():
    at = (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573)
    values = {f"x{k}": x for k, x in enumerate(at)}
    assert function("hartmann")._value(values) == pytest.approx(-3.32237, abs=1e-4)


def test_units_of_a_run(monkeypatch):
    """All 20 trials at the same place, whose value is the median: 1 in units of the function."""
    median = function("hartmann").random(5000)
    constant = Function(ONE_NETWORK, {}, lambda values: float(np.median(median)))
    monkeypatch.setattr(
        "benchmarks.nas.functions._known",
        lambda name, seed: (constant, float(median.min()), float(np.median(median))),
    )
    assert run(20, function="hartmann", method="random", seed=0)["best"] == [1.0, 1.0]
