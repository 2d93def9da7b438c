"""Regression behind `fit` and `predict`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import RegressorMixin
from sklearn.utils.validation import check_X_y
from torch import Tensor
from torch.distributions.transforms import AffineTransform

from pfn.estimators.base import PFNEstimator
from pfn.estimators.relevance import ranks
from pfn.posteriors import BarPosterior
from pfn.prior_fitted_network import PFN
from priors.posteriors.linear_pool import MixturePosterior
from priors.posteriors.protocol import PredictivePosterior
from priors.posteriors.transformed import TransformedPosterior
from priors.tables import (
    checked_probabilities,
    refuse_missing,
    refuse_text,
    warn_of_equal_targets,
)

__all__ = ["PFNRegressor"]


class PFNRegressor(RegressorMixin, PFNEstimator):
    """Regression by a prior-data fitted network, with its whole predictive distribution.

    Args:
        network: A shipped name, the path of a file, or a `PFN`.
        num_ensemble: Members of the ensemble. The first sees the data as they are; the others
            permute the columns, or draw column codes in a network of cells. 1 is one forward
            pass, as `PFN.condition` makes. Columns are not permuted for a network that knows them
            by position; fewer members are made where others would be copies.
        power_transforms: Whether some members see inputs, targets or both after a Yeo-Johnson
            transform that is fitted to their context; in a network trained on standardised ones.
            "auto": in ensembles of such networks. Means and variances of members with transformed
            targets are quadratures.
        whitening: Whether three of every eight members see columns whose correlations are above
            0.9 as their principal components in units of their deviations, so that small
            differences between such columns can be seen; in a network trained on standardised
            inputs. Without such columns nothing changes.
        categorical_features: "auto" takes columns of text, booleans or pandas categories; else
            the indices or names of columns, or a mask.
        max_context: Most rows of a context: "network" for as many as it was trained on, a
            number, or None for no limit.
        context_strategy: What to do with more rows. "subsample": each member sees a random part
            of them, drawn by class in classification. "chunk": they are cut into random disjoint
            contexts whose predictions are pooled; every row counts, but no prediction is sharper
            than what one context supports, and it costs a member per context.
        batch_size: Queries that go through the network at once.
        random_state: Seed of permutations and contexts. A single member that sees all rows
            needs no random numbers.
        device: Device to run on; if None, the GPU when there is one.
        dtype: Of the network, "float32" or "float64"; data are standardised in double before it.
        check: Whether to warn if the two halves of the training data predict each other unlike
            those of 99% of the network's prior, where its certificate knows that. Costs two more
            encodings of all rows.

    Attributes:
        network_: The network in use.
        unlike_the_prior_: Text of that warning; None if there was none.
        selected_features_: Indices of the features in use; fewer than given only for a network
            of slots that has too few of them, in regression or with one member.
        n_features_in_: Features of the training data.
        feature_names_in_: Their names, if they are all text.
    """

    def __init__(
        self,
        network: str | os.PathLike[str] | PFN = "regression",
        *,
        num_ensemble: int = 8,
        power_transforms: bool | str = "auto",
        whitening: bool = True,
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
        self.whitening = whitening
        self.categorical_features = categorical_features
        self.max_context = max_context
        self.context_strategy = context_strategy
        self.batch_size = batch_size
        self.random_state = random_state
        self.device = device
        self.dtype = dtype
        self.check = check

    def fit(self, X: Any, y: Any) -> PFNRegressor:
        """Encode a data set.

        Args:
            X: Table `[n, d]`; numbers, text, booleans, categories, missing values.
            y: Finite targets `[n]`; n >= 2 for a network of standardised ones.

        Raises:
            TypeError: a network or values of an unusable kind.
            ValueError: unusable data or parameters. The estimator is then as it was.

        Warns:
            Where a network of standardised targets gets equal ones, which have no scale.
        """
        self._check_parameters()
        with self._all_or_nothing():
            refuse_text("PFNRegressor", y, "PFNClassifier")
            X, y = self._read_table(X, y, numeric=True)
            y = y.astype(np.float64)
            self.network_ = self._load_network(classes=False)
            if self.network_.targets == "standardised":
                if len(y) < 2:
                    raise ValueError(
                        "PFNRegressor got one row (n_samples=1), which does not say how much y "
                        "varies; give two or more."
                    )
                warn_of_equal_targets(y)
            self._limit_context(len(y))
            self._condition(X, y, ranks(y[:, None]))
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Predictive means.

        Args:
            X: Table `[m, d]`.
            return_std: Return also the standard deviations of y, noise included.
        """
        means, stds = [], []
        for rows in self._batches(self._queries(self._numbers(X))):
            posterior = self._posterior(rows)
            means.append(_numpy(posterior.mean))
            if return_std:
                stds.append(_numpy(posterior.variance.sqrt()))
        mean = np.concatenate(means)
        return (mean, np.concatenate(stds)) if return_std else mean

    def predict_quantiles(self, X: Any, quantiles: Sequence[float] = (0.1, 0.5, 0.9)) -> np.ndarray:
        """Quantiles of y, `[m, number of quantiles]`.

        Args:
            X: Table `[m, d]`.
            quantiles: Probabilities in (0, 1).
        """
        p = checked_probabilities(quantiles)
        found = [
            _numpy(self._posterior(rows).quantile(self._double(p)).movedim(0, -1))
            for rows in self._batches(self._queries(self._numbers(X)))
        ]
        return np.concatenate(found)

    def predict_distribution(self, X: Any) -> PredictivePosterior:
        """The predictive distribution of y, noise included, `[m, 1]`, in units of y.

        Args:
            X: Table `[m, d]`. The distribution holds all bars of all members: ask for no more
                queries at once than are needed.

        Returns:
            A mixture over the members; with mean, variance, log_prob, cdf, quantile and samples,
            which are independent over queries given the member.
        """
        return self._posterior(self._queries(self._numbers(X)))

    def log_likelihood(self, X: Any, y: Any) -> np.ndarray:
        """Log predictive densities of targets, `[m]`, in nats, per unit of y.

        Args:
            X: Table `[m, d]`.
            y: Targets `[m]`.
        """
        values = self._queries(self._numbers(X))
        refuse_missing(y)
        _, y = check_X_y(values, y, ensure_all_finite="allow-nan", y_numeric=True)
        y = y.astype(np.float64)
        found = [
            _numpy(self._posterior(rows).log_prob(self._double(own)[:, None]))
            for rows, own in zip(self._batches(values), self._batches(y), strict=True)
        ]
        return np.concatenate(found)

    def _double(self, values: np.ndarray) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self._where.device)

    def _posterior(self, X: np.ndarray) -> PredictivePosterior:
        """In double precision, whatever the network's: its units may be small beside a shift."""
        bars = self.network_.bars
        assert bars is not None
        location, scale = (torch.tensor(v, dtype=torch.float64) for v in self._target_units)
        components: list[PredictivePosterior] = []
        units = self._units_of_members()
        for member, logits, (at, unit) in zip(self._members, self._logits(X), units, strict=True):
            posterior: PredictivePosterior = BarPosterior(bars, logits.double()[:, None])
            if member.target is None:
                at, unit = location.to(at) + scale.to(at) * at, scale.to(at) * unit
            posterior = TransformedPosterior(posterior, AffineTransform(at, unit))
            if member.target is not None:
                back = AffineTransform(location.to(at), scale.to(at))
                for transform in (*member.target.undo(at), back):
                    posterior = TransformedPosterior(posterior, transform)
            components.append(posterior)
        return components[0] if len(components) == 1 else MixturePosterior(components)


def _numpy(values: Tensor) -> np.ndarray:
    """Of the only output."""
    return (values[..., 0, :] if values.dim() > 2 else values[..., 0]).cpu().numpy()
