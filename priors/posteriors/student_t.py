"""Functions of Student's t distribution: density, distribution, quantiles, tails.

Torch has no t distribution function; SciPy's is wrapped with its analytic derivative, so that
acquisition functions can be optimised through it. Degrees of freedom are a number or a tensor that
broadcasts.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy.special import stdtr, stdtrit
from torch import Tensor

__all__ = [
    "log_expected_excess",
    "t_cdf",
    "t_log_cdf",
    "t_log_density",
    "t_quantile",
]

# Below this many standardised units the expected excess is taken from its continued fraction.
_TAIL = -3.0
_FRACTION_TERMS = 60


def t_log_density(t: Tensor, df: float | Tensor) -> Tensor:
    """Log density of the standard Student t, in nats.

    Args:
        t: Where, any shape.
        df: Degrees of freedom.
    """
    wide = torch.as_tensor(df, dtype=torch.float64, device=t.device)
    constant = torch.lgamma((wide + 1) / 2) - torch.lgamma(wide / 2) - 0.5 * (math.pi * wide).log()
    constant, df = constant.to(t), wide.to(t)
    return constant - 0.5 * (df + 1) * torch.log1p(t.square() / df)


class _Cdf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor, df: float | Tensor) -> Tensor:
        ctx.save_for_backward(t)
        ctx.df = df
        return _like(t, stdtr(_number(df), _numpy(t)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (t,) = ctx.saved_tensors
        return grads[0] * t_log_density(t, ctx.df).exp(), None


class _Quantile(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, p: Tensor, df: float | Tensor) -> Tensor:
        probability = _numpy(p)
        # SciPy's inverse is precise in the lower tail; the upper one is its mirror image.
        lower = stdtrit(_number(df), probability.clip(max=0.5))
        upper = -stdtrit(_number(df), (1 - probability).clip(max=0.5))
        t = torch.where(p > 0.5, _like(p, upper), _like(p, lower))
        ctx.save_for_backward(t)
        ctx.df = df
        return t

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (t,) = ctx.saved_tensors
        return grads[0] * (-t_log_density(t, ctx.df)).exp(), None


def t_cdf(t: Tensor, df: float | Tensor) -> Tensor:
    """Distribution function of the standard Student t, differentiable in `t`.

    Args:
        t: Where, any shape.
        df: Degrees of freedom.
    """
    return _Cdf.apply(t, df)


def t_log_cdf(t: Tensor, df: float | Tensor) -> Tensor:
    """Log of the distribution function of the standard Student t, accurate however small it is.

    Below t = -3 it is f(t) |t| 2F1((df + 1)/2, 1; df/2 + 1; z) / df, z = df / (df + t^2), from the
    incomplete beta function (DLMF 26.5.4 and 8.17.8) with f the density.

    Args:
        t: Where, any shape.
        df: Degrees of freedom.

    Returns:
        Nats, the shape of `t`; computed in float64.
    """
    wide = t.double()
    direct = t_cdf(wide.clamp_min(_TAIL), df).log()
    far = wide.clamp_max(_TAIL)
    z = df / (df + far.square())
    ratio = _hypergeometric(z, (df + 1) / 2, df / 2 + 1)
    tail = t_log_density(far, df) + (-far / df).log() + ratio.log()
    return torch.where(wide > _TAIL, direct, tail).to(t)


def t_quantile(p: Tensor, df: float | Tensor) -> Tensor:
    """Quantile function of the standard Student t, differentiable in `p`.

    Args:
        p: Probabilities in (0, 1), any shape.
        df: Degrees of freedom.
    """
    return _Quantile.apply(p, df)


def log_expected_excess(u: Tensor, df: float | Tensor) -> Tensor:
    """Log E[max(T + u, 0)] of a standard Student t, accurate however small it is.

    With density f and distribution function F it is u F(u) + f(u) (df + u^2) / (df - 1). Below
    u = -3 the two terms cancel and underflow; there the same quantity is
    f(u) 2F1((df - 1)/2, 1; df/2 + 1; z) / ((df - 1) z), z = df / (df + u^2), by termwise
    integration of the tail, and Gauss's continued fraction gives 2F1.

    Args:
        u: Mean minus threshold in units of the scale, any shape.
        df: Degrees of freedom, > 1.

    Returns:
        Nats, the shape of `u`; computed in float64.
    """
    wide = u.double()
    near = wide.clamp_min(_TAIL)
    density = t_log_density(near, df).exp()
    direct = (near * t_cdf(near, df) + density * (df + near.square()) / (df - 1)).log()
    far = wide.clamp_max(_TAIL)
    z = df / (df + far.square())
    ratio = _hypergeometric(z, (df - 1) / 2, df / 2 + 1)
    tail = t_log_density(far, df) + ratio.log() - (z * (df - 1)).log()
    return torch.where(wide > _TAIL, direct, tail).to(u)


def _hypergeometric(z: Tensor, a: float | Tensor, c: float | Tensor) -> Tensor:
    """2F1(a, 1; c; z) by Gauss's continued fraction (DLMF 15.7.5 with b = 1), 0 <= z < 1."""
    value = torch.ones_like(z)
    for j in range(_FRACTION_TERMS, 0, -1):
        n = j // 2
        if j % 2:
            coefficient = (a + n) * (c - 1 + n) / ((c - 1 + 2 * n) * (c + 2 * n))
        else:
            coefficient = n * (c - 1 - a + n) / ((c + 2 * n - 2) * (c + 2 * n - 1))
        value = 1 - coefficient * z / value
    return 1 / value


def _number(df: float | Tensor) -> Any:
    return _numpy(df) if isinstance(df, Tensor) else df


def _numpy(value: Tensor) -> Any:
    return value.detach().double().cpu().numpy()


def _like(tensor: Tensor, values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=tensor.dtype, device=tensor.device)
