"""Which combinations of parameters of a test marked `covering` are fast."""

import pytest

from tests.covering import covering

LEVELS = [1.0, 2.0, 3.0]
PAIRS = [("a", 0), ("b", 0), ("b", 1)]


@pytest.fixture(params=["this", "that"])
def of_a_fixture(request):
    return request.param


@pytest.mark.covering
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("name", "number"), PAIRS)
def test_every_value_is_fast_in_a_third_of_the_combinations(
    level, name, number, of_a_fixture, request
):
    mine = request.node.nodeid.partition("[")[0]
    family = [i for i in request.session.items if i.nodeid.partition("[")[0] == mine]
    fast = [i.callspec.params for i in family if not i.get_closest_marker("slow")]
    assert request.node.callspec.params in fast or request.node.get_closest_marker("slow")
    assert len(fast) == 3
    assert {p["level"] for p in fast} == set(LEVELS)
    assert {(p["name"], p["number"]) for p in fast} == set(PAIRS)
    assert {p["of_a_fixture"] for p in fast} == {"this", "that"}


def test_combinations_that_are_not_all_there():
    given = [{"a": a, "b": b} for a, b in [(1, 1), (1, 2), (2, 1), (1, 3), (3, 3)]]
    kept = covering(given)
    for name in ("a", "b"):
        assert {given[k][name] for k in kept} == {1, 2, 3}
    assert 3 not in kept  # 1 and 3 each stand in another
    assert covering([]) == set()
