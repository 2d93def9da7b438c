"""Elementwise functions with their kinks, and their derivatives."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Elementwise", "Function", "Kinks", "Place", "derivative_of", "with_kinks"]

Function = Callable[..., Tensor]
Kinks = Sequence[float | Tensor]


def derivative_of(function: Function) -> Function:
    """The elementwise derivative of `function(x, *parameters)` in x, by autograd."""
    return _Partial(function, 0)


@dataclass(frozen=True)
class Place:
    """A kink where parameter number `index` says, NaN for none."""

    index: int


@dataclass(frozen=True)
class Elementwise:
    """A function of x and `num_parameters` parameters with its kinks."""

    function: Function
    kinks: tuple[float | Place, ...] = ()
    num_parameters: int = 0

    def __call__(self, x: Tensor, *parameters: Tensor) -> Tensor:
        return self.function(x, *parameters)

    def same_as(self, other: Elementwise) -> bool:
        """Whether both are certainly the same function; without parameters, which may differ."""
        if self.num_parameters or other.num_parameters:
            return False
        return self.kinks == other.kinks and bool(self.function == other.function)

    def partial(self, index: int) -> Elementwise:
        """The partial derivative in x (index 0) or in a parameter."""
        return Elementwise(_Partial(self.function, index), self.kinks, self.num_parameters)

    def kinks_like(self, q: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """Positions in float64, `[*q.shape, num_kinks]`, for the parameters, which q broadcasts."""
        if not self.kinks:
            return q.new_zeros((*q.shape, 0), dtype=torch.float64)
        places = [parameters[k.index].detach() if isinstance(k, Place) else k for k in self.kinks]
        positions = [torch.as_tensor(t, dtype=torch.float64, device=q.device) for t in places]
        return torch.stack([t.expand(q.shape) for t in positions], -1)


def with_kinks(
    function: Function, kinks: Kinks, parameters: Sequence[Tensor]
) -> tuple[Elementwise, tuple[Tensor, ...]]:
    """The function, and its parameters with those kinks among them that are tensors.

    `torch.func` sees tensors only where they are inputs. No gradient goes through them.
    """
    moving = [k.detach() for k in kinks if isinstance(k, Tensor)]
    number = itertools.count(len(parameters))
    places = tuple(Place(next(number)) if isinstance(k, Tensor) else k for k in kinks)
    every = (*parameters, *moving)
    plain = _Without(function, len(moving)) if moving else function
    return Elementwise(plain, places, len(every)), every


@dataclass(frozen=True)
class _Without:
    """A function that does not look at its last parameters."""

    function: Function
    number: int

    def __call__(self, x: Tensor, *parameters: Tensor) -> Tensor:
        return self.function(x, *parameters[: -self.number])


@dataclass(frozen=True)
class _Partial:
    """The derivative of `function(x, *parameters)` in its argument number `index`, elementwise.

    Equal for equal functions, so that expectations of it can be known to be symmetric.
    """

    function: Function
    index: int

    def __call__(self, *arguments: Tensor) -> Tensor:
        index = self.index
        with torch.enable_grad():
            # expanded, so that a parameter's derivative stays one per node
            chosen = arguments[index]
            if len(arguments) > 1:
                chosen = chosen.expand(torch.broadcast_shapes(*(t.shape for t in arguments)))
            if not chosen.requires_grad:
                try:
                    chosen = chosen.detach().requires_grad_()
                except RuntimeError:  # inside a transform of torch.func
                    return self._at(arguments, chosen)
            value = self.function(*arguments[:index], chosen, *arguments[index + 1 :])
            if not value.requires_grad:
                return torch.zeros_like(value)
            (slope,) = torch.autograd.grad(
                value.sum(), chosen, create_graph=True, allow_unused=True, materialize_grads=True
            )
        followed = torch.is_grad_enabled() and any(t.requires_grad for t in arguments)
        return slope if followed else slope.detach()

    def _at(self, arguments: Sequence[Tensor], chosen: Tensor) -> Tensor:
        """The same by `torch.func`, whose transforms do not let tensors require gradients."""
        before, after = arguments[: self.index], arguments[self.index + 1 :]
        value, pull = torch.func.vjp(lambda x: self.function(*before, x, *after), chosen)[:2]
        slopes: tuple[Tensor, ...] = pull(torch.ones_like(value))
        return slopes[0]
