"""Shared by the tests of searches."""

import optuna
import pytest


@pytest.fixture
def few_candidates(monkeypatch):
    """What is proposed must be right, not good."""
    for name in ("NUM_RANDOM", "NUM_MUTATIONS", "NUM_CROSSOVERS", "NUM_STEPS"):
        monkeypatch.setattr(f"nas.proposals.maximisation.{name}", 8)
    monkeypatch.setattr("nas.proposals.maximisation.SCALES", (0.1,))
    monkeypatch.setattr("nas.proposals.pool.NUM_FIRST", 16)
    monkeypatch.setattr("nas.proposals.pool.NUM_PER_TRIAL", 2)


@pytest.fixture
def quiet_optuna():
    """Errors alone are told."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(level)
