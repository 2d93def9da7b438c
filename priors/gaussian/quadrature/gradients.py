"""Gaussian expectations with their gradients, which are expectations again (Price's theorem)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from priors.gaussian.elementwise import Elementwise as Differentiable
from priors.gaussian.quadrature.functions import Elementwise, Function, Kinks, Place, with_kinks
from priors.gaussian.quadrature.kinks import sides
from priors.gaussian.quadrature.mehler import expectation_without_gradient, mean_without_gradient

if TYPE_CHECKING:
    from priors.shapes import Part, Whole

__all__ = ["gaussian_expectation", "gaussian_mean"]


def gaussian_mean(
    f: Function, q: Whole, *, parameters: Sequence[Tensor] = (), kinks: Kinks = ()
) -> Whole:
    """E[f(u)] for u of variance `q`.

    Args:
        f: `f(x, *parameters)`, elementwise; x has the nodes as last dimension after those of q.
        q: Variances, any shape, >= 0.
        parameters: Tensors that broadcast with `q`, given to f with a last dimension of 1.
        kinks: Where f or a derivative jumps, in units of u; floats, or tensors that broadcast
            with `q`, NaN for none. No gradient goes through their position, which is exact
            wherever f is continuous.

    Returns:
        The shape of `q`.
    """
    function, every = with_kinks(f, kinks, parameters)
    return _Mean.apply(q, *every, function)


def gaussian_expectation(
    f: Function,
    g: Function,
    q1: Part,
    q2: Part,
    c: Part,
    *,
    f_parameters: Sequence[Tensor] = (),
    g_parameters: Sequence[Tensor] = (),
    f_kinks: Kinks = (),
    g_kinks: Kinks = (),
) -> Whole:
    """E[f(u) g(v)].

    Accurate to about 1e-10 of the root of E[f^2] E[g^2] for smooth functions and 1e-7 for kinked
    ones, whose kinks are given; variances up to about 1e4 for functions that vary on a scale of
    one and within |u| < 64, beyond that more slowly.

    A table of pairs costs some hundred operations a pair; pairs of kinked functions with |rho|
    above about 0.95 some ten thousand, about 50 microseconds of one processor core each.

    Args:
        f: `f(x, *f_parameters)`, elementwise; x has the nodes as last dimension.
        g: Likewise with `g_parameters`.
        q1: Variances of u, >= 0; broadcasts with `q2` and `c`.
        q2: Variances of v, >= 0.
        c: Covariances.
        f_parameters: Tensors that broadcast with `q1`, given to f with a last dimension of 1.
        g_parameters: Likewise with `q2`.
        f_kinks: Where f or a derivative jumps, in units of u; floats, or tensors that broadcast
            with `q1`, NaN for none. No gradient goes through their position.
        g_kinks: Likewise for g and `q2`.

    Returns:
        The shape to which q1, q2 and c broadcast, in the dtype of `c`.
    """
    first, one = with_kinks(f, f_kinks, f_parameters)
    second, two = with_kinks(g, g_kinks, g_parameters)
    return _Expectation.apply(q1, q2, c, *one, *two, first, second)


class _Mean(Differentiable):
    """Of q, the parameters, and the function."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        q, *parameters, f = inputs
        return mean_without_gradient(f, q, *parameters).to(q.dtype)

    @staticmethod
    def slopes(
        inputs: Sequence[Any], outputs: Sequence[Tensor], needed: Sequence[bool]
    ) -> list[list[Tensor | None]]:
        q, *parameters, f = inputs
        slopes: list[Tensor | None] = [None] * (1 + len(parameters))
        if needed[0]:
            slope = _Mean.apply(q, *parameters, f.partial(0).partial(0)) / 2
            for t, jump, bend in _kinks(f, q, parameters):
                slope = slope + _density(t, q) * (bend + jump * t * _reciprocal(q)) / 2
            slopes[0] = slope
        for i, p in enumerate(parameters):
            if needed[1 + i]:
                slopes[1 + i] = _Mean.apply(q, *parameters, f.partial(1 + i)).to(p.dtype)
        return [slopes]


