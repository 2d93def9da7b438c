"""scikit-learn estimators: a trained network behind `fit` and `predict`.

Fitting trains nothing: the table becomes numbers, and the network encodes it once per member of an
ensemble. Predictions of members are pooled as mixtures (`priors.MixturePosterior`), never
as averaged means or parameters. Members see the same data differently: other orders of the columns
(other column codes in networks of cells), other numbers for the classes, power
transforms. Networks are not exactly invariant to these, and what differs is averaged out.

A table may hold text, booleans, pandas categories and missing values. Categories are numbered by
the training data; one that is new in a query counts as missing. A network that was trained
without missing values (`metadata["missing"]`) gets the mean of the training data in their place,
or the most frequent category.

Like `PFN.condition`, `fit` warns of data that are unlike the network's prior.

Everything runs in float64 by default: predictions then depend neither on the other queries of a
call nor on how targets are scaled, beyond rounding that nobody sees.

This module needs scikit-learn, the extra `sklearn`; `pfn` imports without it.
"""

from __future__ import annotations

import copy
import math
import numbers
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import AffineTransform, Transform

from pfn.certificate import unlike_the_prior
from pfn.inference import BarPosterior
from pfn.network import PFN, Encoding, load
from pfn.tables import Columns, imputation, imputed, is_missing, read_columns
from priors.posteriors.linear_pool import MixturePosterior
from priors.posteriors.protocol import PredictivePosterior
from priors.posteriors.transformed import TransformedPosterior

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.preprocessing import PowerTransformer
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_array, check_is_fitted, check_X_y, validate_data
except ImportError as error:
    raise ImportError(
        "PFNRegressor and PFNClassifier need scikit-learn 1.6 or newer: "
        "pip install 'wideprior[sklearn]'."
    ) from error

__all__ = ["PFNClassifier", "PFNRegressor"]

# Range of the power of transformed targets. At 1/2 the tails of the bars, of index 5, still have
# a variance after the transform is undone.
_POWERS = (0.5, 1.5)
_WHAT_TO_DO = (
    "Look for outliers and wrong units, try power_transforms in an ensemble, or take another "
    "network or model; check=False silences this."
)


