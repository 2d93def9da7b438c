"""The common base of regression and classification: tables in, logits out."""

from __future__ import annotations

import copy
import math
import numbers
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, check_X_y, validate_data
from torch import Tensor

from pfn.estimators.ensemble import EnsemblePlan, Member
from pfn.estimators.groups import EncodedGroup, encode_together
from pfn.estimators.power_transforms import standardisation
from pfn.estimators.relevance import relevance
from pfn.familiarity import unlike_the_prior
from pfn.prior_fitted_network import PFN, load
from priors.tables import Columns, TableEstimator, imputation, imputed, read_columns, refuse_missing

__all__ = ["PFNEstimator"]

_WHAT_TO_DO = (
    "Look for outliers and wrong units, try power_transforms in an ensemble, or use another "
    "network or model; check=False silences this."
)


class PFNEstimator(TableEstimator, BaseEstimator):
    """What regression and classification share; see `PFNRegressor`."""

    network: Any
    num_ensemble: int
    power_transforms: bool | str
    whitening: bool = False
    categorical_features: Any
    max_context: Any
    context_strategy: str
    batch_size: int
    random_state: Any
    device: Any
    dtype: str
    check: bool
    network_: PFN
    classes_: np.ndarray
    unlike_the_prior_: str | None
    _columns: Columns
    _units: tuple[Any, Any]
    _target_units: tuple[float, float]
    _members: list[Member]
    _views_differ: bool
    _groups: list[EncodedGroup]

    def __getstate__(self) -> dict[str, Any]:
        """Encodings are left out: they are large, bound to a device, and quickly made again."""
        state = dict(super().__getstate__())
        state.pop("_groups", None)
        if "network_" in state and self._where.device.type != "cpu":
            state["network_"] = copy.deepcopy(self.network_).cpu()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_members" in state:
            self.network_ = self.network_.to(_device(self.device))
            self._groups = self._encoded()

    def _check_parameters(self) -> None:
        for name in ("num_ensemble", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}.")
        if self.context_strategy not in ("subsample", "chunk"):
            raise ValueError(
                f"context_strategy must be 'subsample' or 'chunk', got {self.context_strategy!r}."
            )
        if self.power_transforms not in (True, False, "auto"):
            raise ValueError(
                f"power_transforms must be True, False or 'auto', got {self.power_transforms!r}."
            )
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be 'float32' or 'float64', got {self.dtype!r}.")
        limit = self.max_context
        known = limit is None or (isinstance(limit, str) and limit == "network")
        if not known and (not isinstance(limit, numbers.Integral) or limit < 1):
            raise ValueError(
                f"max_context must be 'network', None or a positive integer, got {limit!r}."
            )

    def _read_table(self, X: Any, y: Any, *, numeric: bool) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of X, NaN where missing, and y; sets what scikit-learn wants to know of X."""
        refuse_missing(y)
        table = read_columns(X)
        self._columns = Columns.fit(table, self.categorical_features)
        values, y = check_X_y(
            self._columns.encode(table),
            y,
            dtype=np.float64,
            ensure_all_finite="allow-nan",
            y_numeric=numeric,
            estimator=self,
        )
        validate_data(self, X, skip_check_array=True)
        return values, y

    def _condition(self, X: np.ndarray, y: np.ndarray, targets: np.ndarray) -> None:
        """Encode the data set once per member.

        Args:
            X: `[n, d]`, NaN where missing.
            y: Numbers, or numbers of classes, `[n]`.
            targets: What features should tell about, `[n, k]`.
        """
        categorical = self._columns.categorical
        self._imputation = imputation(X, categorical)
        self._features = np.arange(X.shape[1])
        architecture = self.network_.architecture
        ranking = None
        if X.shape[1] > architecture.max_features:
            most = architecture.max_features
            told = f"This network was trained on up to {most} features and got {X.shape[1]}; "
            if architecture.cell_layers:
                told += "beyond that its predictions are extrapolation. "
            else:
                shares = relevance(imputed(X, self._imputation), targets, categorical)
                order = np.argsort(-shares, kind="stable")
                if architecture.classes and self.num_ensemble > 1:
                    ranking = order
                    told += "each member of the ensemble sees a part of them, or components. "
                else:
                    self._features = np.sort(order[:most])
                    told += f"the {most} that are individually most informative about y are used. "
            warnings.warn(
                told + "Select features yourself, or silence this with "
                "warnings.filterwarnings('ignore', 'This network').",
                stacklevel=3,
            )
        self.selected_features_ = self._features
        # In double precision here: a network in single precision would round large numbers.
        self._units = (0.0, 1.0)
        if self.network_.inputs == "standardised":
            self._units = standardisation(X[:, self._features])
        self._target_units = (0.0, 1.0)
        if self.network_.targets == "standardised" and not architecture.classes:
            location, scale = standardisation(y[:, None])
            self._target_units = float(location[0]), float(scale[0])
        self._X, self._y = self._prepare(X), self._in_target_units(y)
        self.network_.coverage.warn_outside_range(self._tensor(self._X))
        plan = EnsemblePlan(
            self.network_,
            self._X,
            self._y,
            categorical[self._features],
            num_classes=len(self.classes_) if architecture.classes else 0,
            size=self.num_ensemble,
            power_transforms=self.power_transforms,
            limit=self._limit,
            strategy=self.context_strategy,
            ranking=ranking,
            whitening=self.whitening,
        )
        self._views_differ = ranking is not None
        self._members = plan.members(check_random_state(self.random_state))
        self._groups = self._encoded()
        self.unlike_the_prior_ = self._compare_with_prior() if self.check else None
        if self.unlike_the_prior_ is not None:
            warnings.warn(f"{self.unlike_the_prior_} {_WHAT_TO_DO}", stacklevel=3)

    def _prepare(self, X: np.ndarray) -> np.ndarray:
        """The features that are used, imputed unless the network knows missing values."""
        if not self.network_.coverage.missing:
            X = imputed(X, self._imputation)
        location, scale = self._units
        return (X[:, self._features] - location) / scale

    def _in_target_units(self, y: np.ndarray) -> np.ndarray:
        if self.network_.architecture.classes:
            return y
        location, scale = self._target_units
        return (y - location) / scale

    def _load_network(self, classes: bool) -> PFN:
        network = self.network
        if isinstance(network, str | os.PathLike):
            network = load(network)
        elif not isinstance(network, PFN):
            raise TypeError(
                f"network must be a shipped name, a path or a PFN, got {type(network).__name__}."
            )
        if bool(network.architecture.classes) != classes:
            kinds = ("regression", "classification")
            raise ValueError(
                f"{type(self).__name__} needs a network for {kinds[classes]}, got one for "
                f"{kinds[not classes]}."
            )
        network = copy.deepcopy(network).to(_device(self.device), getattr(torch, self.dtype))
        return network.eval().requires_grad_(False)

    # Members of the ensemble

    def _limit_context(self, n: int) -> None:
        trained = self.network_.coverage.max_context
        if self.max_context is None:
            self._limit: float = math.inf
        else:
            self._limit = trained if isinstance(self.max_context, str) else self.max_context
        if n > self._limit:
            used = (
                f"each member of the ensemble sees {int(self._limit)} of them"
                if self.context_strategy == "subsample"
                else f"the predictions of {math.ceil(n / self._limit)} parts are averaged"
            )
            warnings.warn(
                f"This network is given contexts of up to {int(self._limit)} rows and got {n}: "
                f"{used}. Choose max_context and context_strategy, or silence this with "
                "warnings.filterwarnings('ignore', 'This network').",
                stacklevel=3,
            )
        elif n > trained:
            self.network_.coverage.warn_beyond_training(n)
        if self._limit > trained and n > self._limit:
            self.network_.coverage.warn_beyond_training(int(self._limit))

    def _encoded(self) -> list[EncodedGroup]:
        with torch.no_grad():
            return encode_together(self.network_, self._members, self._X, self._y, self._kinds())

    def _compare_with_prior(self) -> str | None:
        """Of what the first member sees, which nothing transforms."""
        first, kinds = self._members[0], self._kinds()
        X, y = (
            self._tensor(v)[None]
            for v in (first.inputs_of(self._X[first.rows]), first.targets_of(self._y))
        )
        known = (
            None if kinds is None else torch.tensor(first.kinds_of(kinds), device=X.device)[None]
        )
        return unlike_the_prior(self.network_, X, y, categorical=known)

    def _kinds(self) -> np.ndarray | None:
        """Which features are categories, `[d]`, for a network that was trained to use that."""
        known = self.network_.coverage.categorical
        return self._columns.categorical[self._features] if known else None

    @property
    def _where(self) -> Tensor:
        return next(self.network_.parameters())

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.tensor(values, dtype=self._where.dtype, device=self._where.device)

    # Queries

    def _numbers(self, X: Any) -> np.ndarray:
        """A table as numbers, NaN where missing."""
        check_is_fitted(self)
        table = read_columns(X)
        validate_data(self, X, reset=False, skip_check_array=True)
        values: np.ndarray = check_array(
            self._columns.encode(table),
            dtype=np.float64,
            ensure_all_finite="allow-nan",
            estimator=self,
        )
        return values

    def _queries(self, values: np.ndarray) -> np.ndarray:
        """What the network is asked, of a table as numbers."""
        rows = self._prepare(values)
        self.network_.coverage.warn_outside_range(self._tensor(rows))
        return rows

    def _batches(self, X: np.ndarray) -> Iterator[np.ndarray]:
        return _cut(X, self.batch_size)

    def _logits(self, X: np.ndarray, groups: Sequence[EncodedGroup] | None = None) -> list[Tensor]:
        """Logits of y under each member at the queries `[n, d]`, `[n, K]`."""
        found: dict[int, Tensor] = {}
        with torch.no_grad():
            for group in self._groups if groups is None else groups:
                size = max(1, self.batch_size // len(group.members))
                logits = torch.cat([group.logits(rows) for rows in _cut(X, size)], dim=1)
                found.update(zip(group.members, logits, strict=True))
        return [found[i] for i in range(len(found))]

    def _units_of_members(self) -> list[tuple[Tensor, Tensor]]:
        """Location and scale of the targets that each member sees."""
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for group in self._groups:
            found.update(zip(group.members, group.units, strict=True))
        return [found[i] for i in range(len(found))]


def _cut(X: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(X), size):
        yield X[start : start + size]


def _device(device: Any) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)
