"""Piecewise powers with a kink at zero: ReLU and its kin, the sign, rectified powers."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from priors.gaussian.activations.base import Activation
from priors.gaussian.activations.powers import Terms, rectified_mean, slopes, squares
from priors.gaussian.elementwise import Elementwise
from priors.gaussian.pairs import (
    delta_and_angle,
    gram_determinant,
    inverse_sqrt,
    noise_floor,
    normalised,
)

if TYPE_CHECKING:
    from priors.shapes import Part, Whole

__all__ = ["ABReLU", "RectifiedPower", "Sign"]


class _Rectified(Activation):
    """A sum of terms a max(s x, 0)^n with s = +-1: moments of one variable from those of a term."""

    @property
    @abstractmethod
    def terms(self) -> Terms:
        """(a, n, s) of each term."""

    @property
    def kinks(self) -> tuple[float, ...]:
        return (0.0,)

    def mean(self, q: Whole) -> Whole:
        return rectified_mean(self.terms, q)

    def mean_derivative(self, q: Whole) -> Whole:
        return rectified_mean(slopes(self.terms), q)

    def second_moment(self, q: Whole) -> Whole:
        return rectified_mean(squares(self.terms), q)

    def second_moment_derivative(self, q: Whole) -> Whole:
        return rectified_mean(squares(slopes(self.terms)), q)


@dataclass(frozen=True)
class ABReLU(_Rectified):
    """Piecewise linear with a kink at zero: `negative * min(x, 0) + positive * max(x, 0)`.

    ReLU, LeakyReLU, the absolute value and the identity are cases. Written as
    alpha x + beta |x|, whose products have the closed forms of Cho & Saul 2009 (order 0 and 1)
    and Tsuchida et al. 2018 (1711.09090), for two different members as well.
    """

    negative: float = 0.0
    positive: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.negative * x.clamp(max=0) + self.positive * x.clamp(min=0)

    def derivative(self, x: Tensor) -> Tensor:
        return self.negative + (self.positive - self.negative) * (x > 0).to(x.dtype)

    @property
    def terms(self) -> Terms:
        return (self.positive, 1, 1), (-self.negative, 1, -1)

    @property
    def homogeneous(self) -> bool:
        return True

    @property
    def _odd(self) -> float:
        return (self.positive + self.negative) / 2

    @property
    def _even(self) -> float:
        return (self.positive - self.negative) / 2

    def closed_duals(self, other: Self, q1: Part, q2: Part, c: Part) -> tuple[Whole, Whole]:
        return _ABDuals.apply(q1, q2, c, self._odd * other._odd, self._even * other._even)


@dataclass(frozen=True)
class Sign(_Rectified):
    """The sign function; its NTK is taken to be 0, as the gradient of a finite network is."""

    def __call__(self, x: Tensor) -> Tensor:
        return torch.sign(x)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    @property
    def terms(self) -> Terms:
        return (1.0, 0, 1), (-1.0, 0, -1)


@dataclass(frozen=True)
class RectifiedPower(_Rectified):
    """max(x, 0)^n; Cho & Saul 2009. n = 0 is the unit step.

    Args:
        power: n, an integer >= 0.

    Raises:
        ValueError: `power` is negative.
    """

    power: int

    def __post_init__(self) -> None:
        if self.power < 0:
            raise ValueError(f"RectifiedPower needs power >= 0, got {self.power}.")

    def __call__(self, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype) * x**self.power

    def derivative(self, x: Tensor) -> Tensor:
        if self.power == 0:
            return torch.zeros_like(x)
        return self.power * RectifiedPower(self.power - 1)(x)

    @property
    def terms(self) -> Terms:
        return ((1.0, self.power, 1),)

    @property
    def homogeneous(self) -> bool:
        return self.power == 1


class _ABDuals(Elementwise):
    """odd c + even E|u||v| and odd + even E[sign(u) sign(v)].

    E|u||v| = (2/pi) (sqrt(D) + c asin(rho)) has the gradient dE/dc = E[sign sign] and dE/dq1 =
    sqrt(D) / (pi q1), without the singularity at rho = 1 that the formula has.
    E[sign(u) sign(v)] = (2/pi) asin(rho) has the slope 2 / (pi sqrt(D)), infinite at rho = +-1,
    where the function has a cusp symmetric in the two inputs: there it is set to 0, its symmetric
    subgradient, as are the slopes at q = 0.
    """

    @staticmethod
    def forward(
        q1: Tensor, q2: Tensor, c: Tensor, odd: float, even: float
    ) -> tuple[Tensor, Tensor]:
        delta, angle = delta_and_angle(q1, q2, c)
        absolute = delta.addcmul_(c, angle).mul_(2 / math.pi * even)
        return absolute.add_(c, alpha=odd), angle.mul_(2 / math.pi * even).add_(odd)

    @staticmethod
    def slopes(
        inputs: Sequence[Any], outputs: Sequence[Tensor], needed: Sequence[bool]
    ) -> Sequence[Sequence[Tensor | None]]:
        q1, q2, c, _, even = inputs
        p1, p2, rho, s, t = normalised(q1, q2, c)
        scale = s * t
        det = gram_determinant(p1, p2, rho)
        inverse = inverse_sqrt(det, noise_floor(p1 * p2))
        # slopes in log q1 and log q2 are equal
        logs = det * inverse * (scale * (even / math.pi)), -inverse * rho * (even / math.pi)
        reciprocals = [
            inverse_sqrt(q, torch.finfo(q.dtype).tiny) ** 2 if wanted else None
            for q, wanted in zip((q1, q2), needed, strict=False)
        ]
        rows: list[list[Tensor | None]] = [
            [None if r is None else log * r for r in reciprocals] for log in logs
        ]
        rows[0].append(outputs[1])
        rows[1].append(inverse * (2 / math.pi * even / scale))
        return rows
