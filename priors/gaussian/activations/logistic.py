"""Functions of the logistic sigmoid, whose derivatives of every order are known.

With s = sigmoid(r x), v = s (1 - s) and t = 1 - 2 s,

    dv/dx = r v t,    dt/dx = -r (1 - t^2) / 2,

so that the derivatives of v (A(t) + x B(t)) are of the same form, A and B polynomials. Their
expectations have no closed form; tables of these need derivatives to fourth order at very many
points, where repeated automatic differentiation takes most of the time. v is kept as a factor, as
it decays: a polynomial in s alone would lose all digits there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from priors.gaussian.activations.base import FunctionOfOne
from priors.gaussian.quadrature import Function

__all__ = ["Logistic", "log_sigmoid", "sigmoid", "silu", "softplus", "tanh", "tanhshrink"]

Coefficients = tuple[float, ...]


@dataclass(frozen=True)
class Bump:
    """v (A(t) + x B(t)), elementwise.

    Attributes:
        rate: r.
        plain: Coefficients of A, lowest power first.
        slanted: Those of B.
    """

    rate: float
    plain: Coefficients
    slanted: Coefficients = ()

    def __call__(self, x: Tensor) -> Tensor:
        right, left = torch.sigmoid(self.rate * x), torch.sigmoid(-self.rate * x)
        t = left - right
        inner = _at(self.plain, t)
        if self.slanted:
            inner = inner + x * _at(self.slanted, t)
        return left * right * inner

    def derivative(self) -> Bump:
        """Of the next order."""
        plain = _sum(_turned(self.plain, self.rate), self.slanted)
        return Bump(self.rate, plain, _turned(self.slanted, self.rate))


def _at(coefficients: Coefficients, t: Tensor) -> Tensor:
    """Horner's rule."""
    value = torch.full_like(t, coefficients[-1])
    for c in coefficients[-2::-1]:
        value = value * t + c
    return value


def _turned(a: Coefficients, rate: float) -> Coefficients:
    """r (t A - (1 - t^2) A' / 2), which is what becomes of A."""
    slope = tuple(k * c for k, c in enumerate(a))[1:]
    half = tuple(rate * c / 2 for c in slope)
    parts = (0.0, *(rate * c for c in a)), tuple(-c for c in half), (0.0, 0.0, *half)
    return _sum(*parts) if a else ()


def _sum(*parts: Coefficients) -> Coefficients:
    """Sum of polynomials."""
    size = max(len(p) for p in parts)
    return tuple(sum(p[k] for p in parts if k < len(p)) for k in range(size))


@dataclass(frozen=True)
class Logistic(FunctionOfOne):
    """A smooth function of which the first two derivatives are given; the others follow.

    Args:
        function: As torch has it.
        slope: Its derivative.
        curvature: Its second derivative.
    """

    function: Function
    slope: Function
    curvature: Bump

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)

    def derivative(self, x: Tensor) -> Tensor:
        return self.slope(x)

    def derivative_function(self, order: int) -> Function:
        if order < 2:
            return (self, self.slope)[order]
        found = self.curvature
        for _ in range(order - 2):
            found = found.derivative()
        return found


def sigmoid() -> Logistic:
    """1 / (1 + e^-x)."""
    slope = Bump(1.0, (1.0,))
    return Logistic(torch.sigmoid, slope, slope.derivative())


def tanh() -> Logistic:
    """2 sigmoid(2 x) - 1."""
    slope = Bump(2.0, (4.0,))
    return Logistic(torch.tanh, slope, slope.derivative())


def tanhshrink() -> Logistic:
    """x - tanh x."""
    return Logistic(F.tanhshrink, _squared_tanh, Bump(2.0, (-4.0,)).derivative())


def silu() -> Logistic:
    """x sigmoid(x)."""
    return Logistic(F.silu, _slope_of_silu, Bump(1.0, (2.0,), (0.0, 1.0)))


def log_sigmoid() -> Logistic:
    """-log(1 + e^-x)."""
    return Logistic(F.logsigmoid, _Sigmoid(-1.0), Bump(1.0, (-1.0,)))


def softplus(function: Function, beta: float) -> Logistic:
    """log(1 + e^(beta x)) / beta, as `function` computes it."""
    return Logistic(function, _Sigmoid(beta), Bump(beta, (beta,)))


@dataclass(frozen=True)
class _Sigmoid:
    """sigmoid(rate x)."""

    rate: float

    def __call__(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.rate * x)


def _squared_tanh(x: Tensor) -> Tensor:
    return torch.tanh(x) ** 2


def _slope_of_silu(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * torch.sigmoid(-x))
