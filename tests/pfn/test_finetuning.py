"""Networks fine-tuned on one data set."""

import math

import pytest
import torch

from pfn import PFN, ArchitectureConfig, Certificate
from priors.random_state import seeded

TINY = ArchitectureConfig(
    max_features=2, embedding=16, layers=2, heads=2, hidden=16, thinking_rows=2, bars=30
)


def untrained(**changes):
    with seeded(0):
        units = {"inputs": "standardised", "targets": "standardised"}
        return PFN(TINY, torch.linspace(-4, 4, 30), tail_scale=0.2, **units)


def data(n=80):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(n, 2, generator=generator)
    return X, 3 * X[:, 0] + 0.1 * torch.randn(n, generator=generator)


def test_it_predicts_the_rows_kept_apart_better_and_leaves_the_network_alone():
    network = untrained()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.certificate = Certificate("a prior", "none", 0, {}, {})
    X, y = data()
    tuned = network.finetune(X, y, steps=40, learning_rate=1e-2)
    told = tuned.metadata["finetuned"]
    assert told["after"] < told["before"] - 0.1
    assert told["rows"] == 80
    assert tuned.certificate.prior == (
        "fine-tuned since on 80 rows of a user, measured before that on: a prior"
    )
    assert network.certificate.prior == "a prior"
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    again = network.finetune(X, y[:, None], steps=40, learning_rate=1e-2)
    for name, value in again.state_dict().items():
        assert torch.equal(value, tuned.state_dict()[name])
    assert tuned.condition(X, y[:, None]).posterior(X[:3]).mean.shape == (3, 1)


@pytest.mark.parametrize("progress", [True, False, None])
def test_progress(progress, capsys):
    X, y = data()
    untrained().finetune(X, y, steps=10, progress=progress)
    told = capsys.readouterr().err
    assert ("finetune" in told) == bool(progress)
    assert progress or not told


def test_the_first_state_stays_where_none_is_better():
    network = untrained()
    X, y = data()
    tuned = network.finetune(X, y, steps=3, learning_rate=1e6)
    assert tuned.metadata["finetuned"]["steps"] == 0
    for name, value in network.state_dict().items():
        assert torch.equal(value, tuned.state_dict()[name])


def test_classes():
    with seeded(0):
        network = PFN(ArchitectureConfig(**{**vars(TINY), "classes": 3}), None, targets="raw")
    X, y = data()
    tuned = network.finetune(X, (y > 0).long(), steps=30, learning_rate=1e-2)
    assert math.isfinite(tuned.metadata["finetuned"]["after"])
    assert tuned.metadata["finetuned"]["after"] < tuned.metadata["finetuned"]["before"]


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (torch.zeros(2, 30, 2), torch.zeros(2, 30), "one data set"),
        (torch.zeros(10, 2), torch.zeros(10), "at least 20 rows"),
        (torch.zeros(30, 2), torch.zeros(20), "same rows"),
    ],
)
def test_refusals(X, y, message):
    with pytest.raises(ValueError, match=message):
        untrained().finetune(X, y)
