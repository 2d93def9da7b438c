"""Model files: tensors in safetensors, their description as JSON in its header, never pickle.

A file holds named tensors and one JSON object that says what they are (`kind`, format version,
package version, a digest of the tensors, and what the writer adds). Writing is atomic: a reader
sees the old file or the new one, and a crash leaves the old one in place.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

__all__ = ["FORMAT", "read_safetensors", "tensors_under", "write_safetensors_atomically"]

#: Version of the layout of the JSON description; a reader refuses a newer one.
FORMAT = 1
_KEY = "wideprior"


def write_safetensors_atomically(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    *,
    kind: str,
    description: Mapping[str, Any],
) -> None:
    """Write tensors and their description to one file, replacing it in a single step.

    Args:
        path: Target file; its folder must exist.
        tensors: Named tensors on any device; tensors sharing memory are stored separately.
        kind: What the file holds, checked by the reader: "PFN", "GaussianProcess".
        description: JSON-serialisable facts that the reader needs. NaN and infinities are refused.

    Raises:
        FileNotFoundError: the folder does not exist.
        TypeError: the description is not JSON.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"Cannot write {path}: the folder {path.parent} does not exist.")
    stored = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    header = {"kind": kind, "format": FORMAT, "version": _package_version(), **description}
    text = json.dumps({**header, "digest": _digest(stored)}, allow_nan=False)
    content = save(stored, metadata={_KEY: text})
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with open(partial, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_safetensors(
    path: str | os.PathLike[str],
    *,
    kind: str | None = None,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_safetensors_atomically` wrote.

    Args:
        path: The file.
        kind: The kind that the caller expects; None accepts any.
        device: Device of the tensors.

    Returns:
        The tensors by name, and the description with "kind", "format" and "version" added.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, was not written by this package, is of another kind, or
            was written by a newer format. Changed tensors are noticed where the file has a digest
            of them; those of older versions have none.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not a readable safetensors file (damaged, cut off or another format): "
            f"{error}"
        ) from error
    foreign = f"{path} is a safetensors file, but was not written by this package."
    if text is None:
        raise ValueError(foreign)
    try:
        description = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"The description in {path} is not valid JSON: {error}") from error
    if not isinstance(description, dict) or not {"kind", "format", "version"} <= set(description):
        raise ValueError(foreign)
    if description["format"] > FORMAT:
        raise ValueError(
            f"{path} has format {description['format']}, this version reads up to {FORMAT}; "
            f"it was written by version {description['version']} of the package: upgrade."
        )
    if kind is not None and description["kind"] != kind:
        raise ValueError(f"{path} holds a {description['kind']}, expected a {kind}.")
    digest = description.pop("digest", None)
    if digest is not None and digest != _digest(tensors):
        raise ValueError(
            f"{path} is damaged: its tensors are not those that were written. Copy it again, or "
            "save the model again."
        )
    return {name: value.to(device) for name, value in tensors.items()}, description


def tensors_under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with the prefix and a dot, under the rest of their names."""
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and values of contiguous tensors on the CPU."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _package_version() -> str:
    try:
        return version("wideprior")
    except PackageNotFoundError:  # imported from a source tree that is not installed
        return "unknown"
