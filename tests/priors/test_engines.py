"""Engines of other distributions, found by their entry points."""

import sys
import textwrap
import tomllib
import warnings
from importlib import import_module
from pathlib import Path

import pytest

from priors.engines import GROUP, Engine, installed_engines


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Install a distribution with these entry points, for one test."""

    def install(module, points):
        (tmp_path / "outsider.py").write_text(textwrap.dedent(module))
        info = tmp_path / "outsider-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outsider\nVersion: 1.0\n")
        lines = "\n".join(f"{name} = outsider:{value}" for name, value in points.items())
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}\n")
        monkeypatch.syspath_prepend(tmp_path)

    yield install
    sys.modules.pop("outsider", None)


def test_an_outsiders_engine_is_found_by_its_kind(distribution):
    module = """
        from types import SimpleNamespace
        from priors.engines import Engine
        forest = Engine("forest", "regression", lambda X, Y: (X, Y), max_rows=7)
        plain = SimpleNamespace(name="plain", kind="classification", factory=max, max_classes=3)
    """
    distribution(module, {"a": "forest", "b": "plain"})
    found = installed_engines("regression")
    assert found["forest"].max_rows == 7
    assert "plain" not in found
    plain = installed_engines("classification")["plain"]
    assert (plain.factory, plain.max_classes, plain.max_rows) == (max, 3, None)


def test_what_is_no_engine_is_told_and_left_out(distribution):
    distribution("import nowhere", {"broken": "engine"})
    with pytest.warns(UserWarning, match="'broken' of outsider:engine is left out: ModuleNotF"):
        assert "broken" not in installed_engines("regression")


def test_an_object_without_a_factory_is_told(distribution):
    distribution("engine = 3", {"number": "engine"})
    with pytest.warns(UserWarning, match="TypeError: it has no 'name'"):
        installed_engines("regression")


def test_an_engine_says_why_it_refuses():
    engine = Engine("small", "classification", max, max_columns=3, max_classes=2)
    assert engine.refuses(3, 2) is None
    assert "3 columns at most, the table has 4" in engine.refuses(4, 2)
    assert "2 classes at most, y has 5" in engine.refuses(3, 5)
    with pytest.raises(ValueError, match="'regression' or 'classification'"):
        Engine("odd", "ranking", max)


def test_the_entry_points_of_this_distribution_are_engines():
    """Read from the source, since what is installed may be another version."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    kinds = set()
    for value in project["project"]["entry-points"][GROUP].values():
        module, name = value.split(":")
        engine = getattr(import_module(module), name)
        assert isinstance(engine, Engine)
        kinds.add(engine.kind)
    assert kinds == {"regression", "classification"}


def test_shipped_networks_take_what_their_engines_promise():
    import pfn
    from pfn import engines

    for engine in (engines.regression, engines.classification):
        network = pfn.load(engine.kind)
        assert engine.max_rows == network.coverage.max_context
        assert engine.max_columns == network.architecture.max_features
        assert (engine.max_classes or 0) == network.architecture.classes


def test_looking_for_engines_is_quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        installed_engines("regression")
