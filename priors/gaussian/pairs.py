"""The determinant q1 q2 - c^2 of a Gaussian pair and roots of it, with finite gradients.

Shapes: q1, q2 and c broadcast together; the results have the broadcast shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from priors.gaussian.elementwise import Elementwise

if TYPE_CHECKING:
    from priors.shapes import Part, Whole

__all__ = [
    "are_extreme",
    "delta_and_angle",
    "gram_determinant",
    "inverse_sqrt",
    "noise_floor",
    "normalised",
    "positive_sqrt",
]


def gram_determinant(q1: Part, q2: Part, c: Part) -> Whole:
    """q1 q2 - c^2 >= 0, factored to lose less where u and v are nearly parallel.

    The gradient is that of q1 q2 - c^2: at q = 0 the factors' own would be infinite.
    """
    return _GramDeterminant.apply(q1, q2, c)


class _GramDeterminant(Elementwise):
    @staticmethod
    def forward(q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        # roots of the small factors: their product may be a row times a column
        root = q1.clamp_min(0).sqrt() * q2.clamp_min(0).sqrt()
        root = torch.where(q1 == q2, q1, root)  # exactly: there u may be v
        return (root - c).mul_(root + c).clamp_min_(0)

    @staticmethod
    def slopes(
        inputs: Sequence[Tensor], outputs: Sequence[Tensor], needed: Sequence[bool]
    ) -> Sequence[Sequence[Tensor | None]]:
        q1, q2, c = inputs
        return [[q2, q1, -2 * c]]


def delta_and_angle(q1: Part, q2: Part, c: Part) -> tuple[Whole, Whole]:
    """sqrt(D) and asin(rho), in new tensors; for use without a gradient."""
    p1, p2, rho, s, t = normalised(q1, q2, c)  # D may be beyond the range of the dtype
    root = p1.clamp_min(0).sqrt() * p2.clamp_min(0).sqrt()
    delta = root - rho
    delta = delta.mul_(root + rho).clamp_min_(0).sqrt_()
    angle = torch.atan2(rho, delta)
    return (delta if rho is c else delta.mul_(s * t)), angle


def normalised(
    q1: Tensor, q2: Tensor, c: Tensor, least: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The pair (u / s, v / t) of variances near 1, and s and t: powers of two, and constants.

    Products of variances are then within the range of the dtype. Where they are so anyway, the pair
    comes back as it is, with s = t = 1, of no dimensions: what is divided by it costs nothing more.

    Args:
        q1: Variances.
        q2: Variances.
        c: Covariances.
        least: Of s and t. With 1 small variances stay small.
    """
    if are_extreme(q1, q2) is False:
        one = c.new_ones(())
        return q1, q2, c, one, one
    s, t = (_power_of_two(q).clamp_min(least) for q in (q1, q2))
    return q1 / s / s, q2 / t / t, c / (s * t), s, t


def are_extreme(*variances: Tensor) -> bool | None:
    """Whether products of some of these may lose precision; None where asking costs or cannot be.

    To ask waits for a device, and under torch.func.vmap values are not to be had.
    """
    for q in variances:
        if q.device.type != "cpu":
            return None
        limits = torch.finfo(q.dtype)
        q = q.detach()
        try:
            least, most = (float(bound) for bound in q.aminmax())
            if least > limits.tiny**0.25 and most < limits.max**0.25:
                continue  # nearly always; two numbers cost less than what follows
            fine = (q < limits.max**0.25) & ((q > limits.tiny**0.25) | (q == 0))
            if not fine.all():
                return True
        except RuntimeError:
            return None
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


def positive_sqrt(x: Tensor) -> Tensor:
    """sqrt(x) for x > 0, else 0, with the gradient 0 there."""
    safe = x > 0
    return torch.where(safe, torch.where(safe, x, 1.0).sqrt(), 0.0)


def noise_floor(p: Tensor) -> Tensor:
    """Below this, q1 q2 - c^2 is rounding noise."""
    return 16 * torch.finfo(p.dtype).eps * p
