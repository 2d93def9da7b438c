"""Gaussian expectations of products of exponential linear units.

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

Derivatives by Price's theorem; infinite ones, at rho = +-1 or q = 0, are set to 0. Everything is
computed in float64 and returned in the dtype of the arguments.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

__all__ = ["elu_duals", "elu_moments"]

_P0 = 1 / math.sqrt(2 * math.pi)  # the standard normal density at 0

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

# Elements of one tensor of values at nodes: a few of them fit the cache of a processor core.
_TILE = 2**15


def elu_duals(
    q1: Tensor, q2: Tensor, c: Tensor, beta1: float = 1.0, beta2: float = 1.0
) -> tuple[Tensor, Tensor]:
    """E[psi1(u) psi2(v)] and E[psi1'(u) psi2'(v)], psi_i(x) = max(x, 0) + beta_i n(x).

    Args:
        q1: Variances of u, >= 0; broadcasts with `q2` and `c`.
        q2: Variances of v, >= 0.
        c: Covariances.
        beta1: The factor of n(u).
        beta2: The factor of n(v).
    """
    value, *integrals = _Duals.apply(q1.double(), q2.double(), c.double(), beta1, beta2)
    slope = _slope(q1.double(), q2.double(), beta1, beta2, *integrals)
    return value.to(c.dtype), slope.to(c.dtype)


def elu_moments(q: Tensor, beta: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """E[psi(u)], E[psi'(u)], E[psi(u)^2] and E[psi'(u)^2] for u of variance `q`."""
    x = q.double()
    exponential, lost = _Tails.apply(x)
    twice, _ = _Tails.apply(4 * x)
    mean = _P0 * _sqrt(x) - beta * lost
    square = x / 2 + beta**2 * _Square.apply(x)
    moments = mean, 0.5 + beta * exponential, square, 0.5 + beta**2 * twice
    return tuple(m.to(q.dtype) for m in moments)  # type: ignore[return-value]


# One variable ------------------------------------------------------------------------------------


def _mills(a: Tensor) -> tuple[Tensor, Tensor]:
    """R(a) = 1 - a M(a) and G(a) = M(0) - M(a) for a >= 0, to a few roundings of 1 and of G."""
    p, q = torch.full_like(a, _P[-1]), torch.full_like(a, _Q[-1])
    for i in range(len(_P) - 2, -1, -1):
        p.mul_(a).add_(_P[i])
        q.mul_(a).add_(_Q[i])
    p.mul_(a)
    # M = M(0) q / (q + p), G = M(0) p / (q + p)
    scale = math.sqrt(math.pi / 2) / (q + p)
    return q.mul_(scale).mul_(a).neg_().add_(1), p.mul_(scale)


class _Tails(torch.autograd.Function):
    """E[e(u)] = M(sqrt(q)) / sqrt(2 pi) and -E[n(u)] = G(sqrt(q)) / sqrt(2 pi)."""

    @staticmethod
    def forward(ctx, q):  # type: ignore[no-untyped-def]
        _, lost = _mills(q.clamp_min(0).sqrt())
        lost = lost * _P0
        exponential = 0.5 - lost
        ctx.save_for_backward(q, exponential)
        ctx.set_materialize_grads(False)
        return exponential, lost

    @staticmethod
    def backward(ctx, grad_exponential, grad_lost):  # type: ignore[no-untyped-def]
        q, exponential = ctx.saved_tensors
        # e'' = e - delta - delta' and n'' = e - delta
        slope = (exponential - _P0 * _inverse_sqrt(q)) / 2
        total = None
        for grad in (grad_exponential, None if grad_lost is None else -grad_lost):
            if grad is not None:
                total = grad * slope if total is None else total + grad * slope
        return total


class _Square(torch.autograd.Function):
    """E[n(u)^2], from two variables that are one: E[e(2u)] - 2 E[e(u)] + 1/2 would cancel."""

    @staticmethod
    def forward(ctx, q):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(q)
        return _integrals(q, q, torch.full_like(q, math.pi))[0]

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (q,) = ctx.saved_tensors
        # E[n'^2 + n n''] = E[e^2] + E[n e], n being 0 at the kink
        return grad * (2 * _Tails.apply(4 * q)[0] - _Tails.apply(q)[0])


# Two variables -----------------------------------------------------------------------------------


def _integrals(q1: Tensor, q2: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """E[n(u) n(v)], E[e(u) 1(v < 0)], E[1(u < 0) e(v)] and E[e(u) e(v)] in new tensors.

    Args:
        q1: Variances, broadcasting with `q2` and `w`.
        q2: Likewise.
        w: The angle of the wedge.
    """
    shape = torch.broadcast_shapes(q1.shape, q2.shape, w.shape)
    r1, r2 = (q.clamp_min(0).sqrt() for q in (q1, q2))
    nodes, weights = (x.to(w.device) for x in _legendre(_num_nodes(r1, r2)))
    r1, r2, w = (x.expand(shape).reshape(-1) for x in (r1, r2, w))
    result = w.new_empty((4, w.numel()))
    tile = _TILE if w.device.type == "cpu" else 2**24
    size = max(1, tile // (3 * len(nodes)))
    for start in range(0, w.numel(), size):
        part = slice(start, start + size)
        sines = torch.sin(nodes[:, None] * w[part])
        a = sines.new_empty((3, *sines.shape))
        torch.mul(sines, r1[part], out=a[0])
        torch.mul(sines.flip(0), r2[part], out=a[1])  # the nodes are symmetric
        torch.add(a[0], a[1], out=a[2])
        decay, lost = _mills(a)
        lost = lost[2] - lost[:2]
        both = (lost[0].mul_(a[0])).addcmul_(lost[1], a[1])
        result[0, part] = weights @ both
        for i in range(3):
            result[1 + i, part] = weights @ decay[i]
    result *= w / (2 * math.pi)
    n_n, e_h, h_e, e_e = result.view(4, *shape)
    return n_n, e_h, h_e, e_e


def _num_nodes(r1: Tensor, r2: Tensor) -> int:
    """Enough for 1e-14; see `test_elu.py`."""
    if NODES: return NODES
    return 24

NODES = 0

@functools.cache
def _legendre(order: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1]."""
    import numpy

    nodes, weights = numpy.polynomial.legendre.leggauss(order)
    return torch.tensor((nodes + 1) / 2), torch.tensor(weights / 2)


