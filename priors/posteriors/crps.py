"""The continuous ranked probability score: formulas, and quadrature for any distribution.

    CRPS(F, y) = int (F(z) - 1{z >= y})^2 dz = E|X - y| - E|X - X'| / 2,    X, X' ~ F independent

(Gneiting & Raftery 2007, eq. 20-21): a proper score in the units of y, smaller is better; that of
a point is its absolute error. Every `PredictivePosterior` answers `crps(Y)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.special import betaln
from torch import Tensor

from priors.posteriors.student_t import t_cdf, t_log_density

__all__ = [
    "crps_by_quadrature",
    "crps_of_draws",
    "crps_of_gaussians",
    "crps_of_standard_normal",
    "crps_of_standard_t",
    "knot_probabilities",
    "shared_out",
]

# Quantiles at which panels end; of a distribution that is mixed with many, at least so many.
_KNOTS, _FEWEST_KNOTS = 48, 12
_NODES = 4
_LEAST = {torch.float32: 1e-6, torch.float64: 1e-9}
_NUMBERS_AT_ONCE = 2**21


def crps_of_standard_normal(u: Tensor) -> Tensor:
    """Of the standard normal.

    Args:
        u: Where, any shape.

    Source: Gneiting & Raftery 2007, eq. 21.
    """
    return _expected_distance(u) - 1 / math.sqrt(math.pi)


def _expected_distance(u: Tensor) -> Tensor:
    """E|Z - u| of a standard normal Z."""
    density = (-0.5 * u.square()).exp() / math.sqrt(2 * math.pi)
    return u * torch.special.erf(u / math.sqrt(2)) + 2 * density


def crps_of_standard_t(u: Tensor, df: float) -> Tensor:
    """Of Student's standard t.

    Args:
        u: Where, any shape.
        df: Degrees of freedom, > 1.

    Source: Jordan, Krueger & Lerch 2019 (1709.04743), appendix A.
    """
    density = t_log_density(u, df).exp()
    log_ratio = float(betaln(0.5, df - 0.5)) - 2 * float(betaln(0.5, df / 2))
    spread = 2 * math.sqrt(df) / (df - 1) * math.exp(log_ratio)
    distance = u * (2 * t_cdf(u, df) - 1) + 2 * density * (df + u.square()) / (df - 1)
    return distance - spread


def crps_of_gaussians(means: Tensor, variances: Tensor, log_weights: Tensor, Y: Tensor) -> Tensor:
    """Of a mixture of S Gaussians, at a cost of S^2.

    Args:
        means: `[S, *s, ..., n, m]`, whose dimensions before the batch may be 1.
        variances: Of the same shape.
        log_weights: `[S]`, or of the dimensions of the means, broadcasting with them; of sum 1.
        Y: Targets, `[*s, ..., n, m]`.

    Source: Grimit, Gneiting, Berrocal & Johnson 2006, eq. 5.
    """
    weights = log_weights.exp()
    if weights.dim() == 1:
        weights = weights.reshape(-1, *[1] * (means.dim() - 1))
    std = variances.sqrt()
    found = (weights * std * _expected_distance((Y - means) / std)).sum(0)
    for mean, variance, weight in zip(means, variances, weights, strict=True):
        both = (variances + variance).sqrt()
        pairs = weights * both * _expected_distance((means - mean) / both)
        found = found - 0.5 * weight * pairs.sum(0)
    return found


def crps_of_draws(values: Tensor, log_weights: Tensor, Y: Tensor) -> Tensor:
    """Of finitely many values, by sorting them.

    Args:
        values: `[S, ..., n, m]`.
        log_weights: Of the same shape, of sum 1 along the first dimension.
        Y: Targets, `[*s, ..., n, m]`.
    """
    values, order = values.sort(0)
    weights = log_weights.exp().gather(0, order)
    below = weights.cumsum(0)
    spread = (weights * values * (2 * below - weights - 1)).sum(0)
    extra = [1] * (Y.dim() - values.dim() + 1)
    shape = (len(values), *extra, *values.shape[1:])
    distance = (weights.reshape(shape) * (values.reshape(shape) - Y).abs()).sum(0)
    return distance - spread


def knot_probabilities(dtype: torch.dtype, device: torch.device) -> Tensor:
    """At which quantiles panels of `crps_by_quadrature` end: equally spaced in logits."""
    end = math.log(1 / _LEAST[dtype] - 1)
    return torch.linspace(-end, end, _KNOTS, dtype=dtype, device=device).sigmoid()


def shared_out(levels: Tensor, num: int) -> list[Tensor]:
    """Levels of `num` components of a mixture, in place of `levels` `[k]` of each.

    A grid of twice as many, or of 12 for each component, of which they take every `num`th in turn:
    where they agree, all of the grid is in their common shape, and where they are far apart, each
    has enough for a smooth one.
    """
    size = max(2 * len(levels), _FEWEST_KNOTS * num)
    low, high = levels[[0, -1]].logit().tolist()
    grid = torch.linspace(low, high, size, dtype=levels.dtype, device=levels.device).sigmoid()
    return [grid[i::num] for i in range(num)]


def crps_by_quadrature(cdf: Callable[[Tensor], Tensor], knots: Tensor, Y: Tensor) -> Tensor:
    """Of any distribution: F^2 integrated up to y and (1 - F)^2 from there.

    Gauss-Legendre rules of four nodes on panels between the knots and y, which are where F bends.

    Args:
        cdf: Of values `[k, *s, ..., n, m]`.
        knots: Increasing values that cover the distribution, `[k, ..., n, m]`.
        Y: Targets, `[*s, ..., n, m]`.

    Returns:
        The shape of `Y`, without gradients.
    """
    with torch.no_grad():
        extra = [1] * (Y.dim() - knots.dim() + 1)
        knots = knots.reshape(len(knots), *extra, *knots.shape[1:])
        ends = torch.cat([knots.expand(-1, *Y.shape), Y.unsqueeze(0)]).sort(0).values
        nodes, weights = (
            torch.as_tensor(part, dtype=Y.dtype, device=Y.device).reshape(-1, *[1] * (Y.dim() + 1))
            for part in np.polynomial.legendre.leggauss(_NODES)
        )
        found = torch.zeros_like(Y)
        size = max(1, _NUMBERS_AT_ONCE // (_NODES * max(1, Y.numel())))
        for left, right in zip(ends[:-1].split(size), ends[1:].split(size), strict=True):
            half = (right - left) / 2  # [panels, *s, ..., n, m]
            at = (left + half + nodes * half).flatten(0, 1)
            F = cdf(at).unflatten(0, (_NODES, -1))
            # Y is an end, so that a panel lies on one side of it.
            found += (weights * half * torch.where(left < Y, F, 1 - F).square()).sum((0, 1))
    return found
