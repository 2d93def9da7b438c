"""Exponential linear units and the Gaussian expectations of their products.

With the rate of the exponential absorbed into the variances, an ELU is

    psi(x) = max(x, 0) + beta n(x),   n(x) = (e^x - 1) 1(x < 0),   psi'(x) = 1(x > 0) + beta e(x),

e(x) = e^x 1(x < 0). For a centred Gaussian pair (u, v) with variances q1, q2 and covariance c, the
expectations of psi(u) psi(v) and psi'(u) psi'(v) reduce, by Stein's lemma, to functions of one
variance and to four integrals over the quadrant u, v < 0. They could be had from bivariate normal
distribution functions by tilting, E[e^(u + v) ...] = e^((q1 + q2) / 2 + c) P(...), but as
differences of large numbers. In polar coordinates the same quadrant is a wedge of angle
w = pi / 2 + asin(rho), in which u = -a r, a = sqrt(q1) sin(t) and v = -b r, b = sqrt(q2) sin(w - t)
for 0 < t < w, and the radial integral is elementary,

    int_0^inf r e^(-a r - r^2 / 2) dr = R(a) = 1 - a M(a),   M(a) = sqrt(pi / 2) erfcx(a / sqrt(2)),

M being Mills' ratio. So

    E[e(u) e(v)]       = 1 / (2 pi) int_0^w R(a + b) dt,
    E[e(u) 1(v < 0)]   = 1 / (2 pi) int_0^w R(a) dt,
    E[n(u) n(v)]       = 1 / (2 pi) int_0^w (1 - R(a) - R(b) + R(a + b)) dt,

whose integrands are positive, bounded and analytic, at rho = +-1 too: Gauss-Legendre converges
geometrically, in a number of nodes that grows as the fourth root of the variance. The last
integrand, written with G(a) = M(0) - M(a) as a (G(a + b) - G(a)) + b (G(a + b) - G(b)), keeps its
digits at small variances.

Measured against 25 digits, over variances of 1e-8 to 100 and rho of -1 to 1, and as a fraction of
the root of E[psi(u)^2] E[psi(v)^2], the error is below 1e-14 for variances within a factor of 1e4
and grows with the root of their ratio, to 1e-12 at 1e10. That of E[psi' psi'] is below 1e-12, but
2e-8 at rho = +-1 if beta is not 1, where a rounding of c enters by its root. The number of nodes
follows the largest variance and ends at 256, which leaves an error of 1e-12 at variances of 1e10
and 2e-9 at 1e13. Sixteen nodes (variances up to 1) take about a microsecond a pair.

Beyond variances of 1e10 slopes in the variances are those of a rectifier of the same size, whose
kink stays 1e-5 wide, instead of differences of numbers 1e10 times as large: of c E[e'(u) 1(v > 0)]
for one. Derivatives by Price's theorem; infinite ones, at rho = +-1 or q = 0, are set to 0.
Everything is computed in float64 and returned in the dtype of the arguments.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from priors.gaussian.activations.base import Activation
from priors.gaussian.elementwise import Elementwise
from priors.gaussian.pairs import (
    delta_and_angle,
    gram_determinant,
    inverse_sqrt,
    noise_floor,
    normalised,
    positive_sqrt,
)

if TYPE_CHECKING:
    from jaxtyping import Float

    from priors.shapes import Part, Whole

__all__ = ["ELU", "elu_duals", "elu_means", "elu_squares"]

_DENSITY = 1 / math.sqrt(2 * math.pi)  # of a standard normal variable at 0

# (M(0) / M(a) - 1) / a = P(a) / Q(a) for a >= 0, to 2e-17: a least squares fit in 60 digits.
# Coefficients of 1, a, a^2, ..., all positive, so that Horner's rule loses nothing.
_P = (
    0.79788456080286537212, 1.4953466865871781719, 1.35230926795581648, 0.77099413329658232307,
    0.30579089409771809458, 0.088086199168578829799, 0.01868830046852496955,
    0.002893299876281695422, 0.00031466736782962198761, 2.1914363437053025885e-5,
    7.5425436906319099187e-7,
)  # fmt: skip
_Q = (
    1.0, 1.7029116503424893258, 1.4333299266179384423, 0.77233001068692599485,
    0.29257134098542279127, 0.081096453362461868567, 0.016643684369890044547,
    0.0025018343590905380194, 0.00026480066654512008418, 1.7965305490987654906e-5,
    6.0180791599362646933e-7,
)  # fmt: skip

# Beyond this Mills' ratio is 1 / a and does not count beside the pair's own size; its powers are
# within the range of float64.
_FAR = 1e20

# The largest variance whose slopes are taken as they are. Their errors are of a rounding times it,
# and beyond it of one over its root, by which a rectifier differs.
_LARGEST = 1e10

# Values at nodes held at once, on a processor so many as its cache holds.
_TILE, _DEVICE_TILE = 2**16, 2**24


@dataclass(frozen=True)
class ELU(Activation):
    """scale x for x > 0, scale alpha (exp(rate x) - 1) below.

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

    def closed_duals(self, other: Self, q1: Part, q2: Part, c: Part) -> tuple[Whole, Whole]:
        a, b = self.rate, other.rate
        value, slope = elu_duals(a**2 * q1, b**2 * q2, a * b * c, self._beta, other._beta)
        scale = self.scale * other.scale
        return scale / (a * b) * value, scale * slope

    def mean(self, q: Whole) -> Whole:
        return self.scale / self.rate * elu_means(self.rate**2 * q, self._beta)[0]

    def mean_derivative(self, q: Whole) -> Whole:
        return self.scale * elu_means(self.rate**2 * q, self._beta)[1]

    def second_moment(self, q: Whole) -> Whole:
        return (self.scale / self.rate) ** 2 * elu_squares(self.rate**2 * q, self._beta)[0]

    def second_moment_derivative(self, q: Whole) -> Whole:
        return self.scale**2 * elu_squares(self.rate**2 * q, self._beta)[1]


