"""The identity of a module in a model file that holds no code.

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
    "FINGERPRINT_ROWS",
    "check_fingerprint",
    "check_given",
    "check_module",
    "describe_module",
    "describe_transform",
    "describe_values",
]

FINGERPRINT_ROWS = 8
_MOST_LINES = 12  # of a table of variances
_MOST_NUMBERS = 30  # of one parameter


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
            lines += [f"  {line}" for line in part.table(_MOST_LINES).splitlines()]
            told |= {id(parameter) for parameter in part.parameters()}
    for name, raw, constraint in module.named_parameters_and_constraints():
        if id(raw) not in told:
            value = raw if constraint is None else constraint.transform(raw)
            lines.append(f"{name.replace('raw_', '')}: {_numbers(value)}")
    return lines


def _numbers(value: Tensor) -> str:
    """Numbers as a reader takes them in: all of a few, the range of many."""
    numbers = value.detach().flatten().tolist()
    if len(numbers) > _MOST_NUMBERS:
        return f"{len(numbers)} numbers from {min(numbers):.3g} to {max(numbers):.3g}"
    return ", ".join(f"{number:.3g}" for number in numbers)


def _differing_parts(found: dict[str, Any], saved: dict[str, Any]) -> list[str]:
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


def _same_values(found: Tensor, saved: Tensor) -> bool:
    """Whether two fingerprints agree up to what other hardware and versions may round."""
    if found.shape != saved.shape:
        return False
    tolerance = 100 * torch.finfo(found.dtype).eps ** 0.75
    return bool(((found - saved).abs() <= tolerance * saved.abs().max()).all())


def check_given(path: Any, passed: dict[str, Any], saved: dict[str, Any]) -> None:
    """Refuse other transforms or likelihoods than at construction; True is one's own."""
    for name, value in passed.items():
        if value != saved[name]:
            raise ValueError(
                f"{path} was saved with {name} {saved[name]}, load got {value}; pass the same "
                "as at construction (True stands for an object of your own)."
            )


def check_module(path: Any, what: str, module: torch.nn.Module, saved: dict[str, Any]) -> None:
    """Refuse a module, a kernel or a network, that is made otherwise than the saved one."""
    differences = _differing_parts(describe_module(module), saved)
    if differences:
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        raise ValueError(
            f"{path} was saved with a different {what}: {differences[0]}{more}; pass one that is "
            "made as the saved one was."
        )


def check_fingerprint(path: Any, what: str, found: Tensor, saved: Tensor) -> None:
    """Refuse a module with the parameters of the saved one that computes something else."""
    if not _same_values(found, saved):
        raise ValueError(
            f"The {what} passed to load has the same parameters as the one in {path} but "
            "computes other values; pass the same architecture, activations and transforms."
        )
