"""Tables of mixed columns as numbers, for the estimators.

Numbers stay, decimals and fractions too; text, booleans and pandas categories are numbered 0, 1,
... in their order, by the training data alone. A missing value is NaN, and so is a category that
the training data lack. pandas is recognised by its interface and never imported; scikit-learn, an
extra, only where a table is read.
"""

from __future__ import annotations

import datetime
import numbers
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

__all__ = [
    "Column",
    "Columns",
    "Features",
    "TableEstimator",
    "checked_probabilities",
    "imputation",
    "imputed",
    "is_missing",
    "read_columns",
    "refuse_missing",
    "refuse_text",
    "warn_of_equal_targets",
]

_FEW = 10  # different values of a category that is numbered
_DATES = (datetime.date, datetime.time, datetime.timedelta, np.datetime64, np.timedelta64)


@dataclass(frozen=True)
class Columns:
    """How columns become numbers.

    Attributes:
        names: For messages.
        categories: Per column the number of each category, or None where values are numbers. A
            column without any value has no categories, so that what it holds later is missing.
    """

    names: list[Any]
    categories: list[dict[Any, int] | None]

    @classmethod
    def fit(cls, columns: list[Column], chosen: Any) -> Columns:
        names = [column.name for column in columns]
        wanted = _chosen(chosen, names)
        categories: list[dict[Any, int] | None] = []
        for i, column in enumerate(columns):
            if wanted is None:
                as_category = column.is_text()
                column.warn_of_numbers_as_text()
            else:
                as_category = i in wanted
            as_category = as_category or column.is_empty()
            categories.append(column.categories() if as_category else None)
        return cls(names, categories)

    @property
    def categorical(self) -> np.ndarray:
        """Mask of the columns of categories, `[d]`."""
        return np.array([known is not None for known in self.categories], dtype=bool)

    def encode(self, columns: list[Column]) -> np.ndarray:
        """Numbers `[n, d]`, NaN where missing or unknown."""
        encoded = []
        for column, known in zip(columns, self.categories, strict=True):
            encoded.append(column.numbers() if known is None else column.codes(known))
            if known is not None:
                column.warn_of_unknown(known)
        return np.stack(encoded, axis=1)


@dataclass(frozen=True)
class Features:
    """Finite features of encoded columns, for engines that know neither categories nor gaps.

    A category of three to ten values has a column of 0 and 1 for each of them, all 0 where it is
    missing; of more, its numbers stay. Other missing values are imputed by the mean, or the most
    frequent category, and where the training data lack some, a further column says which.

    Attributes:
        imputation: Per column, `[d]`.
        sizes: Per column the number of its categories where each has a column of its own, else 0.
        indicators: Columns that say what is missing, `[d]`.
    """

    imputation: np.ndarray
    sizes: np.ndarray
    indicators: np.ndarray

    @classmethod
    def fit(cls, values: np.ndarray, columns: Columns) -> Features:
        """Learn from training data.

        Args:
            values: `[n, d]`, NaN where missing, as `Columns.encode` gives them.
            columns: Which made them.
        """
        counts = np.array([0 if known is None else len(known) for known in columns.categories])
        apart = (counts > 2) & (counts <= _FEW)
        gaps = np.isnan(values)
        # no column that says the same of all rows
        indicators = gaps.any(0) & ~gaps.all(0) & ~apart
        return cls(imputation(values, columns.categorical), counts * apart, indicators)

    def transform(self, values: np.ndarray) -> np.ndarray:
        """The features, `[n, D]`.

        Args:
            values: `[n, d]`, NaN where missing.
        """
        filled = imputed(values, self.imputation)
        found = [
            values[:, [i]] == np.arange(size) if size else filled[:, [i]]
            for i, size in enumerate(self.sizes)
        ]
        found.append(np.isnan(values[:, self.indicators]))
        return np.concatenate([part.astype(np.float64) for part in found], axis=1)


