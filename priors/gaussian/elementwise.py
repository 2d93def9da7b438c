"""Functions of broadcasting tensors with slopes by hand, under every transform of torch.func.

Closed forms whose own gradients would be infinite or lost to rounding say their partial slopes, as
differentiable expressions; the rules for reverse and forward mode and for batches follow.
"""

from __future__ import annotations

import functools
import inspect
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Elementwise"]


class Elementwise(torch.autograd.Function):
    """A function of tensors that broadcast together, entry by entry; `apply` evaluates it.

    A subclass has the static methods `forward(*inputs)`, which gives one tensor or several of the
    broadcast shape, and `slopes`. Inputs that are not tensors come last and have no slopes.
    """

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        rules: Any = cls
        rules.backward = staticmethod(functools.partial(_backward, cls))
        rules.jvp = staticmethod(functools.partial(_jvp, cls))
        rules.vmap = staticmethod(functools.partial(_vmap, cls))
        # torch asks for it at each call, and to find it takes as long as the function of a block
        rules.forward.__signature__ = inspect.signature(rules.forward)

    @staticmethod
    @abstractmethod
    def slopes(
        inputs: Sequence[Any], outputs: Sequence[Tensor], needed: Sequence[bool]
    ) -> Sequence[Sequence[Tensor | None]]:
        """Partial derivatives, `[output][tensor input]`, each broadcasting to the outputs.

        Args:
            inputs: The inputs.
            outputs: The outputs.
            needed: Which inputs' slopes are asked for; others may be None.
        """

    @staticmethod
    def gradients(
        inputs: Sequence[Any],
        outputs: Sequence[Tensor],
        needed: Sequence[bool],
        grad_outputs: Sequence[Tensor | None],
    ) -> Sequence[Tensor | None] | None:
        """Gradients of the tensor inputs if nothing follows them; None: by `slopes`.

        For functions whose sums of slopes times gradients cost less than the slopes.
        """
        return None

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        tensors = [a for a in inputs if isinstance(a, Tensor)]
        ctx.rest = inputs[len(tensors) :]
        ctx.num_inputs = len(tensors)
        ctx.save_for_backward(*tensors, *outputs)
        ctx.save_for_forward(*tensors, *outputs)
        ctx.set_materialize_grads(False)


def _saved(ctx: Any) -> tuple[tuple[Any, ...], tuple[Tensor, ...]]:
    saved = ctx.saved_tensors
    return (*saved[: ctx.num_inputs], *ctx.rest), saved[ctx.num_inputs :]


def _backward(
    cls: type[Elementwise], ctx: Any, *grad_outputs: Tensor | None
) -> tuple[Tensor | None, ...]:
    inputs, outputs = _saved(ctx)
    needed = ctx.needs_input_grad[: ctx.num_inputs]
    if not torch.is_grad_enabled():
        at_once = cls.gradients(inputs, outputs, needed, grad_outputs)
        if at_once is not None:
            return (*at_once, *(None for _ in ctx.rest))
    slopes = cls.slopes(inputs, outputs, needed)
    grads: list[Tensor | None] = []
    for k in range(ctx.num_inputs):
        total: Tensor | None = None
        for grad, row in zip(grad_outputs, slopes, strict=True):
            slope = row[k]
            if grad is not None and slope is not None and needed[k]:
                total = grad * slope if total is None else total + grad * slope
        grads.append(None if total is None else total.sum_to_size(inputs[k].shape))
    return (*grads, *(None for _ in ctx.rest))


def _jvp(cls: type[Elementwise], ctx: Any, *tangents: Tensor | None) -> Any:
    inputs, outputs = _saved(ctx)
    given = tangents[: ctx.num_inputs]
    slopes = cls.slopes(inputs, outputs, [t is not None for t in given])
    results = []
    for row, output in zip(slopes, outputs, strict=True):
        total = torch.zeros_like(output)
        for tangent, slope in zip(given, row, strict=True):
            if tangent is not None and slope is not None:
                total = total + tangent * slope
        results.append(total)
    return results[0] if len(results) == 1 else tuple(results)


def _vmap(
    cls: type[Elementwise], info: Any, in_dims: tuple[int | None, ...], *inputs: Any
) -> tuple[Any, Any]:
    """The batch as a first dimension, before as many as the widest input has."""
    pairs = list(zip(inputs, in_dims, strict=True))
    rank = max(x.dim() - (d is not None) for x, d in pairs if isinstance(x, Tensor))
    moved = []
    for x, d in pairs:
        if isinstance(x, Tensor) and d is not None:
            x = x.movedim(d, 0)
            x = x.reshape(x.shape[0], *(1,) * (rank + 1 - x.dim()), *x.shape[1:])
        moved.append(x)
    result = cls.apply(*moved)
    return result, (0,) * len(result) if isinstance(result, tuple) else 0
