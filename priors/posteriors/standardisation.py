"""Location and scale of columns, by which inputs and outcomes are standardised.

A constant column has scale 1: it becomes 0 and no NaN arises. No scale is smaller than what numbers
of that size resolve.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["location_scale"]


def location_scale(rows: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column, constant columns with scale 1.

    Args:
        rows: `[..., n, d]`, n >= 1 unless there is a mask.
        present: True where a value counts, broadcasting with `rows`; None means that all do. The
            others may be anything, NaN too.

    Returns:
        Location and scale (n - 1 in the denominator), each `[..., 1, d]`, scale > 0: at least 16
        rounding errors of the largest value, or 1 where all values are equal; 0 and 1 where no
        value counts.

    Raises:
        ValueError: there are no rows.
    """
    if rows.dim() < 2 or (rows.shape[-2] == 0 and present is None):
        raise ValueError(
            f"Standardising needs rows [..., n, d] with n >= 1, got shape {tuple(rows.shape)}."
        )
    if present is None:
        present = torch.ones_like(rows, dtype=torch.bool)
    present, rows = torch.broadcast_tensors(present, rows)
    if rows.shape[-2] == 0:
        none = rows.sum(-2, keepdim=True)
        return none, torch.ones_like(none)
    rows = torch.where(present, rows, 0)
    count = present.sum(-2, keepdim=True)
    location = rows.sum(-2, keepdim=True) / count.clamp(min=1)
    deviation = torch.where(present, rows - location, 0)
    largest = deviation.abs().amax(dim=-2, keepdim=True)
    unit = torch.where(largest > 0, largest, 1)  # squares of the ratio cannot overflow
    mean_square = (deviation / unit).square().sum(-2, keepdim=True) / (count - 1).clamp(min=1)
    # The mean of n equal numbers is off by rounding: look at the numbers.
    first = rows.gather(-2, present.int().argmax(-2, keepdim=True))
    constant = torch.where(present, rows == first, True).all(-2, keepdim=True)
    location = torch.where(constant, first, location)
    # A root at 0 would make the gradients of constant columns NaN.
    scale = unit * torch.where(mean_square > 0, mean_square, 1).sqrt()
    rounding = 16 * torch.finfo(rows.dtype).eps * rows.abs().amax(dim=-2, keepdim=True)
    scale = torch.maximum(scale, rounding)
    return location, torch.where(constant, torch.ones_like(scale), scale)