def elu_duals(
    q1: Part, q2: Part, c: Part, beta1: float = 1.0, beta2: float = 1.0
) -> tuple[Whole, Whole]:
    """E[psi1(u) psi2(v)] and E[psi1'(u) psi2'(v)], psi_i(x) = max(x, 0) + beta_i n(x).

    Args:
        q1: Variances of u, >= 0; broadcasts with `q2` and `c`.
        q2: Variances of v, >= 0.
        c: Covariances.
        beta1: The factor of n(u).
        beta2: The factor of n(v).
    """
    dtype = c.dtype
    q1, q2, c = q1.double(), q2.double(), c.double()
    value, derivative, *_ = _Duals.apply(q1, q2, c, beta1, beta2)
    return value.to(dtype), derivative.to(dtype)


def elu_means(q: Whole, beta: float = 1.0) -> tuple[Whole, Whole]:
    """E[psi(u)] and E[psi'(u)] for u of variance `q`."""
    x = q.double()
    tail, loss = _Tails.apply(x)
    return (_DENSITY * positive_sqrt(x) - beta * loss).to(q.dtype), (0.5 + beta * tail).to(q.dtype)


def elu_squares(q: Whole, beta: float = 1.0) -> tuple[Whole, Whole]:
    """E[psi(u)^2] and E[psi'(u)^2] for u of variance `q`."""
    x = q.double()
    square = x / 2 + beta**2 * _Square.apply(x)
    # e(u)^2 = e(2 u)
    return square.to(q.dtype), (0.5 + beta**2 * _Tails.apply(4 * x)[0]).to(q.dtype)


# One variable ------------------------------------------------------------------------------------


