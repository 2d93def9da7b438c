"""Names borrowed from Optuna and BoTorch: each exists and does what we rely on."""

import optuna
import pytest
import torch.utils.cpp_extension
from botorch.acquisition.multi_objective import logei
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from nas.compat import contains, database_file, uncompiled


def test_contains():
    number = FloatDistribution(0.1, 1.0, log=True)
    assert contains(number, 0.1)
    assert contains(number, 1.0)
    assert not contains(number, 2.0)
    steps = IntDistribution(1, 9, step=2)
    assert contains(steps, 5)
    assert not contains(steps, 4)
    choice = CategoricalDistribution(["a", None])
    assert contains(choice, None)
    with pytest.raises(ValueError, match="not in"):
        contains(choice, "b")
    with pytest.raises(ValueError, match=r".+"):
        contains(number, "b")


def test_database_file(tmp_path):
    path = tmp_path / "a study.db"
    made = optuna.create_study(storage=optuna.storages.RDBStorage(f"sqlite:///{path}"))
    assert database_file(made) == path
    assert database_file(optuna.create_study(storage="sqlite:///:memory:")) is None
    assert database_file(optuna.create_study()) is None
    journal = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal"))
    made = optuna.create_study(storage=optuna.storages.JournalStorage(journal))
    assert database_file(made) is None


def test_nothing_is_compiled(monkeypatch):
    asked = []
    monkeypatch.setattr(logei, "_load_attempted", False)
    monkeypatch.setattr(logei, "_C", None)
    monkeypatch.setattr(torch.utils.cpp_extension, "load", lambda **kwargs: asked.append(kwargs))
    with uncompiled():
        logei._try_load_fused_kernel()
    assert not asked
    logei._try_load_fused_kernel()  # for the user's own it is as before
    assert asked
