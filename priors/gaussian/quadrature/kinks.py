"""Where an elementwise function is not smooth, and by how much it jumps there."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from priors.gaussian.quadrature.functions import Function

__all__ = ["detect_kinks", "jumps", "sides"]


def jumps(function: Function, kinks: Sequence[float]) -> list[float]:
    """The jump f(t+) - f(t-) at each kink t; below 1e-9 of the values there, exactly 0."""
    if not kinks:
        return []
    t = torch.tensor(kinks, dtype=torch.float64, device="cpu")[:, None]
    left, right = (x[:, 0] for x in sides(function, t))
    size = torch.where((right - left).abs() > 1e-9 * (1 + right.abs() + left.abs()), 1.0, 0.0)
    return [float(x) for x in (right - left) * size]


def detect_kinks(function: Function, reach: float = 16.0) -> tuple[float, ...]:
    """Where an elementwise function or one of its first two derivatives jumps, by bisection.

    An interval on which a Chebyshev interpolant of degree 16 is accurate has no kink; any other is
    halved. Its error falls 2^m-fold with each halving around a jump of the m-th derivative, but
    a thousandfold where the function is smooth: that tells one from the other where the error
    falls below the rounding.

    Jumps and kinks are located to 1e-9 of `reach`, jumps of the second derivative to about 1e-4,
    where their exact place matters as little; a multiple of 1/1000 that near is taken for it.

    Limits: nothing is seen beyond `reach` or below 1e-12 of the function's size, kinks closer
    than the accuracy above count as one, and so does a smooth step as narrow. A steep smooth
    function may be given kinks that it has not, which costs time but no accuracy.

    Args:
        function: Maps float64 to float64, elementwise.
        reach: Half width of the interval searched, in units of the argument.

    Raises:
        ValueError: there are more than 64 kinks.
    """
    width = 2 * reach / 37
    low = -reach + width * torch.arange(37, dtype=torch.float64, device="cpu")
    degree = torch.arange(17, dtype=torch.float64, device="cpu")
    nodes = torch.cos(math.pi * (degree + 0.5) / 17)
    to_series = torch.cos(degree[:, None] * torch.acos(nodes)) * 2 / 17
    parent: Tensor | None = None
    found: list[tuple[float, float]] = []
    while True:
        # an interval and a tenth: a kink on its end is inside one of its neighbours
        x = low[..., None] + width * (0.5 + 0.55 * nodes)
        with torch.no_grad():
            y = function(x)
        error = (y @ to_series.T)[..., -4:].abs().amax(-1) / (1 + y.abs().amax(-1))
        unresolved = error > 4e-12
        if parent is not None:  # rows of `low` are the halves of intervals
            lost = ~unresolved.any(0) & (error.amax(0) > parent / 512)
            middle = low.gather(0, error.argmax(0)[None])[0, lost] + width / 2
            found += [(t, width) for t in middle.tolist()]
        low, parent = low[unresolved], error[unresolved]
        if len(low) + len(found) > 256:
            raise ValueError(_TOO_MANY)
        if not len(low) or width <= 1e-9 * reach:
            break
        width = width / 2
        low = torch.stack([low, low + width])
    found += [(t, width) for t in (low + width / 2).tolist()]
    positions: list[float] = []
    for t, accuracy in sorted(found):
        rounded = round(t, 3) + 0.0  # no negative zero
        t = rounded if abs(t - rounded) <= 2 * accuracy else t
        if not positions or t - positions[-1] > 4 * accuracy:
            positions.append(t)
    if len(positions) > 64:
        raise ValueError(_TOO_MANY)
    return tuple(positions)


_TOO_MANY = (
    "the function has more than 64 kinks: it is not piecewise smooth in a way that the "
    "quadrature can follow. Narrow the reach, or pass its kinks."
)


def sides(function: Function, t: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Limits of the function from the left and from the right at t, by extrapolation."""
    step = 1e-6 * t.abs().clamp_min(1.0)

    def limit(sign: int) -> Tensor:
        near, far = (function(t + sign * k * step, *parameters) for k in (1, 2))
        return 2 * near - far

    return limit(-1), limit(1)
