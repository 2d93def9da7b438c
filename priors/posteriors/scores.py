"""Scores of predictive posteriors on held-out targets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from priors.posteriors.categorical import CategoricalPosterior, ClassProbabilityPosterior
from priors.posteriors.protocol import PredictivePosterior
from priors.representation import as_record

__all__ = ["ClassScores", "Scores", "class_scores", "score"]


@dataclass(frozen=True)
class Scores:
    """Scores of a predictive distribution on held-out targets, averaged over points and outputs.

    Attributes:
        rmse: Root mean squared error of the mean, units of Y.
        nlpd: Negative mean marginal log predictive density, nats.
        coverage: Share of targets inside the central interval.
        level: Nominal probability of that interval.
        crps: Mean continuous ranked probability score, units of Y.
        interval_score: Mean length of that interval and 2 / (1 - level) times by how much targets
            miss it, units of Y (Gneiting & Raftery 2007, eq. 43).
    """

    rmse: float
    nlpd: float
    coverage: float
    level: float
    crps: float
    interval_score: float

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
        missed = (lower - Y).clamp_min(0) + (Y - upper).clamp_min(0)
        return Scores(
            rmse=float((posterior.mean - Y).square().mean().sqrt()),
            nlpd=float(-posterior.log_prob(Y).mean()),
            coverage=float(inside.to(Y.dtype).mean()),
            level=level,
            crps=float(posterior.crps(Y).mean()),
            interval_score=float((upper - lower + missed / tail).mean()),
        )


@dataclass(frozen=True)
class ClassScores:
    """Scores of predicted classes on held-out targets, averaged over points.

    Attributes:
        accuracy: Share of targets that have the largest probability.
        nlpd: Negative mean log probability of the target's class, nats.
        brier: Mean squared distance of probabilities and class indicators, between 0 and 2.
    """

    accuracy: float
    nlpd: float
    brier: float

    def __repr__(self) -> str:
        return as_record(self)


def class_scores(
    posterior: CategoricalPosterior | ClassProbabilityPosterior, Y: Tensor
) -> ClassScores:
    """Score class probabilities on held-out targets.

    Args:
        posterior: Of a classifier, `[..., n, classes]`.
        Y: Class numbers, `[..., n, 1]`.

    Raises:
        ValueError: `Y` has another shape than the posterior's rows.
    """
    with torch.no_grad():
        probabilities = posterior.mean
        if Y.shape != (*probabilities.shape[:-1], 1):
            raise ValueError(
                f"class_scores got Y of shape {tuple(Y.shape)} for class probabilities of shape "
                f"{tuple(probabilities.shape)}; class numbers are [..., n, 1]."
            )
        indicators = torch.zeros_like(probabilities).scatter(-1, Y.long(), 1)
        right = probabilities.argmax(-1, keepdim=True) == Y
        return ClassScores(
            accuracy=float(right.to(probabilities).mean()),
            nlpd=float(-posterior.log_prob(Y).mean()),
            brier=float((probabilities - indicators).square().sum(-1).mean()),
        )
