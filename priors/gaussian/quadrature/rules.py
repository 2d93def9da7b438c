"""Nodes and weights in one dimension, and how wide their panels are."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "DIRECT_REACH",
    "PER_PANEL",
    "REACH",
    "edges",
    "equal_panels",
    "legendre",
    "narrow_rule",
    "panels",
    "resolution_of",
    "standard_density",
]

PER_PANEL = 16

# Beyond |z| = 12 the standard normal density is below 1e-31 and every term negligible; rules in
# two dimensions end at 7.5: 6e-14 is beyond.
REACH, DIRECT_REACH = 12.0, 7.5


@functools.cache
def legendre(order: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1], like everything that is kept here on the CPU."""
    import numpy

    nodes, weights = numpy.polynomial.legendre.leggauss(order)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


@functools.cache
def edges(reach: float, widest: float, resolution: int) -> Tensor:
    """Ends of panels on [-reach, reach], no wider than `widest`, and than 4 / resolution where
    |z| < 64 / resolution; from there on they may grow with |z|."""
    ends = [0.0]
    while ends[-1] < reach:
        width = max(4.0, 0.25 * ends[-1] * resolution if ends[-1] * resolution >= 64 else 0.0)
        ends.append(min(reach, ends[-1] + min(widest, width / resolution)))
    half = torch.tensor(ends, dtype=torch.float64, device="cpu")
    return torch.cat([-half.flip(0), half[1:]])


def panels(ends: Float[Tensor, " k"]) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Nodes and weights of Gauss's rule on all panels between `ends`, `[k]`."""
    nodes, weights = (t.to(ends.device) for t in legendre(PER_PANEL))
    width = ends.diff()[:, None]
    return (ends[:-1, None] + width * nodes).flatten(), (width * weights).flatten()


def resolution_of(q: Tensor) -> int:
    """The power of two at or above the largest standard deviation, at least 1."""
    largest = float(q.detach().max()) if q.numel() else 1.0
    # not finite, it is left for the result to show
    return 2 ** math.ceil(math.log2(max(1.0, min(largest, 2.0**60))) / 2)


def standard_density(z: Tensor) -> Tensor:
    return torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


@functools.cache
def equal_panels(number: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1] of equal panels of 20 nodes."""
    nodes, weights = legendre(20)
    starts = torch.arange(number, dtype=torch.float64, device="cpu")[:, None]
    return ((starts + nodes) / number).flatten(), (weights / number).repeat(number)


def narrow_rule(spread: float) -> tuple[Tensor, Tensor]:
    """Nodes and weights for the mean of g(x + spread w) over standard normal w.

    Args:
        spread: Standard deviation, in units of the scale on which g varies.
    """
    if spread < 0.3:  # g is nearly a polynomial over the spread
        return _gauss_hermite(20)
    steps, weights = equal_panels(max(2, min(64, math.ceil(spread * DIRECT_REACH / 2))))
    steps = DIRECT_REACH * (2 * steps - 1)
    return steps, 2 * DIRECT_REACH * weights * standard_density(steps)


@functools.cache
def _gauss_hermite(order: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights under the standard normal density."""
    import numpy

    nodes, weights = numpy.polynomial.hermite_e.hermegauss(order)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