def _mills(a: Float[Tensor, "*a"]) -> tuple[Float[Tensor, "*a"], Float[Tensor, "*a"]]:
    """R(a) and G(a) in new tensors, to a few roundings of 1 and of G; for use without a gradient.

    With k = P / Q as above, M = M(0) / (1 + a k) and G = M(0) a k / (1 + a k).
    """
    a = a.clamp_max(_FAR)
    numerator, denominator = a.new_tensor(_P), a.new_tensor(_Q)
    p, q = numerator[-1].expand_as(a).clone(), denominator[-1].expand_as(a).clone()
    for i in range(len(_P) - 2, -1, -1):
        torch.addcmul(numerator[i], p, a, out=p)
        torch.addcmul(denominator[i], q, a, out=q)
    p.mul_(a)
    scale = (p + q).reciprocal_().mul_(math.sqrt(math.pi / 2))
    return q.mul_(a).mul_(scale).neg_().add_(1), p.mul_(scale)


class _Tails(Elementwise):
    """E[e(u)] = M(sqrt(q)) / sqrt(2 pi) and -E[n(u)] = G(sqrt(q)) / sqrt(2 pi)."""

    @staticmethod
    def forward(q: Tensor) -> tuple[Tensor, Tensor]:
        loss = _DENSITY * _mills(q.clamp_min(0).sqrt())[1]
        return 0.5 - loss, loss

    @staticmethod
    def slopes(
        inputs: Sequence[Tensor], outputs: Sequence[Tensor], needed: Sequence[bool]
    ) -> Sequence[Sequence[Tensor | None]]:
        # e'' = e - delta - delta' and n'' = e - delta
        slope = (outputs[0] - _DENSITY * _inverse_root(inputs[0])) / 2
        return [[slope], [-slope]]


class _Square(Elementwise):
    """E[n(u)^2], as of two variables that are equal: E[e(2 u)] - 2 E[e(u)] + 1/2 would cancel."""

    @staticmethod
    def forward(q: Tensor) -> Tensor:
        return _integrals(q, q, torch.full_like(q, math.pi))[0]

    @staticmethod
    def slopes(
        inputs: Sequence[Tensor], outputs: Sequence[Tensor], needed: Sequence[bool]
    ) -> Sequence[Sequence[Tensor | None]]:
        (q,) = inputs
        # E[n'^2 + n n''] = E[e^2] + E[n e], n being 0 at the kink
        return [[2 * _Tails.apply(4 * q)[0] - _Tails.apply(q)[0]]]


# Two variables -----------------------------------------------------------------------------------


