"""Grouping the tasks of a batch that are alike, so that their common part is computed once."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["groups", "members"]


def members(mask: Tensor) -> tuple[Tensor, ...]:
    """The columns at which each row of a mask `[G, A]` is true, ascending: G vectors.

    However many rows there are, a GPU is waited for twice: a loop over `nonzero` would do so for
    each of them.
    """
    return mask.nonzero()[:, 1].split(mask.sum(1).tolist())


def groups(labels: Tensor, count: int) -> tuple[Tensor, ...]:
    """The places of the labels 0 .. count - 1 in `labels` `[A]`; others are in no group."""
    return members(labels == torch.arange(count, device=labels.device)[:, None])
