"""The unit cube of hyperparameters and the warp of objective values."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import Generator

from nas.encoding.hyperparameters import HyperparameterCube
from nas.encoding.outcomes import half_rank

CUBE = HyperparameterCube(
    {
        "rate": FloatDistribution(1e-4, 1.0, log=True),
        "dropout": FloatDistribution(0.0, 0.5),
        "layers": IntDistribution(1, 4),
        "batch": IntDistribution(16, 256, log=True),
        "steps": FloatDistribution(0.0, 1.0, step=0.25),
        "optimizer": CategoricalDistribution(("adam", "sgd", None)),
        "fixed": FloatDistribution(2.0, 2.0),
    }
)


def test_coordinates_by_hand():
    cube = HyperparameterCube(
        {
            "b": FloatDistribution(1e-4, 1.0, log=True),
            "a": CategoricalDistribution(("x", "y")),
            "c": IntDistribution(1, 4),
        }
    )
    row = cube.encode({"a": "y", "b": 1e-3, "c": 2})
    expected = torch.tensor([0.0, 1.0, 0.25, (2 - 0.5) / 4], dtype=torch.float64)
    torch.testing.assert_close(row, expected)
    assert cube.dimension == 4


@pytest.mark.parametrize("scale", [0.05, 0.5, 5.0])
def test_moves_and_draws_stay_inside(scale):
    generator = Generator().manual_seed(0)
    values = CUBE.random(generator)
    for index in range(100):
        values = CUBE.perturb(values, scale, generator)
        for point in (values, CUBE.random(generator), CUBE.quasi_random(index, seed=1)):
            assert CUBE.contains(point)
            code = CUBE.encode(point)
            assert bool(((code >= 0) & (code <= 1)).all())
            assert isinstance(point["layers"], int)


def test_integers_and_choices_are_drawn_uniformly():
    """Four equally likely integers: each count within four standard errors."""
    generator = Generator().manual_seed(0)
    draws = [CUBE.random(generator) for _ in range(2000)]
    for value in (1, 2, 3, 4):
        count = sum(draw["layers"] == value for draw in draws)
        assert abs(count - 500) < 4 * math.sqrt(2000 * 0.25 * 0.75)
    for choice in ("adam", "sgd", None):
        count = sum(draw["optimizer"] is choice for draw in draws)
        assert abs(count - 2000 / 3) < 4 * math.sqrt(2000 * 2 / 9)


def test_small_moves_are_small():
    generator = Generator().manual_seed(0)
    start = {**CUBE.random(generator), "dropout": 0.25}
    moved = [CUBE.perturb(start, 0.1, generator)["dropout"] for _ in range(2000)]
    deviation = torch.tensor(moved).std() / 0.5
    assert abs(float(deviation) - 0.1) < 4 * 0.1 / math.sqrt(2 * 2000)


def test_quasi_random_points_fill_each_choice():
    points = [CUBE.quasi_random(index, seed=3) for index in range(8)]
    assert {point["layers"] for point in points} == {1, 2, 3, 4}
    assert sorted(point["dropout"] < 0.25 for point in points).count(True) == 4


def test_missing_and_outside_values_are_not_contained():
    inside = CUBE.random(Generator().manual_seed(0))
    assert not CUBE.contains({**inside, "rate": 2.0})
    assert not CUBE.contains({**inside, "optimizer": "lion"})
    assert not CUBE.contains({k: v for k, v in inside.items() if k != "rate"})


def test_other_distributions_are_refused():
    with pytest.raises(TypeError, match="'rate' needs an Optuna"):
        HyperparameterCube({"rate": (0.0, 1.0)})


def test_good_half_keeps_its_spacing_and_bad_half_its_ranks():
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, -1.0, -1e6], dtype=torch.float64)
    warped = half_rank(values)
    milder = half_rank(torch.tensor([1.0, 2.0, 4.0, 8.0, -1.0, -2.0], dtype=torch.float64))
    torch.testing.assert_close(warped, milder)
    assert warped.argsort().tolist() == values.argsort().tolist()
    gaps = warped[:4].diff()
    torch.testing.assert_close(gaps[1:] / gaps[:-1], torch.full((2,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(warped.mean() + 1, torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(warped.std(correction=0), torch.tensor(1.0, dtype=torch.float64))


def test_failures_rank_last_together():
    warped = half_rank(torch.tensor([3.0, -math.inf, 1.0, math.nan, 2.0, 0.5]))
    assert warped[1] == warped[3] == warped.min()
    assert (warped == warped.min()).sum() == 2
    assert bool(warped.isfinite().all())
    assert bool((half_rank(torch.tensor([-math.inf, math.nan])) == 0).all())
    assert bool((half_rank(torch.tensor([2.0, 2.0, 2.0])) == 0).all())


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=30))
def test_the_order_is_kept(numbers):
    values = torch.tensor(numbers, dtype=torch.float64)
    warped = half_rank(values)
    higher = values[:, None] > values
    assert bool((warped[:, None] > warped)[higher].all())
    equal = values[:, None] == values
    torch.testing.assert_close(
        (warped[:, None] - warped)[equal], torch.zeros(int(equal.sum()), dtype=torch.float64)
    )
