"""scikit-learn estimators: any engine, or the stack of all that suit the data, behind `fit`.

Tables may hold text, booleans, pandas categories and missing values (`priors.tables`): engines get
finite numbers, a category of a few values as indicators of each.

This module needs scikit-learn, the extra `sklearn`; `bayes` imports without it.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from botorch.models.model import Model
from torch import Tensor

from bayes.engines import engines
from bayes.stacking import StackedModel, stack
from priors.engines import Engine
from priors.posteriors.gaussian import as_predictive
from priors.posteriors.protocol import PredictivePosterior
from priors.tables import (
    Columns,
    Features,
    TableEstimator,
    checked_probabilities,
    read_columns,
    refuse_missing,
    refuse_text,
    warn_of_equal_targets,
)

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_array, check_is_fitted, check_X_y, validate_data
except ImportError as error:
    raise ImportError(
        "Regressor and Classifier need scikit-learn 1.6 or newer: pip install 'wideprior[sklearn]'."
    ) from error

__all__ = ["Classifier", "Regressor"]

_ROWS_AT_ONCE = 2048
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


class _Estimator(TableEstimator, BaseEstimator):
    """What regression and classification share; see `Regressor`."""

    _kind: str
    model_: Model
    _columns: Columns
    _features: Features
    _like: Tensor

    def __init__(
        self,
        model_factory: Any = None,
        *,
        categorical_features: str | Sequence[Any] | None = "auto",
        folds: int = 10,
        random_state: int | np.random.RandomState | None = 0,
        device: str | torch.device | None = None,
        dtype: str = "float64",
        progress: bool | None = None,
    ) -> None:
        self.model_factory = model_factory
        self.categorical_features = categorical_features
        self.folds = folds
        self.random_state = random_state
        self.device = device
        self.dtype = dtype
        self.progress = progress

    @property
    def weights_(self) -> dict[str, float]:
        """Weights of the engines in the stack, by name.

        Raises:
            AttributeError: there is no stack.
        """
        check_is_fitted(self)
        if not isinstance(self.model_, StackedModel):
            raise AttributeError(f"the model of this {type(self).__name__} is no stack.")
        return dict(zip(self.model_.names, self.model_.weights.tolist(), strict=True))

    def _read_table(self, X: Any, y: Any, *, numeric: bool) -> tuple[np.ndarray, np.ndarray]:
        """Features `[n, D]` and y; sets what scikit-learn wants to know of X."""
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype must be 'float32' or 'float64', got {self.dtype!r}.")
        refuse_missing(y)
        table = read_columns(X)
        self._columns = Columns.fit(table, self.categorical_features)
        values, y = check_X_y(
            self._columns.encode(table),
            y,
            dtype=np.float64,
            ensure_all_finite="allow-nan",
            ensure_min_samples=2,
            y_numeric=numeric,
            estimator=self,
        )
        validate_data(self, X, skip_check_array=True)
        self._features = Features.fit(values, self._columns)
        return self._features.transform(values), y

    def _condition(self, X: np.ndarray, y: np.ndarray, classes: int, given: dict[str, Any]) -> None:
        """Make the model."""
        device = self.device
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._like = torch.empty((), dtype=_DTYPES[self.dtype], device=device)
        rows, targets = self._tensor(X), self._tensor(y[:, None])
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        made = self._chosen(rows.shape[1], classes)
        owner = type(self).__name__
        if isinstance(made, dict):
            _refuse(owner, given, "a stack", "Name one engine as model_factory")
            factories = {name: _limited(factory, len(rows), seed) for name, factory in made.items()}
            self.model_ = self._stacked(factories, rows, targets, seed).requires_grad_(False)
            return
        is_engine = isinstance(made, Engine)
        accepted = _arguments(made.factory if is_engine else made)
        unknown = {k: v for k, v in given.items() if k not in accepted}
        if is_engine:
            _refuse(owner, unknown, f"the engine {made.name!r}", "Choose another engine")
        _refuse(owner, unknown, "this model_factory", "Give it an argument of that name")
        if "sample_weight" in given:
            weights = self._tensor(_checked_weights(owner, given["sample_weight"], len(rows)))
            if is_engine:
                counted = weights > 0
                rows, targets, weights = rows[counted], targets[counted], weights[counted]
            given = {**given, "sample_weight": weights}
        model = _model(_limited(made, len(rows), seed)(rows, targets, **given))
        self.model_ = model.requires_grad_(False)

    def _stacked(
        self, factories: dict[str, Callable[..., Any]], rows: Tensor, targets: Tensor, seed: int
    ) -> StackedModel:
        if len(factories) == 1:  # nothing to weigh, and so no part of the rows to be left out
            [(name, factory)] = factories.items()
            return StackedModel({name: _model(factory(rows, targets))}, rows.new_ones(1))
        return stack(factories, rows, targets, folds=self.folds, seed=seed, progress=self.progress)

    def _chosen(self, columns: int, classes: int) -> Any:
        """A factory or engine, or several to be stacked by name."""
        chosen = self.model_factory
        if chosen is None:
            named = {k: e for k, e in engines(self._kind).items() if e.is_default}
            suited = {k: e for k, e in named.items() if e.refuses(columns, classes) is None}
            if not suited:
                told = "; ".join(f"{k}: {e.refuses(columns, classes)}" for k, e in named.items())
                told = told or "there is none"
                raise ValueError(
                    f"no engine of {self._kind} suits this table ({told}); pass model_factory, "
                    "such as a function (X, Y) -> fitted model."
                )
            return suited
        if isinstance(chosen, Mapping):
            return {name: self._one(given, columns, classes) for name, given in chosen.items()}
        if isinstance(chosen, str) or callable(chosen) or isinstance(chosen, Engine):
            return self._one(chosen, columns, classes)
        if isinstance(chosen, Sequence):
            names = [given for given in chosen if isinstance(given, str)]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"model_factory names the engine {twice!r} more than once.")
            return {
                given if isinstance(given, str) else f"engine {k + 1}": self._one(
                    given, columns, classes
                )
                for k, given in enumerate(chosen)
            }
        raise TypeError(_unusable(chosen))

    def _one(self, chosen: Any, columns: int, classes: int) -> Any:
        if isinstance(chosen, str):
            known = engines(self._kind)
            if chosen not in known:
                raise ValueError(
                    f"there is no engine {chosen!r} of {self._kind}; known are "
                    f"{', '.join(sorted(known)) or 'none'}."
                )
            chosen = known[chosen]
        if isinstance(chosen, Engine):
            reason = chosen.refuses(columns, classes)
            if reason is not None:
                raise ValueError(f"the engine {chosen.name!r} does not suit this table: {reason}.")
            return chosen
        if not callable(chosen):
            raise TypeError(_unusable(chosen))
        return chosen

    def _tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(values).to(self._like)

    def _queries(self, X: Any) -> Tensor:
        check_is_fitted(self)
        table = read_columns(X)
        validate_data(self, X, reset=False, skip_check_array=True)
        values = check_array(
            self._columns.encode(table),
            dtype=np.float64,
            ensure_all_finite="allow-nan",
            estimator=self,
        )
        return self._tensor(self._features.transform(values))

    def _posteriors(self, X: Any) -> Iterator[Any]:
        """Of y, some rows at a time."""
        for rows in self._queries(X).split(_ROWS_AT_ONCE):
            with torch.no_grad():
                yield self.model_.posterior(rows, observation_noise=True)


class Regressor(RegressorMixin, _Estimator):
    """Regression with a whole predictive distribution, by a stack of engines or any one of them.

    Args:
        model_factory: None for the stack (`bayes.stack`) of all default engines that suit the
            table; the name of an engine (`bayes.engines.engines("regression")` lists them); a
            factory `(X, Y) -> fitted model` of tensors `[n, d]` and `[n, 1]`; or several of these
            in a list or a dict by name, to be stacked. An engine with a limit of rows gets a
            random part of more, with a warning.
        categorical_features: "auto" takes columns of text, booleans or pandas categories; else
            the indices or names of columns, or a mask.
        folds: Parts of the rows by which engines without closed leave-one-out scores are weighed;
            a single engine is not weighed.
        random_state: Seed of parts of rows.
        device: Device to run on; if None, the GPU when there is one.
        dtype: "float64" or "float32".
        progress: Show a bar while engines are fitted; None shows it after ten seconds.

    Attributes:
        model_: The BoTorch model of the features; a `StackedModel` shows its weights.
        weights_: Weights of the engines of a stack, by name.
        n_features_in_: Columns of the training data.
        feature_names_in_: Their names, if they are all text.
    """

    _kind = "regression"

    def fit(self, X: Any, y: Any, **fit_params: Any) -> Regressor:
        """Fit the engines and weigh them.

        Args:
            X: Table `[n, d]`; numbers, text, booleans, categories, missing values; n >= 2.
            y: Finite targets `[n]`.
            **fit_params: Passed to a factory or named engine that has arguments of these names.
                `sample_weight`, `[n]`, >= 0, is taken by the processes of this package: the noise
                variance of a row is divided by its weight, of classes its log likelihood
                multiplied. Stacks, whose scores count every row once, and others refuse it.

        Raises:
            TypeError: values, engines or arguments of an unusable kind.
            ValueError: unusable data or parameters. The estimator is then as it was.

        Warns:
            Where all targets are equal, whose scale engines make up.
        """
        with self._all_or_nothing():
            refuse_text("Regressor", y, "bayes.Classifier")
            values, y = self._read_table(X, y, numeric=True)
            warn_of_equal_targets(y)
            self._condition(values, y.astype(np.float64), 0, fit_params)
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Predictive means.

        Args:
            X: Table `[m, d]`.
            return_std: Return also the standard deviations of y, noise included.
        """
        means, stds = [], []
        for posterior in self._posteriors(X):
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
        found = []
        for posterior in self._posteriors(X):
            with torch.no_grad():
                values = as_predictive(posterior).quantile(self._tensor(p))
            found.append(values[..., 0].mT.cpu().numpy())
        return np.concatenate(found)

    def predict_distribution(self, X: Any) -> PredictivePosterior:
        """The predictive distribution of y, noise included, `[m, 1]`, in units of y.

        Args:
            X: Table `[m, d]`.
        """
        with torch.no_grad():
            return as_predictive(self.model_.posterior(self._queries(X), observation_noise=True))

    def log_likelihood(self, X: Any, y: Any) -> np.ndarray:
        """Log predictive densities of targets, `[m]`, in nats, per unit of y.

        Args:
            X: Table `[m, d]`.
            y: Targets `[m]`.
        """
        refuse_missing(y)
        targets = self._tensor(check_array(y, ensure_2d=False, dtype=np.float64, estimator=self))
        posterior = self.predict_distribution(X)
        with torch.no_grad():
            return _numpy(posterior.log_prob(targets[:, None]))


