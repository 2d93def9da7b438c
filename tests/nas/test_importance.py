"""Importances: what a value is made of is found, in parameters and in networks of a grammar."""

import math

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator
from optuna.trial import create_trial

import nas
from nas.spaces import Grammar, op, sequence

UNIT = FloatDistribution(0.0, 1.0)
FANOVA = FanovaImportanceEvaluator(n_trees=8, max_depth=16, seed=0)
GRAMMAR = Grammar(
    (8,),
    {
        "network": sequence("body", op("linear", out_features=3)),
        "body": ["layer", sequence("layer", "body")],
        "layer": [
            sequence(op("linear", out_features=16), op(name)) for name in ("relu", "tanh", "gelu")
        ],
    },
    output_shape=(3,),
)


def flat(values, names=("x", "z"), directions=("minimize",), **attributes):
    """Trials on random points of the unit square, their values a function of them."""
    study = optuna.create_study(directions=list(directions))
    points = np.random.default_rng(0).uniform(size=(80, len(names)))
    for point in points.tolist():
        found = values(*point)
        study.add_trial(
            create_trial(
                values=found if isinstance(found, tuple) else (found,),
                params=dict(zip(names, point, strict=True)),
                distributions=dict.fromkeys(names, UNIT),
                user_attrs={name: trait(*point) for name, trait in attributes.items()},
            )
        )
    return study


def grown(value, **more):
    study = optuna.create_study()
    generator = torch.Generator().manual_seed(0)
    for number in range(40):
        network = GRAMMAR.random(generator)
        study.add_trial(
            create_trial(
                value=value(network),
                params={name: (number * 0.618) % 1 for name in more},
                distributions=dict.fromkeys(more, UNIT),
                user_attrs={"architecture": network.to_json(), **network.descriptors()},
            )
        )
    return study


def test_shares_of_variance_of_a_sum():
    """3 x + z on the unit square: variances 9 / 12 and 1 / 12, no interaction."""
    found = nas.importances(flat(lambda x, z: 3 * x + z), evaluator=FANOVA)
    assert list(found) == ["x", "z"]
    assert sum(found.values()) == pytest.approx(1)
    assert found["x"] == pytest.approx(0.9, abs=0.06)


def test_parameters_alone_are_assessed_as_optuna_does():
    study = flat(lambda x, z: (x - 0.3) ** 2 + 0.1 * z)
    evaluator = PedAnovaImportanceEvaluator()
    direct = optuna.importance.get_param_importances(study, evaluator=evaluator)
    assert nas.importances(study) == pytest.approx(direct)


def test_each_objective_has_its_own_in_its_direction():
    study = flat(lambda x, z: (x, z), directions=("minimize", "maximize"))
    assert nas.importances(study)["x"] > 0.8
    assert nas.importances(study, objective=1)["z"] > 0.8
    # the best are the largest: a value of which only large ones depend on z
    study = flat(lambda x, z: z if z > 0.85 else 0.5 * x, directions=("maximize",))
    assert nas.importances(study)["z"] > 0.8


def test_a_grammar_is_assessed_by_its_descriptors():
    study = grown(lambda network: -float(network.operation_counts().get("tanh", 0)), rate=True)
    found = nas.importances(study)
    assert set(found) == {
        "rate", "num_parameters", "depth", "flops",
        "count_linear", "count_relu", "count_tanh", "count_gelu",
    }  # fmt: skip
    assert max(found, key=found.get) == "count_tanh"
    assert found["rate"] < found["count_tanh"] / 3
    assert sum(found.values()) == pytest.approx(1)


def test_a_parameter_keeps_its_name_before_a_descriptor():
    found = nas.importances(grown(lambda network: float(network.depth), depth=True))
    assert {"depth", "depth (architecture)"} <= set(found)
    assert found["depth (architecture)"] > found["depth"]


def test_user_attributes_by_name():
    study = flat(lambda x, z: x * 1e-3, names=("x", "z"), latency=lambda x, z: math.exp(9 * x))
    found = nas.importances(study, descriptors=("latency",))
    assert found["latency"] == pytest.approx(found["x"], rel=0.2)  # taken by its logarithm
    with pytest.raises(ValueError, match="Trial 0 has no finite number as user attribute 'memory'"):
        nas.importances(study, descriptors=("memory",))


def test_nothing_to_tell():
    with pytest.raises(ValueError, match="two complete trials of different values, got 0"):
        nas.importances(optuna.create_study())
    with pytest.raises(ValueError, match="different values, got 80"):
        nas.importances(flat(lambda x, z: 1.0))
    study = optuna.create_study()
    study.add_trials([create_trial(value=float(k)) for k in range(3)])
    with pytest.raises(ValueError, match="nothing that varies"):
        nas.importances(study)
