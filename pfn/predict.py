"""Predictions for the rows of a CSV file whose target is empty: `python -m pfn predict`."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pfn.prior_fitted_network import load

if TYPE_CHECKING:
    from pfn.estimators import PFNClassifier, PFNRegressor

__all__ = ["predict_file"]

_QUANTILES = (0.05, 0.95)


def predict_file(
    path: Path, target: str, *, network: str | None = None, members: int = 8
) -> Iterator[list[str]]:
    """Predict the rows without a target from the others.

    Args:
        path: CSV file with a header, in UTF-8. A column is of numbers where all its cells are, of
            categories otherwise; empty cells are missing values.
        target: Name of the target column. Text is predicted as classes.
        network: Shipped name or file; "regression" or "classification", as the target is, if None.
        members: Members of the ensemble; see `PFNRegressor`.

    Yields:
        The header and then the rows of a table of predictions. Rows have the numbers that they
        have in the file, the first one below the header being 1.

    Raises:
        ValueError: the file is not such a table, or no row has a target, or all have one.
    """
    rows = _read(path)
    if not rows or target not in rows[0]:
        raise ValueError(f"{path} has no rows, or no column {target!r} in its header.")
    given = np.array([row[target].strip() != "" for row in rows])
    if given.all() or not given.any():
        raise ValueError(
            f"{path} must have rows with a value in {target!r}, to learn from, and rows "
            "without, to predict."
        )
    names = [name for name in rows[0] if name != target]
    if not names:
        raise ValueError(f"{path} has no column beside {target!r}.")
    X = np.empty((len(rows), len(names)), dtype=object)
    for i, name in enumerate(names):
        X[:, i] = _values([row[name] for row in rows])
    y = _values([row[target] for row in rows if row[target].strip()])
    numeric = not any(isinstance(value, str) for value in y)
    pfn = load(network or ("regression" if numeric else "classification"))
    if not pfn.architecture.classes and not numeric:
        raise ValueError(
            f"{target!r} holds text, so its values are classes, but {network} is a network for "
            "regression. Use --network classification, or omit it."
        )
    numbers = np.flatnonzero(~given) + 1
    from pfn.estimators import PFNClassifier, PFNRegressor  # scikit-learn is an extra

    if pfn.architecture.classes:
        classifier = PFNClassifier(pfn, num_ensemble=members, check=False)
        yield from _classes(classifier.fit(X[given], np.array(y)), X[~given], numbers)
    else:
        regressor = PFNRegressor(pfn, num_ensemble=members, check=False)
        yield from _numbers(regressor.fit(X[given], np.array(y)), X[~given], numbers)


def _numbers(made: PFNRegressor, X: np.ndarray, numbers: np.ndarray) -> Iterator[list[str]]:
    yield ["row", "mean", "std", *(f"{p:.0%}" for p in _QUANTILES)]
    mean, std = made.predict(X, return_std=True)
    columns = np.column_stack([mean, std, made.predict_quantiles(X, _QUANTILES)])
    for number, values in zip(numbers, columns, strict=True):
        yield [str(number), *(f"{value:.9g}" for value in values)]


def _classes(made: PFNClassifier, X: np.ndarray, numbers: np.ndarray) -> Iterator[list[str]]:
    yield ["row", "class", *(f"p({_name(label)})" for label in made.classes_)]
    for number, values in zip(numbers, made.predict_proba(X), strict=True):
        best = made.classes_[values.argmax()]
        yield [str(number), _name(best), *(f"{value:.6g}" for value in values)]


def _name(label: Any) -> str:
    number = isinstance(label, float | np.floating)
    return f"{label:g}" if number else str(label)


def _values(cells: list[str]) -> list[Any]:
    """Numbers if all cells that are not empty are, else text; None where empty."""
    stripped = [cell.strip() for cell in cells]
    try:
        return [float(cell) if cell else math.nan for cell in stripped]
    except ValueError:
        return [cell or None for cell in stripped]


def _read(path: Path) -> list[dict[str, str]]:
    """Rows by column; of UTF-8, with the mark at its start that spreadsheets write or without."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        names = list(reader.fieldnames or ())
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{path} has several columns named {', '.join(twice)}; rename them.")
        rows = []
        for row in reader:
            if None in row or None in row.values():  # csv's marks of too many and too few cells
                raise ValueError(
                    f"line {reader.line_num} of {path} has more or fewer cells than the "
                    f"{len(names)} of the header."
                )
            rows.append(row)
    return rows
