"""Dual activations: Gaussian expectations of products of nonlinearities.

For a centred Gaussian pair (u, v) with variances q1, q2 and covariance c, an activation phi and
another psi, the infinite-width recursion needs

    dual               E[phi(u) psi(v)]
    dual_derivative    E[phi'(u) psi'(v)]
    second_moment      E[phi(u)^2], and with derivatives E[phi'(u)^2]   (u = v, exactly)
    mean_derivative    E[phi'(u)]

Closed forms where they exist; otherwise one quadrature for all smooth functions, Mehler's
expansion: with Hermite coefficients a_k(q) = E[phi(sqrt(q) Z) h_k(Z)],

    E[phi(u) psi(v)] = sum_k a_k(q1) b_k(q2) rho^k,   rho = c / sqrt(q1 q2),

which costs one-dimensional integrals per point and a polynomial per pair. Its gradient is taken
by Price's theorem, dE/dc = E[phi' psi'] and dE/dq1 = E[phi'' psi] / 2, which stays finite where
differentiating rho would not (q = 0, rho = 1).

Shapes: q1, q2 and c broadcast together; the result has the broadcast shape.
"""

from __future__ import annotations

import functools
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["ABReLU", "Activation", "Erf", "GELU", "Sine", "Smooth"]


class Activation(ABC):
    """An elementwise nonlinearity with its Gaussian expectations.

    A subclass gives the function; every expectation has a quadrature default that is accurate
    for functions smooth on the real line, and is overridden where there is a closed form.
    """

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """The function itself, elementwise."""

    @property
    def homogeneous(self) -> bool:
        """Whether phi(s x) = s phi(x) for every s > 0."""
        return False

    def shifted(self, offset: float) -> Activation:
        """The activation x -> phi(x + offset).

        Raises:
            NotImplementedError: the shifted function has no accurate expectation here.
        """
        return _Shifted(self, offset) if offset else self

    kinks: tuple[float, ...] = ()

    def derivative(self, x: Tensor) -> Tensor:
        """The derivative, elementwise."""
        return _derivative(self)(x)

    def mean(self, q: Tensor) -> Tensor:
        """E[phi(u)] for u of variance `q`."""
        return _moment(self, q)

    def duals(
        self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`dual` and `dual_derivative` at once."""
        return self.dual(other, q1, q2, c), self.dual_derivative(other, q1, q2, c)

    def dual(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        """E[phi(u) psi(v)] with psi = `other`."""
        if isinstance(other, ABReLU):
            return other.dual(self, q2, q1, c)
        return _Expectation.apply(q1, q2, c, self, other)

    def dual_derivative(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        """E[phi'(u) psi'(v)] with psi = `other`."""
        if isinstance(other, ABReLU):
            return other.dual_derivative(self, q2, q1, c)
        return _Expectation.apply(q1, q2, c, _derivative(self), _derivative(other))

    def second_moment(self, q: Tensor) -> Tensor:
        """E[phi(u)^2] for u of variance `q`."""
        return _moment(_square(self), q)

    def second_moment_derivative(self, q: Tensor) -> Tensor:
        """E[phi'(u)^2] for u of variance `q`."""
        return _moment(_square(_derivative(self)), q)

    def mean_derivative(self, q: Tensor) -> Tensor:
        """E[phi'(u)] for u of variance `q`."""
        return _moment(_derivative(self), q)


@dataclass(frozen=True)
class ABReLU(Activation):
    """Piecewise linear with a kink at zero: `negative * min(x, 0) + positive * max(x, 0)`.

    ReLU, LeakyReLU, the absolute value and the identity are cases. Written as
    alpha x + beta |x|, whose products have the closed forms of Cho & Saul 2009 (order 0 and 1)
    and Tsuchida et al. 2018 (1711.09090), for two different members as well.
    """

    negative: float = 0.0
    positive: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.negative * x.clamp(max=0) + self.positive * x.clamp(min=0)

    @property
    def homogeneous(self) -> bool:
        return True

    @property
    def _odd(self) -> float:
        return (self.positive + self.negative) / 2

    @property
    def _even(self) -> float:
        return (self.positive - self.negative) / 2

    def shifted(self, offset: float) -> Activation:
        if offset:
            raise NotImplementedError(
                "a constant added before a piecewise linear activation moves its kink, which has "
                "no closed form here; use the layer's bias instead."
            )
        return self

    def dual(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        if not isinstance(other, ABReLU):
            linear = c * other.mean_derivative(q2)  # E[u psi(v)], Stein's lemma
            return self._odd * linear + self._even * _KinkExpectation.apply(
                q1, q2, c, torch.abs, other
            )
        absolute = _AbsDual.apply(q1, q2, c)
        return self._odd * other._odd * c + self._even * other._even * absolute

    def dual_derivative(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        if not isinstance(other, ABReLU):
            return self._odd * other.mean_derivative(q2) + self._even * _KinkExpectation.apply(
                q1, q2, c, torch.sign, _derivative(other)
            )
        signs = _SignDual.apply(q1, q2, c)
        return self._odd * other._odd + self._even * other._even * signs

    def second_moment(self, q: Tensor) -> Tensor:
        return q * (self.negative**2 + self.positive**2) / 2

    def second_moment_derivative(self, q: Tensor) -> Tensor:
        return torch.full_like(q, (self.negative**2 + self.positive**2) / 2)

    def mean(self, q: Tensor) -> Tensor:
        return self._even * (2 / math.pi * q).sqrt()

    def mean_derivative(self, q: Tensor) -> Tensor:
        return torch.full_like(q, self._odd)


@dataclass(frozen=True)
class Erf(Activation):
    """The error function; Williams 1997."""

    def __call__(self, x: Tensor) -> Tensor:
        return torch.erf(x)

    def dual(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        if not isinstance(other, Erf):
            return super().dual(other, q1, q2, c)
        return (2 / math.pi) * torch.asin(2 * c / ((1 + 2 * q1) * (1 + 2 * q2)).sqrt())

    def dual_derivative(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        if not isinstance(other, Erf):
            return super().dual_derivative(other, q1, q2, c)
        return (4 / math.pi) * ((1 + 2 * q1) * (1 + 2 * q2) - 4 * c**2).rsqrt()

    def second_moment(self, q: Tensor) -> Tensor:
        return (2 / math.pi) * torch.asin(2 * q / (1 + 2 * q))

    def second_moment_derivative(self, q: Tensor) -> Tensor:
        # (1 + 2q)^2 - 4q^2 = 1 + 4q without the cancellation
        return (4 / math.pi) * (1 + 4 * q).rsqrt()

    def mean_derivative(self, q: Tensor) -> Tensor:
        return (2 / math.sqrt(math.pi)) * (1 + 2 * q).rsqrt()


@dataclass(frozen=True)
class GELU(Activation):
    """x Phi(x), the exact GELU; Tsuchida et al. 2021 (2002.08517)."""

    def __call__(self, x: Tensor) -> Tensor:
        return torch.nn.functional.gelu(x)

    def dual(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        if not isinstance(other, GELU):
            return super().dual(other, q1, q2, c)
        a, p = (1 + q1) * (1 + q2), q1 * q2
        delta2 = a - c**2  # >= 1
        delta = delta2.sqrt()
        angle = c * torch.atan2(c, delta)
        return c / 4 + (angle + (c**2 + p * delta2) / (a * delta)) / (2 * math.pi)

    def dual_derivative(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        if not isinstance(other, GELU):
            return super().dual_derivative(other, q1, q2, c)
        a, p = (1 + q1) * (1 + q2), q1 * q2
        delta2 = a - c**2
        delta = delta2.sqrt()
        rational = c / delta * (1 / delta2 + (1 - p) / a + 1)
        return 0.25 + (torch.atan2(c, delta) + rational) / (2 * math.pi)

    def second_moment(self, q: Tensor) -> Tensor:
        return self.dual(self, q, q, q)

    def second_moment_derivative(self, q: Tensor) -> Tensor:
        return self.dual_derivative(self, q, q, q)

    def mean_derivative(self, q: Tensor) -> Tensor:
        return torch.full_like(q, 0.5)


@dataclass(frozen=True)
class Sine(Activation):
    """sin(x + phase); the cosine has phase pi/2."""

    phase: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        return torch.sin(x + self.phase)

    def shifted(self, offset: float) -> Activation:
        return Sine(self.phase + offset)

    def dual(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        if not isinstance(other, Sine):
            return super().dual(other, q1, q2, c)
        minus = math.cos(self.phase - other.phase) * torch.exp(c - (q1 + q2) / 2)
        plus = math.cos(self.phase + other.phase) * torch.exp(-c - (q1 + q2) / 2)
        return (minus - plus) / 2

    def dual_derivative(self, other: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        if not isinstance(other, Sine):
            return super().dual_derivative(other, q1, q2, c)
        return self._derivative().dual(other._derivative(), q1, q2, c)

    def _derivative(self) -> Sine:
        return Sine(self.phase + math.pi / 2)

    def second_moment(self, q: Tensor) -> Tensor:
        return (1 - math.cos(2 * self.phase) * torch.exp(-2 * q)) / 2

    def second_moment_derivative(self, q: Tensor) -> Tensor:
        return self._derivative().second_moment(q)

    def mean_derivative(self, q: Tensor) -> Tensor:
        return math.cos(self.phase) * torch.exp(-q / 2)


@dataclass(frozen=True)
class Smooth(Activation):
    """Any function smooth on the real line, by quadrature.

    Args:
        function: Elementwise and differentiable by `torch.func`, growing at most polynomially.
    """

    function: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)


@dataclass(frozen=True)
class Elementwise(Smooth):
    kinks: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Polynomial(Activation):
    coefficients: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for c in reversed(self.coefficients):
            total = total * x + c
        return total


@dataclass(frozen=True)
class RectifiedPower(Activation):
    order: int

    def __call__(self, x: Tensor) -> Tensor:
        return x.clamp(min=0) ** self.order


@dataclass(frozen=True)
class ELU(Activation):
    alpha: float = 1.0
    scale: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.scale * torch.nn.functional.elu(x, self.alpha)


@dataclass(frozen=True)
class Exp(Activation):
    rate: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return (self.rate * x).exp()


@dataclass(frozen=True)
class Probit(Activation):
    def __call__(self, x: Tensor) -> Tensor:
        return torch.special.ndtr(x)


@dataclass(frozen=True)
class Sign(Activation):
    def __call__(self, x: Tensor) -> Tensor:
        return x.sign()


@dataclass(frozen=True)
class _Shifted(Activation):
    """x -> phi(x + offset) for smooth phi."""

    activation: Activation
    offset: float

    def __call__(self, x: Tensor) -> Tensor:
        return self.activation(x + self.offset)

    def shifted(self, offset: float) -> Activation:
        return _Shifted(self.activation, self.offset + offset)


# Closed forms whose automatic derivative is singular ---------------------------------------------


def _gram_determinant(q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
    """q1 q2 - c^2 >= 0, factored to lose less where u and v are nearly parallel."""
    root = (q1 * q2).sqrt()
    return ((root - c) * (root + c)).clamp_min(0)


def _inverse_sqrt(x: Tensor, floor: Tensor | float) -> Tensor:
    """x^(-1/2) above `floor`, else 0: the value given to a gradient at a kink."""
    safe = x > floor
    return torch.where(safe, torch.where(safe, x, 1.0).rsqrt(), 0.0)


class _AbsDual(torch.autograd.Function):
    """E|u||v| = (2/pi) (sqrt(D) + c asin(rho)), D = q1 q2 - c^2.

    Its gradient, dE/dc = E[sign sign] and dE/dq1 = sqrt(D) / (pi q1), has no singularity at
    rho = 1, although that of the formula has. At q = 0 (a kink of the norm) it is set to 0.
    """

    @staticmethod
    def forward(ctx, q1, q2, c):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(q1, q2, c)
        delta = _gram_determinant(q1, q2, c).sqrt()
        return (2 / math.pi) * (delta + c * torch.atan2(c, delta))

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        q1, q2, c = ctx.saved_tensors
        det = _gram_determinant(q1, q2, c)
        delta = det * _inverse_sqrt(det, _floor(q1 * q2))
        grads: list[Tensor | None] = [None, None, None]
        for i, q in enumerate((q1, q2)):
            if ctx.needs_input_grad[i]:
                inverse = _inverse_sqrt(q, torch.finfo(q.dtype).tiny) ** 2
                grads[i] = (grad * delta * inverse / math.pi).sum_to_size(q.shape)
        if ctx.needs_input_grad[2]:
            grads[2] = grad * _SignDual.apply(q1, q2, c)
        return tuple(grads)


class _SignDual(torch.autograd.Function):
    """E[sign(u) sign(v)] = (2/pi) asin(rho).

    The gradient 2 / (pi sqrt(D)) in c is infinite at rho = +-1, where the function has a cusp
    symmetric in the two inputs: there it is set to 0, its symmetric subgradient.
    """

    @staticmethod
    def forward(ctx, q1, q2, c):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(q1, q2, c)
        return (2 / math.pi) * torch.atan2(c, _gram_determinant(q1, q2, c).sqrt())

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        q1, q2, c = ctx.saved_tensors
        inverse = _inverse_sqrt(_gram_determinant(q1, q2, c), _floor(q1 * q2))
        grads: list[Tensor | None] = [None, None, None]
        for i, q in enumerate((q1, q2)):
            if ctx.needs_input_grad[i]:
                reciprocal = _inverse_sqrt(q, torch.finfo(q.dtype).tiny) ** 2
                grads[i] = (-grad * c * inverse * reciprocal / math.pi).sum_to_size(q.shape)
        if ctx.needs_input_grad[2]:
            grads[2] = grad * inverse * (2 / math.pi)
        return tuple(grads)


def _floor(p: Tensor) -> Tensor:
    """Below this, q1 q2 - c^2 is rounding noise."""
    return 16 * torch.finfo(p.dtype).eps * p


# Quadrature ------------------------------------------------------------------------------------

# Beyond |z| = 12 the standard normal density is below 1e-31 and every term negligible.
_REACH = 12.0
_ORDER = 512  # most terms of an expansion
_TOLERANCE = 1e-11  # of the neglected Mehler terms, relative to the kept
_WARN = 1e-6


@functools.cache
def _hermite_rule() -> tuple[Tensor, Tensor]:
    """Nodes `[m]` and weighted orthonormal Hermite polynomials `[_ORDER, m]`, float64.

    Row k integrates f against h_k under the standard normal: sum_m row[k, m] f(z_m). Two
    Gauss-Legendre panels that meet at 0, so that a kink or jump there costs no accuracy.
    """
    import numpy

    nodes, weights = numpy.polynomial.legendre.leggauss(64 + _ORDER)
    half = torch.tensor((nodes + 1) / 2 * _REACH)
    mass = torch.tensor(weights / 2 * _REACH)
    z = torch.cat([-half.flip(0), half])
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    rows = [torch.ones_like(z), z]
    for k in range(2, _ORDER):
        rows.append((z * rows[-1] - math.sqrt(k - 1) * rows[-2]) / math.sqrt(k))
    return z, torch.stack(rows) * (torch.cat([mass.flip(0), mass]) * density)


def _coefficients(function: Callable[[Tensor], Tensor], q: Tensor) -> Tensor:
    """Hermite coefficients a_k of x -> function(sqrt(q) x), `[*q.shape, _ORDER]`, float64."""
    z, rows = (t.to(q.device) for t in _hermite_rule())
    return function(q.double().clamp_min(0).sqrt()[..., None] * z) @ rows.T


def _mehler(
    phi: Callable[[Tensor], Tensor],
    psi: Callable[[Tensor], Tensor],
    q1: Tensor,
    q2: Tensor,
    c: Tensor,
) -> Tensor:
    """sum_k a_k(q1) b_k(q2) rho^k, to as many terms as it needs; computed in float64."""
    a, b = _coefficients(phi, q1), _coefficients(psi, q2)
    a_max, b_max = (t.abs().reshape(-1, _ORDER).amax(0) for t in (a, b))
    scale = (a_max.norm() * b_max.norm()).clamp_min(1e-300)
    # |rho| <= 1: what is left out is at most the sum of these from there on.
    left_out = (a_max * b_max / scale).flip(0).cumsum(0).flip(0)
    # Should the last terms count, those that follow count as much.
    error = float(left_out[-8])
    if error > _WARN:
        warnings.warn(
            f"A Gaussian expectation of an activation has a relative error near {error:.0e}: the "
            f"variance of its input, up to {float(q2.max()):.0f}, is too large for the "
            "quadrature. Lower the weight variance of the layers before it.",
            stacklevel=2,
        )
    terms = max(1, int((left_out > _TOLERANCE).sum()))
    root = (q1.double() * q2.double()).clamp_min(0).sqrt()
    rho = torch.where(root > 0, c.double() / torch.where(root > 0, root, 1.0), 0.0).clamp(-1, 1)
    return _power_series(a[..., :terms], b[..., :terms], rho).to(c.dtype)


def _power_series(a: Tensor, b: Tensor, rho: Tensor) -> Tensor:
    """sum_k a_k b_k rho^k for a, b whose shapes without k broadcast to that of rho.

    Horner's rule from the highest terms down, in blocks: a block of terms from k on is summed
    only over the pairs whose |rho|^k is not negligible, which is few for large k.
    """
    shape, rho = rho.shape, rho.flatten()
    size = rho.abs()
    row, column = (
        torch.arange(t[..., 0].numel(), device=rho.device)
        .view(t.shape[:-1])
        .expand(shape)
        .flatten()
        for t in (a, b)
    )
    total = torch.zeros_like(rho)
    stops = [k for k in (0, 8, 16, 32, 64, 128, 256) if k < a.shape[-1]]
    for start, stop in zip(reversed(stops), reversed([*stops[1:], a.shape[-1]]), strict=True):
        pairs = torch.nonzero(size > (1e-14 ** (1 / start) if start else -1.0)).squeeze(-1)
        first, second = (
            t[..., start:stop].reshape(-1, stop - start).T.contiguous() for t in (a, b)
        )
        i, j, power, value = row[pairs], column[pairs], rho[pairs], total[pairs]
        for k in range(stop - start - 1, -1, -1):
            value = torch.addcmul(first[k][i] * second[k][j], value, power)
        total[pairs] = value
    return total.view(shape)


class _Expectation(torch.autograd.Function):
    """E[phi(u) psi(v)] for smooth functions, differentiated by Price's theorem.

    The derivatives are expectations of the same kind, so it can be differentiated again.
    """

    @staticmethod
    def forward(ctx, q1, q2, c, phi, psi):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(q1, q2, c)
        ctx.functions = phi, psi
        return _mehler(phi, psi, q1, q2, c)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        q1, q2, c = ctx.saved_tensors
        phi, psi = ctx.functions
        d_phi, d_psi = _derivative(phi), _derivative(psi)
        grads: list[Tensor | None] = [None] * 5
        if ctx.needs_input_grad[0]:
            value = _Expectation.apply(q1, q2, c, _derivative(d_phi), psi)
            grads[0] = (grad * value / 2).sum_to_size(q1.shape)
        if ctx.needs_input_grad[1]:
            value = _Expectation.apply(q1, q2, c, phi, _derivative(d_psi))
            grads[1] = (grad * value / 2).sum_to_size(q2.shape)
        if ctx.needs_input_grad[2]:
            grads[2] = (grad * _Expectation.apply(q1, q2, c, d_phi, d_psi)).sum_to_size(c.shape)
        return tuple(grads)


class _KinkExpectation(torch.autograd.Function):
    """E[kink(u) psi(v)] for kink = |.| or sign and psi smooth.

    Price's theorem with the derivatives at the kink taken by hand: E[delta(u) g(v)] =
    E[g(v) | u = 0] / sqrt(2 pi q1), where v given u = 0 has variance D / q1.
    """

    @staticmethod
    def forward(ctx, q1, q2, c, kink, psi):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(q1, q2, c)
        ctx.functions = kink, psi
        return _mehler(kink, psi, q1, q2, c)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        q1, q2, c = ctx.saved_tensors
        kink, psi = ctx.functions
        d_psi = _derivative(psi)
        inverse = _inverse_sqrt(q1, torch.finfo(q1.dtype).tiny)
        conditional = _gram_determinant(q1, q2, c) * inverse**2

        def at_kink(g: Callable[[Tensor], Tensor]) -> Tensor:
            return _moment(g, conditional) * inverse / math.sqrt(2 * math.pi)

        if kink is torch.abs:
            grad_q1 = at_kink(psi)
            grad_c = _KinkExpectation.apply(q1, q2, c, torch.sign, d_psi)
        else:  # a function of c / sqrt(q1) and q2 alone
            grad_c = 2 * at_kink(d_psi)
            grad_q1 = -c * inverse**2 / 2 * grad_c
        grads: list[Tensor | None] = [None] * 5
        if ctx.needs_input_grad[0]:
            grads[0] = (grad * grad_q1).sum_to_size(q1.shape)
        if ctx.needs_input_grad[1]:
            value = _KinkExpectation.apply(q1, q2, c, kink, _derivative(d_psi))
            grads[1] = (grad * value / 2).sum_to_size(q2.shape)
        if ctx.needs_input_grad[2]:
            grads[2] = (grad * grad_c).sum_to_size(c.shape)
        return tuple(grads)


class _Moment(torch.autograd.Function):
    """E[f(u)] for u of variance q; its gradient in q is E[f''(u)] / 2."""

    @staticmethod
    def forward(ctx, q, f):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(q)
        ctx.function = f
        z, rows = (t.to(q.device) for t in _hermite_rule())
        return (f(q.double().clamp_min(0).sqrt()[..., None] * z) @ rows[0]).to(q.dtype)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (q,) = ctx.saved_tensors
        return grad * _moment(_derivative(_derivative(ctx.function)), q) / 2, None


def _moment(function: Callable[[Tensor], Tensor], q: Tensor) -> Tensor:
    return _Moment.apply(q, function)


def _derivative(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The elementwise derivative of an elementwise function."""

    def derivative(x: Tensor) -> Tensor:
        return torch.func.jvp(function, (x,), (torch.ones_like(x),))[1]

    return derivative


def _square(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: function(x) ** 2