class _PFNEstimator(BaseEstimator):
    """What regression and classification share; see `PFNRegressor`."""

    network: Any
    num_ensemble: int
    power_transforms: bool | str
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
    _members: list[_Member]
    _encodings: list[Encoding]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """Encodings are left out: they are large, bound to a device, and quickly made again."""
        state = dict(super().__getstate__())
        state.pop("_encodings", None)
        if "network_" in state and self._where.device.type != "cpu":
            state["network_"] = copy.deepcopy(self.network_).cpu()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_members" in state:
            self.network_ = self.network_.to(_device(self.device))
            self._encodings = [self._encode(member) for member in self._members]

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

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """A fit that fails leaves the estimator as it was, fitted before or not."""
        before = self.__dict__.copy()
        try:
            yield
        except BaseException:
            self.__dict__ = before
            raise

    def _read_table(self, X: Any, y: Any, *, numeric: bool) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of X, NaN where missing, and y; sets what scikit-learn wants to know of X."""
        _refuse_missing(y)
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
        if X.shape[1] > architecture.max_features:
            most = architecture.max_features
            told = f"This network was trained on up to {most} features and got {X.shape[1]}; "
            if architecture.cell_layers:
                told += "beyond that its predictions are extrapolation. "
            else:
                relevance = _relevance(imputed(X, self._imputation), targets, categorical)
                self._features = np.sort(np.argsort(-relevance, kind="stable")[:most])
                told += f"the {most} that tell most about y, one by one, are used. "
            warnings.warn(
                told + "Select features yourself, or silence this with "
                "warnings.filterwarnings('ignore', 'This network').",
                stacklevel=3,
            )
        self.selected_features_ = self._features
        self._X, self._y = self._prepare(X), y
        self.network_.warn_outside_range(self._tensor(self._X))
        self._members = self._plan()
        self._encodings = [self._encode(member) for member in self._members]
        self.unlike_the_prior_ = self._compare_with_prior() if self.check else None
        if self.unlike_the_prior_ is not None:
            warnings.warn(f"{self.unlike_the_prior_} {_WHAT_TO_DO}", stacklevel=3)

    def _prepare(self, X: np.ndarray) -> np.ndarray:
        """The features that are used, imputed unless the network knows missing values."""
        if not self.network_.metadata.get("missing"):
            X = imputed(X, self._imputation)
        return X[:, self._features]

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

    def _plan(self) -> list[_Member]:
        """The members; the first sees the data as they are."""
        random = check_random_state(self.random_state)
        architecture, d = self.network_.architecture, self._X.shape[1]
        cycle = self._transforms()
        moves = self.network_.exchangeable
        random_members = moves or architecture.cell_layers or architecture.classes
        number = self.num_ensemble
        if not random_members and len(self._y) <= self._limit:
            number = min(number, len(cycle))  # the others would be copies
        members = []
        for i in range(number):
            columns, seed, classes = np.arange(d), 0, None
            if i and architecture.cell_layers:
                seed = int(random.randint(1, 2**31 - 1))
            elif i and moves:
                columns = random.permutation(d)
            if architecture.classes:
                number = len(self.classes_)
                classes = random.permutation(number) if i else np.arange(number)
            of_inputs, of_targets = cycle[i % len(cycle)]
            for rows in self._contexts(random):
                inputs = self._input_transform(rows) if of_inputs else None
                target = _TargetTransform.fit(self._y[rows]) if of_targets else None
                members.append(_Member(rows, columns, seed, classes, inputs, target))
        return members

    def _transforms(self) -> list[tuple[bool, bool]]:
        """Which members transform inputs and targets; repeated over the ensemble."""
        network = self.network_
        inputs = network.inputs == "standardised"
        targets = network.targets == "standardised" and not network.architecture.classes
        wanted = [(False, False), (True, True), (True, False), (False, True)]
        allowed = [(i, t) for i, t in wanted if (inputs or not i) and (targets or not t)]
        if self.power_transforms is True and self.num_ensemble < 2:
            raise ValueError(
                "power_transforms are for part of an ensemble; num_ensemble must be at least 2."
            )
        if self.power_transforms is True and len(allowed) == 1:
            raise ValueError(
                "power_transforms need a network that was trained on standardised inputs or "
                "targets; this one knows their units."
            )
        return allowed if self.power_transforms else allowed[:1]

    def _input_transform(self, rows: np.ndarray) -> _InputTransform | None:
        X = self._X[rows]
        varies = [len(np.unique(column[~np.isnan(column)])) > 1 for column in X.T]
        numeric = ~self._columns.categorical[self._features] & varies
        return _InputTransform.fit(X, numeric) if numeric.any() else None

    def _contexts(self, random: np.random.RandomState) -> list[np.ndarray]:
        """Rows of the contexts of a member."""
        n, limit = len(self._y), self._limit
        if n <= limit:
            return [np.arange(n)]
        order = random.permutation(n)
        if self.network_.architecture.classes:  # every part gets its share of every class
            order = order[np.argsort(self._y[order], kind="stable")]
        parts = math.ceil(n / limit)
        if self.context_strategy == "chunk":
            return [np.sort(order[part::parts]) for part in range(parts)]
        positions = (np.arange(limit) + random.uniform()) * (n / limit)
        return [np.sort(order[positions.astype(int).clip(max=n - 1)])]

    def _limit_context(self, n: int) -> None:
        trained = self.network_.max_context
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
            self.network_.warn_beyond_training(n)
        if self._limit > trained and n > self._limit:
            self.network_.warn_beyond_training(int(self._limit))

    def _data(self, member: _Member) -> tuple[Tensor, Tensor]:
        """What a member sees, `[1, n, d]` and `[1, n]`."""
        X, y = self._X[member.rows], self._y[member.rows]
        if member.target is not None:
            y = member.target.apply(y)
        if member.classes is not None:
            y = member.classes[y]
        return self._tensor(member.inputs_of(X))[None], self._tensor(y)[None]

    def _encode(self, member: _Member) -> Encoding:
        number = None
        if member.classes is not None:
            number = torch.tensor([len(member.classes)], device=self._where.device)
        with torch.no_grad():
            return self.network_.encode(
                *self._data(member),
                categorical=self._kinds(member),
                num_classes=number,
                column_seed=member.column_seed,
            )

    def _compare_with_prior(self) -> str | None:
        """Of what the first member sees, which nothing transforms."""
        X, y = self._data(self._members[0])
        return unlike_the_prior(self.network_, X, y, categorical=self._kinds(self._members[0]))

    def _kinds(self, member: _Member) -> Tensor | None:
        """Which columns are categories, `[1, d]`, for a network that was trained to be told."""
        kinds = self._columns.categorical[self._features][member.columns]
        if not self.network_.metadata.get("categorical"):
            return None
        return torch.tensor(kinds, device=self._where.device)[None]

    @property
    def _where(self) -> Tensor:
        return next(self.network_.parameters())

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.tensor(values, dtype=self._where.dtype, device=self._where.device)

    # Queries

    def _queries(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        table = read_columns(X)
        validate_data(self, X, reset=False, skip_check_array=True)
        values = check_array(
            self._columns.encode(table),
            dtype=np.float64,
            ensure_all_finite="allow-nan",
            estimator=self,
        )
        rows = self._prepare(values)
        self.network_.warn_outside_range(self._tensor(rows))
        return rows

    def _batches(self, X: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(X), self.batch_size):
            yield X[start : start + self.batch_size]

    def _logits(self, index: int, X: np.ndarray) -> Tensor:
        """Logits of y under a member at the queries `[n, d]`, `[n, K]`."""
        member, encoding = self._members[index], self._encodings[index]
        found = []
        with torch.no_grad():
            for rows in self._batches(X):
                queries = self._tensor(member.inputs_of(rows))[None]
                found.append(self.network_.decode(encoding, queries)[0][0])
        return torch.cat(found)


class PFNRegressor(RegressorMixin, _PFNEstimator):
    """Regression by a prior-data fitted network, with its whole predictive distribution.

    Args:
        network: A shipped name, the path of a file, or a `PFN`.
        num_ensemble: Members of the ensemble. The first sees the data as they are; the others
            permute the columns, or draw column codes in a network of cells. 1 is one forward
            pass, as `PFN.condition` makes. Columns keep their places for a network that knows
            them by these; fewer members are made where others would be copies.
        power_transforms: Whether some members see inputs, targets or both after a Yeo-Johnson
            transform that is fitted to their context; in a network trained on standardised ones.
            "auto": in ensembles of such networks. Means and variances of members with transformed
            targets are quadratures.
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
        device: Where the network runs; the GPU when there is one if None.
        dtype: "float64" or "float32", faster on GPUs.
        check: Whether to warn if the two halves of the training data predict each other unlike
            those of 99% of the network's prior, where its certificate knows that. Costs two more
            encodings of all rows.

    Attributes:
        network_: The network in use.
        unlike_the_prior_: The sentence of that warning; None without.
        selected_features_: Indices of the features in use; fewer than given only for a network
            of slots that has too few of them.
        n_features_in_: Features of the training data.
        feature_names_in_: Their names, if they are all text.
    """

    def __init__(
        self,
        network: str | os.PathLike[str] | PFN = "regression",
        *,
        num_ensemble: int = 8,
        power_transforms: bool | str = "auto",
        categorical_features: str | Sequence[Any] | None = "auto",
        max_context: str | int | None = "network",
        context_strategy: str = "subsample",
        batch_size: int = 4096,
        random_state: int | np.random.RandomState | None = 0,
        device: str | torch.device | None = None,
        dtype: str = "float64",
        check: bool = True,
    ) -> None:
        self.network = network
        self.num_ensemble = num_ensemble
        self.power_transforms = power_transforms
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
            y: Finite targets `[n]`.

        Raises:
            TypeError: a network or values of an unusable kind.
            ValueError: unusable data or parameters. The estimator is then as it was.
        """
        self._check_parameters()
        with self._all_or_nothing():
            X, y = self._read_table(X, y, numeric=True)
            y = y.astype(np.float64)
            self.network_ = self._load_network(classes=False)
            self._limit_context(len(y))
            self._condition(X, y, _ranks(y[:, None]))
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Predictive means.

        Args:
            X: Table `[m, d]`.
            return_std: Return also the standard deviations of y, noise included.
        """
        means, stds = [], []
        for rows in self._batches(self._queries(X)):
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
        p = np.atleast_1d(np.asarray(quantiles, dtype=np.float64))
        if p.ndim != 1 or not ((p > 0) & (p < 1)).all():
            raise ValueError(f"quantiles must be probabilities in (0, 1), got {quantiles!r}.")
        found = [
            _numpy(self._posterior(rows).quantile(self._tensor(p)).movedim(0, -1))
            for rows in self._batches(self._queries(X))
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
        return self._posterior(self._queries(X))

    def log_likelihood(self, X: Any, y: Any) -> np.ndarray:
        """Log predictive densities of targets, `[m]`, in nats, per unit of y.

        Args:
            X: Table `[m, d]`.
            y: Targets `[m]`.
        """
        values = self._queries(X)
        _refuse_missing(y)
        _, y = check_X_y(values, y, ensure_all_finite="allow-nan", y_numeric=True)
        y = y.astype(np.float64)
        found = [
            _numpy(self._posterior(rows).log_prob(self._tensor(own)[:, None]))
            for rows, own in zip(self._batches(values), self._batches(y), strict=True)
        ]
        return np.concatenate(found)

    def _posterior(self, X: np.ndarray) -> PredictivePosterior:
        bars = self.network_.bars
        assert bars is not None
        components: list[PredictivePosterior] = []
        for i, (member, encoding) in enumerate(zip(self._members, self._encodings, strict=True)):
            posterior: PredictivePosterior = BarPosterior(bars, self._logits(i, X)[:, None])
            units = AffineTransform(encoding.location[0], encoding.scale[0])
            posterior = TransformedPosterior(posterior, units)
            if member.target is not None:
                for transform in member.target.undo(encoding.location):
                    posterior = TransformedPosterior(posterior, transform)
            components.append(posterior)
        return components[0] if len(components) == 1 else MixturePosterior(components)


class PFNClassifier(ClassifierMixin, _PFNEstimator):
    """Classification by a prior-data fitted network.

    Args:
        network: A shipped name, the path of a file, or a `PFN`.
        num_ensemble: Members of the ensemble. The first sees the data as they are; the others
            permute the columns, or draw column codes in a network of cells, and renumber the
            classes.
        power_transforms: Whether every other member sees inputs after a Yeo-Johnson transform
            that is fitted to its context; in a network trained on standardised inputs. "auto": in
            ensembles of such networks.
        categorical_features: As in `PFNRegressor`.
        max_context: As in `PFNRegressor`.
        context_strategy: As in `PFNRegressor`.
        batch_size: Queries that go through the network at once.
        random_state: As in `PFNRegressor`.
        device: Where the network runs; the GPU when there is one if None.
        dtype: "float64" or "float32", faster on GPUs.
        check: As in `PFNRegressor`.

    Attributes:
        classes_: Classes, sorted; at most as many as the network was made for.
        network_: The network in use.
        unlike_the_prior_: As in `PFNRegressor`.
        selected_features_: As in `PFNRegressor`.
        n_features_in_: Features of the training data.
        feature_names_in_: Their names, if they are all text.
    """

    def __init__(
        self,
        network: str | os.PathLike[str] | PFN = "classification",
        *,
        num_ensemble: int = 8,
        power_transforms: bool | str = "auto",
        categorical_features: str | Sequence[Any] | None = "auto",
        max_context: str | int | None = "network",
        context_strategy: str = "subsample",
        batch_size: int = 4096,
        random_state: int | np.random.RandomState | None = 0,
        device: str | torch.device | None = None,
        dtype: str = "float64",
        check: bool = True,
    ) -> None:
        self.network = network
        self.num_ensemble = num_ensemble
        self.power_transforms = power_transforms
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
            y: Classes `[n]`, of any kind that sorts.

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
            self.network_ = self._load_network(classes=True)
            most = self.network_.architecture.classes
            if len(self.classes_) > most:
                raise ValueError(
                    f"y has {len(self.classes_)} classes and this network tells {most} apart; "
                    "merge classes, wrap the estimator in sklearn.multiclass.OneVsRestClassifier, "
                    "or train a network with more."
                )
            self._limit_context(len(y))
            self._condition(X, y, np.eye(len(self.classes_))[y])
        return self

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
        values = self._queries(X)
        found = []
        for i, member in enumerate(self._members):
            log_probabilities = self._logits(i, values).log_softmax(-1)
            found.append(log_probabilities[:, self._where.new_tensor(member.classes).long()])
        pooled = torch.stack(found).logsumexp(0) - math.log(len(found))
        return pooled.cpu().numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The most probable classes, `[m]`.

        Args:
            X: Table `[m, d]`.
        """
        most = self.predict_log_proba(X).argmax(axis=1)
        return self.classes_[most]


