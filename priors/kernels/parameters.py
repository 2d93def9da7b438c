"""Networks as functions of parameters by name, which are checked and held here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from priors.networks.functional_call import call_module

__all__ = [
    "ByName",
    "ParametricFunction",
    "as_function",
    "batch_shape_of",
    "checked",
    "parameters_of",
]

ParametricFunction = Callable[[Mapping[str, Tensor], Tensor], Tensor]


class ByName(nn.Module):
    """Parameters and buffers under the dotted names of another module."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            key = name.replace(".", "/")  # a dot would be a submodule
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(key, tensor)
            else:
                self.register_buffer(key, tensor)

    def tensors(self) -> dict[str, Tensor]:
        """All by dotted name."""
        held = (*self._parameters.items(), *self._buffers.items())
        return {key.replace("/", "."): tensor for key, tensor in held if tensor is not None}


def as_function(function: nn.Module | ParametricFunction) -> ParametricFunction:
    if not isinstance(function, nn.Module):
        return function
    module = function
    return lambda parameters, x: call_module(module, parameters, x)


def checked(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not parameters:
        raise ValueError(
            "There are no parameters to differentiate with respect to; pass those of the "
            "network by name, and for a prior at least one variance that is not 0."
        )
    return dict(parameters)


def parameters_of(module: nn.Module, parameters: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    own = dict(module.named_parameters())
    if not own:
        raise ValueError(f"{type(module).__name__} has no parameters, so there is no tangent.")
    lazy = [name for name, p in own.items() if nn.parameter.is_lazy(p)]
    if lazy:
        raise ValueError(
            f"The widths of {lazy} are not known yet; run the module once on an input."
        )
    if parameters is None:
        return dict(own)
    if parameters.keys() != own.keys():
        raise ValueError(f"The module has parameters {sorted(own)}, got {sorted(parameters)}.")
    return {name: parameters[name] for name in own}


def batch_shape_of(module: nn.Module, parameters: Mapping[str, Tensor]) -> torch.Size:
    """What precedes each parameter's own shape, the same for all."""
    shapes = set()
    for name, own in module.named_parameters():
        came, lead = parameters[name].shape, parameters[name].dim() - own.dim()
        if lead < 0 or came[lead:] != own.shape:
            raise ValueError(
                f"Parameter {name!r} has shape {tuple(came)}; expected {tuple(own.shape)}, after "
                "batch dimensions."
            )
        shapes.add(came[:lead])
    if len(shapes) > 1:
        raise ValueError(f"The parameters differ in their batch dimensions: {sorted(shapes)}.")
    return shapes.pop()