class Classifier(ClassifierMixin, _Estimator):
    """Classification by a stack of engines or any one of them.

    Args:
        model_factory: See `Regressor`; models answer with class probabilities, and Y holds class
            numbers 0, 1, ... in the order of `classes_`.
        categorical_features: See `Regressor`.
        folds: See `Regressor`; parts are alike in their classes.
        random_state: See `Regressor`.
        device: See `Regressor`.
        dtype: See `Regressor`.
        progress: See `Regressor`.

    Attributes:
        classes_: Classes, sorted.
        model_: See `Regressor`.
        weights_: See `Regressor`.
        n_features_in_: Columns of the training data.
        feature_names_in_: Their names, if they are all text.
    """

    _kind = "classification"
    classes_: np.ndarray

    def fit(self, X: Any, y: Any, **fit_params: Any) -> Classifier:
        """Fit the engines and weigh them.

        Args:
            X: Table `[n, d]`; numbers, text, booleans, categories, missing values; n >= 2.
            y: Classes `[n]`, of any kind that sorts, at least two.
            **fit_params: See `Regressor.fit`.

        Raises:
            TypeError: values, engines or arguments of an unusable kind.
            ValueError: unusable data or parameters. The estimator is then as it was.
        """
        with self._all_or_nothing():
            values, y = self._read_table(X, y, numeric=False)
            check_classification_targets(y)
            self.classes_, numbers = np.unique(y, return_inverse=True)
            if len(self.classes_) < 2:
                raise ValueError(
                    f"Classifier needs at least two classes, got one class, {self.classes_[0]}."
                )
            self._condition(values, numbers, len(self.classes_), fit_params)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Predictive probabilities of `classes_`, `[m, number of classes]`.

        Args:
            X: Table `[m, d]`.
        """
        found = np.concatenate([p.mean.cpu().numpy() for p in self._posteriors(X)])
        missing = len(self.classes_) - found.shape[1]
        return np.pad(found, ((0, 0), (0, max(0, missing))))[:, : len(self.classes_)]

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of `predict_proba`; -inf for what is impossible.

        Args:
            X: Table `[m, d]`.
        """
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable classes, `[m]`.

        Args:
            X: Table `[m, d]`.
        """
        most = self.predict_proba(X).argmax(axis=1)
        return self.classes_[most]


def _limited(chosen: Any, rows: int, seed: int) -> Callable[..., Any]:
    """The factory of an engine, which is given no more rows than it takes."""
    if not isinstance(chosen, Engine):
        return chosen
    most = chosen.max_rows
    if most is not None and rows > most:
        warnings.warn(
            f"the engine {chosen.name!r} takes {most} rows at most and is given a random part of "
            f"{rows}; silence this with warnings.filterwarnings('ignore', 'the engine').",
            stacklevel=5,
        )

    def factory(X: Tensor, Y: Tensor, **of_rows: Tensor) -> Any:
        if most is not None and len(X) > most:
            generator = torch.Generator().manual_seed(seed)
            order = torch.randperm(len(X), generator=generator, device="cpu").to(X.device)
            X, Y = X[order[:most]], Y[order[:most]]
            of_rows = {name: values[order[:most]] for name, values in of_rows.items()}
        return chosen.factory(X, Y, **of_rows)

    return factory


def _model(made: Any) -> Model:
    if not isinstance(made, Model):
        raise TypeError(f"model_factory must make a BoTorch model, got {type(made).__name__}.")
    return made


def _arguments(factory: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(factory).parameters)
    except (TypeError, ValueError):  # of what is not written in Python
        return set()


def _refuse(owner: str, given: Mapping[str, Any], who: str, instead: str) -> None:
    if given:
        name = next(iter(given))
        raise TypeError(f"{owner}.fit got {name}, which {who} does not know. {instead}.")


def _checked_weights(owner: str, weights: Any, rows: int) -> np.ndarray:
    """Weights of rows as numbers."""
    found = np.asarray(weights, dtype=np.float64)
    if found.shape != (rows,):
        got = f"shape {found.shape}"
    elif not np.isfinite(found).all():
        got = f"{found[~np.isfinite(found)][0]}"
    elif not (found >= 0).all():
        got = f"{found.min():g}"
    elif not found.any():
        got = "only zeros"
    else:
        return found
    raise ValueError(
        f"{owner}.fit needs sample_weight of {rows} finite numbers >= 0, one for each row and "
        f"some above 0, got {got}."
    )


def _unusable(chosen: Any) -> str:
    return (
        "model_factory must be None, the name of an engine, a factory (X, Y) -> model, or several "
        f"of them in a list or dict, got {type(chosen).__name__}."
    )


def _numpy(values: Tensor) -> np.ndarray:
    return values[..., 0].cpu().numpy()
