"""Weights of a linear pool by the held-out log scores of its members: stacking.

Yao, Vehtari, Simpson & Gelman 2018 ("Using Stacking to Average Bayesian Predictive Distributions",
1704.02030), eq. 5 with the logarithmic score: with p_ik the density that member k, which has not
seen row i, had for it,

    w = argmax over the simplex of  f(w) = 1/n sum_i log sum_k w_k p_ik.

f is concave. With g_k = 1/n sum_i p_ik / sum_j w_j p_ij its gradient, sum_k w_k g_k = 1, so that
max_k g_k - 1 bounds f(w*) - f(w), and the simplex may be exchanged for w >= 0 with - sum_k w_k in
the objective. That is solved by Newton's method with a logarithmic barrier, whose cost grows with
k^2 n; some thirty steps are enough.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["stacking_weights"]

_STEPS = 200
_BARRIERS = 40


def stacking_weights(log_scores: Tensor, *, tolerance: float = 1e-8) -> Tensor:
    """Convex weights of greatest mean held-out log score of the pool.

    Args:
        log_scores: Log densities or log probabilities that the members had for rows which they
            had not seen, `[n, k]`, in nats; -inf is allowed. Rows for which all members have
            -inf tell nothing and are left out.
        tolerance: How far the mean log score may be below the greatest one, nats, > 0.

    Returns:
        `[k]`, >= 0, of sum 1, in the dtype of the scores; computed in float64. A member that adds
        nothing has weight 0.

    Raises:
        ValueError: scores of another shape, that are NaN or +inf, or no row that tells anything.
    """
    if log_scores.dim() != 2 or 0 in log_scores.shape:
        raise ValueError(
            "stacking_weights needs scores [rows, members], at least one of each, got shape "
            f"{tuple(log_scores.shape)}."
        )
    if bool((log_scores.isnan() | (log_scores == torch.inf)).any()):
        raise ValueError(
            "stacking_weights got log scores that are NaN or +inf: a member without a proper "
            "density at some row. Leave it out."
        )
    scores = log_scores.detach().double()
    scores = scores[(scores > -torch.inf).any(1)]
    if not len(scores):
        raise ValueError("stacking_weights got log scores of -inf only: no member is possible.")
    # any factor of a row is the same for all members
    p = (scores - scores.amax(1, keepdim=True)).exp()
    k = p.shape[1]
    w = torch.full((k,), 1 / k, dtype=p.dtype, device=p.device)
    barrier = 1.0 / k
    for _ in range(_BARRIERS):
        w = _centred(p, w, barrier)
        if barrier < tolerance / (100 * k) and _gap(p, _rounded(w, tolerance)) <= tolerance:
            break
        barrier /= 5
    return _rounded(w, tolerance).to(log_scores)


def _gap(p: Tensor, w: Tensor) -> float:
    """Bound on the distance from the greatest mean log score."""
    return float((p / (p @ w).unsqueeze(1)).mean(0).max()) - 1


def _rounded(w: Tensor, tolerance: float) -> Tensor:
    """On the simplex, without weights that bring less than the tolerance together."""
    w = w / w.sum()
    kept = torch.where(w > 0.5 * tolerance / len(w), w, 0)
    return kept / kept.sum()


def _centred(p: Tensor, w: Tensor, barrier: float) -> Tensor:
    """The w > 0 that minimises -f(w) + sum w - barrier sum log w, by Newton's method."""

    def objective(w: Tensor) -> Tensor:
        return w.sum() - (p @ w).log().mean() - barrier * w.log().sum()

    value = objective(w)
    for _ in range(_STEPS):
        ratio = p / (p @ w).unsqueeze(1)
        slope = 1 - ratio.mean(0) - barrier / w
        # in units of w, in which the barrier's curvature is the same for all
        curvature = w * (ratio.mT @ ratio / len(p)) * w.unsqueeze(1)
        curvature.diagonal().add_(barrier)
        step = -w * torch.linalg.solve(curvature, w * slope)
        decrement = -float(slope @ step)
        if not decrement > 1e-3 * barrier:
            break
        length = min(1.0, 0.99 / max(1e-300, float((-step / w).max())))
        while length > 1e-12:
            ahead = w + length * step
            found = objective(ahead)
            if found <= value - 0.1 * length * decrement:
                break
            length /= 2
        else:
            break  # of rounding
        w, value = ahead, found
    return w