def _integrals(q1: Part, q2: Part, w: Part) -> tuple[Whole, ...]:
    """E[n(u) n(v)], E[e(u) 1(v < 0)], E[1(u < 0) e(v)] and E[e(u) e(v)] in new tensors.

    Args:
        q1: Variances; broadcasts with `q2` and `w`.
        q2: Variances.
        w: The angles of the wedges.
    """
    shape = torch.broadcast_shapes(q1.shape, q2.shape, w.shape)
    r1, r2 = q1.clamp_min(0).sqrt(), q2.clamp_min(0).sqrt()
    nodes, weights = (x.to(w.device) for x in _rule(*_order(r1, r2)))
    r1, r2, w = (x.expand(shape).reshape(-1) for x in (r1, r2, w))
    result = w.new_empty((4, w.numel()))
    size = _TILE if w.device.type == "cpu" else _DEVICE_TILE
    size = max(1, size // (3 * len(nodes)))
    for start in range(0, w.numel(), size):
        part = slice(start, start + size)
        sines = torch.sin(nodes[:, None] * w[part])
        a = sines.new_empty((3, *sines.shape))
        torch.mul(sines, r1[part], out=a[0])
        torch.mul(sines.flip(0), r2[part], out=a[1])  # at w - t: the nodes are symmetric
        torch.add(a[0], a[1], out=a[2])
        rest, gap = _mills(a)
        gap = (gap[2] - gap[:2]).mul_(a[:2])
        result[0, part] = weights @ gap.sum(0)
        result[1:, part] = weights @ rest
    result *= w / (2 * math.pi)
    return result.view(4, *shape).unbind(0)


def _order(r1: Tensor, r2: Tensor) -> tuple[int, bool]:
    """The number of nodes, for an error of 1e-13 (see `_rule`), and whether to grade them."""
    reach = float((r1.max() + r2.max()) if r1.numel() and r2.numel() else 0.0)
    reach = min(_FAR, reach)  # also if it is not a number
    if not reach > 10:
        return 4 * math.ceil((7.2 * math.sqrt(max(reach, 1.0)) + 5.5) / 4), False
    return min(256, 4 * math.ceil((16.5 * reach**0.25 + 2) / 4)), True


@functools.cache
def _rule(order: int, graded: bool) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1], symmetric about its middle.

    The integrands fall from the ends within angles of 1 / sqrt(q): `graded` nodes, from the
    substitution t = x^2 (3 - 2 x), have their distances to the ends squared.
    """
    import numpy

    nodes, weights = numpy.polynomial.legendre.leggauss(order)
    x, weight = torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)
    if graded:
        return x**2 * (3 - 2 * x), 6 * x * (1 - x) * weight
    return x, weight


class _Duals(Elementwise):
    """E[psi1(u) psi2(v)] and E[psi1'(u) psi2'(v)], and the integrals that their slopes need,
    E[e(u) 1(v < 0)], E[1(u < 0) e(v)] and E[e(u) e(v)].

    Slopes are expressions in these five, which makes those of higher order available.
    """

    @staticmethod
    def forward(
        q1: Tensor, q2: Tensor, c: Tensor, beta1: float, beta2: float
    ) -> tuple[Tensor, ...]:
        delta, w = delta_and_angle(q1, q2, c)
        w += math.pi / 2
        n_n, e_h, h_e, e_e = _integrals(q1, q2, w)
        # E[e(u) 1(v > 0)] and E[1(u > 0) e(v)]
        right1, right2 = _Tails.apply(q1)[0] - e_h, _Tails.apply(q2)[0] - h_e
        # E[max(u, 0) n(v)] = c E[1(u > 0) e(v)] + q1 E[delta(u) n(v)] by Stein's lemma, v given
        # u = 0 having the standard deviation delta / sqrt(q1)
        linear = []
        for q, right in ((q1, right2), (q2, right1)):
            inverse = _inverse_root(q)
            loss = _mills(delta * inverse)[1] / (2 * math.pi)
            linear.append(c * right - q * inverse * loss)
        value = delta.addcmul_(c, w).mul_(1 / (2 * math.pi))
        value = value + beta2 * linear[0] + beta1 * linear[1] + beta1 * beta2 * n_n
        derivative = w.mul_(1 / (2 * math.pi))
        derivative = derivative + beta1 * right1 + beta2 * right2 + beta1 * beta2 * e_e
        return value, derivative, e_h, h_e, e_e

    @staticmethod
    def slopes(
        inputs: Sequence[Any], outputs: Sequence[Tensor], needed: Sequence[bool]
    ) -> Sequence[Sequence[Tensor | None]]:
        q1, q2, c, beta1, beta2 = inputs
        slope_in_c = outputs[1]
        s, t = _excess(q1), _excess(q2)
        if isinstance(s, Tensor) or isinstance(t, Tensor):
            q1, q2, c = q1 / s / s, q2 / t / t, c / s / t
            outputs = _Duals.apply(q1, q2, c, beta1, beta2)
        _, _, e_h, h_e, e_e = outputs
        kink1, kink2 = _Kink(q1, q2, c), _Kink(q2, q1, c)
        d_e, e_d, d_d = kink1.d_e, kink2.d_e, kink1.d_d
        columns: list[list[Tensor | None]] = []
        for i, (q, other, a, b, kink, others, own) in enumerate(
            ((q1, q2, beta1, beta2, kink1, kink2, e_h), (q2, q1, beta2, beta1, kink2, kink1, h_e))
        ):
            if not needed[i]:
                columns.append([None] * 5)
                continue
            # E[f''(u) g(v)] / 2 with psi'' = beta e + (1 - beta) delta, e' = e - delta, and
            # E[delta'(u) g(v)] = -(c / q1) E[delta(u) g'(v)]
            right = _Tails.apply(q)[0] - own - kink.density / 2  # E[e'(u) 1(v > 0)]
            linear = c * right + _DENSITY * positive_sqrt(other) * others.tail  # E[e(u) max(v, 0)]
            ratio = c * kink.reciprocal
            bends = kink.density * (kink.above - b * kink.loss)
            of_value = a * (linear + b * (e_e - own)) + (1 - a) * bends
            bends = -ratio * (b * kink.d_e + (1 - b) * d_d)
            of_derivative = a * (right + b * (e_e - kink.d_e)) + (1 - a) * bends
            of_own = own - kink.density / 2 - ratio * d_d
            of_other = ratio * (kink.d_e - d_d)
            of_both = e_e - kink.d_e + ratio * (kink.d_e - d_d)
            single = (of_own, of_other) if i == 0 else (of_other, of_own)
            column = [x / 2 for x in (of_value, of_derivative, *single, of_both)]
            own_scale = s if i == 0 else t
            columns.append([x / own_scale / own_scale for x in _scaled(column, s, t)])
        bends = beta1 * (1 - beta2) * e_d + (1 - beta1) * beta2 * d_e
        bends = bends + (1 - beta1) * (1 - beta2) * d_d
        column = [
            slope_in_c,
            beta1 * beta2 * e_e + bends,
            d_d - e_d,
            d_d - d_e,
            e_e - d_e - e_d + d_d,
        ]
        columns.append([slope_in_c, *(x / s / t for x in _scaled(column, s, t)[1:])])
        return list(zip(*columns, strict=True))


def _excess(q: Tensor) -> Tensor | float:
    """A power of two near sqrt(q / _LARGEST) where that is above 1, else 1; a number if so of all.

    A constant; not asked under torch.func.vmap, where values are not to be had.
    """
    q = q.detach()
    try:
        if not (q > _LARGEST).any():
            return 1.0
    except RuntimeError:
        return 1.0
    ratio = torch.where(q.isfinite(), q / _LARGEST, 1.0).clamp_min(1.0)
    return torch.exp2(ratio.log2().div(2).round())


def _scaled(column: list[Tensor], s: Tensor | float, t: Tensor | float) -> list[Tensor]:
    """Of u and v: what `_Duals` gives of s u and t v, if psi is a rectifier and e a delta there."""
    value, derivative, e_h, h_e, e_e = column
    return [value * s * t, derivative, e_h / s, h_e / t, e_e / s / t]


class _Kink:
    """Expectations with delta(u); given u = 0, v has the variance D / q1."""

    def __init__(self, q1: Tensor, q2: Tensor, c: Tensor) -> None:
        inverse = _inverse_root(q1)
        p1, p2, rho, s, t = normalised(q1, q2, c)
        det = gram_determinant(p1, p2, rho)
        inverse_det = inverse_sqrt(det, noise_floor(p1 * p2))
        scale = s * t * inverse
        self.reciprocal = inverse**2
        # E[delta(u)] and E[delta(u) delta(v)]
        self.density = _DENSITY * inverse
        self.d_d = inverse_det / (2 * math.pi) / s / t
        # E[max(v, 0)], E[e(v)] and -E[n(v)], given u = 0
        self.above = _DENSITY * det * inverse_det * scale
        self.tail, self.loss = _Tails.apply(det * scale * scale)
        # E[delta(u) e(v)]
        self.d_e = self.density * self.tail


def _inverse_root(q: Tensor) -> Tensor:
    return inverse_sqrt(q, torch.finfo(q.dtype).tiny)
