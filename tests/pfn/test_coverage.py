"""What a network's training covered, as its metadata record it."""

import json
import math

import pytest
import torch

import pfn
from pfn import PFN, ArchitectureConfig
from pfn.coverage import Coverage

SMALL = ArchitectureConfig(max_features=3, embedding=16, layers=1, heads=2, hidden=16)


@pytest.mark.parametrize(
    "covered",
    [
        Coverage(),
        Coverage(max_context=20, max_buffer=4, missing=True, categorical=True),
        Coverage(known_noise=False, function=False, exchangeable=False, input_range=(-1.0, 2.5)),
        Coverage(target_range=(-3.0, 3.5), num_features=2),
    ],
)
def test_json(covered):
    values = json.loads(json.dumps(covered.to_json()))
    assert Coverage.from_json(values) == covered
    assert Coverage.from_json({"certificate": None, **values}) == covered


def test_trainings_one_after_the_other_cover_what_either_did():
    first = Coverage(
        20, 0, True, known_noise=False, function=True, input_range=(-1.0, 2.0), num_features=2
    )
    second = Coverage(
        10, 4, False, True, False, False, False, (0.0, 3.0), target_range=(0.0, 1.0), num_features=3
    )
    joined = first.joined(second)
    assert joined == Coverage(20, 4, True, True, False, True, False, (-1.0, 3.0), None, 3)
    assert first.joined(Coverage()) == Coverage(
        math.inf, 0, True, known_noise=True, input_range=(-1.0, 2.0), num_features=2
    )


@pytest.mark.parametrize("inputs", ["raw", "standardised"])
def test_what_is_not_recorded(inputs):
    covered = PFN(SMALL, torch.linspace(-1, 1, 9), inputs=inputs).coverage
    assert covered.max_context == math.inf
    assert covered.max_buffer == 0
    assert not covered.missing
    assert not covered.categorical
    assert covered.known_noise
    assert covered.function
    assert covered.exchangeable is (inputs == "standardised")
    assert covered.input_range is None


def test_of_a_shipped_network():
    network = pfn.load("bo")
    recorded = {**network.metadata, **network.coverage.to_json()}
    assert recorded == network.metadata  # nothing else, and nothing in another form
    assert network.coverage.max_context >= 128
    assert network.coverage.input_range is not None


def test_what_was_measured_is_stored_as_json():
    network = PFN(SMALL, torch.linspace(-1, 1, 9))
    assert network.certificate is None
    network.certificate = measured = pfn.load("bo").certificate
    assert network.certificate == measured
    assert network.metadata["certificate"] == measured.to_json()
