"""The learnable parameters of a model as one vector, for optimisers of plain vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import gpytorch
import numpy as np
import torch
from torch import Tensor

__all__ = ["ParameterVector"]


@dataclass(frozen=True)
class _Slot:
    """A parameter's place in the vector: itself, or its logarithm.

    `is_scale` tells that the entry is the logarithm of what the user sees.
    """

    parameter: Tensor
    logarithm: bool
    bounds: tuple[float, float]
    is_scale: bool


class ParameterVector:
    """All parameters of a module that require a gradient.

    A parameter that is bounded from below by a positive number and not transformed by its
    constraint (BoTorch's noise) appears as its logarithm, as such values differ by factors. One
    whose name begins with `log_` is a logarithm already.

    Args:
        module: A GPyTorch module, whose constraints are kept.
    """

    def __init__(self, module: gpytorch.Module) -> None:
        self._slots = [
            _slot(name, parameter, constraint)
            for name, parameter, constraint in module.named_parameters_and_constraints()
            if parameter.requires_grad
        ]

    def __len__(self) -> int:
        return sum(slot.parameter.numel() for slot in self._slots)

    def bounds(self, window: float = math.inf) -> np.ndarray:
        """Lower and upper bound of each entry, `[entries, 2]`, infinite where there is none.

        Args:
            window: How far entries that are logarithms may move from their present values.
        """
        sizes = [slot.parameter.numel() for slot in self._slots]
        limits = np.repeat(np.array([slot.bounds for slot in self._slots]), sizes, axis=0)
        reach = np.repeat([window if s.is_scale else math.inf for s in self._slots], sizes)
        present = self.values()
        near = np.stack([present - reach, present + reach], -1)
        return np.stack(
            [np.maximum(limits[:, 0], near[:, 0]), np.minimum(limits[:, 1], near[:, 1])], -1
        )

    def values(self) -> np.ndarray:
        """The present values."""
        parts = [
            _flat(slot.parameter.log() if slot.logarithm else slot.parameter)
            for slot in self._slots
        ]
        return np.concatenate(parts)

    def assign(self, values: np.ndarray) -> None:
        """Set the parameters in place."""
        parts = torch.from_numpy(np.asarray(values)).split(
            [s.parameter.numel() for s in self._slots]
        )
        with torch.no_grad():
            for slot, part in zip(self._slots, parts, strict=True):
                new = part.exp() if slot.logarithm else part
                slot.parameter.copy_(new.reshape(slot.parameter.shape))

    def value_and_gradient(self, function: Callable[[], Tensor]) -> tuple[float, np.ndarray]:
        """A scalar function of the parameters at their present values, and its gradient."""
        value = function()
        parameters = [slot.parameter for slot in self._slots]
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        parts = []
        for slot, gradient in zip(self._slots, gradients, strict=True):
            if gradient is None:
                gradient = torch.zeros_like(slot.parameter)
            parts.append(_flat(gradient * slot.parameter if slot.logarithm else gradient))
        return float(value.detach()), np.concatenate(parts)


def _slot(name: str, parameter: Tensor, constraint: gpytorch.constraints.Interval | None) -> _Slot:
    if constraint is None or constraint.enforced:
        is_scale = name.rpartition(".")[-1].startswith("log_") or (
            constraint is not None and _is_exponential(constraint, parameter)
        )
        return _Slot(parameter, False, (-math.inf, math.inf), is_scale)
    lower, upper = float(constraint.lower_bound), float(constraint.upper_bound)
    if lower > 0:
        return _Slot(parameter, True, (math.log(lower), math.log(upper)), True)
    return _Slot(parameter, False, (lower, upper), False)


def _is_exponential(constraint: gpytorch.constraints.Interval, parameter: Tensor) -> bool:
    """Whether the value is an exponential of the parameter, above a lower bound."""
    with torch.no_grad():
        zero = torch.zeros_like(parameter)
        low, middle, high = (constraint.transform(zero + x) for x in (-1, 0, 1))
    return bool(((high - middle) / (middle - low) - math.e).abs().max() < 1e-5)


def _flat(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().flatten().cpu().numpy()
