"""Columns that nearly say the same, told apart.

Where columns differ by a hundredth of what they vary, the differences are hardly visible to a
network that sees each in units of its own deviation, and a target may depend on them alone. Columns
that are joined by correlations above 0.9 are replaced by their principal components, each in units
of its own deviation; all others stay, since a rotation of columns that are not alike mixes those
that matter with those that do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse.csgraph import connected_components

from pfn.estimators.power_transforms import standardisation

__all__ = ["Whitening"]

_ALIKE = 0.9  # correlation
_ROWS_FOR_EACH = 4  # of such columns: with fewer chance makes components small
_FEWEST_ROWS = 16  # with fewer it makes columns alike
_ROUNDING = 1e-9  # share of the largest variance below which there is no component


@dataclass(frozen=True)
class Whitening:
    """A linear map of the numeric columns, missing values at their means.

    Attributes:
        numeric: Which columns, `[d]`.
        location: Their means.
        scale: Their deviations.
        components: From standardised columns to as many components, those of columns that are alike
            by falling variance and 0 where there is none left.
    """

    numeric: np.ndarray
    location: np.ndarray
    scale: np.ndarray
    components: np.ndarray

    @classmethod
    def fit(cls, X: np.ndarray, numeric: np.ndarray) -> Whitening | None:
        """For a context `[n, d]`; None where no columns are alike."""
        location, scale = standardisation(X[:, numeric])
        if len(X) < _FEWEST_ROWS or location.size < 2:
            return None
        values = np.nan_to_num((X[:, numeric] - location) / scale)
        covariance = values.T @ values / len(X)
        deviation = np.sqrt(np.maximum(covariance.diagonal(), np.finfo(float).tiny))
        correlation = covariance / np.outer(deviation, deviation)
        _, labels = connected_components(np.abs(correlation) > _ALIKE)
        components = np.eye(location.size)
        for label in np.unique(labels):
            group = np.flatnonzero(labels == label)
            if 1 < len(group) <= len(X) / _ROWS_FOR_EACH:
                components[np.ix_(group, group)] = _components(covariance[np.ix_(group, group)])
        if np.array_equal(components, np.eye(location.size)):
            return None
        return cls(numeric, location, scale, components)

    def apply(self, X: np.ndarray) -> np.ndarray:
        """Rows `[..., d]`; other columns as they are."""
        X = X.copy()
        values = np.nan_to_num((X[:, self.numeric] - self.location) / self.scale)
        X[:, self.numeric] = values @ self.components
        return X


def _components(covariance: np.ndarray) -> np.ndarray:
    """Columns that make components of unit variance, the largest first, or nothing."""
    variances, vectors = np.linalg.eigh(covariance)
    variances, vectors = variances[::-1], vectors[:, ::-1]
    there = variances > _ROUNDING * variances[0]
    return np.where(there, vectors / np.sqrt(np.where(there, variances, 1)), 0)