class _Expectation(Differentiable):
    """Of q1, q2, c, the parameters of f and of g, and the functions."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        q1, q2, c, *parameters, f, g = inputs
        n = f.num_parameters
        value = expectation_without_gradient(f, g, q1, q2, c, parameters[:n], parameters[n:])
        return value.to(c.dtype)

    @staticmethod
    def slopes(
        inputs: Sequence[Any], outputs: Sequence[Tensor], needed: Sequence[bool]
    ) -> list[list[Tensor | None]]:
        q1, q2, c, *parameters, f, g = inputs
        n = f.num_parameters
        p1, p2 = parameters[:n], parameters[n:]
        slopes: list[Tensor | None] = [None] * (3 + len(parameters))
        if needed[0]:
            slopes[0] = _variance_slope(f, g, q1, q2, c, p1, p2)
        if needed[1]:
            slopes[1] = _variance_slope(g, f, q2, q1, c, p2, p1)
        if needed[2]:
            slopes[2] = _covariance_slope(f, g, q1, q2, c, p1, p2)
        for i, p in enumerate(parameters):
            if needed[3 + i]:
                f_, g_ = (f.partial(1 + i), g) if i < n else (f, g.partial(1 + i - n))
                slopes[3 + i] = _Expectation.apply(q1, q2, c, *parameters, f_, g_).to(p.dtype)
        return [slopes]


def _covariance_slope(
    f: Elementwise,
    g: Elementwise,
    q1: Tensor,
    q2: Tensor,
    c: Tensor,
    p1: Sequence[Tensor],
    p2: Sequence[Tensor],
) -> Tensor:
    """dE/dc = E[f' g'], deltas included."""
    slope = _Expectation.apply(q1, q2, c, *p1, *p2, f.partial(0), g.partial(0))
    jumps1 = [(t, jump) for t, jump, _ in _kinks(f, q1, p1) if bool((jump != 0).any())]
    jumps2 = [(t, jump) for t, jump, _ in _kinks(g, q2, p2) if bool((jump != 0).any())]
    for t, jump in jumps1:
        slope = slope + jump * _density(t, q1) * _given(g.partial(0), p2, t, q1, q2, c)
    for t, jump in jumps2:
        slope = slope + jump * _density(t, q2) * _given(f.partial(0), p1, t, q2, q1, c)
    for t1, jump1 in jumps1:
        for t2, jump2 in jumps2:
            joint = _density(t1, q1) * _density_given(t2, t1, q1, q2, c)
            slope = slope + jump1 * jump2 * joint
    return slope


def _variance_slope(
    f: Elementwise,
    g: Elementwise,
    q1: Tensor,
    q2: Tensor,
    c: Tensor,
    p1: Sequence[Tensor],
    p2: Sequence[Tensor],
) -> Tensor:
    """dE/dq1 = E[f'' g] / 2, where f'' has bend delta(u - t) + jump delta'(u - t) at a kink t."""
    slope = _Expectation.apply(q1, q2, c, *p1, *p2, f.partial(0).partial(0), g) / 2
    for t, jump, bend in _kinks(f, q1, p1):
        given = _given(g, p2, t, q1, q2, c)
        total = bend * given
        if bool((jump != 0).any()):
            # minus the derivative in t of density(t) E[g(v) | u = t]
            inner = _given(g.partial(0), p2, t, q1, q2, c)
            for t2, jump2, _ in _kinks(g, q2, p2):
                inner = inner + jump2 * _density_given(t2, t, q1, q2, c)
            total = total + jump * (t * given - c * inner) * _reciprocal(q1)
        slope = slope + _density(t, q1) * total / 2
    return slope


def _kinks(
    f: Elementwise, q: Tensor, parameters: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(position, jump of f, jump of f') of each kink, each of the shape of `q`."""
    if not f.kinks:
        return []
    positions = f.kinks_like(q, parameters)
    arguments = [p.double()[..., None] for p in parameters]
    sizes = []
    safe = positions.nan_to_num(0.0)
    for function in (f, f.partial(0)):
        left, right = sides(function, safe, *arguments)
        size = right - left
        noise = 1e-9 * (1 + left.abs() + right.abs())
        sizes.append(torch.where((size.abs() > noise) & ~positions.isnan(), size, 0.0).to(q.dtype))
    safe = safe.to(q.dtype)
    return [(safe[..., i], sizes[0][..., i], sizes[1][..., i]) for i in range(safe.shape[-1])]


def _given(
    g: Elementwise, parameters: Sequence[Tensor], t: Tensor, q1: Tensor, q2: Tensor, c: Tensor
) -> Tensor:
    """E[g(v) | u = t]."""
    mean = c * t * _reciprocal(q1)
    variance = _determinant(q1, q2, c) * _reciprocal(q1)
    variance, mean = torch.broadcast_tensors(variance, mean)

    def moved(x: Tensor, mean: Tensor, *parameters: Tensor) -> Tensor:
        return g(x + mean, *parameters)

    kinks = [(parameters[k.index] if isinstance(k, Place) else k) - mean for k in g.kinks]
    return gaussian_mean(moved, variance, parameters=(mean, *parameters), kinks=kinks)


def _density(t: Tensor, q: Tensor) -> Tensor:
    """Of N(0, q) at t; 0 at q = 0."""
    inverse = _reciprocal(q).clamp_min(0)
    root = torch.where(inverse > 0, torch.where(inverse > 0, inverse, 1.0).sqrt(), 0.0)
    return torch.exp(-(t**2) * inverse / 2) * root / math.sqrt(2 * math.pi)


def _density_given(t2: Tensor, t1: Tensor, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
    """The density of v at t2 given u = t1; 0 where v is determined by u."""
    det = _determinant(q1, q2, c)
    floor = 16 * torch.finfo(det.dtype).eps * q1 * q2
    variance = torch.where(det > floor, det, 0.0) * _reciprocal(q1)
    return _density(t2 - c * t1 * _reciprocal(q1), variance)


def _determinant(q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
    """q1 q2 - c^2 >= 0, factored to lose less where u and v are nearly parallel."""
    product = q1 * q2
    positive = product > 0
    root = torch.where(positive, torch.where(positive, product, 1.0).sqrt(), 0.0)
    return ((root - c) * (root + c)).clamp_min(0)


def _reciprocal(q: Tensor) -> Tensor:
    """1 / q, and 0 at q = 0."""
    safe = q > torch.finfo(q.dtype).tiny
    return torch.where(safe, 1 / torch.where(safe, q, 1.0), 0.0)
