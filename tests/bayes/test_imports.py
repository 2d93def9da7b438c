"""Importing does no work and leaves nothing behind; every module imports alone."""

import pkgutil
import subprocess
import sys

import pytest

import bayes

MODULES = [
    module.name
    for module in pkgutil.walk_packages(bayes.__path__, "bayes.")
    if module.name != "bayes.testing"  # it needs pytest
]


def test_all_public_names_exist():
    assert all(hasattr(bayes, name) for name in bayes.__all__)
    assert list(bayes.__all__) == sorted(bayes.__all__, key=lambda n: (not n.isupper(), n))


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_module_imports_alone(module):
    code = (
        "import torch; before = torch.random.get_rng_state(), torch.get_default_dtype(); "
        f"import {module}; import pyro, sys; "
        "assert torch.equal(before[0], torch.random.get_rng_state()); "
        "assert before[1] == torch.get_default_dtype(); "
        "assert not list(pyro.get_param_store().keys()); "
        "assert 'pfn' not in sys.modules and 'nas' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
