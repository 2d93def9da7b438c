"""Gaussian moments of piecewise powers, sums of terms a max(s x, 0)^n with s = +-1.

A term is written (a, n, s). Cho & Saul 2009 have the angles, the recursion is by Stein's lemma.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

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
    from priors.shapes import Part, Whole

__all__ = ["Terms", "rectified_dual", "rectified_mean", "slopes", "squares"]

Terms = tuple[tuple[float, int, int], ...]


def slopes(terms: Terms) -> Terms:
    """The terms of the derivative, without deltas."""
    return tuple((a * n * s, n - 1, s) for a, n, s in terms if n)


def squares(terms: Terms) -> Terms:
    """The terms of the square; products of opposite sides vanish."""
    return tuple((a * b, n + m, s) for a, n, s in terms for b, m, r in terms if s == r)


def rectified_mean(terms: Terms, q: Whole) -> Whole:
    """sum of a E[max(u, 0)^n] = a q^(n/2) E[max(z, 0)^n]."""
    value = torch.zeros_like(q)
    for n in sorted({n for _, n, _ in terms}):
        factor = sum(a for a, m, _ in terms if m == n) * _half_moment(n)
        value = value + factor * q ** (n // 2) * (positive_sqrt(q) if n % 2 else 1)
    return value


def _half_moment(n: int) -> float:
    """E[max(z, 0)^n] of a standard normal z."""
    return 2 ** (n / 2 - 1) * math.gamma((n + 1) / 2) / math.sqrt(math.pi)


def rectified_dual(terms1: Terms, terms2: Terms, q1: Part, q2: Part, c: Part) -> Whole:
    """E[phi(u) psi(v)] of two such sums."""
    value = torch.zeros_like(q1 + q2 + c)
    for a, m, r in terms1:
        for b, n, s in terms2:
            if a and b:
                value = value + a * b * _RectifiedDual.apply(q1, q2, r * s * c, m, n)
    return value


class _RectifiedDual(Elementwise):
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
    def forward(q1: Tensor, q2: Tensor, c: Tensor, m: int, n: int) -> Tensor:
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

        value = moment(m, n)
        # in turn: a power of one may be beyond the range of the dtype though the product is not
        for k in range(max(m, n)):
            value = value * (root if k < min(m, n) else r1 if m > n else r2)
        return value

    @staticmethod
    def slopes(
        inputs: Sequence[Any], outputs: Sequence[Tensor], needed: Sequence[bool]
    ) -> Sequence[Sequence[Tensor | None]]:
        q1, q2, c, m, n = inputs
        d_c = _rectified_slope(q1, q2, c, m, n)
        d_q1 = _rectified_variance_slope(q1, q2, c, m, n, d_c) if needed[0] else None
        d_q2 = _rectified_variance_slope(q2, q1, c, n, m, d_c) if needed[1] else None
        return [[d_q1, d_q2, d_c]]


def _rectified_slope(q1: Part, q2: Part, c: Part, m: int, n: int) -> Whole:
    """dI_mn / dc."""
    if m and n:
        return m * n * _RectifiedDual.apply(q1, q2, c, m - 1, n - 1)
    if m == n == 0:
        p1, p2, rho, s, t = normalised(q1, q2, c)
        det = gram_determinant(p1, p2, rho)
        return inverse_sqrt(det, noise_floor(p1 * p2)) / (2 * math.pi) / s / t
    return n * _at_kink(q1, q2, c, n - 1) if n else m * _at_kink(q2, q1, c, m - 1)


def _rectified_variance_slope(q1: Part, q2: Part, c: Part, m: int, n: int, d_c: Part) -> Whole:
    """dI_mn / dq1, `d_c` = dI_mn / dc."""
    if m >= 2:
        return m * (m - 1) / 2 * _RectifiedDual.apply(q1, q2, c, m - 2, n)
    if m == 1:
        return _at_kink(q1, q2, c, n) / 2
    # a function of c / sqrt(q1) and q2 alone
    inverse = inverse_sqrt(q1, torch.finfo(q1.dtype).tiny)
    return -c * inverse * inverse / 2 * d_c


def _at_kink(q1: Part, q2: Part, c: Part, n: int) -> Whole:
    """E[delta(u) max(v, 0)^n]."""
    inverse = inverse_sqrt(q1, torch.finfo(q1.dtype).tiny)
    p1, p2, rho, s, t = normalised(q1, q2, c)
    det = gram_determinant(p1, p2, rho)
    root = det * inverse_sqrt(det, noise_floor(p1 * p2)) * (s * t * inverse)
    value = inverse * (_half_moment(n) / math.sqrt(2 * math.pi))
    for _ in range(n):
        value = value * root
    return value
