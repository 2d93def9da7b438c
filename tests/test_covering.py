"""Which combinations of parameters of a test marked `covering` or `fast_for` are fast."""

import pytest

from tests.covering import chosen, covering

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


@pytest.mark.fast_for("one-2.0", "three-1.0")
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["one", "two", "three"])
def test_named_combinations_are_fast_and_the_others_slow(name, level, request):
    mine = request.node.nodeid.partition("[")[0]
    family = [i for i in request.session.items if i.nodeid.partition("[")[0] == mine]
    fast = {i.callspec.id for i in family if not i.get_closest_marker("slow")}
    assert fast <= {"one-2.0", "three-1.0"}
    assert (request.node.callspec.id in fast) == (not request.node.get_closest_marker("slow"))


def test_a_name_that_no_combination_has_is_an_error():
    assert chosen(["a", "b", "c"], ("c", "a"), "test") == {0, 2}
    assert chosen(["b"], ("a",), "asked for by its id") == set()
    with pytest.raises(ValueError, match=r"fast_for \['d'\], which it does not have"):
        chosen(["a", "b", "c"], ("a", "d"), "test")
