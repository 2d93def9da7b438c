"""Short text for what a user holds: sizes and names, never the numbers of a tensor.

What a notebook or a debugger prints of an object says what it is in a line or a few. Nothing is
computed for it: no kernel matrix, no forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

__all__ = [
    "as_data",
    "as_distribution",
    "as_predictions",
    "as_record",
    "as_tensor",
    "count",
    "shortened",
]

_LONGEST = 60


def count(number: int, noun: str) -> str:
    """A number with its noun, such as "1 row", "1,600 nodes" or "3 classes"."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def as_tensor(tensor: Tensor) -> str:
    """The number of a tensor of one; dtype and shape of others, such as "float64 [2, 50]"."""
    if not tensor.dim():
        return f"{tensor.item():.4g}"
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def as_record(instance: Any) -> str:
    """A dataclass with its fields, tensors among them by shape and numbers with four digits."""
    parts = [f"{field.name}={_value(getattr(instance, field.name))}" for field in fields(instance)]
    return f"{type(instance).__name__}({', '.join(parts)})"


def as_data(X: Tensor, outputs: int) -> str:
    """Training rows, such as "12 rows, 3 inputs, 1 output"."""
    *batch, rows, inputs = X.shape
    sets = "".join(f"{size} x " for size in batch)
    return f"{sets}{count(rows, 'row')}, {count(inputs, 'input')}, {count(outputs, 'output')}"


def as_distribution(law: Any) -> str:
    """A torch distribution with its parameters, those of one number shown; others as they are."""
    if not isinstance(law, Distribution):
        return str(law)
    known = law.arg_constraints
    # of several equivalent parameters those that were given, where the distribution holds them
    names = [name for name in known if name in vars(law)] or list(known)
    parts = []
    for name in names:
        value = getattr(law, name)
        flat = torch.as_tensor(value).detach().flatten()
        same = len(flat) and bool((flat == flat[0]).all())
        text = f"{flat[0].item():.4g}" if same else as_tensor(flat)
        parts.append(f"{name} {text}{f' [{len(flat)}]' if same and len(flat) > 1 else ''}")
    return f"{type(law).__name__}({', '.join(parts)})"


def as_predictions(
    shape: torch.Size, dtype: torch.dtype, device: torch.device, noun: str = "output"
) -> str:
    """Where a posterior is, such as "5 x 2 points, 1 output, float64"; its device if a GPU."""
    *batch, points, outputs = shape
    sets = "".join(f"{size} x " for size in batch)
    where = "" if device.type == "cpu" else f" on {device}"
    return (
        f"{sets}{count(points, 'point')}, {count(outputs, noun)}, "
        f"{str(dtype).removeprefix('torch.')}{where}"
    )


def shortened(lines: Sequence[str], most: int) -> list[str]:
    """The first and the last lines, and between them how many were left out."""
    if len(lines) <= most:
        return list(lines)
    head = most // 2
    tail = most - 1 - head
    return [*lines[:head], f"... {len(lines) - most + 1} more", *lines[len(lines) - tail :]]


def _value(value: Any) -> str:
    if isinstance(value, Tensor):
        return as_tensor(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_value(part)}" for key, part in value.items()) + "}"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
