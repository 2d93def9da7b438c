"""Features ranked by how informative each is about the targets, for networks with few slots."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

__all__ = ["ranks", "relevance"]


def relevance(X: np.ndarray, targets: np.ndarray, categorical: np.ndarray) -> np.ndarray:
    """Shares of the variance of the targets that single columns explain, `[d]`.

    Linearly in the ranks of numbers, or by the means of categories, and adjusted for the degrees
    of freedom of the latter.

    Args:
        X: `[n, d]`, none missing.
        targets: Ranks of numbers or indicators of classes, `[n, k]`.
        categorical: `[d]`.
    """
    n = len(X)
    targets = targets - targets.mean(0)
    total = max(float((targets**2).sum()), np.finfo(np.float64).tiny)
    shares = np.zeros(X.shape[1])
    for i, column in enumerate(X.T):
        if categorical[i]:
            _, group = np.unique(column, return_inverse=True)
            sums = np.stack([np.bincount(group, weights=target) for target in targets.T])
            explained, freedom = (sums**2 / np.bincount(group)).sum(), len(sums.T) - 1
        else:
            rank = ranks(column[:, None])[:, 0]
            square = max(float(rank @ rank), np.finfo(np.float64).tiny)
            explained, freedom = ((rank @ targets) ** 2).sum() / square, 1
        shares[i] = 1 - (1 - explained / total) * (n - 1) / max(n - 1 - freedom, 1)
    return shares


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of columns `[n, k]`, centred, ties shared."""
    return rankdata(values, axis=0) - (len(values) + 1) / 2