@dataclass(frozen=True)
class Column:
    """A column of float64 numbers, or of objects with the order of their categories if known."""

    name: Any
    values: np.ndarray
    order: list[Any] | None = None

    def _present(self) -> Iterator[tuple[int, Any]]:
        for i, value in enumerate(self.values.tolist()):
            if not is_missing(value):
                yield i, value

    def is_empty(self) -> bool:
        """Whether all values are missing."""
        return next(self._present(), None) is None

    def is_text(self) -> bool:
        """Whether any value is not a number, or the column was declared a category."""
        if self.order is not None:
            return True
        return self.values.dtype == object and not all(
            _is_number(value) for _, value in self._present()
        )

    def warn_of_numbers_as_text(self) -> None:
        """Warn if text makes categories of more numbers than categories usually have.

        Of numbers that are text themselves, or beside some text that is none.
        """
        if self.order is not None:
            return
        values = {value for _, value in self._present()}
        texts = {value for value in values if isinstance(value, str)}
        words = {value for value in texts if not _reads_as_number(value)}
        apart = sum(_is_number(value) for value in values)
        count = apart + len(texts) - len(words)
        if not texts or count <= max(_FEW, 0.9 * (count + len(words))):
            return
        what = f"{count} different numbers"
        if words:
            few = ", ".join(map(repr, sorted(words)[:3])) + (", ..." if len(words) > 3 else "")
            what += f" and {len(words)} {'text' if len(words) == 1 else 'texts'} ({few})"
        else:
            what += " as text"
        warnings.warn(
            f"column {self.name!r} holds {what}, which are treated as categories. Convert the "
            "column to numbers, NaN where there is none, or name it in categorical_features.",
            stacklevel=5,
        )

    def warn_of_unknown(self, known: dict[Any, int]) -> None:
        """Warn if no value is a category of the training data."""
        values = {value for _, value in self._present()}
        kinds = {type(value) for value in known}
        if not known or values & known.keys():
            return
        if len(values) > 1 or any(type(value) not in kinds for value in values):
            warnings.warn(
                f"column {self.name!r} holds none of the {len(known)} categories of the "
                f"training data, only others such as {min(values, key=str)!r}; they are treated "
                "as missing.",
                stacklevel=5,
            )

    def categories(self) -> dict[Any, int]:
        """The number of each category, in their declared order or sorted."""
        present = {value for _, value in self._present()}
        if self.order is not None:
            ordered = [value for value in self.order if value in present]
        else:
            try:
                ordered = sorted(present)
            except TypeError:
                ordered = sorted(present, key=lambda value: (type(value).__name__, str(value)))
        return {value: code for code, value in enumerate(ordered)}

    def codes(self, known: dict[Any, int]) -> np.ndarray:
        """Numbers of known categories, NaN for others."""
        codes = np.full(len(self.values), np.nan)
        for i, value in self._present():
            codes[i] = known.get(value, np.nan)
        return codes

    def numbers(self) -> np.ndarray:
        """The values as float64, NaN where missing."""
        if self.values.dtype != object:
            return self.values
        found = np.full(len(self.values), np.nan)
        for i, value in self._present():
            if not _is_number(value) and not isinstance(value, bool | np.bool_):
                raise ValueError(
                    f"column {self.name!r} is numeric in the training data and got {value!r}; "
                    "for categories, name the column in categorical_features."
                )
            found[i] = float(value)
        return found


def read_columns(X: Any) -> list[Column]:
    """The columns of a DataFrame, an array or a list of rows.

    Raises:
        TypeError: a sparse matrix, dates (but as pandas categories), or values that are neither
            text nor numbers.
        ValueError: no table of two dimensions with rows and columns, or complex or infinite values.
    """
    from sklearn.utils import check_array

    if hasattr(X, "iloc") and hasattr(X, "columns"):  # pandas, which we need not import
        check_array(np.zeros(X.shape))  # raises if it is empty
        return [_series(name, X.iloc[:, i]) for i, name in enumerate(X.columns)]
    sparse = hasattr(X, "tocsr")
    array = None if sparse else np.asarray(X)
    if array is not None and array.dtype.kind in "UST" and not isinstance(X, np.ndarray):
        array = np.asarray(X, dtype=object)  # a list of text and numbers keeps its numbers
    if array is not None and array.dtype.kind in "mM":
        raise TypeError(f"X has dtype {array.dtype}; convert it to numbers or categories first.")
    if array is not None and array.dtype.kind == "c":
        raise ValueError(
            f"Complex data not supported: X has dtype {array.dtype}; make columns of its real and "
            "imaginary parts."
        )
    if array is not None and array.ndim == 1:  # scikit-learn prints all of it
        raise ValueError(
            f"Expected 2D array, got 1D array instead: X has shape {array.shape}. Reshape your "
            "data by X.reshape(-1, 1) if it is a single column, X.reshape(1, -1) if a single row."
        )
    if array is None or array.dtype.kind not in "OUSTb":
        numeric = check_array(X, dtype=np.float64, ensure_all_finite="allow-nan")
        return [Column(i, column) for i, column in enumerate(numeric.T)]
    array = check_array(array.astype(object), dtype=None, ensure_all_finite=False)
    return [_of_objects(i, column) for i, column in enumerate(array.T)]


def is_missing(value: Any) -> bool:
    """Whether a value is None, NaN, NaT or pandas' NA."""
    if value is None:
        return True
    try:
        return bool(value != value)
    except TypeError:  # pandas.NA is neither true nor false
        return True


