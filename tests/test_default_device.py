"""Tensors are made where the data are, not on torch's default device."""

import os
import subprocess
import sys
from pathlib import Path


def test_the_default_device_does_not_matter(pytestconfig):
    """In a process of its own: what is cached must not reach other tests."""
    root = pytestconfig.rootpath
    result = subprocess.run(
        [sys.executable, Path("tests/default_device.py")],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
