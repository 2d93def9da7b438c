"""Smooth functions with closed forms: error functions, GELU, waves, exponentials, Gaussians.

Those with a normal density in them are written with

    R = sqrt((1 + q1)(1 + q2) - c^2)   and the angle asin(c / sqrt((1 + q1)(1 + q2))),

which `_Root` and `_Angle` give in the whole range of the dtype. Factors follow in an order that
stays within it as well: |c| / R <= max(1, sqrt(q)) and (1 + q) / R <= sqrt(1 + q). Roots divide,
since the gradient of a quotient divides twice, and that of an inverse root takes its cube.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from priors.gaussian.activations.base import Activation
from priors.gaussian.elementwise import Elementwise
from priors.gaussian.pairs import gram_determinant, normalised

if TYPE_CHECKING:
    from priors.shapes import Part, Whole

__all__ = ["Erf", "Exp", "GELU", "Gabor", "Gaussian", "Probit", "Sine"]


@dataclass(frozen=True)
class Erf(Activation):
    """The error function; Williams 1997."""

    def __call__(self, x: Tensor) -> Tensor:
        return torch.erf(x)

    def derivative(self, x: Tensor) -> Tensor:
        return (2 / math.sqrt(math.pi)) * torch.exp(-(x**2))

    def closed_dual(self, other: Self, q1: Part, q2: Part, c: Part) -> Whole:
        return (2 / math.pi) * _Angle.apply(2 * q1, 2 * q2, 2 * c)

    def closed_dual_derivative(self, other: Self, q1: Part, q2: Part, c: Part) -> Whole:
        return (4 / math.pi) / _Root.apply(2 * q1, 2 * q2, 2 * c)

    def mean(self, q: Whole) -> Whole:
        return torch.zeros_like(q)

    def mean_derivative(self, q: Whole) -> Whole:
        return (2 / math.sqrt(math.pi)) / (1 + 2 * q).sqrt()

    def second_moment(self, q: Whole) -> Whole:
        return (2 / math.pi) * _AngleOfEquals.apply(2 * q)

    def second_moment_derivative(self, q: Whole) -> Whole:
        return (4 / math.pi) / (1 + 4 * q).sqrt()


@dataclass(frozen=True)
class Probit(Activation):
    """Phi(x), the standard normal distribution function; from `Erf` at x / sqrt(2)."""

    def __call__(self, x: Tensor) -> Tensor:
        return torch.special.ndtr(x)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)

    def closed_dual(self, other: Self, q1: Part, q2: Part, c: Part) -> Whole:
        return 0.25 + _Angle.apply(q1, q2, c) / (2 * math.pi)

    def closed_dual_derivative(self, other: Self, q1: Part, q2: Part, c: Part) -> Whole:
        return (1 / (2 * math.pi)) / _Root.apply(q1, q2, c)

    def mean(self, q: Whole) -> Whole:
        return torch.full_like(q, 0.5)

    def mean_derivative(self, q: Whole) -> Whole:
        return (1 / math.sqrt(2 * math.pi)) / (1 + q).sqrt()

    def second_moment(self, q: Whole) -> Whole:
        return 0.25 + _AngleOfEquals.apply(q) / (2 * math.pi)

    def second_moment_derivative(self, q: Whole) -> Whole:
        return (1 / (2 * math.pi)) / (1 + 2 * q).sqrt()


@dataclass(frozen=True)
class GELU(Activation):
    """x Phi(x), the exact GELU; Tsuchida et al. 2021 (2002.08517)."""

    def __call__(self, x: Tensor) -> Tensor:
        return torch.nn.functional.gelu(x)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.special.ndtr(x) + x * torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)

    def closed_duals(self, other: Self, q1: Part, q2: Part, c: Part) -> tuple[Whole, Whole]:
        return _GELUDuals.apply(q1, q2, c)

    def mean(self, q: Whole) -> Whole:
        return q / (1 + q).sqrt() / math.sqrt(2 * math.pi)

    def mean_derivative(self, q: Whole) -> Whole:
        return torch.full_like(q, 0.5)

    def second_moment(self, q: Whole) -> Whole:
        root = (1 + 2 * q).sqrt()
        return _gelu_dual(q, q, q, root, _AngleOfEquals.apply(q))

    def second_moment_derivative(self, q: Whole) -> Whole:
        root = (1 + 2 * q).sqrt()
        return _gelu_dual_derivative(q, q, q, root, _AngleOfEquals.apply(q))


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

    def closed_dual(self, other: Self, q1: Part, q2: Part, c: Part) -> Whole:
        b1, b2 = self.frequency, other.frequency
        c = b1 * b2 * c
        # sinh(c) e^-s and cosh(c) e^-s, s = (q1 + q2) / 2, without overflow or cancellation
        size = torch.where(c < 0, -c, c)
        excess = size - (b1**2 * q1 + b2**2 * q2) / 2
        # above 0 it is rounding, which at large variances would be exponentiated
        scale = torch.exp(excess - excess.detach().clamp_min(0)) / 2
        sinh = -scale * torch.expm1(-2 * size)
        cosh = scale * (1 + torch.exp(-2 * size))
        odd = math.cos(self.phase) * math.cos(other.phase)
        even = math.sin(self.phase) * math.sin(other.phase)
        return odd * torch.where(c < 0, -sinh, sinh) + even * cosh

    def closed_dual_derivative(self, other: Self, q1: Part, q2: Part, c: Part) -> Whole:
        scale = self.frequency * other.frequency
        return scale * self._slope.dual(other._slope, q1, q2, c)

    @property
    def _slope(self) -> Sine:
        return Sine(self.phase + math.pi / 2, self.frequency)

    def mean(self, q: Whole) -> Whole:
        return math.sin(self.phase) * torch.exp(-(self.frequency**2) * q / 2)

    def mean_derivative(self, q: Whole) -> Whole:
        return self.frequency * self._slope.mean(q)

    def second_moment(self, q: Whole) -> Whole:
        decay = torch.expm1(-2 * self.frequency**2 * q)
        return math.sin(self.phase) ** 2 - math.cos(2 * self.phase) / 2 * decay

    def second_moment_derivative(self, q: Whole) -> Whole:
        return self.frequency**2 * self._slope.second_moment(q)


@dataclass(frozen=True)
class Exp(Activation):
    """exp(rate x). Its moments grow as exp(2 rate^2 q): deep networks of it overflow."""

    rate: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return torch.exp(self.rate * x)

    def derivative(self, x: Tensor) -> Tensor:
        return self.rate * torch.exp(self.rate * x)

    def closed_dual(self, other: Self, q1: Part, q2: Part, c: Part) -> Whole:
        a, b = self.rate, other.rate
        return torch.exp((a**2 * q1 + b**2 * q2) / 2 + a * b * c)

    def closed_dual_derivative(self, other: Self, q1: Part, q2: Part, c: Part) -> Whole:
        return self.rate * other.rate * self.dual(other, q1, q2, c)

    def mean(self, q: Whole) -> Whole:
        return torch.exp(self.rate**2 * q / 2)

    def mean_derivative(self, q: Whole) -> Whole:
        return self.rate * self.mean(q)

    def second_moment(self, q: Whole) -> Whole:
        return torch.exp(2 * self.rate**2 * q)

    def second_moment_derivative(self, q: Whole) -> Whole:
        return self.rate**2 * self.second_moment(q)


@dataclass(frozen=True)
class Gaussian(Activation):
    """exp(-x^2); its dual is the normalisation of a Gaussian, one over a root of a determinant."""

    def __call__(self, x: Tensor) -> Tensor:
        return torch.exp(-(x**2))

    def derivative(self, x: Tensor) -> Tensor:
        return -2 * x * torch.exp(-(x**2))

    def closed_dual(self, other: Self, q1: Part, q2: Part, c: Part) -> Whole:
        return 1 / _Root.apply(2 * q1, 2 * q2, 2 * c)

    def closed_dual_derivative(self, other: Self, q1: Part, q2: Part, c: Part) -> Whole:
        root = _Root.apply(2 * q1, 2 * q2, 2 * c)
        return 4 * c / root / root / root

    def mean(self, q: Whole) -> Whole:
        return 1 / (1 + 2 * q).sqrt()

    def mean_derivative(self, q: Whole) -> Whole:
        return torch.zeros_like(q)

    def second_moment(self, q: Whole) -> Whole:
        return 1 / (1 + 4 * q).sqrt()

    def second_moment_derivative(self, q: Whole) -> Whole:
        return 4 * q / (1 + 4 * q) / (1 + 4 * q).sqrt()


@dataclass(frozen=True)
class Gabor(Activation):
    """exp(-x^2) sin(x); Han et al. 2022 (2209.04121)."""

    def __call__(self, x: Tensor) -> Tensor:
        return torch.exp(-(x**2)) * torch.sin(x)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.exp(-(x**2)) * (torch.cos(x) - 2 * x * torch.sin(x))

    def closed_duals(self, other: Self, q1: Part, q2: Part, c: Part) -> tuple[Whole, Whole]:
        return _gabor_duals(q1, q2, c, _Root.apply(2 * q1, 2 * q2, 2 * c))

    def mean(self, q: Whole) -> Whole:
        return torch.zeros_like(q)

    def mean_derivative(self, q: Whole) -> Whole:
        tilted = 1 + 2 * q
        return torch.exp(-q / tilted / 2) / tilted.sqrt() / tilted

    def second_moment(self, q: Whole) -> Whole:
        return _gabor_duals(q, q, q, (1 + 4 * q).sqrt())[0]

    def second_moment_derivative(self, q: Whole) -> Whole:
        return _gabor_duals(q, q, q, (1 + 4 * q).sqrt())[1]


class _Root(Elementwise):
    """R = sqrt((1 + q1)(1 + q2) - c^2)."""

    @staticmethod
    def forward(q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        p1, p2, rho, s, t = normalised(q1, q2, c, least=1)
        det = gram_determinant(p1, p2, rho)
        if rho is c:
            return det.add_(1 + p1).add_(p2).sqrt_()
        det += 1 / s / s / t / t + p1 / t / t + p2 / s / s
        return det.sqrt_() * s * t

    @staticmethod
    def slopes(
        inputs: Sequence[Tensor], outputs: Sequence[Tensor], needed: Sequence[bool]
    ) -> Sequence[Sequence[Tensor | None]]:
        (q1, q2, c), (root,) = inputs, outputs
        variances = [
            (1 + other) / root / 2 if wanted else None
            for other, wanted in zip((q2, q1), needed, strict=False)
        ]
        return [[*variances, -c / root]]


class _Angle(Elementwise):
    """asin(c / sqrt((1 + q1)(1 + q2)))."""

    @staticmethod
    def forward(q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        # through its cosine: the arcsine's slope is infinite at 1
        return torch.atan2(c, _Root.apply(q1, q2, c))

    @staticmethod
    def slopes(
        inputs: Sequence[Tensor], outputs: Sequence[Tensor], needed: Sequence[bool]
    ) -> Sequence[Sequence[Tensor | None]]:
        q1, q2, c = inputs
        root = _Root.apply(q1, q2, c)
        variances = [
            c / root / (1 + q) / -2 if wanted else None
            for q, wanted in zip((q1, q2), needed, strict=False)
        ]
        return [[*variances, 1 / root]]


class _AngleOfEquals(Elementwise):
    """asin(q / (1 + q)), the angle of u and u."""

    @staticmethod
    def forward(q: Tensor) -> Tensor:
        return torch.atan2(q, (1 + 2 * q).sqrt())

    @staticmethod
    def slopes(
        inputs: Sequence[Tensor], outputs: Sequence[Tensor], needed: Sequence[bool]
    ) -> Sequence[Sequence[Tensor | None]]:
        (q,) = inputs
        return [[1 / (1 + 2 * q).sqrt() / (1 + q)]]


class _GELUDuals(Elementwise):
    """Both duals of GELU, whose second derivative is (2 - x^2) times the normal density.

    The slopes are E[phi' phi'], E[phi'' phi] / 2 by tilting with the density, and what the formula
    of E[phi' phi'] gives.
    """

    @staticmethod
    def forward(q1: Tensor, q2: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        root = _Root.apply(q1, q2, c)
        arguments = q1, q2, c, root, torch.atan2(c, root)
        return _gelu_dual(*arguments), _gelu_dual_derivative(*arguments)

    @staticmethod
    def slopes(
        inputs: Sequence[Tensor], outputs: Sequence[Tensor], needed: Sequence[bool]
    ) -> Sequence[Sequence[Tensor | None]]:
        q1, q2, c = inputs
        root = _Root.apply(q1, q2, c)
        p1, p2, rho, s, t = normalised(q1, q2, c, least=1)
        det = gram_determinant(p1, p2, rho)
        lean = c / root
        columns: list[list[Tensor | None]] = []
        for k, (q, other, own, others) in enumerate(((q1, q2, s, t), (q2, q1, t, s))):
            if not needed[k]:
                columns.append([None, None])
                continue
            tilt = 1 + q
            # the variance of v given the tilted u, (q2 + D) / (1 + q1), over R
            rest = (other / tilt + det * (own / tilt * own) * others * others) / root
            bend = (c / tilt) ** 2 / root * (1 + tilt / root / root)
            of_value = ((1 + 1 / tilt) * rest - bend) / (4 * math.pi)
            far = (1 + other) / root
            flat = lean / tilt * (0.5 + 1 / tilt)
            sharp = 1.5 * (lean / root * far / root / root)
            mixed = lean / root * (far / tilt + 1 / root) / 2
            columns.append([of_value, -(flat + sharp + mixed) / (2 * math.pi)])
        bend = 1 + 1 / root / root + 3 * (lean / root) ** 2
        for q in (q1, q2):
            bend = bend + 1 / (1 + q) + lean / (1 + q) * lean
        columns.append([outputs[1], bend / root / (2 * math.pi)])
        return list(zip(*columns, strict=True))


def _gelu_dual(q1: Part, q2: Part, c: Part, root: Part, angle: Part) -> Whole:
    t1, t2 = 1 + q1, 1 + q2
    bend = (c / t1) * (c / t2) / root + (q1 / t1) * (q2 / t2) * root
    return c / 4 + (c * angle + bend) / (2 * math.pi)


def _gelu_dual_derivative(q1: Part, q2: Part, c: Part, root: Part, angle: Part) -> Whole:
    lean = c / root
    bend = lean / root / root + lean / (1 + q1) + lean / (1 + q2)
    return 0.25 + (angle + bend) / (2 * math.pi)


def _gabor_duals(q1: Part, q2: Part, c: Part, root: Part) -> tuple[Whole, Whole]:
    """Both duals of Gabor, `root` = sqrt((1 + 2 q1)(1 + 2 q2) - 4 c^2).

    The second is the first's slope in c.
    """
    ratio = (1 + q1 + q2) / root / root
    scale = torch.exp((ratio - 1) / 2) / root
    x = c / root / root
    sinh, cosh = torch.sinh(x), torch.cosh(x)
    slope = 4 * x * (1 + ratio) * sinh + (1 / root / root + 8 * x * x) * cosh
    return scale * sinh, scale * slope