@dataclass(frozen=True)
class _Member:
    """One view of the data set.

    Attributes:
        rows: Rows of the context.
        columns: Order of the columns.
        column_seed: Seed of the column codes.
        classes: The number that each class has here; None in regression.
        inputs: Power transforms of the inputs.
        target: Power transform of the targets; the network standardises them itself.
    """

    rows: np.ndarray
    columns: np.ndarray
    column_seed: int
    classes: np.ndarray | None
    inputs: _InputTransform | None
    target: _TargetTransform | None

    def inputs_of(self, X: np.ndarray) -> np.ndarray:
        X = X if self.inputs is None else self.inputs.apply(X)
        return X[:, self.columns]


@dataclass(frozen=True)
class _InputTransform:
    """Yeo-Johnson transforms of the numeric columns that vary.

    Attributes:
        numeric: Which columns, `[d]`.
        location: Subtracted first, `[k]`.
        scale: Divided by second: powers of badly scaled numbers overflow.
        power: Fitted to what results.
    """

    numeric: np.ndarray
    location: np.ndarray
    scale: np.ndarray
    power: PowerTransformer

    @classmethod
    def fit(cls, X: np.ndarray, numeric: np.ndarray) -> _InputTransform:
        values = X[:, numeric]
        location, scale = _standardisation(values)
        power = PowerTransformer(method="yeo-johnson", standardize=True)
        with np.errstate(all="ignore"):
            power.fit((values - location) / scale)
        return cls(numeric, location, scale, power)

    def apply(self, X: np.ndarray) -> np.ndarray:
        X = X.copy()
        values = (X[:, self.numeric] - self.location) / self.scale
        with np.errstate(all="ignore"):
            transformed = self.power.transform(values)
        failed = ~np.isfinite(transformed) & np.isfinite(values)
        X[:, self.numeric] = np.where(failed, values, transformed)
        return X


