"""Standardisation and Yeo-Johnson transforms of inputs and targets, fitted to a context."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.preprocessing import PowerTransformer
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import AffineTransform, Transform

__all__ = ["InputTransform", "TargetTransform", "YeoJohnson", "standardisation"]

# Range of the power of transformed targets. At 1/2 the tails of the bars, of index 5, still have
# a variance after the transform is undone.
_POWERS = (0.5, 1.5)


@dataclass(frozen=True)
class InputTransform:
    """Yeo-Johnson transforms of the numeric columns that vary.

    Attributes:
        numeric: Which columns, `[d]`.
        location: Subtracted first, `[k]`.
        scale: Divided by second: powers of badly scaled numbers overflow.
        power: Fitted to what results.
    """

    numeric: np.ndarray
    location: np.ndarray
    scale: np.ndarray
    power: PowerTransformer

    @classmethod
    def fit(cls, X: np.ndarray, numeric: np.ndarray) -> InputTransform:
        values = X[:, numeric]
        location, scale = standardisation(values)
        power = PowerTransformer(method="yeo-johnson", standardize=True)
        with np.errstate(all="ignore"):
            power.fit((values - location) / scale)
        return cls(numeric, location, scale, power)

    def apply(self, X: np.ndarray) -> np.ndarray:
        X = X.copy()
        values = (X[:, self.numeric] - self.location) / self.scale
        with np.errstate(all="ignore"):
            transformed = self.power.transform(values)
        failed = ~np.isfinite(transformed) & np.isfinite(values)
        X[:, self.numeric] = np.where(failed, values, transformed)
        return X


@dataclass(frozen=True)
class TargetTransform:
    """Standardisation of the targets and a Yeo-Johnson transform; monotone and onto."""

    location: float
    scale: float
    power: float

    @classmethod
    def fit(cls, y: np.ndarray) -> TargetTransform:
        location, scale = standardisation(y[:, None])
        z = (y[:, None] - location) / scale
        found = 1.0
        if np.ptp(z) > 0:
            with np.errstate(all="ignore"):
                found = float(PowerTransformer(standardize=False).fit(z).lambdas_[0])
        found = found if math.isfinite(found) else 1.0
        return cls(float(location[0]), float(scale[0]), min(max(found, _POWERS[0]), _POWERS[1]))

    def apply(self, y: np.ndarray) -> np.ndarray:
        z = torch.from_numpy((y - self.location) / self.scale)
        if self.power == 1.0:
            return z.numpy()
        return YeoJohnson(self.power)(z).numpy()

    def undo(self, like: Tensor) -> tuple[Transform, ...]:
        """The transforms back to units of y, the first first."""
        location, scale = like.new_tensor(self.location), like.new_tensor(self.scale)
        affine = AffineTransform(location, scale)
        return (affine,) if self.power == 1.0 else (YeoJohnson(self.power).inv, affine)


class YeoJohnson(Transform):
    """The transform of Yeo & Johnson 2000, eq. 2.1, for powers in (0, 2): onto the real line."""

    domain = constraints.real
    codomain = constraints.real
    bijective = True
    sign = 1

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = power

    def _call(self, x: Tensor) -> Tensor:
        sign, power = self._branch(x)
        return sign * torch.expm1(power * torch.log1p(sign * x)) / power

    def _inverse(self, y: Tensor) -> Tensor:
        sign, power = self._branch(y)
        return sign * torch.expm1(torch.log1p(power * sign * y) / power)

    def _branch(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Sign, 1 at 0 so that gradients are right there, and power."""
        sign = torch.where(values >= 0, 1, -1).to(values)
        return sign, 1 + (self.power - 1) * sign

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log of the derivative at x."""
        return x.sign() * (self.power - 1) * x.abs().log1p()


def standardisation(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of columns, 0 and 1 where there are none."""
    location, scale = np.zeros(values.shape[1]), np.ones(values.shape[1])
    for i, column in enumerate(values.T):
        present = column[~np.isnan(column)]
        if len(present):
            most = np.abs(present).max() or 1.0
            shares = present / most  # sums and squares of large numbers overflow
            location[i] = most * shares.mean()
            deviation = shares.std(ddof=min(1, len(present) - 1))
            if deviation > 16 * np.finfo(np.float64).eps:
                scale[i] = most * deviation
    return location, scale