def refuse_missing(y: Any) -> None:
    """Before anything else reads y: None and pandas' NA end in errors about types."""
    if y is None:  # scikit-learn has its own message
        return
    values = np.ravel(np.asarray(y, dtype=object))
    missing = sum(map(is_missing, values))
    if missing:
        raise ValueError(
            f"y lacks {missing} of {len(values)} values; drop those rows from X and y, or give "
            "missing classes a name."
        )


def refuse_text(owner: str, y: Any, instead: str) -> None:
    """Before anything else reads y: scikit-learn converts text that reads as numbers.

    Args:
        owner: Who needs numbers.
        y: Targets.
        instead: What tells classes.
    """
    first = next(filter(lambda value: isinstance(value, str), np.ravel(np.asarray(y))), None)
    if first is not None:
        raise ValueError(
            f"{owner} needs numbers as y, got the text {str(first)!r}; convert it, or tell "
            f"classes with {instead}."
        )


def warn_of_equal_targets(y: np.ndarray) -> None:
    """Warn of targets that are standardised and have nothing to do it by.

    Args:
        y: Finite numbers, `[n]`.
    """
    if (y == y[0]).all():
        warnings.warn(
            f"All {len(y)} targets are {y[0]:g}: how much y varies is unknown, and intervals mean "
            "nothing. Give targets that differ, or silence this with "
            "warnings.filterwarnings('ignore', 'All .* targets').",
            stacklevel=3,
        )


def _series(name: Any, series: Any) -> Column:
    kind = getattr(series.dtype, "kind", "O")
    if str(series.dtype) == "category":
        objects = series.astype(object).to_numpy()
        return Column(name, objects, series.dtype.categories.tolist())
    if kind in "iuf":
        return Column(name, series.to_numpy(dtype=np.float64, na_value=np.nan))
    if kind in "OUSbT" and not str(series.dtype).startswith("period"):
        return _of_objects(name, series.astype(object).to_numpy())
    if kind == "c":
        raise ValueError(f"Complex data not supported: column {name!r}.")
    raise TypeError(
        f"column {name!r} has dtype {series.dtype}; convert it to numbers or categories first."
    )


def _of_objects(name: Any, values: np.ndarray) -> Column:
    for value in values.tolist():
        try:
            hash(value)
        except TypeError as error:
            raise TypeError(
                f"column {name!r} got {value!r:.60}; argument must be a string or a number."
            ) from error
        if isinstance(value, _DATES) and not is_missing(value):
            raise TypeError(
                f"column {name!r} got {value!r:.60}; convert dates to numbers or categories first."
            )
    return Column(name, values)


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real | Decimal) and not isinstance(value, bool | np.bool_)


def _chosen(chosen: Any, names: list[Any]) -> set[int] | None:
    """Indices of the columns that were declared categories; None to look at the values."""
    if isinstance(chosen, str):
        if chosen == "auto":
            return None
        raise ValueError(
            f"categorical_features must be 'auto', names, indices or a mask, got {chosen!r}."
        )
    values = [] if chosen is None else list(chosen)
    if values and all(isinstance(value, bool | np.bool_) for value in values):
        if len(values) != len(names):
            raise ValueError(
                f"categorical_features is a mask of {len(values)} for {len(names)} columns."
            )
        return {i for i, value in enumerate(values) if value}
    found = set()
    for value in values:
        if value in names:
            found.add(names.index(value))
        elif isinstance(value, int | np.integer) and -len(names) <= value < len(names):
            found.add(int(value) % len(names))
        else:
            raise ValueError(f"categorical_features has {value!r}, which is not a column of X.")
    return found


def imputation(X: np.ndarray, categorical: np.ndarray) -> np.ndarray:
    """Means, and the most frequent categories, `[d]`; 0 for columns without values."""
    values = np.zeros(X.shape[1])
    for i, column in enumerate(X.T):
        present = column[~np.isnan(column)]
        if len(present) and categorical[i]:
            values[i] = np.bincount(present.astype(int)).argmax()
        elif len(present):
            values[i] = present.mean()
    return values


def imputed(X: np.ndarray, imputation: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(X), imputation, X)


class TableEstimator:
    """What scikit-learn estimators of tables share, before scikit-learn's own base classes."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # type: ignore[misc]
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        return tags

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """A fit that fails leaves the estimator as it was, fitted before or not."""
        before = self.__dict__.copy()
        try:
            yield
        except BaseException:
            self.__dict__ = before
            raise


def checked_probabilities(quantiles: Sequence[float]) -> np.ndarray:
    """Probabilities of quantiles that were asked for, one dimension.

    Args:
        quantiles: Probabilities in (0, 1).

    Raises:
        ValueError: others.
    """
    p = np.atleast_1d(np.asarray(quantiles, dtype=np.float64))
    if p.ndim != 1 or not ((p > 0) & (p < 1)).all():
        raise ValueError(f"quantiles must be probabilities in (0, 1), got {quantiles!r}.")
    return p
