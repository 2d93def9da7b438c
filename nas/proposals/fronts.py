"""Pareto fronts: which candidates no other one beats in all objectives."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fronts"]


def fronts(Y: Tensor) -> Tensor:
    """The number of the front on which each row stands, 0 for the Pareto front.

    Rows of a front are dominated by none but rows of the fronts before it (non-dominated sorting).

    Args:
        Y: `[n, m]`, larger is better, without NaN.

    Returns:
        `[n]`, integers.
    """
    if len(Y) and Y.shape[1] == 1:  # each value is a front
        places = Y[:, 0].unique(return_inverse=True)[1]
        return places.max() - places
    n = len(Y)
    at_least = (Y[:, None] >= Y[None]).all(-1)
    beats = at_least & ~at_least.mT
    numbers = torch.full((n,), -1, dtype=torch.long, device=Y.device)
    front = 0
    while bool((numbers < 0).any()):
        left = numbers < 0
        dominated = (beats & left[:, None]).any(0)
        numbers[left & ~dominated] = front
        front += 1
    return numbers
