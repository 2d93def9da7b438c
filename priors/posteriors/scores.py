"""Scores of predictive posteriors on held-out targets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from priors.posteriors.protocol import PredictivePosterior
from priors.representation import as_record

__all__ = ["Scores", "score"]


@dataclass(frozen=True)
class Scores:
    """Scores of a predictive distribution on held-out targets, averaged over points and outputs.

    Attributes:
        rmse: Root mean squared error of the mean, units of Y.
        nlpd: Negative mean marginal log predictive density, nats.
        coverage: Share of targets inside the central interval.
        level: Nominal probability of that interval.
    """

    rmse: float
    nlpd: float
    coverage: float
    level: float

    def __repr__(self) -> str:
        return as_record(self)


def score(posterior: PredictivePosterior, Y: Tensor, *, level: float = 0.9) -> Scores:
    """Score a predictive posterior of y on held-out targets.

    Args:
        posterior: `model.posterior(X, observation_noise=True)`, `[..., n, m]`.
        Y: Targets, `[..., n, m]`.
        level: Probability of the central interval whose coverage is counted.

    Raises:
        ValueError: `Y` has another shape than the posterior, or level is outside (0, 1).
    """
    if Y.shape != posterior.mean.shape:
        raise ValueError(
            f"score got Y of shape {tuple(Y.shape)} for a posterior of shape "
            f"{tuple(posterior.mean.shape)}; they must agree."
        )
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}.")
    with torch.no_grad():
        tail = (1 - level) / 2
        lower, upper = posterior.quantile(Y.new_tensor([tail, 1 - tail]))
        inside = (lower <= Y) & (upper >= Y)
        return Scores(
            rmse=float((posterior.mean - Y).square().mean().sqrt()),
            nlpd=float(-posterior.log_prob(Y).mean()),
            coverage=float(inside.to(Y.dtype).mean()),
            level=level,
        )
