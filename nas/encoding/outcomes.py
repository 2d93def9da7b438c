"""Objective values as targets that one bad candidate cannot spoil.

A diverged network has a loss tens of standard deviations above the others, or none. The warp
keeps the better half of the values as they are and puts the worse half at the normal quantiles
of their ranks, scaled by the spread of the better half: the half-rank warper of Google Vizier
(Song et al. 2024, 2408.11527, section 3.2). Infinite and failed values rank last, together.

With several objectives a candidate of the worse half of one may be the best of another, so there
only outliers are moved.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["affine_of", "half_rank", "winsorised"]

OUTLIER = 3.0  # interquartile ranges below the lower quartile


def half_rank(values: Tensor) -> Tensor:
    """Standardised targets of a maximisation.

    Args:
        values: `[n]`, larger is better; `-inf` is as bad as can be, NaN counts as `-inf`, and
            `+inf` as the best finite value.

    Returns:
        `[n]` finite, mean 0, variance 1 (all zero where all values are equal); the order of the
        values is kept.
    """
    values, finite = _bounded(values)
    if finite.numel() == 0:
        return values
    median = finite.median()
    good = values >= median
    # The better half above the median, in units in which no square overflows or vanishes; the
    # result does not depend on the unit.
    unit = torch.maximum(finite.max().abs(), median.abs())
    above = values / unit - median / unit if unit > 0 else torch.zeros_like(values)
    largest = above[good].max()
    above = above / largest if largest > 0 else above
    spread = above[good].square().mean().sqrt()
    if spread == 0:
        spread = torch.ones_like(spread)
    # Share of values not above each, ties at their middle, so that a rank is a probability.
    below = (values[:, None] > values).to(values).mean(dim=1)
    equal = (values[:, None] == values).to(values).mean(dim=1)
    probability = (below + 0.5 * equal) / (2 * (~good).to(values).mean().clamp_min(1e-9))
    rank = spread * torch.special.ndtri(probability.clamp(1e-9, 0.5))
    warped = torch.where(good, above, rank)
    scale = warped.std(correction=0)
    if scale == 0:
        return torch.zeros_like(values)
    return (warped - warped.mean()) / scale


def winsorised(values: Tensor) -> Tensor:
    """Standardised targets of a maximisation, outliers on the bad side moved to the others.

    Args:
        values: `[n]`, larger is better; `-inf` is as bad as can be, NaN counts as `-inf`, and
            `+inf` as the best finite value.

    Returns:
        `[n]` finite, mean 0, variance 1 (all zero where all values are equal): an affine map of the
        values, those further than three interquartile ranges below the lower quartile moved there.
    """
    values, finite = _bounded(values)
    if finite.numel() == 0:
        return values
    unit = finite.abs().max()
    values = values / torch.where(unit > 0, unit, 1.0)
    centre, scale, lowest = affine_of(values)
    return (values.clamp_min(lowest) - centre) / scale


def affine_of(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What standardises values once outliers on the bad side are moved to the others.

    Args:
        values: `[n]`, larger is better; some finite, none `+inf`.

    Returns:
        The mean and the standard deviation, 1 where all are equal, of the values as they are moved,
        and the value below which they are.
    """
    finite = values[values.isfinite()]
    lower, upper = finite.quantile(finite.new_tensor([0.25, 0.75]))
    lowest = torch.maximum(lower - OUTLIER * (upper - lower), finite.min())
    moved = values.clamp_min(lowest)
    scale = moved.std(correction=0)
    return moved.mean(), torch.where(scale > 0, scale, 1.0), lowest


def _bounded(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values without NaN and `+inf`, and the finite ones; zeros where there are none."""
    values = values.to(torch.float64)
    values = torch.where(values.isnan(), -torch.inf, values)
    finite = values[values.isfinite()]
    if finite.numel() == 0:
        return torch.zeros_like(values), finite
    return values.clamp_max(finite.max()), finite