@dataclass(frozen=True)
class _TargetTransform:
    """Standardisation of the targets and a Yeo-Johnson transform; monotone and onto."""

    location: float
    scale: float
    power: float

    @classmethod
    def fit(cls, y: np.ndarray) -> _TargetTransform:
        location, scale = _standardisation(y[:, None])
        z = (y[:, None] - location) / scale
        found = 1.0
        if np.ptp(z) > 0:
            with np.errstate(all="ignore"):
                found = float(PowerTransformer(standardize=False).fit(z).lambdas_[0])
        found = found if math.isfinite(found) else 1.0
        return cls(float(location[0]), float(scale[0]), min(max(found, _POWERS[0]), _POWERS[1]))

    def apply(self, y: np.ndarray) -> np.ndarray:
        z = torch.from_numpy((y - self.location) / self.scale)
        if self.power == 1.0:
            return z.numpy()
        return _YeoJohnson(self.power)(z).numpy()

    def undo(self, like: Tensor) -> tuple[Transform, ...]:
        """The transforms back to units of y, the first first."""
        location, scale = like.new_tensor(self.location), like.new_tensor(self.scale)
        affine = AffineTransform(location, scale)
        return (affine,) if self.power == 1.0 else (_YeoJohnson(self.power).inv, affine)


class _YeoJohnson(Transform):
    """The transform of Yeo & Johnson 2000, eq. 2.1, for powers in (0, 2): onto the real line."""

    domain = constraints.real
    codomain = constraints.real
    bijective = True
    sign = 1

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = power

    def _call(self, x: Tensor) -> Tensor:
        sign, power = self._branch(x)
        return sign * torch.expm1(power * torch.log1p(sign * x)) / power

    def _inverse(self, y: Tensor) -> Tensor:
        sign, power = self._branch(y)
        return sign * torch.expm1(torch.log1p(power * sign * y) / power)

    def _branch(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Sign, 1 at 0 so that gradients are right there, and power."""
        sign = torch.where(values >= 0, 1, -1).to(values)
        return sign, 1 + (self.power - 1) * sign

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log of the derivative at x."""
        return x.sign() * (self.power - 1) * x.abs().log1p()


def _refuse_missing(y: Any) -> None:
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


def _relevance(X: np.ndarray, targets: np.ndarray, categorical: np.ndarray) -> np.ndarray:
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
            rank = _ranks(column[:, None])[:, 0]
            square = max(float(rank @ rank), np.finfo(np.float64).tiny)
            explained, freedom = ((rank @ targets) ** 2).sum() / square, 1
        shares[i] = 1 - (1 - explained / total) * (n - 1) / max(n - 1 - freedom, 1)
    return shares


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of columns `[n, k]`, centred, ties shared."""
    from scipy.stats import rankdata

    return rankdata(values, axis=0) - (len(values) + 1) / 2


def _standardisation(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of columns, 0 and 1 where there are none."""
    location, scale = np.zeros(values.shape[1]), np.ones(values.shape[1])
    for i, column in enumerate(values.T):
        present = column[~np.isnan(column)]
        if len(present):
            most = np.abs(present).max()
            location[i] = present.mean()
            # Of shares of the largest: squares of large numbers overflow.
            deviation = (present / (most or 1.0)).std(ddof=min(1, len(present) - 1))
            if deviation > 16 * np.finfo(np.float64).eps:
                scale[i] = most * deviation
    return location, scale


def _device(device: Any) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def _numpy(values: Tensor) -> np.ndarray:
    """Of the only output."""
    return (values[..., 0, :] if values.dim() > 2 else values[..., 0]).cpu().numpy()
