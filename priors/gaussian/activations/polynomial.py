"""Polynomials, whose expectations are finite sums."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from priors.gaussian.activations.base import Activation
from priors.gaussian.activations.powers import Terms
from priors.gaussian.pairs import are_extreme

if TYPE_CHECKING:
    from priors.shapes import Part, Whole

__all__ = ["Hermite", "Polynomial"]


class _PolynomialBase(Activation):
    """A polynomial, through the means M_j(q) = E[p^(j)(u)] of its derivatives.

    Expanding in c by Price's theorem, E[p(u) r(v)] = sum_j c^j / j! M_j(q1) N_j(q2): a finite
    sum, exact at every variance (Isserlis' theorem).
    """

    @property
    @abstractmethod
    def monomials(self) -> tuple[float, ...]:
        """Coefficients of 1, x, x^2, ..."""

    @property
    def terms(self) -> Terms:
        powers = [(a, n) for n, a in enumerate(self.monomials) if a]
        return tuple((a * s**n, n, s) for a, n in powers for s in (1, -1))

    @abstractmethod
    def derivative_means(self, q: Tensor) -> list[Tensor]:
        """M_0(q), ..., M_degree(q), each of the shape of `q`."""

    def __call__(self, x: Tensor) -> Tensor:
        value = torch.zeros_like(x)
        for coefficient in reversed(self.monomials):
            value = value * x + coefficient
        return value

    def derivative(self, x: Tensor) -> Tensor:
        return Polynomial(_differentiated(self.monomials))(x)

    def closed_dual(self, other: Self, q1: Part, q2: Part, c: Part) -> Whole:
        return self._of_derivatives(other, q1, q2, c, 0)

    def closed_dual_derivative(self, other: Self, q1: Part, q2: Part, c: Part) -> Whole:
        return self._of_derivatives(other, q1, q2, c, 1)

    def _of_derivatives(self, other: Self, q1: Part, q2: Part, c: Part, order: int) -> Whole:
        """E[p^(order)(u) r^(order)(v)]."""
        dtype = c.dtype
        if are_extreme(q1, q2) is None:  # they may be: then infinity times 0 would be NaN
            q1, q2, c = q1.double(), q2.double(), c.double()
        means = self.derivative_means(q1)[order:], other.derivative_means(q2)[order:]
        shape = torch.broadcast_shapes(q1.shape, q2.shape, c.shape)  # there may be no means
        return _price_series(*means, c.expand(shape)).to(dtype)

    def mean(self, q: Whole) -> Whole:
        return self.derivative_means(q)[0]

    def mean_derivative(self, q: Whole) -> Whole:
        return [*self.derivative_means(q), torch.zeros_like(q)][1]

    def second_moment(self, q: Whole) -> Whole:
        return self.dual(self, q, q, q)

    def second_moment_derivative(self, q: Whole) -> Whole:
        return self.dual_derivative(self, q, q, q)


@dataclass(frozen=True)
class Polynomial(_PolynomialBase):
    """sum_k coefficients[k] x^k.

    Raises:
        ValueError: `coefficients` is empty.
    """

    coefficients: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.coefficients:
            raise ValueError(
                "Polynomial needs at least one coefficient, the constant term; got ()."
            )

    @property
    def monomials(self) -> tuple[float, ...]:
        return self.coefficients

    def derivative_means(self, q: Tensor) -> list[Tensor]:
        means, monomials = [], self.coefficients
        for _ in self.coefficients:
            # E[u^(2m)] = (2m - 1)!! q^m: Horner's rule in q over the even powers
            value = torch.zeros_like(q)
            for m in reversed(range((len(monomials) + 1) // 2)):
                value = value * q + monomials[2 * m] * math.prod(range(1, 2 * m, 2))
            means.append(value)
            monomials = _differentiated(monomials)
        return means


@dataclass(frozen=True)
class Hermite(_PolynomialBase):
    """He_n(x) / sqrt(n!), the probabilists' Hermite polynomial of unit norm at q = 1.

    There its dual is c^n (Daniely et al. 2016); at other variances E[He_m(u)] =
    m! / (2^(m/2) (m/2)!) (q - 1)^(m/2) for even m and He_n' = n He_(n-1) give it.

    Args:
        degree: n >= 0.

    Raises:
        ValueError: `degree` is negative.
    """

    degree: int

    def __post_init__(self) -> None:
        if self.degree < 0:
            raise ValueError(f"Hermite needs degree >= 0, got {self.degree}.")

    def __call__(self, x: Tensor) -> Tensor:
        below, value = torch.zeros_like(x), torch.ones_like(x)
        for k in range(self.degree):
            below, value = value, (x * value - math.sqrt(k) * below) / math.sqrt(k + 1)
        return value

    def derivative(self, x: Tensor) -> Tensor:
        if self.degree == 0:
            return torch.zeros_like(x)
        return math.sqrt(self.degree) * Hermite(self.degree - 1)(x)

    @property
    def monomials(self) -> tuple[float, ...]:
        n = self.degree
        monomials = [0.0] * (n + 1)
        for m in range(n // 2 + 1):
            factor = math.sqrt(math.factorial(n)) / (math.factorial(m) * math.factorial(n - 2 * m))
            monomials[n - 2 * m] = (-0.5) ** m * factor
        return tuple(monomials)

    def derivative_means(self, q: Tensor) -> list[Tensor]:
        n = self.degree
        means = []
        for j in range(n + 1):
            half, odd = divmod(n - j, 2)
            factor = math.sqrt(math.factorial(n)) / math.factorial(half) / 2**half
            means.append(torch.zeros_like(q) if odd else factor * (q - 1) ** half)
        return means


def _differentiated(monomials: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(k * a for k, a in enumerate(monomials))[1:] or (0.0,)


def _price_series(means1: list[Tensor], means2: list[Tensor], c: Tensor) -> Tensor:
    """sum_j c^j / j! M_j N_j by Horner's rule."""
    value = torch.zeros_like(c)
    for j, (m, n) in reversed(list(enumerate(zip(means1, means2, strict=False)))):
        value = value * c / (j + 1) + m * n
    if are_extreme(*means1, *means2) and value.isnan().any() and not c.isnan().any():
        raise ValueError(
            f"Moments of a polynomial leave the range of {c.dtype} at these variances: scale the "
            "inputs, or take smaller weight variances."
        )
    return value
