"""Integrals over an unknown scale s > 0, deterministic and to a stated error.

In t = log s a posterior of s has one hump, or one for each part of a mixture prior, and tails that
fall exponentially or faster. The line is cut into panels with 16 Gauss-Legendre nodes each. A panel
stays if its two halves, with 16 nodes each, give the same integral; else the halves take its place.
Tails are followed far beyond where they carry mass: the density of an outcome far from its mean is
an integral over scales as large.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from priors.representation import as_record

__all__ = ["Landmarks", "ScaleNodes", "integrate"]

TOLERANCE = 1e-11
"""Relative error of each panel."""

_ORDER = 16
_WIDEST = 2.0  # panels, so that nodes resolve what the density is multiplied by
_LEVELS, _MOST_PANELS = 40, 256
_DEPTH = 45.0  # nats below the largest density where the bulk ends: 1e-20 of its height
_FAR_DEPTH, _FAR = 750.0, 23.0  # and the tail above it, if not before a factor of e^23 = 1e10
_LIMIT = 650.0  # of |t|: s and 1 / s are numbers of float64
_NEAR = 33  # t in one closer look at a mode
_SCAN = 240  # distances from a mode in the search for the ends


@dataclass(frozen=True)
class Landmarks:
    """Where a density of t may have a hump or an edge.

    Attributes:
        guides: Some t where it may be large, `[k]`.
        centres: Of humps that may be narrow, `[c]`.
        widths: Of those, `[c]`.
        edges: Where it may jump, `[e]`.
    """

    guides: Tensor
    centres: Tensor
    widths: Tensor
    edges: Tensor


@dataclass(frozen=True, repr=False)
class ScaleNodes:
    """A rule for the integral over t of a batch of densities times anything smooth.

    Attributes:
        t: Nodes, `[S]`, in order.
        log_weights: Of the rule, without the density, `[S]`.
        log_masses: Logs of weight times density over the integral, `[*batch, S]`; they add up
            to 1.
        log_integral: Of the densities, `[*batch]`.
        error: Estimated relative error of the integrals, the largest of the batch.
    """

    t: Tensor
    log_weights: Tensor
    log_masses: Tensor
    log_integral: Tensor
    error: float

    def __repr__(self) -> str:
        return as_record(self)

    @property
    def scales(self) -> Tensor:
        """s, `[S]`."""
        return self.t.exp()

    def bulk(self) -> ScaleNodes:
        """The nodes without the far tail, which has a share of 1e-20 or less."""
        heights = self.log_masses - self.log_weights
        high = heights > heights.amax(-1, keepdim=True) - _DEPTH
        keep = high.reshape(-1, len(self.t)).any(0)
        t, weights = self.t[keep], self.log_weights[keep]
        return ScaleNodes(t, weights, self.log_masses[..., keep], self.log_integral, self.error)


def integrate(log_density: Callable[[Tensor], Tensor], landmarks: Landmarks) -> ScaleNodes:
    """Nodes for a batch of densities of t, the same for all.

    Args:
        log_density: Takes t `[k]` or `[*batch, k]` and returns `[*batch, k]`, without gradients.
        landmarks: Hints, in float64.

    Raises:
        ValueError: the density is zero or not finite at all t where it was looked for.
    """
    with torch.no_grad():
        lower, upper, far, top = _range(log_density, landmarks)
        left, right = _first_panels(lower, upper, far, landmarks.edges)
        return _refine(log_density, landmarks, left, right, top)


def _range(
    log_density: Callable[[Tensor], Tensor], landmarks: Landmarks
) -> tuple[float, float, float, Tensor]:
    """Ends of the bulk and of the far tail, and the largest log densities `[*batch, 1]`."""
    guides = landmarks.guides.clamp(-_LIMIT, _LIMIT).sort().values
    around = torch.arange(-40, 41, dtype=guides.dtype, device=guides.device)
    spread = torch.cat([guides[:1] + around, guides[-1:] + around])
    humps = landmarks.centres + landmarks.widths * torch.arange(
        -4, 5, device=guides.device
    ).unsqueeze(-1)
    grid = torch.cat([guides, humps.flatten(), spread]).clamp(-_LIMIT, _LIMIT).unique()
    found = _finite(log_density(grid))
    if not bool(found.isfinite().any(-1).all()):
        raise ValueError(
            "The posterior of the scale has no mass where it was looked for: the scale prior "
            "excludes the scales that these outcomes suggest, or the covariance is not finite."
        )
    # the mode of each batch element, on closer and closer grids
    index = found.argmax(-1, keepdim=True)
    mode, best = grid[index], found.gather(-1, index)
    reach = torch.maximum(
        grid[(index + 1).clamp_max(len(grid) - 1)] - mode, mode - grid[(index - 1).clamp_min(0)]
    )
    close = torch.linspace(-1, 1, _NEAR, dtype=grid.dtype, device=grid.device)
    for _ in range(6):
        near = (mode + reach * close).clamp(-_LIMIT, _LIMIT)
        values = _finite(log_density(near))
        index = values.argmax(-1, keepdim=True)
        mode, best, reach = near.gather(-1, index), values.gather(-1, index), reach / 8
    steps = torch.logspace(-7, 2.8, _SCAN, dtype=grid.dtype, device=grid.device)
    below, above = ((mode + side * steps).clamp(-_LIMIT, _LIMIT) for side in (-1, 1))
    fall_below, fall_above = (best - _finite(log_density(t)) for t in (below, above))
    seen = (found > best - _DEPTH).reshape(-1, len(grid)).any(0).nonzero()  # other humps
    first, last = int(seen.min()) - 1, int(seen.max()) + 1
    lower = min(float(_beyond(below, fall_below, _DEPTH).min()), float(grid[max(first, 0)]))
    upper = float(_beyond(above, fall_above, _DEPTH).max())
    upper = max(upper, float(grid[min(last, len(grid) - 1)]))
    tail = float(_beyond(above, fall_above, _FAR_DEPTH).max())
    return lower, upper, max(upper, min(tail, upper + _FAR)), best


def _finite(values: Tensor) -> Tensor:
    """Log densities that are not numbers as those of nothing."""
    return values.nan_to_num(-torch.inf, posinf=-torch.inf, neginf=-torch.inf)


def _beyond(t: Tensor, fall: Tensor, depth: float) -> Tensor:
    """The first t of `[*batch, k]` where the density is so much lower; the last without any."""
    reached = fall > depth
    first = torch.where(reached.any(-1), reached.to(t).argmax(-1), t.shape[-1] - 1)
    return t.gather(-1, first.unsqueeze(-1))


def _first_panels(lower: float, upper: float, far: float, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Left and right ends `[P]`: bulk and tail apart, no edge inside, none too wide."""
    cuts = sorted({lower, upper, far, *(t for t in edges.tolist() if lower < t < far)})
    ends = cuts[:1]
    for start, stop in zip(cuts[:-1], cuts[1:], strict=True):
        pieces = max(1, math.ceil((stop - start) / _WIDEST))
        ends += [start + (stop - start) * (k + 1) / pieces for k in range(pieces)]
    points = torch.tensor(ends, dtype=torch.float64, device=edges.device)
    return points[:-1], points[1:]


