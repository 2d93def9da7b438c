"""Scores of predictions, and ranks of models over data sets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.stats

__all__ = ["Prediction", "class_scores", "density_scores", "paired", "ranks"]

# Every model's class probabilities are mixed with this share of uniform ones, so that a class for
# which no tree voted costs log(K / share) at most.
UNIFORM_SHARE = 1e-3


@dataclass(frozen=True)
class Prediction:
    """Predictive distributions at the test rows, seen at the test targets.

    Attributes:
        mean: Of y, `[m]`.
        log_density: Of y at the targets, `[m]`, nats, in units of y.
        probability_below: Of a value at most the target, `[m]`.
        crps: Continuous ranked probability scores of the targets, `[m]`, units of y.
    """

    mean: np.ndarray
    log_density: np.ndarray
    probability_below: np.ndarray
    crps: np.ndarray


def density_scores(predicted: Prediction, y: np.ndarray) -> dict[str, float]:
    """NLL (nats per row), RMSE and CRPS (units of y), and coverage of central 90 % intervals."""
    inside = np.abs(predicted.probability_below - 0.5) <= 0.45
    return {
        "nll": float(-predicted.log_density.mean()),
        "rmse": float(np.sqrt(np.square(predicted.mean - y).mean())),
        "crps": float(predicted.crps.mean()),
        "coverage": float(inside.mean()),
    }


def class_scores(probabilities: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """NLL (log loss, nats per row), accuracy, and overconfidence.

    Args:
        probabilities: `[m, K]`, of sum 1.
        y: Classes `[m]`.

    Returns:
        "overconfidence" is the mean probability of the predicted class less the accuracy.
    """
    classes = probabilities.shape[1]
    mixed = (1 - UNIFORM_SHARE) * probabilities + UNIFORM_SHARE / classes
    accuracy = float((mixed.argmax(1) == y).mean())
    return {
        "nll": float(-np.log(mixed[np.arange(len(y)), y.astype(int)]).mean()),
        "accuracy": accuracy,
        "overconfidence": float(mixed.max(1).mean()) - accuracy,
    }


def ranks(scores: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Ranks of models by set, 1 for the smallest score, ties averaged; "mean" over the sets.

    Args:
        scores: Score by set, then by model; the same models for every set.
    """
    models = list(next(iter(scores.values())))
    found: dict[str, dict[str, float]] = {model: {} for model in models}
    for name, values in scores.items():
        for model, rank in zip(
            models, scipy.stats.rankdata([values[model] for model in models]), strict=True
        ):
            found[model][name] = float(rank)
    for of_sets in found.values():
        of_sets["mean"] = sum(of_sets.values()) / len(scores)
    return found


def paired(differences: np.ndarray) -> dict[str, float | None]:
    """Mean of paired differences and its standard error, None with a single one."""
    n = len(differences)
    error = None if n < 2 else float(differences.std(ddof=1)) / math.sqrt(n)
    return {"mean": float(differences.mean()), "standard_error": error}
