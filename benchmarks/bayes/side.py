"""Competitors that run in environments of their own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["answer"]


def answer(name: str, python: Path, script: str, told: dict[str, Any]) -> Any:
    """What a script of this folder prints last, as JSON, when it is told something.

    Args:
        name: Of the competitor, for messages.
        python: Of its environment.
        script: Imports nothing of this package; reads JSON from standard input.
        told: What it reads.

    Raises:
        RuntimeError: it failed; says how its messages end.
    """
    output = subprocess.run(
        [str(python), str(Path(__file__).with_name(script))],
        input=json.dumps(told),
        capture_output=True,
        text=True,
    )
    if output.returncode:
        raise RuntimeError(f"{name} failed: {output.stderr[-500:]}")
    return json.loads(output.stdout.splitlines()[-1])
