"""The determinant q1 q2 - c^2 of a Gaussian pair and roots of it, with finite gradients.

Shapes: q1, q2 and c broadcast together; the results have the broadcast shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from priors.gaussian.elementwise import Elementwise

__all__ = ["delta_and_angle", "gram_determinant", "inverse_sqrt", "noise_floor", "normalised"]


def gram_determinant(q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
    """q1 q2 - c^2 >= 0, factored to lose less where u and v are nearly parallel.

    The gradient is that of q1 q2 - c^2: at q = 0 the factors' own would be infinite.
    """
    return _GramDeterminant.apply(q1, q2, c)


class _GramDeterminant(Elementwise):
    @staticmethod
    def forward(q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        # roots of the small factors: their product may be a row times a column
        root = q1.clamp_min(0).sqrt() * q2.clamp_min(0).sqrt()
        return (root - c).mul_(root + c).clamp_min_(0)

    @staticmethod
    def slopes(
        inputs: Sequence[Tensor], outputs: Sequence[Tensor], needed: Sequence[bool]
    ) -> Sequence[Sequence[Tensor | None]]:
        q1, q2, c = inputs
        return [[q2, q1, -2 * c]]


def delta_and_angle(q1: Tensor, q2: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(D) and asin(rho), in new tensors; for use without a gradient."""
    p1, p2, rho, scale = normalised(q1, q2, c)  # D may be beyond the range of the dtype
    root = p1.clamp_min(0).sqrt() * p2.clamp_min(0).sqrt()
    delta = root - rho
    delta = delta.mul_(root + rho).clamp_min_(0).sqrt_()
    angle = torch.atan2(rho, delta)
    return (delta if rho is c else delta.mul_(scale)), angle


def normalised(q1: Tensor, q2: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The pair (u / s, v / t) of variances near 1, and s t: powers of two, and constants.

    Products of variances are then within the range of the dtype. Where they are so anyway, the pair
    comes back as it is, with s t = 1, of no dimensions: what is divided by it costs nothing more.
    """
    if _is_within_range(q1) and _is_within_range(q2):
        return q1, q2, c, c.new_ones(())
    s, t = (_power_of_two(q) for q in (q1, q2))
    scale = s * t
    return q1 / s / s, q2 / t / t, c / scale, scale


def _is_within_range(q: Tensor) -> bool:
    """Whether products of these variances surely keep their precision; False where asking costs."""
    if q.device.type != "cpu":  # to ask would wait for the device
        return False
    limits = torch.finfo(q.dtype)
    q = q.detach()
    try:
        fine = (q < limits.max**0.25) & ((q > limits.tiny**0.25) | (q == 0))
        return bool(fine.all())
    except RuntimeError:  # under torch.func.vmap values are not to be had
        return False


def _power_of_two(q: Tensor) -> Tensor:
    """Near sqrt(q); 1 where q is 0 or not finite."""
    q = q.detach()
    fine = (q > 0) & q.isfinite()
    return torch.exp2(torch.where(fine, q, 1.0).log2().div(2).round())


def inverse_sqrt(x: Tensor, floor: Tensor | float) -> Tensor:
    """x^(-1/2) above `floor`, else 0: the value given to a gradient at a kink."""
    safe = x > floor
    return torch.where(safe, torch.where(safe, x, 1.0).rsqrt(), 0.0)


def noise_floor(p: Tensor) -> Tensor:
    """Below this, q1 q2 - c^2 is rounding noise."""
    return 16 * torch.finfo(p.dtype).eps * p
