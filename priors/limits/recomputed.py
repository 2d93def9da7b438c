"""Sums of many terms whose graphs together would not fit into memory.

The terms are computed without a graph, and again one by one in the backward pass, so that one of
them is held at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["sum_over_parts"]


def sum_over_parts(
    function: Callable[..., Tensor], parts: Sequence[Tensor], inputs: tuple[Tensor, ...]
) -> Tensor:
    """Sum of `function(part, *inputs)` over the parts, of which one is held at a time.

    Args:
        function: Differentiable by autograd, of nothing else that needs a gradient.
        parts: At least one; they get no gradient.
        inputs: The same for all parts.
    """
    return _Sum.apply(function, parts, *inputs)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Any, parts: Any, *inputs: Tensor) -> Tensor:
        ctx.function, ctx.parts = function, parts
        ctx.save_for_backward(*inputs)
        total: Tensor = function(parts[0], *inputs)
        for part in parts[1:]:
            total += function(part, *inputs)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        again = torch.is_grad_enabled()  # a gradient of the gradient is wanted
        inputs = ctx.saved_tensors
        needed = [i for i, needs in enumerate(ctx.needs_input_grad[2:]) if needs]
        if not again:
            inputs = [t.detach().requires_grad_(i in needed) for i, t in enumerate(inputs)]
        totals: list[Tensor | None] = [None] * len(inputs)
        for part in ctx.parts:
            with torch.enable_grad():
                value = ctx.function(part, *inputs)
            found = torch.autograd.grad(
                value, [inputs[i] for i in needed], grad, create_graph=again, allow_unused=True
            )
            for i, slope in zip(needed, found, strict=True):
                if slope is not None:
                    before = totals[i]
                    totals[i] = slope if before is None else before + slope
        return None, None, *totals
