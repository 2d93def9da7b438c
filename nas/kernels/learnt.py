"""What the kernels here learn: positive values with a prior, and weights with the sum 1.

Parameters, constraints and priors have GPyTorch's names, so that a kernel's values can be drawn
from their priors and set by `initialize`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from gpytorch.constraints import Positive
from gpytorch.kernels import Kernel
from gpytorch.priors import NormalPrior, Prior
from torch import Tensor, nn

__all__ = ["learn_positive", "learn_weights"]


def learn_positive(kernel: Kernel, name: str, prior: Prior, *, start: float, size: int = 1) -> None:
    """Give a kernel positive values, whose attribute of that name it has itself.

    Args:
        kernel: Gets `raw_<name>` with its constraint, and `<name>_prior`.
        name: Of the values.
        prior: Of each.
        start: Of each.
        size: How many.
    """
    kernel.register_parameter(f"raw_{name}", nn.Parameter(torch.zeros(size)))
    kernel.register_constraint(f"raw_{name}", Positive(initial_value=start))

    def write(module: Kernel, value: Tensor) -> None:
        constraint = getattr(module, f"raw_{name}_constraint")
        _write(module, f"raw_{name}", constraint.inverse_transform(torch.as_tensor(value)))

    kernel.register_prior(f"{name}_prior", prior, _reader(name), write)


def learn_weights(kernel: Kernel, size: int) -> None:
    """Give a kernel `raw_weights` with standard normal priors, whose softmax are its weights.

    Args:
        kernel: Gets them.
        size: How many.
    """
    kernel.register_parameter("raw_weights", nn.Parameter(torch.zeros(size)))

    def write(module: Kernel, value: Tensor) -> None:
        _write(module, "raw_weights", value)

    kernel.register_prior("weights_prior", NormalPrior(0.0, 1.0), _reader("raw_weights"), write)


def _reader(name: str) -> Callable[[Kernel], Tensor]:
    return lambda module: getattr(module, name)


def _write(module: Kernel, parameter: str, value: Tensor) -> None:
    module.initialize(**{parameter: torch.as_tensor(value).to(getattr(module, parameter))})
