"""A linear classifier beside a network, and how much of it an ensemble should have.

Where the truth is linear, logistic regression knows it and a network has to find it out. Both
predict rows that they were not shown, fold by fold, and are pooled by the weight w of largest log
score there, less a charge of two nats for w = 1:

    p(class) proportional to network(class)^(1 - w) linear(class)^w

The score is concave in w. Weights by left-out log scores: Yao et al. 2018 (1704.02030), for a
linear pool, which does as well here; a geometric one is as sure as its parts where these agree.
The charge, and that two members of an ensemble stand for all of them, were chosen on tasks of
the prior of `classification`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from pfn.estimators.power_transforms import standardisation
from priors.tables import Features

__all__ = ["FOLDS", "LinearMember", "folds_of", "pool", "pool_weight"]

FOLDS = 5

_CHARGE = 2.0  # nats
_STRENGTHS = tuple(np.logspace(-3, 3, 7))  # C of scikit-learn: inverse variances of the slopes
_WEIGHTS = np.linspace(0, 1, 101)


def folds_of(y: np.ndarray) -> np.ndarray:
    """The fold of each row, `[n]`, every class spread over all of them."""
    order = np.argsort(y, kind="stable")
    folds = np.empty(len(y), dtype=int)
    folds[order] = np.arange(len(y)) % FOLDS
    return folds


def pool(network: np.ndarray, linear: np.ndarray, weight: float) -> np.ndarray:
    """Log probabilities `[m, C]` from those of both; `weight` is that of the linear model."""
    return log_softmax((1 - weight) * network + weight * linear, axis=1)


def pool_weight(network: np.ndarray, linear: np.ndarray, y: np.ndarray) -> float:
    """Weight of the linear model, in [0, 1].

    Args:
        network: Log probabilities `[n, C]` of rows that were left out.
        linear: Likewise.
        y: Numbers of their classes, `[n]`.
    """
    rows = np.arange(len(y))
    scores = [pool(network, linear, w)[rows, y].sum() - _CHARGE * w for w in _WEIGHTS]
    return float(_WEIGHTS[int(np.argmax(scores))])


@dataclass(frozen=True)
class LinearMember:
    """Multinomial logistic regression with a ridge penalty of largest cross-validated log score.

    Attributes:
        features: What becomes of the columns.
        location: Subtracted from the features.
        scale: By which they are divided.
        model: The regression; None where all rows are of one class.
        classes: Numbers of the classes of these rows.
        num_classes: Number C of classes that there are.
        rows: Number of rows that it was fitted to.
    """

    features: Features
    location: np.ndarray
    scale: np.ndarray
    model: LogisticRegression | None
    classes: np.ndarray
    num_classes: int
    rows: int

    @classmethod
    def fit(
        cls, X: np.ndarray, y: np.ndarray, features: Features, num_classes: int
    ) -> tuple[LinearMember, np.ndarray]:
        """The member, and log probabilities `[n, C]` of its rows when their fold is left out.

        Args:
            X: `[n, d]`, NaN where missing.
            y: Numbers of classes, `[n]`.
            features: Learnt from `X`.
            num_classes: Number C of classes.
        """
        folds = folds_of(y)

        def fitted(rows: np.ndarray, strength: float) -> LinearMember:
            Z = features.transform(X[rows])
            location, scale = standardisation(Z)
            classes, model = np.unique(y[rows]), None
            if len(classes) > 1:
                model = LogisticRegression(C=strength, max_iter=1000)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    model.fit((Z - location) / scale, y[rows])
            return cls(features, location, scale, model, classes, num_classes, len(Z))

        found = []
        for strength in _STRENGTHS:
            left_out = np.empty((len(y), num_classes))
            for fold in range(FOLDS):
                own = folds == fold
                left_out[own] = fitted(~own, strength).log_probabilities(X[own])
            found.append(left_out)
        scores = [left_out[np.arange(len(y)), y].sum() for left_out in found]
        best = int(np.argmax(scores))
        return fitted(np.ones(len(y), dtype=bool), _STRENGTHS[best]), found[best]

    def log_probabilities(self, X: np.ndarray) -> np.ndarray:
        """Of the classes at rows `[m, d]`, `[m, C]`."""
        Z = (self.features.transform(X) - self.location) / self.scale
        # A class that the fold lacks keeps the chance of one row among so many.
        share = 1 / (2 + self.rows)
        found = np.full((len(X), self.num_classes), share / self.num_classes)
        known = 1.0 if self.model is None else self.model.predict_proba(Z)
        found[:, self.classes] += (1 - share) * known
        return np.log(found)