class _Duals(torch.autograd.Function):
    """E[psi1(u) psi2(v)] and P(u, v < 0), E[e(u) 1(v < 0)], E[1(u < 0) e(v)], E[e(u) e(v)].

    Each gradient is an expression of the same five, so that there are all orders.
    """

    @staticmethod
    def forward(ctx, q1, q2, c, beta1, beta2):  # type: ignore[no-untyped-def]
        r1, r2 = q1.clamp_min(0).sqrt(), q2.clamp_min(0).sqrt()
        root = r1 * r2
        delta = ((root - c) * (root + c)).clamp_min(0).sqrt()
        w = math.pi / 2 + torch.atan2(c, delta)
        n_n, e_h, h_e, e_e = _integrals(q1, q2, w)
        (tail1, lost1), (tail2, lost2) = _Tails.apply(q1), _Tails.apply(q2)
        h_h = w / (2 * math.pi)
        # E[max(u, 0) n(v)] = c E[1(u > 0) e(v)] + q1 E[delta(u) n(v)], by Stein's lemma
        value = (delta + c * w) / (2 * math.pi) + beta1 * beta2 * n_n
        value += beta2 * (c * (tail2 - h_e) - _P0 * r1 * lost2)
        value += beta1 * (c * (tail1 - e_h) - _P0 * r2 * lost1)
        ctx.save_for_backward(q1, q2, c, h_h, e_h, h_e, e_e)
        ctx.betas = beta1, beta2
        ctx.set_materialize_grads(False)
        return value, h_h, e_h, h_e, e_e

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        q1, q2, c, h_h, e_h, h_e, e_e = ctx.saved_tensors
        beta1, beta2 = ctx.betas
        needs = ctx.needs_input_grad
        inverse1, inverse2 = _inverse_sqrt(q1), _inverse_sqrt(q2)
        det = _GramDeterminant.apply(q1, q2, c)
        # densities at a kink, of the other variable's expectation given that
        density1, density2 = _P0 * inverse1, _P0 * inverse2
        given2, given1 = det * inverse1**2, det * inverse2**2
        d_e, e_d = density1 * _Tails.apply(given2)[0], density2 * _Tails.apply(given1)[0]
        d_d = _inverse_sqrt(det, _floor(q1 * q2)) / (2 * math.pi)
        ratio1, ratio2 = c * inverse1**2, c * inverse2**2
        in_q1, in_q2, in_c = [], [], []
        g_value, g_hh, g_eh, g_he, g_ee = grads
        if g_value is not None:
            if needs[0]:
                x = _variance_slope(
                    q1, q2, c, given2, given1, density1, beta1, beta2, e_h, e_e)
                in_q1.append(g_value * x)
            if needs[1]:
                x = _variance_slope(
                    q2, q1, c, given1, given2, density2, beta2, beta1, h_e, e_e)
                in_q2.append(g_value * x)
            in_c.append(g_value * _slope(q1, q2, beta1, beta2, h_h, e_h, h_e, e_e))
        if g_hh is not None:
            in_c.append(g_hh * d_d)
            in_q1.append(g_hh * (-ratio1 / 2) * d_d)
            in_q2.append(g_hh * (-ratio2 / 2) * d_d)
        if g_eh is not None:
            in_c.append(g_eh * (d_d - e_d))
            in_q1.append(g_eh * (e_h - density1 / 2 - ratio1 * d_d) / 2)
            in_q2.append(g_eh * ratio2 * (e_d - d_d) / 2)
        if g_he is not None:
            in_c.append(g_he * (d_d - d_e))
            in_q2.append(g_he * (h_e - density2 / 2 - ratio2 * d_d) / 2)
            in_q1.append(g_he * ratio1 * (d_e - d_d) / 2)
        if g_ee is not None:
            in_c.append(g_ee * (e_e - d_e - e_d + d_d))
            in_q1.append(g_ee * (e_e - d_e + ratio1 * (d_e - d_d)) / 2)
            in_q2.append(g_ee * (e_e - e_d + ratio2 * (e_d - d_d)) / 2)
        found = [
            sum(x[1:], x[0]).sum_to_size(q.shape) if need and x else None
            for x, q, need in zip((in_q1, in_q2, in_c), (q1, q2, c), needs[:3], strict=True)
        ]
        return *found, None, None


