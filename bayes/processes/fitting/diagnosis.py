"""Diagnosis of a failed fit: hyperparameters beyond values that any data can support."""

from __future__ import annotations

import gpytorch
import torch

from priors.networks.variances import LayerVariances

__all__ = ["runaway_values"]

_FAR = 1e6


def runaway_values(module: gpytorch.Module) -> list[str]:
    """Hyperparameters above 1e6, below 1e-6 or not finite, in words, the worst first.

    Args:
        module: A model or a kernel.
    """
    found: list[tuple[float, str]] = []
    of_networks = []
    for part in module.modules():
        if isinstance(part, LayerVariances):
            of_networks += [id(p) for p in part.parameters(recurse=False)]
            for kind, values in (("weight", part.weight_var), ("bias", part.bias_var)):
                found += [
                    (_distance(value), f"{kind}_var of layer {layer!r} is {_worst(value):.2g}")
                    for layer, value in values.items()
                    if part.is_learnt(kind, layer) or bool((value != 0).all())
                ]
    for name, raw, constraint in module.named_parameters_and_constraints():
        if id(raw) not in of_networks and constraint is not None:
            value = constraint.transform(raw) if constraint.enforced else raw
            short = ".".join(name.replace("raw_", "").split(".")[-2:])
            found.append((_distance(value), f"{short} is {_worst(value):.2g}"))
    far = torch.tensor(_FAR).log().item()
    return [text for distance, text in sorted(found, key=lambda f: -f[0]) if distance > far]


def _worst(value: torch.Tensor) -> float:
    flat = value.detach().double().flatten()
    return float(flat[_distances(flat).argmax()])


def _distance(value: torch.Tensor) -> float:
    return float(_distances(value.detach().double()).max())


def _distances(value: torch.Tensor) -> torch.Tensor:
    """How far from 1 in factors; infinite where not finite."""
    return value.abs().log().abs().nan_to_num(nan=torch.inf)
