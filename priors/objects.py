"""Objects of the user's own code by name, for the commands."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

__all__ = ["load_object"]


def load_object(reference: str) -> Any:
    """What `package.module:name` or `path/to/file.py:name` refers to.

    Raises:
        ValueError: the reference has another form, or there is no such module, file or name.
    """
    module_name, _, name = reference.rpartition(":")
    if not module_name or not name:
        raise ValueError(
            f"{reference!r} must have the form package.module:name or path/to/file.py:name."
        )
    path = None
    if module_name.endswith(".py"):
        path = Path(module_name).resolve()
        if not path.is_file():
            raise ValueError(f"There is no file {module_name}.")
        # As `python file.py` does, so that its neighbours and worker processes can import it.
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
        module_name = path.stem
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"Cannot import {module_name!r}: {error}.") from error
    if path is not None and Path(str(module.__file__)).resolve() != path:
        raise ValueError(
            f"{path} has the same name as another module, {module.__file__}; rename the file."
        )
    if not hasattr(module, name):
        raise ValueError(f"{module_name!r} has no {name!r}.")
    return getattr(module, name)
