"""Importing the packages: each module alone, without work and without side effects."""

import importlib
import subprocess
import sys
import textwrap

import pytest

IMPORT_EACH_ALONE = """
    import os, pkgutil, sys
    import torch, gpytorch, botorch, pyro, optuna, matplotlib, arviz  # paid for once, then forked
    import logging, warnings
    warnings.simplefilter("error")

    names = []
    for package in ("priors", "bayes", "pfn", "nas"):
        names.append(package)
        path = [package]
        names += [m.name for m in pkgutil.walk_packages(path, prefix=f"{package}.")
                  if not m.name.endswith("__main__")]
    assert len(names) > 20, names

    def state():
        return (
            torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_rng_state().sum().item(),
            logging.root.level, len(logging.root.handlers), optuna.logging.get_verbosity(),
            len(pyro.get_param_store()), matplotlib.get_backend(auto_select=False),
            torch.get_num_threads(),
        )

    failed = []
    for name in names:
        child = os.fork()
        if child == 0:
            try:
                before = state()
                __import__(name)
                assert name == "pfn.estimators" or "sklearn" not in sys.modules, "an extra"
                assert state() == before, (before, state())
            except BaseException as error:
                print(f"{name}: {type(error).__name__}: {error}", flush=True)
                os._exit(1)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            failed.append(name)
    sys.exit(bool(failed))
"""


def test_every_module_imports_alone_and_changes_nothing(pytestconfig):
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(IMPORT_EACH_ALONE)],
        cwd=pytestconfig.rootpath,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("package", ["priors", "bayes", "pfn", "nas"])
def test_public_names_exist_and_are_sorted(package):
    module = importlib.import_module(package)
    assert all(hasattr(module, name) for name in module.__all__)
    assert list(module.__all__) == sorted(module.__all__, key=_ruff_order)


def _ruff_order(name):
    """Constants, then classes, then functions, as ruff's RUF022 sorts them."""
    kind = 0 if name.isupper() else 1 if name[0].isupper() else 2
    return kind, name
