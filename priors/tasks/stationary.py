"""Stationary kernels of unit variance: Matern, squared exponential, rational quadratic."""

from __future__ import annotations

from torch import Tensor

__all__ = ["STATIONARY", "stationary"]

STATIONARY = ("matern12", "matern32", "matern52", "rbf", "rq")


def stationary(name: str, r2: Tensor, exponent: Tensor | None = None) -> Tensor:
    """A kernel of the squared distance in length scales; Rasmussen & Williams 2006, 4.2.

    Args:
        name: One of `STATIONARY`.
        r2: Squared distances `[A, ...]`; overwritten, since memory is most of the cost.
        exponent: Exponent of the rational quadratic kernel "rq", `[A]`.

    Raises:
        ValueError: an unknown name, or no exponent where one is needed.
    """
    match name:
        case "matern12":
            return r2.sqrt_().neg_().exp_()
        case "matern32":
            s = r2.mul_(3).sqrt_()
            decay = s.neg().exp_()
            return s.add_(1).mul_(decay)
        case "matern52":
            s = r2.mul(5).sqrt_()
            r2.mul_(5 / 3).add_(s).add_(1)
            return r2.mul_(s.neg_().exp_())
        case "rbf":
            return r2.mul_(-0.5).exp_()
        case "rq":
            if exponent is None:
                raise ValueError("the rational quadratic kernel needs its exponent.")
            a = exponent.reshape(-1, *[1] * (r2.dim() - 1))
            return r2.div_(2 * a).log1p_().mul_(-a).exp_()
    raise ValueError(f"unknown kernel {name!r}, known are {STATIONARY}.")
