"""Relevance of features: the length scales that inputs are divided by.

A network sees x / lengthscale, so a feature with a large length scale hardly matters (automatic
relevance determination). Features are those of a row, the channels of an image or the token
features of a sequence; all positions share them.
"""

from __future__ import annotations

import math

import gpytorch
import torch
from gpytorch.constraints import Positive
from gpytorch.priors import LogNormalPrior
from torch import Tensor, nn

from priors.programs.nodes import Embedding, Features, Input
from priors.programs.program import Program

__all__ = ["InputScale"]

# Deviation of log(lengthscale) under the default prior, a compromise of trials with 100 to 300 rows
# of UCI's energy and yacht: wider ones overfit few rows, narrower ones keep irrelevant columns.
_LOG_SCALE_STD = 0.75


class InputScale(gpytorch.Module):
    """Length scales of the features of a network's inputs, with GPyTorch's conventions.

    `lengthscale` `[*batch, 1, k]` starts at 1 and has the prior `lengthscale_prior`, log-normal
    with its mode at 1. BoTorch's default grows with sqrt(k), since distances add up over features;
    here the first layer divides squares by its fan-in, which is that growth.

    Args:
        program: The network.
        num_scales: k, the number of features of a row, channels of an image or features of a
            token; or the number of all entries of an input, for a scale of each.
        batch_shape: Batch of independent scales.

    Raises:
        ValueError: the inputs have another number of features, or are tokens.
    """

    def __init__(
        self,
        program: Program,
        num_scales: int,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008
    ) -> None:
        super().__init__()
        if any(isinstance(n, Embedding) and _from_input(program, n.source) for n in program.nodes):
            raise ValueError(
                "ard_num_dims divides inputs by length scales, but this network looks its "
                "inputs up in an embedding, and tokens have no scale; omit ard_num_dims."
            )
        self.num_scales = num_scales
        self.repeats = _repeats(program, num_scales)
        self.register_parameter(
            "raw_lengthscale", nn.Parameter(torch.zeros(*batch_shape, 1, num_scales))
        )
        constraint = Positive(transform=torch.exp, inv_transform=torch.log)
        self.register_constraint("raw_lengthscale", constraint)
        prior = LogNormalPrior(_LOG_SCALE_STD**2, _LOG_SCALE_STD)
        self.register_prior("lengthscale_prior", prior, _get, _set)

    @property
    def lengthscale(self) -> Tensor:
        """What inputs are divided by, `[*batch, 1, k]`, > 0."""
        value: Tensor = self.raw_lengthscale_constraint.transform(self.raw_lengthscale)
        return value

    @lengthscale.setter
    def lengthscale(self, value: float | Tensor) -> None:
        raw = self.raw_lengthscale
        new = torch.as_tensor(value, dtype=raw.dtype, device=raw.device)
        if not bool(((new > 0) & new.isfinite()).all()):
            raise ValueError(f"lengthscale must be positive and finite, got {new.tolist()}.")
        with torch.no_grad():
            raw.copy_(self.raw_lengthscale_constraint.inverse_transform(new).expand_as(raw))

    def forward(self, x: Tensor) -> Tensor:
        """Inputs `[..., n, d]` divided by their length scales, in the dtype of `x`."""
        scale: Tensor = self.raw_lengthscale_constraint.transform(self.raw_lengthscale.to(x))
        return x / self.over_inputs(scale)

    def over_inputs(self, scale: Tensor) -> Tensor:
        """A number of each feature `[..., k]` at all entries of a flat input, `[..., d]`."""
        outer, inner = self.repeats
        if inner > 1:
            scale = scale.repeat_interleave(inner, -1)
        if outer > 1:
            scale = scale.repeat(*[1] * (scale.dim() - 1), outer)
        return scale

    def log_prior(self) -> tuple[float, float]:
        """Mean and deviation of the normal prior of the logarithm of each length scale.

        Raises:
            NotImplementedError: they have another prior, or none.
        """
        prior = self._modules.get("lengthscale_prior")
        if type(prior) is not LogNormalPrior or prior.loc.numel() != 1:
            raise NotImplementedError(
                f"Length scales need their log-normal prior, found {prior}; register a "
                "LogNormalPrior, or make the network without ard_num_dims."
            )
        return float(prior.loc), float(prior.scale)


def _get(module: InputScale) -> Tensor:
    return module.lengthscale


def _set(module: InputScale, value: Tensor) -> None:
    module.lengthscale = value


def _from_input(program: Program, index: int) -> bool:
    if isinstance(program.nodes[index], Input):
        return True
    return any(_from_input(program, source) for source in program.sources(index))


def _repeats(program: Program, num_scales: int) -> tuple[int, int]:
    """How often the scales are repeated, as a whole and each, over a flat input."""
    shape = program.input_shape
    if not isinstance(num_scales, int) or num_scales < 1:
        raise ValueError(f"ard_num_dims must be a positive number of features, got {num_scales}.")
    if None in shape:
        return 1, 1
    sizes = [size or 1 for size in shape]
    for axis in _feature_axes(program):
        if sizes[axis] == num_scales:
            return math.prod(sizes[:axis]), math.prod(sizes[axis + 1 :])
    if num_scales == math.prod(sizes):
        return 1, 1
    wanted = sizes[_feature_axes(program)[0]]
    raise ValueError(
        f"ard_num_dims is {num_scales}, but inputs of shape {tuple(sizes)} have {wanted} features; "
        f"give {wanted}" + (f", or {math.prod(sizes)} for each entry." if len(sizes) > 1 else ".")
    )


def _feature_axes(program: Program) -> list[int]:
    """Dimensions of an input that hold its features, the likeliest first."""
    read = [
        node.axis
        for node in program.nodes
        if isinstance(node, Features) and isinstance(program.nodes[node.source], Input)
    ]
    # behind a reshape: channels come first in images, features last in sequences
    usual = 0 if len(program.input_shape) > 2 else len(program.input_shape) - 1
    return [*read, usual]
