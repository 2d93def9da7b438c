"""Results as lines of JSON, appended one by one, so that a stopped run goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["append", "read"]


def append(path: Path, record: dict[str, Any]) -> None:
    """Add a line to a file, which is made with its folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cut_off = path.exists() and not path.read_bytes().endswith(b"\n")
    with path.open("a") as file:
        file.write(("\n" if cut_off else "") + json.dumps(record) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, none where it is missing; a last line cut short is left out."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found
