"""Tables of trained networks: what queries cost, and the area that a front dominates."""

import numpy as np
import pytest
import torch

from benchmarks.nas.oracle import warped_like
from benchmarks.nas.pareto import dominated
from benchmarks.nas.tables import Lookup, Table
from nas.encoding.outcomes import half_rank
from nas.spaces import CellSpace


def test_the_area_of_a_front_is_the_share_of_uniform_points_that_it_dominates():
    """Within four standard errors; points beyond the reference and beaten ones add nothing."""
    rng = np.random.default_rng(0)
    one, two = rng.uniform(0, 18, 30), rng.uniform(0, 30, 30)
    draws = rng.uniform(0, 1, (100_000, 2)) * (15, 25)
    worse = ((one < draws[:, :1]) & (two < draws[:, 1:])).any(1)
    error = worse.std() / len(draws) ** 0.5
    assert abs(dominated(one, two) / (15 * 25) - worse.mean()) < 4 * error


@pytest.mark.parametrize(
    ("one", "two", "area"),
    [([5], [5], 200), ([5, 10], [5, 5], 200), ([5, 10], [15, 5], 10 * 10 + 5 * 10), ([16], [5], 0)],
)
def test_areas_by_hand(one, two, area):
    assert dominated(np.array(one, float), np.array(two, float)) == pytest.approx(area)


def test_a_screen_costs_its_share_and_is_not_recommended():
    scores = np.array([[1.0, np.nan], [3.0, 3.0], [2.0, 2.0]])
    screened = np.array([9.0, 0.0, 0.0])
    table = Table("made up", CellSpace(10), {}, scores, scores[:, 0], {}, screened)
    lookup = Lookup(table, 0)
    lookup.query(2)
    assert lookup.screen(0) == 9.0
    lookup.query(1)
    assert lookup.spent == pytest.approx([1.0, 2.06])
    assert [lookup.seen(cost) for cost in (0.5, 1, 2, 2.06, 3)] == [0, 1, 1, 2, 2]
    assert [lookup.recommended(cost) for cost in (1, 2, 3)] == [2, 2, 1]


def test_values_are_warped_as_the_known_ones_were():
    """Themselves; on the line of the better half above it; in order; no worse than the worst."""
    known = torch.randn(21, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = half_rank(known)
    torch.testing.assert_close(warped_like(known, known, targets), targets)
    best = known.argsort(descending=True)[:2]
    slope = (targets[best[0]] - targets[best[1]]) / (known[best[0]] - known[best[1]])
    beyond = warped_like(known[best[:1]] + 2, known, targets)
    torch.testing.assert_close(beyond, targets[best[:1]] + 2 * slope)
    others = torch.linspace(-4, 4, 50, dtype=torch.float64)
    assert bool((warped_like(others, known, targets).diff() >= 0).all())
    assert warped_like(others, known, targets)[0] == targets.min()
