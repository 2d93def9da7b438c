"""Muon for the matrices of a network, those of one shape together.

The update is the momentum brought near to the closest semi-orthogonal matrix by five steps of a
quintic Newton-Schulz iteration (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon):

    buffer = m buffer + (1 - m) gradient,  M = m buffer + (1 - m) gradient,
    X = M / |M|_F,  five times  X = a X + (b A + c A^2) X,  A = X X^T,
    W = (1 - rate decay) W - rate sqrt(max(1, rows / columns)) X.

`torch.optim.Muon` does the same matrix by matrix, in bfloat16 everywhere. A transformer has a
handful of shapes and dozens of matrices, and batches of a shape take a handful of calls, which is
what small steps on a GPU are made of; and most CPUs only emulate bfloat16, so that single precision
is several times faster there and more accurate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pfn.compat import foreach_add_, foreach_lerp, foreach_lerp_, foreach_mul_

__all__ = ["Muon", "orthogonalised"]

_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay.

    Args:
        params: Matrices, no other parameters.
        lr: Rate: root mean square of a step's singular values.
        weight_decay: Decoupled, in units of the rate.
        momentum: Decay m of the averaged gradient.

    Raises:
        ValueError: a parameter is not a matrix.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        *,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, defaults)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.dim() != 2:
                    raise ValueError(
                        "Muon is for matrices, got a parameter of shape "
                        f"{tuple(parameter.shape)}; leave it to AdamW."
                    )

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; parameters without a gradient stay."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.shape, []).append(parameter)
            for parameters in alike.values():
                self._step(parameters, group)
        return loss

    def _step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Of parameters of one shape."""
        rate, m = group["lr"], group["momentum"]
        gradients: list[Tensor] = [p.grad for p in parameters]  # type: ignore[misc]
        buffers = []
        for parameter in parameters:
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffers.append(state["momentum_buffer"])
        foreach_lerp_(buffers, gradients, 1 - m)
        directions = torch.stack(foreach_lerp(gradients, buffers, m))
        rows, columns = parameters[0].shape
        steps = orthogonalised(directions).to(parameters[0]).unbind()
        if group["weight_decay"]:
            foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        foreach_add_(parameters, steps, alpha=-rate * math.sqrt(max(1.0, rows / columns)))


def orthogonalised(matrices: Tensor) -> Tensor:
    """Matrices `[k, r, c]` with their singular values brought near 1, between 0.6 and 1.3.

    In bfloat16 on a GPU, in the dtype of the matrices elsewhere.
    """
    a, b, c = _QUINTIC
    X = matrices.bfloat16() if matrices.is_cuda else matrices
    wide = X.shape[1] <= X.shape[2]
    X = X if wide else X.mT
    X = X / torch.linalg.matrix_norm(X, keepdim=True).clamp_min(1e-7)
    for _ in range(_ITERATIONS):
        gram = X @ X.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        X = torch.baddbmm(X, polynomial, X, beta=a)
    return X if wide else X.mT
