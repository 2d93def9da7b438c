"""Shared by the tests of engines."""

import pytest


@pytest.fixture
def without_graphs(monkeypatch):
    """Densities are evaluated as they are written: tracing them takes longer than a few steps."""
    for module in ("evaluation", "mclmc"):
        monkeypatch.setattr(f"bayes.inference.{module}.captured", lambda function, *_: function)
