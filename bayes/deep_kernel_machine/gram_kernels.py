"""Layers of a deep kernel machine: from the Gram matrix of a layer to the kernel of the next.

A kernel of the features of a layer that needs only their Gram matrix G,

    K(G)_ij = weight_var * k(G_ii, G_jj, G_ij) + bias_var,

k the expectation E[phi(u) phi(v)] over a Gaussian pair of these (co)variances for an activation
phi, or exp(-|u - v|^2 / 2) in the distance of the features, G_ii + G_jj - 2 G_ij.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import gpytorch
import torch
from gpytorch.constraints import Positive
from gpytorch.priors import LogNormalPrior
from torch import Tensor, nn

from priors.programs.rules.elementwise import activation_of

__all__ = ["ActivationKernel", "GramKernel", "InputGram", "SquaredExponential", "layers_of"]

_BIAS_VAR = 0.1  # where biases start, as those of networks do
_LOG_STD = 1.0  # of logarithms under their priors


class GramKernel(gpytorch.Module, ABC):
    """A layer; a subclass gives k and where the weight variance starts.

    Args:
        weight_var: Where it starts.
        bias_var: Where it starts.
    """

    def __init__(self, weight_var: float, bias_var: float = _BIAS_VAR) -> None:
        super().__init__()
        _register_positive(self, "weight_var", torch.tensor(weight_var, device="cpu"))
        _register_positive(self, "bias_var", torch.tensor(bias_var, device="cpu"))

    @abstractmethod
    def unscaled(self, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        """k of pairs of variances q1 and q2 and covariances c, which broadcast together."""

    def forward(self, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        """K of pairs, like `unscaled`.

        Args:
            q1: Variances.
            q2: Variances.
            c: Covariances.
        """
        weight_var, bias_var = (self.value(name).to(c) for name in ("weight_var", "bias_var"))
        return weight_var * self.unscaled(q1, q2, c) + bias_var

    def value(self, name: str) -> Tensor:
        """The "weight_var" or "bias_var"."""
        return _value(self, name)

    def set(self, name: str, value: float) -> None:
        """Set the "weight_var" or "bias_var"."""
        _set(self, name, value)


class ActivationKernel(GramKernel):
    """E[phi(u) phi(v)]: the kernel of a layer of infinitely many units of an activation.

    The weight variance starts where an input of variance 1 gives an output of variance 1.

    Args:
        activation: A module that `priors` knows, such as `nn.ReLU()`, or a `priors.Nonlinearity`.
    """

    def __init__(self, activation: nn.Module) -> None:
        self_variance = float(_dual_of_one(activation_of(activation)))
        super().__init__(1 / self_variance)
        self.activation = copy.deepcopy(activation)
        self._phi = activation_of(activation)

    def unscaled(self, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        return self._phi.dual(self._phi, q1, q2, c)


class SquaredExponential(GramKernel):
    """exp(-(G_ii + G_jj - 2 G_ij) / 2), the squared exponential kernel of the features.

    Its length scale is the scale of the features, learnt by the layer before.
    """

    def __init__(self) -> None:
        super().__init__(1.0)

    def unscaled(self, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        return (-(q1 + q2 - 2 * c).clamp_min(0) / 2).exp()


class InputGram(gpytorch.Module):
    """The Gram matrix of the inputs, x' diag(lengthscale)^-2 x / d + bias_var.

    Args:
        ard_num_dims: d, for a length scale of each input; one of all if None.
    """

    def __init__(self, ard_num_dims: int | None) -> None:
        super().__init__()
        _register_positive(self, "lengthscale", torch.ones(ard_num_dims or 1, device="cpu"))
        _register_positive(self, "bias_var", torch.tensor(_BIAS_VAR, device="cpu"))

    def between(self, x1: Tensor, x2: Tensor) -> Tensor:
        """`[..., n1, n2]` of x1 `[..., n1, d]` and x2 `[..., n2, d]`."""
        return self._scaled(x1) @ self._scaled(x2).mT + self.value("bias_var").to(x1)

    def variances(self, x: Tensor) -> Tensor:
        """The diagonal, `[..., n]`."""
        return self._scaled(x).square().sum(-1) + self.value("bias_var").to(x)

    def _scaled(self, x: Tensor) -> Tensor:
        return x / (self.value("lengthscale").to(x) * x.shape[-1] ** 0.5)

    def value(self, name: str) -> Tensor:
        """The "lengthscale" or "bias_var"."""
        return _value(self, name)

    def set(self, name: str, value: float | Tensor) -> None:
        """Set the "lengthscale" or "bias_var"."""
        _set(self, name, value)


def layers_of(owner: str, layers: int | Sequence[str | nn.Module]) -> list[GramKernel]:
    """The kernels of a specification.

    Args:
        owner: Name of the model, for messages.
        layers: A number of ReLU layers, or for each layer "relu", "squared exponential", an
            activation or a `GramKernel`, which is copied.

    Raises:
        TypeError: something else.
        ValueError: no layer, or a name that is not known.
    """
    if isinstance(layers, int) and not isinstance(layers, bool):
        layers = ["relu"] * layers
    if isinstance(layers, str | nn.Module) or not isinstance(layers, Sequence):
        raise TypeError(
            f"{owner} needs layers as a number or a list, such as ['relu', nn.GELU(), "
            f"'squared exponential'], got {layers!r}."
        )
    if not layers:
        raise ValueError(f"{owner} needs at least one layer.")
    return [_layer(owner, layer) for layer in layers]


def _layer(owner: str, layer: str | nn.Module) -> GramKernel:
    if isinstance(layer, GramKernel):
        return copy.deepcopy(layer)
    if isinstance(layer, nn.Module):
        return ActivationKernel(layer)
    if layer == "relu":
        return ActivationKernel(nn.ReLU())
    if layer == "squared exponential":
        return SquaredExponential()
    raise ValueError(
        f"{owner} knows the layers 'relu' and 'squared exponential', activations such as "
        f"nn.GELU() and GramKernel, got {layer!r}."
    )


def _register_positive(module: gpytorch.Module, name: str, start: Tensor) -> None:
    """A parameter that is positive, with a log-normal prior around its start."""
    module.register_parameter(f"raw_{name}", nn.Parameter(start.log()))
    module.register_constraint(
        f"raw_{name}", Positive(transform=torch.exp, inv_transform=torch.log)
    )
    module.register_prior(
        f"{name}_prior",
        LogNormalPrior(math.log(float(start.flatten()[0])), _LOG_STD),
        lambda m: _value(m, name),
        lambda m, value: _set(m, name, value),
    )


def _value(module: gpytorch.Module, name: str) -> Tensor:
    raw: Tensor = getattr(module, f"raw_{name}")
    return raw.exp()


def _set(module: gpytorch.Module, name: str, value: float | Tensor) -> None:
    raw: Tensor = getattr(module, f"raw_{name}")
    new = torch.as_tensor(value).to(raw)
    if not bool((new > 0).all()):
        raise ValueError(f"{type(module).__name__} needs a positive {name}, got {value}.")
    with torch.no_grad():
        raw.copy_(new.log().expand_as(raw))


def _dual_of_one(phi: object) -> Tensor:
    one = torch.ones((), dtype=torch.float64, device="cpu")
    with torch.no_grad():
        return phi.dual(phi, one, one, one)  # type: ignore[attr-defined]
