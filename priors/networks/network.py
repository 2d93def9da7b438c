"""The common base of infinite and finite networks: a program and its variances."""

from __future__ import annotations

import math
from collections.abc import Sequence

import gpytorch
import torch
from torch import Tensor, nn

from priors.networks.variances import LayerVariances, VarianceSpec
from priors.programs.program import Program
from priors.programs.tracer import trace

__all__ = ["Network"]


class Network(gpytorch.Module):
    """What the infinite and the finite view of an architecture share."""

    program: Program
    variances: LayerVariances
    _template: tuple[nn.Module]

    def __init__(
        self,
        module: nn.Module | Network,
        weight_var: VarianceSpec | None,
        bias_var: VarianceSpec | None,
        ard_num_dims: int | None,
        input_shape: Sequence[int] | None,
        batch_shape: torch.Size,
    ) -> None:
        super().__init__()
        if isinstance(module, Network):
            given = (weight_var, bias_var, ard_num_dims, input_shape)
            if any(value is not None for value in given):
                raise ValueError(
                    f"{type(self).__name__} made from another network shares its variances, "
                    "length scales and input_shape; set them there."
                )
            self._template = module._template
            self.program = module.program
            self.variances = module.variances
            return
        # In a tuple, so that the finite weights do not become parameters of this prior.
        self._template = (module,)
        self.program = trace(module, input_shape)
        self.variances = LayerVariances(
            self.program,
            weight_var=weight_var,
            bias_var=bias_var,
            ard_num_dims=ard_num_dims,
            batch_shape=batch_shape,
        )

    @property
    def module(self) -> nn.Module:
        """The module that this network was made from."""
        return self._template[0]

    def _scaled(self, x: Tensor) -> Tensor:
        """Inputs `[..., n, d]` as the layers see them: divided by the length scales, if any."""
        scale = self.variances.input_scale
        if scale is None:
            return x
        scaled: Tensor = scale(x)
        return scaled

    def _check_rows(self, x: Tensor, name: str) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}.")
        if x.dim() < 2:
            raise ValueError(
                f"{name} must have shape [..., n, d], got {tuple(x.shape)}; one point is "
                "x[None, :], one feature is x[:, None]."
            )
        if not x.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {x.dtype}.")
        shape, scale = self.program.input_shape, self.variances.input_scale
        if None in shape and scale is not None and x.shape[-1] != scale.num_scales:
            raise ValueError(
                f"{name} has {x.shape[-1]} features, but the network has {scale.num_scales} "
                "length scales; ard_num_dims must be the number of features."
            )
        if None not in shape and x.shape[-1] != math.prod(s or 1 for s in shape):
            rows = x.dim() > 2 and x.shape[1:] == torch.Size(s or 1 for s in shape)
            raise ValueError(
                f"{name} has {x.shape[-1]} features in its last dimension; the network expects "
                f"{math.prod(s or 1 for s in shape)} (input shape {shape})"
                + (f": give flat rows, {name}.flatten(1)." if rows else ".")
            )
