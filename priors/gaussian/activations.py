"""Activations and the Gaussian expectations of their products.

For a centred Gaussian pair (u, v) with variances q1, q2 and covariance c, an activation phi and
another psi, the infinite-width recursion needs

    dual               E[phi(u) psi(v)]
    dual_derivative    E[phi'(u) psi'(v)]
    second_moment      E[phi(u)^2], and with derivatives E[phi'(u)^2]   (u = v, exactly)
    mean               E[phi(u)], and with the derivative E[phi'(u)]

in closed form where there is one, otherwise by `gaussian.quadrature`. The closed forms are written
in D = q1 q2 - c^2, factored as (sqrt(q1 q2) - c)(sqrt(q1 q2) + c) so that nearly parallel u and v
lose few digits, and are differentiable at u = v, u = -v and q = 0; where their automatic
derivative is not, by Price's theorem, dE/dc = E[phi' psi'] and dE/dq1 = E[phi'' psi] / 2.

A jump of phi contributes a delta to phi'. All expectations of phi' leave it out, as the gradient
of a finite network does, but `stein`, whose use is E[phi(u) w] = E[phi'(u)] E[u w].

Shapes: q1, q2 and c broadcast together; the result has the broadcast shape.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from priors.gaussian.elu import elu_duals, elu_means, elu_squares
from priors.gaussian.pairs import delta_and_angle, gram_determinant, inverse_sqrt, noise_floor
from priors.gaussian.quadrature import derivative_of, gaussian_expectation, gaussian_mean, jumps

__all__ = [
    "ELU",
    "GELU",
    "ABReLU",
    "Activation",
    "Elementwise",
    "Erf",
    "Exp",
    "Gabor",
    "Gaussian",
    "Hermite",
    "Polynomial",
    "Probit",
    "RectifiedPower",
    "Sign",
    "Sine",
    "Smooth",
]


class Activation(ABC):
    """An elementwise nonlinearity with its Gaussian expectations.

    A subclass gives the function and where it is not smooth; every expectation has a quadrature
    default, overridden where there is a closed form.
    """

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """The function itself, elementwise."""

    def derivative(self, x: Tensor) -> Tensor:
        """phi', elementwise; at a kink the value of either side."""
        return derivative_of(self)(x)

    @property
    def kinks(self) -> tuple[float, ...]:
        """Where phi or phi' jumps, or a higher derivative does."""
        return ()

    @property
    def homogeneous(self) -> bool:
        """Whether phi(s x) = s phi(x) for every s > 0."""
        return False

    def shifted(self, offset: float) -> Activation:
        """The activation x -> phi(x + offset)."""
        return _Shifted(self, offset) if offset else self

    def dual(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        """E[phi(u) psi(v)] with psi = `other`."""
        closed = _rectified_dual(_terms(self), _terms(other), q1, q2, c)
        if closed is not None:
            return closed
        return gaussian_expectation(self, other, q1, q2, c, f_kinks=self.kinks, g_kinks=other.kinks)

    def dual_derivative(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        """E[phi'(u) psi'(v)] with psi = `other`."""
        closed = _rectified_dual(_slopes(_terms(self)), _slopes(_terms(other)), q1, q2, c)
        if closed is not None:
            return closed
        return gaussian_expectation(
            self.derivative, other.derivative, q1, q2, c, f_kinks=self.kinks, g_kinks=other.kinks
        )

    def duals(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """`dual` and `dual_derivative`, sharing the work where that saves some."""
        return self.dual(other, q1, q2, c), self.dual_derivative(other, q1, q2, c)

    def mean(self, q: Tensor) -> Tensor:
        """E[phi(u)] for u of variance `q`."""
        return gaussian_mean(self, q, kinks=self.kinks)

    def mean_derivative(self, q: Tensor) -> Tensor:
        """E[phi'(u)] for u of variance `q`, without the deltas of phi' at jumps."""
        return gaussian_mean(self.derivative, q, kinks=self.kinks)

    def stein(self, q: Tensor) -> Tensor:
        """E[u phi(u)] / q: `mean_derivative` and the deltas of phi' at jumps.

        Stein's lemma: E[phi(u) w] = stein(q) E[u w] for jointly Gaussian u and w.
        """
        value = self.mean_derivative(q)
        inverse = inverse_sqrt(q, torch.finfo(q.dtype).tiny)
        for kink, jump in zip(self.kinks, jumps(self, self.kinks), strict=True):
            if jump:
                density = torch.exp(-((kink * inverse) ** 2) / 2) * inverse
                value = value + jump / math.sqrt(2 * math.pi) * density
        return value

    def second_moment(self, q: Tensor) -> Tensor:
        """E[phi(u)^2] for u of variance `q`."""
        return gaussian_mean(lambda x: self(x) ** 2, q, kinks=self.kinks)

    def second_moment_derivative(self, q: Tensor) -> Tensor:
        """E[phi'(u)^2] for u of variance `q`."""
        return gaussian_mean(lambda x: self.derivative(x) ** 2, q, kinks=self.kinks)


# Piecewise powers --------------------------------------------------------------------------------


class _Rectified(Activation):
    """A sum of terms a max(s x, 0)^n with s = +-1: moments of one variable from those of a term."""

    @property
    @abstractmethod
    def terms(self) -> tuple[tuple[float, int, int], ...]:
        """(a, n, s) of each term."""

    @property
    def kinks(self) -> tuple[float, ...]:
        return (0.0,)

    def mean(self, q: Tensor) -> Tensor:
        return _rectified_mean(self.terms, q)

    def mean_derivative(self, q: Tensor) -> Tensor:
        return _rectified_mean(_slopes(self.terms), q)

    def second_moment(self, q: Tensor) -> Tensor:
        return _rectified_mean(_squares(self.terms), q)

    def second_moment_derivative(self, q: Tensor) -> Tensor:
        return _rectified_mean(_squares(_slopes(self.terms)), q)


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
    def terms(self) -> tuple[tuple[float, int, int], ...]:
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

    def dual(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        if not isinstance(other, ABReLU):
            return super().dual(other, q1, q2, c)
        return self.duals(other, q1, q2, c)[0]

    def dual_derivative(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        if not isinstance(other, ABReLU):
            return super().dual_derivative(other, q1, q2, c)
        return self.duals(other, q1, q2, c)[1]

    def duals(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(other, ABReLU):
            return super().duals(other, q1, q2, c)
        odd, even = self._odd * other._odd, self._even * other._even
        if not (torch.is_grad_enabled() and any(t.requires_grad for t in (q1, q2, c))):
            delta, angle = delta_and_angle(q1, q2, c)
            absolute = delta.addcmul_(c, angle).mul_(2 / math.pi * even)
            return absolute.add_(c, alpha=odd), angle.mul_(2 / math.pi * even).add_(odd)
        absolute, signs = _AbsAndSign.apply(q1, q2, c)
        return odd * c + even * absolute, odd + even * signs


@dataclass(frozen=True)
class Sign(_Rectified):
    """The sign function; its NTK is taken to be 0, as the gradient of a finite network is."""

    def __call__(self, x: Tensor) -> Tensor:
        return torch.sign(x)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    @property
    def terms(self) -> tuple[tuple[float, int, int], ...]:
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
    def terms(self) -> tuple[tuple[float, int, int], ...]:
        return ((1.0, self.power, 1),)

    @property
    def homogeneous(self) -> bool:
        return self.power == 1


# Polynomials -------------------------------------------------------------------------------------


class _PolynomialBase(Activation):
    """A polynomial, through the means M_j(q) = E[p^(j)(u)] of its derivatives.

    Expanding in c by Price's theorem, E[p(u) r(v)] = sum_j c^j / j! M_j(q1) N_j(q2): a finite
    sum, exact at every variance (Isserlis' theorem).
    """

    @property
    @abstractmethod
    def monomials(self) -> tuple[float, ...]:
        """Coefficients of 1, x, x^2, ..."""

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

    def dual(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        if not isinstance(other, _PolynomialBase):
            return super().dual(other, q1, q2, c)
        return _price_series(self.derivative_means(q1), other.derivative_means(q2), c)

    def dual_derivative(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        if not isinstance(other, _PolynomialBase):
            return super().dual_derivative(other, q1, q2, c)
        means = self.derivative_means(q1)[1:], other.derivative_means(q2)[1:]
        return _price_series(*means, c)

    def mean(self, q: Tensor) -> Tensor:
        return self.derivative_means(q)[0]

    def mean_derivative(self, q: Tensor) -> Tensor:
        return [*self.derivative_means(q), torch.zeros_like(q)][1]

    def second_moment(self, q: Tensor) -> Tensor:
        return self.dual(self, q, q, q)

    def second_moment_derivative(self, q: Tensor) -> Tensor:
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
            raise ValueError("Polynomial needs at least one coefficient, the constant's; got ().")

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


# Smooth functions --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Erf(Activation):
    """The error function; Williams 1997."""

    def __call__(self, x: Tensor) -> Tensor:
        return torch.erf(x)

    def derivative(self, x: Tensor) -> Tensor:
        return (2 / math.sqrt(math.pi)) * torch.exp(-(x**2))

    def dual(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        if not isinstance(other, Erf):
            return super().dual(other, q1, q2, c)
        # asin(2c / sqrt(...)), whose slope is infinite at 1, through its cosine
        return (2 / math.pi) * torch.atan2(2 * c, _erf_determinant(q1, q2, c).sqrt())

    def dual_derivative(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        if not isinstance(other, Erf):
            return super().dual_derivative(other, q1, q2, c)
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

    def dual(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        if not isinstance(other, Probit):
            return super().dual(other, q1, q2, c)
        root = (1 + q1 + q2 + gram_determinant(q1, q2, c)).sqrt()
        return 0.25 + torch.atan2(c, root) / (2 * math.pi)

    def dual_derivative(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        if not isinstance(other, Probit):
            return super().dual_derivative(other, q1, q2, c)
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

    def dual(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        if not isinstance(other, GELU):
            return super().dual(other, q1, q2, c)
        return self.duals(other, q1, q2, c)[0]

    def dual_derivative(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        if not isinstance(other, GELU):
            return super().dual_derivative(other, q1, q2, c)
        return self.duals(other, q1, q2, c)[1]

    def duals(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(other, GELU):
            return super().duals(other, q1, q2, c)
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

    def dual(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        if not isinstance(other, Sine):
            return super().dual(other, q1, q2, c)
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

    def dual_derivative(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        if not isinstance(other, Sine):
            return super().dual_derivative(other, q1, q2, c)
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

    def dual(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        if not isinstance(other, Exp):
            return super().dual(other, q1, q2, c)
        a, b = self.rate, other.rate
        return torch.exp((a**2 * q1 + b**2 * q2) / 2 + a * b * c)

    def dual_derivative(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        if not isinstance(other, Exp):
            return super().dual_derivative(other, q1, q2, c)
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

    def dual(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        if not isinstance(other, Gaussian):
            return super().dual(other, q1, q2, c)
        return _erf_determinant(q1, q2, c).rsqrt()

    def dual_derivative(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        if not isinstance(other, Gaussian):
            return super().dual_derivative(other, q1, q2, c)
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

    def dual(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        if not isinstance(other, Gabor):
            return super().dual(other, q1, q2, c)
        return self.duals(other, q1, q2, c)[0]

    def dual_derivative(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        if not isinstance(other, Gabor):
            return super().dual_derivative(other, q1, q2, c)
        return self.duals(other, q1, q2, c)[1]

    def duals(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(other, Gabor):
            return super().duals(other, q1, q2, c)
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


# Exponential linear units -------------------------------------------------------------------------


@dataclass(frozen=True)
class ELU(Activation):
    """scale x for x > 0, scale alpha (exp(rate x) - 1) below; `priors.gaussian.elu`.

    `torch.nn.ELU(alpha)` is ELU(alpha); SELU has scale 1.0507... and alpha 1.6733...; CELU(a) is
    ELU(a, rate=1 / a). Written as scale / rate psi(rate x), psi' having the limits 1 and
    alpha rate at zero.

    Raises:
        ValueError: `rate` is not positive.
    """

    alpha: float = 1.0
    scale: float = 1.0
    rate: float = 1.0

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ValueError(f"ELU needs rate > 0, got {self.rate}.")

    def __call__(self, x: Tensor) -> Tensor:
        below = self.alpha * torch.expm1(self.rate * x.clamp(max=0))
        return self.scale * (x.clamp(min=0) + below)

    def derivative(self, x: Tensor) -> Tensor:
        below = self.alpha * self.rate * torch.exp(self.rate * x.clamp(max=0))
        return self.scale * torch.where(x > 0, 1.0, below)

    @property
    def kinks(self) -> tuple[float, ...]:
        return (0.0,)

    @property
    def _beta(self) -> float:
        return self.alpha * self.rate

    def dual(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        if not isinstance(other, ELU):
            return super().dual(other, q1, q2, c)
        return self.duals(other, q1, q2, c)[0]

    def dual_derivative(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        if not isinstance(other, ELU):
            return super().dual_derivative(other, q1, q2, c)
        return self.duals(other, q1, q2, c)[1]

    def duals(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(other, ELU):
            return super().duals(other, q1, q2, c)
        a, b = self.rate, other.rate
        value, slope = elu_duals(a**2 * q1, b**2 * q2, a * b * c, self._beta, other._beta)
        scale = self.scale * other.scale
        return scale / (a * b) * value, scale * slope

    def mean(self, q: Tensor) -> Tensor:
        return self.scale / self.rate * elu_means(self.rate**2 * q, self._beta)[0]

    def mean_derivative(self, q: Tensor) -> Tensor:
        return self.scale * elu_means(self.rate**2 * q, self._beta)[1]

    def second_moment(self, q: Tensor) -> Tensor:
        return (self.scale / self.rate) ** 2 * elu_squares(self.rate**2 * q, self._beta)[0]

    def second_moment_derivative(self, q: Tensor) -> Tensor:
        return self.scale**2 * elu_squares(self.rate**2 * q, self._beta)[1]


# Quadrature --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Smooth(Activation):
    """Any function smooth on the real line, by quadrature.

    Args:
        function: Elementwise and differentiable by autograd, growing at most polynomially.
    """

    function: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)


@dataclass(frozen=True)
class Elementwise(Activation):
    """Any piecewise smooth function, by quadrature.

    Args:
        function: Elementwise and differentiable by autograd, growing at most polynomially.
        positions: Where it, or one of its derivatives, jumps; `quadrature.detect_kinks` finds
            them.
    """

    function: Callable[[Tensor], Tensor]
    positions: tuple[float, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)

    @property
    def kinks(self) -> tuple[float, ...]:
        return self.positions


@dataclass(frozen=True)
class _Shifted(Activation):
    """x -> phi(x + offset)."""

    activation: Activation
    offset: float

    def __call__(self, x: Tensor) -> Tensor:
        return self.activation(x + self.offset)

    def derivative(self, x: Tensor) -> Tensor:
        return self.activation.derivative(x + self.offset)

    @property
    def kinks(self) -> tuple[float, ...]:
        return tuple(kink - self.offset for kink in self.activation.kinks)

    def shifted(self, offset: float) -> Activation:
        return _Shifted(self.activation, self.offset + offset)


# Formulas ----------------------------------------------------------------------------------------


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


def _differentiated(monomials: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(k * a for k, a in enumerate(monomials))[1:] or (0.0,)


def _price_series(means1: list[Tensor], means2: list[Tensor], c: Tensor) -> Tensor:
    """sum_j c^j / j! M_j N_j by Horner's rule."""
    value = torch.zeros_like(c)
    for j, (m, n) in reversed(list(enumerate(zip(means1, means2, strict=False)))):
        value = value * c / (j + 1) + m * n
    return value


# Piecewise powers: Gaussian moments --------------------------------------------------------------

_Terms = tuple[tuple[float, int, int], ...]


def _terms(activation: Activation) -> _Terms | None:
    """(a, n, s) of a sum of a max(s x, 0)^n, or None if the activation is none."""
    if isinstance(activation, _Rectified):
        return activation.terms
    if isinstance(activation, _PolynomialBase):
        powers = [(a, n) for n, a in enumerate(activation.monomials) if a]
        return tuple((a * s**n, n, s) for a, n in powers for s in (1, -1))
    return None


def _slopes(terms: _Terms | None) -> _Terms | None:
    """The terms of the derivative, without deltas."""
    return terms and tuple((a * n * s, n - 1, s) for a, n, s in terms if n)


def _squares(terms: _Terms | None) -> _Terms:
    """The terms of the square; products of opposite sides vanish."""
    assert terms is not None
    return tuple((a * b, n + m, s) for a, n, s in terms for b, m, r in terms if s == r)


def _rectified_mean(terms: _Terms | None, q: Tensor) -> Tensor:
    """sum of a E[max(u, 0)^n] = a q^(n/2) E[max(z, 0)^n]."""
    assert terms is not None
    value = torch.zeros_like(q)
    for a, n, _ in terms:
        # an odd power of sqrt(q) would have an infinite gradient at q = 0
        power = q ** (n // 2) * (q * inverse_sqrt(q, torch.finfo(q.dtype).tiny) if n % 2 else 1)
        value = value + a * _half_moment(n) * power
    return value


def _half_moment(n: int) -> float:
    """E[max(z, 0)^n] of a standard normal z."""
    return 2 ** (n / 2 - 1) * math.gamma((n + 1) / 2) / math.sqrt(math.pi)


def _rectified_dual(
    terms1: _Terms | None, terms2: _Terms | None, q1: Tensor, q2: Tensor, c: Tensor
) -> Tensor | None:
    if terms1 is None or terms2 is None:
        return None
    value = torch.zeros_like(q1 + q2 + c)
    for a, m, r in terms1:
        for b, n, s in terms2:
            if a and b:
                value = value + a * b * _RectifiedDual.apply(q1, q2, r * s * c, m, n)
    return value


class _RectifiedDual(torch.autograd.Function):
    """I_mn = E[max(u, 0)^m max(v, 0)^n].

    For unit variances J_mn, integrating by parts (Stein's lemma),

        J_(m+1)n = m J_(m-1)n + rho n J_m(n-1),    m, n >= 1,
        J_1n     = s^n E[z_+^n] / sqrt(2 pi) + rho n J_0(n-1),    s = sqrt(1 - rho^2),
        J_(m+1)0 = m J_(m-1)0 + rho s^m E[z_+^m] / sqrt(2 pi),
        J_00     = 1/4 + asin(rho) / (2 pi).

    Derivatives by Price's theorem, those at the kink by hand as E[delta(u) max(v, 0)^n] =
    (D / q1)^(n/2) E[z_+^n] / sqrt(2 pi q1). A slope infinite at rho = +-1 or q = 0 is set to 0.
    """

    @staticmethod
    def forward(ctx, q1, q2, c, m, n):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(q1, q2, c)
        ctx.powers = m, n
        r1, r2 = q1.clamp_min(0).sqrt(), q2.clamp_min(0).sqrt()
        root = r1 * r2
        safe = torch.where(root > 0, root, 1.0)
        s, angle = delta_and_angle(q1, q2, c)
        rho, s = torch.where(root > 0, c / safe, 0.0).clamp(-1, 1), s / safe
        known: dict[tuple[int, int], Tensor] = {(0, 0): 0.25 + angle / (2 * math.pi)}

        def at_kink(power: int) -> Tensor:
            return s**power * (_half_moment(power) / math.sqrt(2 * math.pi))

        def moment(i: int, j: int) -> Tensor:
            if i < j:
                return moment(j, i)
            if (i, j) not in known:
                if (i, j) == (1, 0):
                    value = (1 + rho) * at_kink(0)
                elif j == 0:
                    value = (i - 1) * moment(i - 2, 0) + rho * at_kink(i - 1)
                elif i == 1:
                    value = at_kink(1) + rho * moment(0, 0)
                else:
                    value = (i - 1) * moment(i - 2, j) + rho * j * moment(i - 1, j - 1)
                known[i, j] = value
            return known[i, j]

        return r1**m * r2**n * moment(m, n)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        q1, q2, c = ctx.saved_tensors
        m, n = ctx.powers
        d_c = _rectified_slope(q1, q2, c, m, n)
        grads: list[Tensor | None] = [None] * 5
        if ctx.needs_input_grad[0]:
            grads[0] = (grad * _rectified_variance_slope(q1, q2, c, m, n, d_c)).sum_to_size(
                q1.shape
            )
        if ctx.needs_input_grad[1]:
            grads[1] = (grad * _rectified_variance_slope(q2, q1, c, n, m, d_c)).sum_to_size(
                q2.shape
            )
        if ctx.needs_input_grad[2]:
            grads[2] = (grad * d_c).sum_to_size(c.shape)
        return tuple(grads)


def _rectified_slope(q1: Tensor, q2: Tensor, c: Tensor, m: int, n: int) -> Tensor:
    """dI_mn / dc."""
    if m and n:
        return m * n * _RectifiedDual.apply(q1, q2, c, m - 1, n - 1)
    if m == n == 0:
        det = gram_determinant(q1, q2, c)
        return inverse_sqrt(det, noise_floor(q1 * q2)) / (2 * math.pi)
    return n * _at_kink(q1, q2, c, n - 1) if n else m * _at_kink(q2, q1, c, m - 1)


def _rectified_variance_slope(
    q1: Tensor, q2: Tensor, c: Tensor, m: int, n: int, d_c: Tensor
) -> Tensor:
    """dI_mn / dq1, `d_c` = dI_mn / dc."""
    if m >= 2:
        return m * (m - 1) / 2 * _RectifiedDual.apply(q1, q2, c, m - 2, n)
    if m == 1:
        return _at_kink(q1, q2, c, n) / 2
    # a function of c / sqrt(q1) and q2 alone
    return -c * inverse_sqrt(q1, torch.finfo(q1.dtype).tiny) ** 2 / 2 * d_c


def _at_kink(q1: Tensor, q2: Tensor, c: Tensor, n: int) -> Tensor:
    """E[delta(u) max(v, 0)^n]."""
    inverse = inverse_sqrt(q1, torch.finfo(q1.dtype).tiny)
    det = gram_determinant(q1, q2, c)
    root = det * inverse_sqrt(det, noise_floor(q1 * q2))
    return (root * inverse) ** n * inverse * (_half_moment(n) / math.sqrt(2 * math.pi))


class _AbsAndSign(torch.autograd.Function):
    """E|u||v| = (2/pi) (sqrt(D) + c asin(rho)) and E[sign(u) sign(v)] = (2/pi) asin(rho).

    The first's gradient, dE/dc = E[sign sign] and dE/dq1 = sqrt(D) / (pi q1), has no singularity
    at rho = 1, although that of the formula has. The second's slope 2 / (pi sqrt(D)) is infinite
    at rho = +-1, where the function has a cusp symmetric in the two inputs: there it is set to 0,
    its symmetric subgradient, as are the slopes at q = 0.
    """

    @staticmethod
    def forward(ctx, q1, q2, c):  # type: ignore[no-untyped-def]
        delta, angle = delta_and_angle(q1, q2, c)
        absolute = delta.addcmul_(c, angle).mul_(2 / math.pi)
        signs = angle.mul_(2 / math.pi)
        ctx.save_for_backward(q1, q2, c, signs)
        ctx.set_materialize_grads(False)
        return absolute, signs

    @staticmethod
    def backward(ctx, grad_absolute, grad_signs):  # type: ignore[no-untyped-def]
        q1, q2, c, signs = ctx.saved_tensors
        det = gram_determinant(q1, q2, c)
        inverse = inverse_sqrt(det, noise_floor(q1 * q2))
        # slopes of both in log q1 and log q2 are equal, up to a factor shared by them
        d_log, d_c = torch.zeros_like(det), torch.zeros_like(det)
        if grad_absolute is not None:
            d_log = d_log + grad_absolute * (det * inverse)
            d_c = d_c + grad_absolute * signs
        if grad_signs is not None:
            slope = grad_signs * inverse
            d_log = d_log - slope * c
            d_c = d_c + slope * (2 / math.pi)
        grads: list[Tensor | None] = [None, None, None]
        for i, q in enumerate((q1, q2)):
            if ctx.needs_input_grad[i]:
                reciprocal = inverse_sqrt(q, torch.finfo(q.dtype).tiny) ** 2
                grads[i] = d_log.sum_to_size(q.shape) * (reciprocal / math.pi)
        if ctx.needs_input_grad[2]:
            grads[2] = d_c.sum_to_size(c.shape)
        return tuple(grads)
