"""Networks linearised in their parameters, as functions and as modules to train.

Source: Lee et al. 2019 (1902.06720).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from priors.kernels.parameters import (
    ByName,
    ParametricFunction,
    as_function,
    batch_shape_of,
    checked,
    parameters_of,
)
from priors.kernels.tangent import along
from priors.networks.functional_call import call_module

__all__ = ["LinearizedModule", "linearize"]


def linearize(
    function: nn.Module | ParametricFunction, parameters: Mapping[str, Tensor]
) -> ParametricFunction:
    """First-order Taylor expansion of a network in its parameters.

    Args:
        function: See `empirical_ntk`.
        parameters: The point of expansion theta_0, by name.

    Returns:
        f_lin(theta, x) = f(theta_0, x) + df(theta_0, x)/dtheta (theta - theta_0), for theta by the
        same names; of rows x `[n, d]` what the network gives of them, `[n, m]`.

    Raises:
        ValueError: no parameters; on a call, other names than the expansion's.
    """
    f, origin = as_function(function), checked(parameters)

    def linearized(parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        if parameters.keys() != origin.keys():
            raise ValueError(
                f"The expansion is in the parameters {sorted(origin)}, got "
                f"{sorted(parameters)}; pass exactly those."
            )
        step = {name: parameters[name] - value for name, value in origin.items()}
        value, change = along(lambda p: f(p, x), origin, step)
        return value + change

    return linearized


class LinearizedModule(nn.Module):
    """A network linearised at given weights, as a module to train.

    Its parameters are the displacements from the weights, 0 at first; those of weights that are not
    trained (`requires_grad` False) are not either. Weights and buffers of the
    module are copied: its later training changes nothing here.

    Args:
        module: The network; called with one tensor.
        parameters: The weights to expand at, by name; None means the module's own.

    Raises:
        ValueError: the module has no parameters, or not those named, or of other shapes.
    """

    def __init__(self, module: nn.Module, parameters: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        origin = parameters_of(module, parameters)
        if batch := batch_shape_of(module, origin):
            raise ValueError(
                "Only a single network can be linearised; got weights with batch shape "
                f"{tuple(batch)}."
            )
        # In a tuple: its code alone is used, with the weights and buffers kept here.
        self._template = (module,)
        self.origin = ByName({name: p.detach().clone() for name, p in origin.items()})
        self.constants = ByName({name: b.clone() for name, b in module.named_buffers()})
        self.displacement = ByName(
            {
                name: nn.Parameter(torch.zeros_like(origin[name]), requires_grad=own.requires_grad)
                for name, own in module.named_parameters()
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """The linearised outputs at a batch of inputs, in the shape of the module's."""
        constants = self.constants.tensors()

        def f(parameters: Mapping[str, Tensor]) -> Tensor:
            return call_module(self._template[0], {**parameters, **constants}, x)

        value, change = along(f, self.origin.tensors(), self.displacement.tensors())
        return value + change
