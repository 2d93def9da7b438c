"""Quantiles of mixtures, which have no closed form: the distribution function inverted."""

from __future__ import annotations

import torch
from torch import Tensor

from priors.posteriors.protocol import PredictivePosterior

__all__ = ["invert_cdf"]

# Twice what bisection alone needs; Newton's steps end the search early.
_STEPS = {torch.float32: 80, torch.float64: 160}


def invert_cdf(posterior: PredictivePosterior, p: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Quantiles of a posterior `[..., n, m]` from bounds on them, to rounding.

    By bisection unless Newton's steps halve the error. Differentiable in whatever the posterior's
    cdf is, where it has a density; where it has none, the smallest value that reaches p, without
    a gradient.

    Args:
        posterior: Posterior with a continuous or discontinuous cdf.
        p: Probabilities, broadcasting with the bounds.
        lower: Values not above the quantiles, `[*p, ..., n, m]`.
        upper: Values not below them.
    """
    with torch.no_grad():
        if not posterior.has_density:
            return _bisect(posterior, p, lower, upper)
        found = _search(posterior, p, lower, upper)
        density = posterior.log_prob(found).exp()
        tiny = torch.finfo(found.dtype).tiny
    # Implicit differentiation of cdf(q) = p; the value stays that of the search.
    residual = posterior.cdf(found) - p
    return found - (residual - residual.detach()) / density.clamp_min(tiny)


def _search(posterior: PredictivePosterior, p: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    precision = 8 * torch.finfo(lower.dtype).eps
    rounding = precision * torch.maximum(lower.abs(), upper.abs())
    found = (lower + upper) / 2
    before = torch.full_like(found, torch.inf)
    for _ in range(_STEPS[lower.dtype]):
        miss = posterior.cdf(found) - p
        move = miss / posterior.log_prob(found).exp()
        lower = torch.where(miss < 0, found, lower)
        upper = torch.where(miss < 0, upper, found)
        done = (miss.abs() <= precision * p) | (move.abs() <= rounding)
        done = done | (upper - lower <= precision * torch.maximum(lower.abs(), upper.abs()))
        if bool(done.all()):
            break
        newton = found - move
        trusted = (newton > lower) & (newton < upper) & (miss.abs() < before / 2)
        ahead = torch.where(trusted, newton, (lower + upper) / 2)
        found, before = torch.where(done, found, ahead), miss.abs()
    return found


def _bisect(posterior: PredictivePosterior, p: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    # Rounding of the weights' sum does not decide whether a step reaches p.
    eps = torch.finfo(lower.dtype).eps
    target = p - 4 * eps
    for _ in range(_STEPS[lower.dtype]):
        if bool((upper - lower <= 2 * eps * torch.maximum(lower.abs(), upper.abs())).all()):
            break
        middle = (lower + upper) / 2
        reached = posterior.cdf(middle) >= target
        lower, upper = torch.where(reached, lower, middle), torch.where(reached, middle, upper)
    return upper
