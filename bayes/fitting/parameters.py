"""The learnable parameters of a model as one vector, for optimisers that know no tensors."""

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
    """A parameter's place in the vector: itself, or its logarithm."""

    parameter: Tensor
    logarithm: bool
    bounds: tuple[float | None, float | None]


class ParameterVector:
    """All parameters of a module that require a gradient.

    A parameter that is bounded from below by a positive number and not transformed by its
    constraint (BoTorch's noise) appears as its logarithm, as such values differ by factors.

    Args:
        module: A GPyTorch module, whose constraints are kept.
    """

    def __init__(self, module: gpytorch.Module) -> None:
        self._slots = [
            _slot(parameter, constraint)
            for _, parameter, constraint in module.named_parameters_and_constraints()
            if parameter.requires_grad
        ]

    def __len__(self) -> int:
        return sum(slot.parameter.numel() for slot in self._slots)

    @property
    def bounds(self) -> list[tuple[float | None, float | None]]:
        """Lower and upper bound of each entry."""
        return [slot.bounds for slot in self._slots for _ in range(slot.parameter.numel())]

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


def _slot(parameter: Tensor, constraint: gpytorch.constraints.Interval | None) -> _Slot:
    if constraint is None or constraint.enforced:
        return _Slot(parameter, False, (None, None))
    lower, upper = float(constraint.lower_bound), float(constraint.upper_bound)
    if lower > 0:
        highest = math.log(upper) if upper < math.inf else None
        return _Slot(parameter, True, (math.log(lower), highest))
    return _Slot(
        parameter,
        False,
        (lower if lower > -math.inf else None, upper if upper < math.inf else None),
    )


def _flat(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().flatten().cpu().numpy()
