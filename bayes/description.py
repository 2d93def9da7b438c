"""What identifies a module in a model file that holds no code.

A file stores values; the kernel or network they belong to is passed again when loading. Class
names and shapes catch the wrong module early, values computed with it (a fingerprint) catch the
rest: another activation or smoothness has the same parameters.
"""

from __future__ import annotations

from typing import Any

import gpytorch
import torch
from torch import Tensor

from priors.networks.variances import LayerVariances
from priors.posteriors.transforms import DEFAULT

__all__ = [
    "describe_module",
    "describe_transform",
    "describe_values",
    "differing_parts",
    "same_values",
]


def describe_module(module: torch.nn.Module) -> dict[str, Any]:
    """Class names and shapes of a module's parts, as JSON values."""
    return {
        "classes": [[name, type(part).__name__] for name, part in module.named_modules()],
        "shapes": {name: list(value.shape) for name, value in module.state_dict().items()},
    }


def describe_values(module: gpytorch.Module) -> list[str]:
    """The present hyperparameters of a kernel or a likelihood as lines; networks as tables."""
    lines: list[str] = []
    told: set[int] = set()
    for name, part in module.named_modules():
        if isinstance(part, LayerVariances):
            owner = name.removesuffix("network.variances").rstrip(".")
            lines += [f"{owner or type(module).__name__}:"]
            lines += [f"  {line}" for line in str(part).splitlines()]
            told |= {id(parameter) for parameter in part.parameters()}
    for name, raw, constraint in module.named_parameters_and_constraints():
        if id(raw) not in told:
            value = raw if constraint is None else constraint.transform(raw)
            numbers = ", ".join(f"{number:.3g}" for number in value.detach().flatten().tolist())
            lines.append(f"{name.replace('raw_', '')}: {numbers}")
    return lines


def differing_parts(found: dict[str, Any], saved: dict[str, Any]) -> list[str]:
    """Where two descriptions of modules differ, in words; empty where they agree."""
    differences = []
    for kind in ("classes", "shapes"):
        now, then = dict(found[kind]), dict(saved[kind])
        for name in sorted({*now, *then}):
            if now.get(name) != then.get(name):
                differences.append(
                    f"{name or 'itself'} is {now.get(name, 'absent')}, was "
                    f"{then.get(name, 'absent')}"
                )
    return differences


def describe_transform(transform: Any) -> str:
    """Whether a transform is the default one, off, or the user's own."""
    if transform is DEFAULT:
        return "default"
    return "off" if transform is None else "own"


def same_values(found: Tensor, saved: Tensor) -> bool:
    """Whether two fingerprints agree up to what other hardware and versions may round."""
    if found.shape != saved.shape:
        return False
    tolerance = 100 * torch.finfo(found.dtype).eps ** 0.75
    return bool(((found - saved).abs() <= tolerance * saved.abs().max()).all())
