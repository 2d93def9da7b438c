"""Smooth functions with closed forms: error functions, GELU, waves, exponentials, Gaussians."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from priors.gaussian.activations.base import Activation
from priors.gaussian.pairs import gram_determinant

__all__ = ["Erf", "Exp", "GELU", "Gabor", "Gaussian", "Probit", "Sine"]


@dataclass(frozen=True)
class Erf(Activation):
    """The error function; Williams 1997."""

    def __call__(self, x: Tensor) -> Tensor:
        return torch.erf(x)

    def derivative(self, x: Tensor) -> Tensor:
        return (2 / math.sqrt(math.pi)) * torch.exp(-(x**2))

    def closed_dual(self, other: Self, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        # asin(2c / sqrt(...)), whose slope is infinite at 1, through its cosine
        return (2 / math.pi) * torch.atan2(2 * c, _erf_determinant(q1, q2, c).sqrt())

    def closed_dual_derivative(self, other: Self, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        return (4 / math.pi) * _erf_determinant(q1, q2, c).rsqrt()

    def mean(self, q: Tensor) -> Tensor:
        return torch.zeros_like(q)

    def mean_derivative(self, q: Tensor) -> Tensor:
        return (2 / math.sqrt(math.pi)) * (1 + 2 * q).rsqrt()

    def second_moment(self, q: Tensor) -> Tensor:
        return (2 / math.pi) * torch.atan2(2 * q, (1 + 4 * q).sqrt())

    def second_moment_derivative(self, q: Tensor) -> Tensor:
        return (4 / math.pi) * (1 + 4 * q).rsqrt()


@dataclass(frozen=True)
class Probit(Activation):
    """Phi(x), the standard normal distribution function; from `Erf` at x / sqrt(2)."""

    def __call__(self, x: Tensor) -> Tensor:
        return torch.special.ndtr(x)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)

    def closed_dual(self, other: Self, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        root = (1 + q1 + q2 + gram_determinant(q1, q2, c)).sqrt()
        return 0.25 + torch.atan2(c, root) / (2 * math.pi)

    def closed_dual_derivative(self, other: Self, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        return (1 + q1 + q2 + gram_determinant(q1, q2, c)).rsqrt() / (2 * math.pi)

    def mean(self, q: Tensor) -> Tensor:
        return torch.full_like(q, 0.5)

    def mean_derivative(self, q: Tensor) -> Tensor:
        return (1 + q).rsqrt() / math.sqrt(2 * math.pi)

    def second_moment(self, q: Tensor) -> Tensor:
        return 0.25 + torch.atan2(q, (1 + 2 * q).sqrt()) / (2 * math.pi)

    def second_moment_derivative(self, q: Tensor) -> Tensor:
        return (1 + 2 * q).rsqrt() / (2 * math.pi)


@dataclass(frozen=True)
class GELU(Activation):
    """x Phi(x), the exact GELU; Tsuchida et al. 2021 (2002.08517)."""

    def __call__(self, x: Tensor) -> Tensor:
        return torch.nn.functional.gelu(x)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.special.ndtr(x) + x * torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)

    def closed_duals(self, other: Self, q1: Tensor, q2: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return _gelu_duals(q1, q2, c, gram_determinant(q1, q2, c))

    def mean(self, q: Tensor) -> Tensor:
        return q * (1 + q).rsqrt() / math.sqrt(2 * math.pi)

    def mean_derivative(self, q: Tensor) -> Tensor:
        return torch.full_like(q, 0.5)

    def second_moment(self, q: Tensor) -> Tensor:
        return _gelu_duals(q, q, q, torch.zeros_like(q))[0]

    def second_moment_derivative(self, q: Tensor) -> Tensor:
        return _gelu_duals(q, q, q, torch.zeros_like(q))[1]


@dataclass(frozen=True)
class Sine(Activation):
    """sin(frequency x + phase).

    The cosine has phase pi/2; sqrt(2) times that of phase pi/4 has a squared exponential dual.
    """

    phase: float = 0.0
    frequency: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return torch.sin(self.frequency * x + self.phase)

    def derivative(self, x: Tensor) -> Tensor:
        return self.frequency * torch.cos(self.frequency * x + self.phase)

    def shifted(self, offset: float) -> Activation:
        return Sine(self.phase + self.frequency * offset, self.frequency)

    def closed_dual(self, other: Self, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        b1, b2 = self.frequency, other.frequency
        c = b1 * b2 * c
        # sinh(c) e^-s and cosh(c) e^-s, s = (q1 + q2) / 2, without overflow or cancellation
        size = torch.where(c < 0, -c, c)
        scale = torch.exp(size - (b1**2 * q1 + b2**2 * q2) / 2) / 2
        sinh = -scale * torch.expm1(-2 * size)
        cosh = scale * (1 + torch.exp(-2 * size))
        odd = math.cos(self.phase) * math.cos(other.phase)
        even = math.sin(self.phase) * math.sin(other.phase)
        return odd * torch.where(c < 0, -sinh, sinh) + even * cosh

    def closed_dual_derivative(self, other: Self, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        scale = self.frequency * other.frequency
        return scale * self._slope.dual(other._slope, q1, q2, c)

    @property
    def _slope(self) -> Sine:
        return Sine(self.phase + math.pi / 2, self.frequency)

    def mean(self, q: Tensor) -> Tensor:
        return math.sin(self.phase) * torch.exp(-(self.frequency**2) * q / 2)

    def mean_derivative(self, q: Tensor) -> Tensor:
        return self.frequency * self._slope.mean(q)

    def second_moment(self, q: Tensor) -> Tensor:
        decay = torch.expm1(-2 * self.frequency**2 * q)
        return math.sin(self.phase) ** 2 - math.cos(2 * self.phase) / 2 * decay

    def second_moment_derivative(self, q: Tensor) -> Tensor:
        return self.frequency**2 * self._slope.second_moment(q)


@dataclass(frozen=True)
class Exp(Activation):
    """exp(rate x). Its moments grow as exp(2 rate^2 q): deep networks of it overflow."""

    rate: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return torch.exp(self.rate * x)

    def derivative(self, x: Tensor) -> Tensor:
        return self.rate * torch.exp(self.rate * x)

    def closed_dual(self, other: Self, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        a, b = self.rate, other.rate
        return torch.exp((a**2 * q1 + b**2 * q2) / 2 + a * b * c)

    def closed_dual_derivative(self, other: Self, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        return self.rate * other.rate * self.dual(other, q1, q2, c)

    def mean(self, q: Tensor) -> Tensor:
        return torch.exp(self.rate**2 * q / 2)

    def mean_derivative(self, q: Tensor) -> Tensor:
        return self.rate * self.mean(q)

    def second_moment(self, q: Tensor) -> Tensor:
        return torch.exp(2 * self.rate**2 * q)

    def second_moment_derivative(self, q: Tensor) -> Tensor:
        return self.rate**2 * self.second_moment(q)


@dataclass(frozen=True)
class Gaussian(Activation):
    """exp(-x^2); its dual is the normalisation of a Gaussian, one over a root of a determinant."""

    def __call__(self, x: Tensor) -> Tensor:
        return torch.exp(-(x**2))

    def derivative(self, x: Tensor) -> Tensor:
        return -2 * x * torch.exp(-(x**2))

    def closed_dual(self, other: Self, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        return _erf_determinant(q1, q2, c).rsqrt()

    def closed_dual_derivative(self, other: Self, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        return 4 * c * _erf_determinant(q1, q2, c) ** -1.5

    def mean(self, q: Tensor) -> Tensor:
        return (1 + 2 * q).rsqrt()

    def mean_derivative(self, q: Tensor) -> Tensor:
        return torch.zeros_like(q)

    def second_moment(self, q: Tensor) -> Tensor:
        return (1 + 4 * q).rsqrt()

    def second_moment_derivative(self, q: Tensor) -> Tensor:
        return 4 * q * (1 + 4 * q) ** -1.5


@dataclass(frozen=True)
class Gabor(Activation):
    """exp(-x^2) sin(x); Han et al. 2022 (2209.04121)."""

    def __call__(self, x: Tensor) -> Tensor:
        return torch.exp(-(x**2)) * torch.sin(x)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.exp(-(x**2)) * (torch.cos(x) - 2 * x * torch.sin(x))

    def closed_duals(self, other: Self, q1: Tensor, q2: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return _gabor_duals(q1, q2, c, gram_determinant(q1, q2, c))

    def mean(self, q: Tensor) -> Tensor:
        return torch.zeros_like(q)

    def mean_derivative(self, q: Tensor) -> Tensor:
        tilted = 1 + 2 * q
        return tilted**-1.5 * torch.exp(-q / (2 * tilted))

    def second_moment(self, q: Tensor) -> Tensor:
        return _gabor_duals(q, q, q, torch.zeros_like(q))[0]

    def second_moment_derivative(self, q: Tensor) -> Tensor:
        return _gabor_duals(q, q, q, torch.zeros_like(q))[1]


def _erf_determinant(q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
    """(1 + 2 q1)(1 + 2 q2) - 4 c^2."""
    return 1 + 2 * (q1 + q2) + 4 * gram_determinant(q1, q2, c)


def _gelu_duals(q1: Tensor, q2: Tensor, c: Tensor, det: Tensor) -> tuple[Tensor, Tensor]:
    """Both duals of GELU, `det` = q1 q2 - c^2."""
    a, p = (1 + q1) * (1 + q2), q1 * q2
    delta2 = 1 + q1 + q2 + det
    delta = delta2.sqrt()
    angle = torch.atan2(c, delta)
    value = c / 4 + (c * angle + (c**2 + p * delta2) / (a * delta)) / (2 * math.pi)
    rational = c / delta * (1 / delta2 + (1 - p) / a + 1)
    return value, 0.25 + (angle + rational) / (2 * math.pi)


def _gabor_duals(q1: Tensor, q2: Tensor, c: Tensor, det: Tensor) -> tuple[Tensor, Tensor]:
    """Both duals of Gabor, `det` = q1 q2 - c^2; the second is the first's slope in c."""
    total = q1 + q2 + 4 * det
    d = 1 + q1 + q2 + total
    scale = torch.exp(-total / (2 * d)) * d.rsqrt()
    sinh, cosh = torch.sinh(c / d), torch.cosh(c / d)
    slope = (4 * c * (2 * d - total) * sinh + (d + 8 * c**2) * cosh) / d**2
    return scale * sinh, scale * slope
