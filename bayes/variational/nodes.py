"""Nodes and weights for expectations over Gaussians and over random scales.

In one dimension the trapezium rule, whose error for a function that is analytic in a strip of
half-width w about the real line falls as exp(-2 pi w / spacing) (Trefethen & Weideman 2014,
theorem 5.1); a product of two Gauss-Hermite rules in two; a scrambled Sobol sequence beyond.
Rules are deterministic: the same nodes whenever they are asked for, so that a bound of them is a
smooth function of what is optimised.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

__all__ = ["gamma_nodes", "normal_line", "normal_nodes"]

# Beyond, the normal weight is below the rounding of float64.
_REACH = 8.3


@lru_cache(maxsize=64)
def _line(size: int) -> tuple[Tensor, Tensor]:
    x = torch.linspace(-_REACH, _REACH, size, dtype=torch.float64, device="cpu")
    return x, (-0.5 * x.square()).log_softmax(0)


def normal_line(size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Equally spaced nodes `[S]` of a standard normal, and their log weights `[S]`.

    Args:
        size: S; the spacing is 16.6 / (S - 1) standard deviations.
        like: Whose dtype and device they have.
    """
    x, log_weights = _line(size)
    return x.to(like), log_weights.to(like)


@lru_cache(maxsize=16)
def _square(size: int) -> tuple[Tensor, Tensor]:
    x, weight = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(size))
    log_weight = (weight / weight.sum()).log()
    return (
        torch.cartesian_prod(x, x),
        (log_weight[:, None] + log_weight[None, :]).flatten(),
    )


@lru_cache(maxsize=16)
def _sequence(dimension: int, size: int) -> Tensor:
    sobol = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=0)
    u = sobol.draw(size // 2, dtype=torch.float64).to("cpu")
    x = torch.special.ndtri(u.clamp(1e-12, 1 - 1e-12))
    x = torch.cat([x, -x])  # odd moments are right
    return x / x.square().mean(0).sqrt()


def normal_nodes(dimension: int, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes `[S, k]` of independent standard normals, and their log weights `[S]`.

    Args:
        dimension: k >= 1.
        size: About how many; a power of 2.
        like: Whose dtype and device they have.
    """
    if dimension == 1:
        x, log_weights = normal_line(size, like)
        return x.unsqueeze(-1), log_weights
    if dimension == 2:
        x, log_weights = _square(math.isqrt(size))
        return x.to(like), log_weights.to(like)
    x = _sequence(dimension, size)
    return x.to(like), like.new_full((len(x),), -math.log(len(x)))


def gamma_nodes(concentration: Tensor, rate: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Nodes `[S]` of a gamma variable and their log weights `[S]`, differentiable in both.

    The trapezium rule in the logarithm u, in which the density is exp(a u - b e^u), between its
    quantiles of 1e-10.

    Args:
        concentration: a > 0, a scalar.
        rate: b > 0, a scalar.
        size: S.
    """
    from scipy import stats  # slow to load

    law = stats.gamma(float(concentration.detach()))
    mode = math.log(float(concentration.detach()))
    low, high = (math.log(max(float(q), 1e-300)) for q in (law.ppf(1e-10), law.isf(1e-10)))
    # of b times the variable, so that the nodes move with the rate and their weights do not
    u = torch.linspace(min(low, mode), max(high, mode), size, dtype=torch.float64, device="cpu")
    u = u.to(rate)
    log_density = concentration * u - u.exp()
    return u.exp() / rate, log_density.log_softmax(0)