def _refine(
    log_density: Callable[[Tensor], Tensor],
    landmarks: Landmarks,
    left: Tensor,
    right: Tensor,
    top: Tensor,
) -> ScaleNodes:
    panels = _Panels(log_density, left, right)
    kept, errors = [], []
    for level in range(_LEVELS):
        halves = panels.halves(log_density)
        fine = halves.log_integrals.unflatten(-1, (-1, 2)).logsumexp(-1)
        apart = torch.expm1(panels.log_integrals - fine).abs().nan_to_num(torch.inf)
        apart = torch.where(fine < top - _FAR_DEPTH, 0.0, apart)
        good = (
            (apart <= panels.rounding().clamp_min(TOLERANCE)).reshape(-1, len(panels.left)).all(0)
        )
        good &= ~panels.blind_to(landmarks)
        if level == _LEVELS - 1 or len(good) > _MOST_PANELS:
            # at an edge that nobody told of, now 1e-12 wide; or a density that is noise
            good = torch.ones_like(good)
        kept.append(panels.some(good))
        errors.append((apart.clamp_max(1.0).log() + fine)[..., good])
        if bool(good.all()):
            break
        panels = halves.some(~good.repeat_interleave(2))
    t = torch.cat([part.t.flatten() for part in kept])
    order = t.argsort()
    weights = torch.cat([part.log_weights.flatten() for part in kept])[order]
    values = torch.cat([part.values.flatten(-2) for part in kept], -1)[..., order]
    log_integral = (values + weights).logsumexp(-1)
    error = torch.cat(errors, -1).logsumexp(-1) - log_integral
    masses = values + weights - log_integral.unsqueeze(-1)
    return ScaleNodes(t[order], weights, masses, log_integral, float(error.exp().max()))


@cache
def _rule() -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes on (-1, 1) and weights; to find them takes as long as an integral."""
    return np.polynomial.legendre.leggauss(_ORDER)


class _Panels:
    """Panels `[P]` with their nodes `[P, 16]` and log densities there `[*batch, P, 16]`."""

    def __init__(
        self, log_density: Callable[[Tensor], Tensor], left: Tensor, right: Tensor
    ) -> None:
        self.left, self.right = left, right
        nodes, weights = (torch.as_tensor(part, device=left.device) for part in _rule())
        half = ((right - left) / 2).unsqueeze(-1)
        self.t = left.unsqueeze(-1) + half * (1 + nodes)
        self.log_weights = weights.log() + half.log()
        self.values = _finite(log_density(self.t.flatten())).unflatten(-1, self.t.shape)

    @property
    def log_integrals(self) -> Tensor:
        """`[*batch, P]`."""
        return (self.values + self.log_weights).logsumexp(-1)

    def rounding(self) -> Tensor:
        """Relative errors of integrals `[*batch, P]` that come from s = exp(t) as a number."""
        values = self.values.clamp_min(self.values.amax(-1, keepdim=True) - _DEPTH)
        slope = (values.amax(-1) - values.amin(-1)) / (self.right - self.left)
        return 8 * torch.finfo(values.dtype).eps * slope.nan_to_num(0.0)

    def halves(self, log_density: Callable[[Tensor], Tensor]) -> _Panels:
        """Twice as many, `[2 P]`."""
        middle = (self.left + self.right) / 2
        left = torch.stack([self.left, middle], -1).flatten()
        right = torch.stack([middle, self.right], -1).flatten()
        return _Panels(log_density, left, right)

    def blind_to(self, landmarks: Landmarks) -> Tensor:
        """Which panels `[P]` may have missed a narrow hump in them."""
        centres, widths = landmarks.centres.unsqueeze(-1), landmarks.widths.unsqueeze(-1)
        inside = (centres + 2 * widths >= self.left) & (centres - 2 * widths < self.right)
        return (inside & (self.right - self.left > 4 * widths)).any(0)

    def some(self, index: Tensor) -> _Panels:
        """Those of a mask `[P]`."""
        new = object.__new__(_Panels)
        new.left, new.right = self.left[index], self.right[index]
        new.t, new.log_weights = self.t[index], self.log_weights[index]
        new.values = self.values[..., index, :]
        return new