def _slope(
    q1: Tensor, q2: Tensor, beta1: float, beta2: float,
    h_h: Tensor, e_h: Tensor, h_e: Tensor, e_e: Tensor,
) -> Tensor:
    """E[psi1'(u) psi2'(v)]; P(u, v > 0) = P(u, v < 0)."""
    tail1, tail2 = _Tails.apply(q1)[0], _Tails.apply(q2)[0]
    return h_h + beta1 * (tail1 - e_h) + beta2 * (tail2 - h_e) + beta1 * beta2 * e_e


def _variance_slope(q1, q2, c, given2, given1, density1, beta1, beta2, e_h, e_e) -> Tensor:
    """d E[psi1(u) psi2(v)] / dq1 = E[psi1''(u) psi2(v)] / 2, psi'' = beta e + (1 - beta) delta."""
    # E[e(u) max(v, 0)] by Stein's lemma
    above = _P0 * _sqrt(q2) * _Tails.apply(given1)[0]
    above = above + c * (_Tails.apply(q1)[0] - e_h - density1 / 2)
    slope = beta1 * (above + beta2 * (e_e - e_h))
    if beta1 != 1:
        kink = _P0 * _sqrt(given2) - beta2 * _Tails.apply(given2)[1]
        slope = slope + (1 - beta1) * density1 * kink
    return slope / 2


class _GramDeterminant(torch.autograd.Function):
    pass


def _sqrt(x: Tensor) -> Tensor:
    return x * _inverse_sqrt(x)


def _inverse_sqrt(x: Tensor, floor: Tensor | float | None = None) -> Tensor:
    """x^(-1/2) above `floor`, else 0: the value given to an infinite gradient."""
    safe = x > (torch.finfo(x.dtype).tiny if floor is None else floor)
    return torch.where(safe, torch.where(safe, x, 1.0).rsqrt(), 0.0)


def _floor(p: Tensor) -> Tensor:
    """Below this, q1 q2 - c^2 is rounding noise."""
    return 16 * torch.finfo(p.dtype).eps * p
