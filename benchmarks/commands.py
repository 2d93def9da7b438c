"""The command that makes a result, as it is kept beside it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

__all__ = ["command"]

ROOT = Path(__file__).resolve().parents[1]


def command(name: str, options: Sequence[str] | None) -> str:
    """`python -m benchmarks NAME OPTIONS`, with paths from the root of the repository.

    Args:
        name: Of the benchmark, such as "pfn curves".
        options: As they were given.
    """
    told = [os.path.relpath(word, ROOT) if os.path.isabs(word) else word for word in options or ()]
    return shlex.join(["python", "-m", "benchmarks", *name.split(), *told])
