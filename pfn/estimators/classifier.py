"""Classification behind `fit` and `predict`."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from torch import Tensor

from pfn.estimators.base import PFNEstimator
from pfn.estimators.ensemble import Member
from pfn.estimators.groups import encode_together
from pfn.estimators.linear import FOLDS, LinearMember, folds_of, pool, pool_weight
from pfn.prior_fitted_network import PFN
from priors.tables import Features

__all__ = ["PFNClassifier"]


class PFNClassifier(ClassifierMixin, PFNEstimator):
    """Classification by a prior-data fitted network.

    Args:
        network: A shipped name, the path of a file, or a `PFN`.
        num_ensemble: Members of the ensemble. The first sees the data as they are; the others
            permute the columns, or draw column codes in a network of cells, and renumber the
            classes. Of more columns than the network has slots the first sees the most informative
            ones, every fourth of the others principal components of all, and the rest random
            groups.
        power_transforms: Whether every other member sees inputs after a Yeo-Johnson transform
            that is fitted to its context; in a network trained on standardised inputs. "auto": in
            ensembles of such networks.
        linear: Whether a logistic regression of all columns has a part in the answer, by what both
            would have said of rows that they were not shown; see `pfn.estimators.linear`. "auto":
            in ensembles. Not with fewer than 10 rows.
        categorical_features: See `PFNRegressor`.
        max_context: See `PFNRegressor`.
        context_strategy: See `PFNRegressor`.
        batch_size: Queries that go through the network at once.
        random_state: See `PFNRegressor`.
        device: Device to run on; if None, the GPU when there is one.
        dtype: Of the network, "float32" or "float64"; data are standardised in double before it.
        check: See `PFNRegressor`.

    Attributes:
        classes_: Classes, sorted; at most as many as the network was made for.
        linear_weight_: Weight of the logistic regression, in [0, 1]; 0 without one.
        network_: The network in use.
        unlike_the_prior_: See `PFNRegressor`.
        selected_features_: See `PFNRegressor`.
        n_features_in_: Features of the training data.
        feature_names_in_: Their names, if they are all text.
    """

    linear_weight_: float
    _linear_member: LinearMember | None

    def __init__(
        self,
        network: str | os.PathLike[str] | PFN = "classification",
        *,
        num_ensemble: int = 8,
        power_transforms: bool | str = "auto",
        linear: bool | str = "auto",
        categorical_features: str | Sequence[Any] | None = "auto",
        max_context: str | int | None = "network",
        context_strategy: str = "subsample",
        batch_size: int = 4096,
        random_state: int | np.random.RandomState | None = 0,
        device: str | torch.device | None = None,
        dtype: str = "float32",
        check: bool = True,
    ) -> None:
        self.network = network
        self.num_ensemble = num_ensemble
        self.power_transforms = power_transforms
        self.linear = linear
        self.categorical_features = categorical_features
        self.max_context = max_context
        self.context_strategy = context_strategy
        self.batch_size = batch_size
        self.random_state = random_state
        self.device = device
        self.dtype = dtype
        self.check = check

    def fit(self, X: Any, y: Any) -> PFNClassifier:
        """Encode a data set.

        Args:
            X: Table `[n, d]`; numbers, text, booleans, categories, missing values.
            y: Classes `[n]`, of any kind that sorts; two or more.

        Raises:
            TypeError: a network or values of an unusable kind.
            ValueError: unusable data or parameters, missing labels, or more classes than the
                network has. The estimator is then as it was.
        """
        self._check_parameters()
        with self._all_or_nothing():
            X, y = self._read_table(X, y, numeric=False)
            check_classification_targets(y)
            self.classes_, y = np.unique(y, return_inverse=True)
            if len(self.classes_) < 2:
                raise ValueError(
                    f"PFNClassifier needs at least two classes, got one class, {self.classes_[0]}."
                )
            self.network_ = self._load_network(classes=True)
            most = self.network_.architecture.classes
            if len(self.classes_) > most:
                raise ValueError(
                    f"y has {len(self.classes_)} classes and this network supports at most "
                    f"{most}; merge classes, wrap the estimator in "
                    "sklearn.multiclass.OneVsRestClassifier, or train a network with more."
                )
            self._limit_context(len(y))
            self._condition(X, y, np.eye(len(self.classes_))[y])
            self._add_linear(X, y)
        return self

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.linear not in (True, False, "auto"):
            raise ValueError(f"linear must be True, False or 'auto', got {self.linear!r}.")

    def _add_linear(self, X: np.ndarray, y: np.ndarray) -> None:
        """Fit the linear member and weigh it; X is the table as numbers."""
        self._linear_member, self.linear_weight_ = None, 0.0
        wanted = self.num_ensemble > 1 if self.linear == "auto" else self.linear
        if not wanted or len(y) < 2 * FOLDS or len(self.classes_) < 2:
            return
        features = Features.fit(X, self._columns)
        made, of_linear = LinearMember.fit(X, y, features, len(self.classes_))
        weight = pool_weight(self._left_out(y), of_linear, y)
        if weight > 0:
            self._linear_member, self.linear_weight_ = made, weight

    def _left_out(self, y: np.ndarray) -> np.ndarray:
        """Log probabilities `[n, C]` of the training rows by two members that lack their fold."""
        folds, members = folds_of(y), self._members[:2]
        found = np.empty((len(y), len(self.classes_)))
        for fold in range(FOLDS):
            own = folds == fold
            fewer = [replace(member, rows=member.rows[~own[member.rows]]) for member in members]
            with torch.no_grad():
                groups = encode_together(self.network_, fewer, self._X, self._y, self._kinds())
            found[own] = self._pooled(members, self._logits(self._X[own], groups))
        return found

    def _pooled(self, members: Sequence[Member], logits: Sequence[Tensor]) -> np.ndarray:
        """Log probabilities `[m, C]` of some members together."""
        stacked = torch.stack(
            [
                of_member.log_softmax(-1)[:, self._where.new_tensor(member.classes).long()]
                for member, of_member in zip(members, logits, strict=True)
            ]
        )
        if self._views_differ:
            # Each knows something that the others do not: their mean would be less sure than any.
            pooled = stacked.mean(0).log_softmax(-1)
        else:
            pooled = stacked.logsumexp(0) - math.log(len(stacked))
        return pooled.cpu().numpy()

    def predict_proba(self, X: Any) -> np.ndarray:
        """Predictive probabilities of `classes_`, `[m, number of classes]`.

        Args:
            X: Table `[m, d]`.
        """
        return np.exp(self.predict_log_proba(X))

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of `predict_proba`, of their full precision.

        Args:
            X: Table `[m, d]`.
        """
        values = self._numbers(X)
        found = self._pooled(self._members, self._logits(self._queries(values)))
        if self._linear_member is None:
            return found
        of_linear = self._linear_member.log_probabilities(values)
        return pool(found.astype(np.float64), of_linear, self.linear_weight_)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable classes, `[m]`.

        Args:
            X: Table `[m, d]`.
        """
        most = self.predict_log_proba(X).argmax(axis=1)
        return self.classes_[most]
