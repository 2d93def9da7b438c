"""The models of `benchmarks pfn real`: networks with their defaults, and tuned competitors.

"network" is the estimator with its defaults, 8 members that differ in the order of columns and in
power transforms, of many columns also in which they see; "network, one pass" is one forward pass,
of the best of many columns.

Competitors are tuned as by default: a small grid, 5-fold cross-validation inside the training rows
(squared error in regression, log loss in classification), and fitted on all training rows. The
networks, the Gaussian processes and the naive model have no grid.

Densities in regression. The Gaussian processes have their own, with noise. Forest, boosting and
ridge predict numbers; all three get the same density: a Student t around the prediction, with
degrees of freedom (2 to infinity, which is Gaussian) and scale of largest likelihood on the
residuals of the cross-validation of the chosen setting. A Gaussian alone would handicap them: on
several sets residuals have heavy tails. That density is as wide everywhere; "forest density", a
quantile regression forest (Meinshausen 2006) with smoothing, is not: a mixture of Student t around
the training targets that share leaves with the query. Its leaf size, bandwidth and degrees of
freedom have the largest cross-validated density.
"""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import scipy.sparse
import scipy.stats
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.transforms import Normalize, Standardize
from gpytorch.mlls import ExactMarginalLogLikelihood
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Matern, WhiteKernel
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold, cross_val_predict

import pfn
from benchmarks.pfn.datasets import Split
from benchmarks.pfn.scores import Prediction, class_scores, density_scores
from priors.posteriors.crps import crps_of_standard_normal, crps_of_standard_t
from priors.posteriors.gaussian import as_predictive

__all__ = [
    "CLASSIFIERS",
    "NETWORK",
    "NETWORKS",
    "ON_DEVICE",
    "REGRESSORS",
    "evaluate",
    "prediction",
    "residual_density",
]

NETWORK, SINGLE = "network", "network, one pass"
NETWORKS = (NETWORK, SINGLE)
ON_DEVICE = (*NETWORKS, "SingleTaskGP")  # the others know the CPU only
TREES = 200
_DEGREES = (2.0, 3.0, 5.0, 10.0, 30.0, np.inf)
_SKLEARN_JOBS = 1


def evaluate(model: str, split: Split, network: str, seed: int, device: str) -> dict[str, Any]:
    """Fit and score a model on a split; "seconds" are of fit and prediction.

    Args:
        model: A key of `REGRESSORS` or `CLASSIFIERS`, or one of `NETWORKS`.
        split: The rows.
        network: File of the network.
        seed: Of folds and forests.
        device: Of the network and of BoTorch's model.
    """
    warnings.filterwarnings("ignore", category=ConvergenceWarning)
    if model in NETWORKS:
        _load(network, device)  # reading the file is not part of the time
    unlike = False
    start = time.perf_counter()
    if model == SINGLE:
        predicted = _single_pass(split, _load(network, device))
    elif model == NETWORK:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            predicted = _network(split, _load(network, device), seed)
        unlike = any(str(w.message).startswith("This data set is unlike") for w in caught)
    elif split.classes is None:
        predicted = REGRESSORS[model](split, seed, device)
    else:
        predicted = CLASSIFIERS[model](split, seed)
    seconds = time.perf_counter() - start
    scores = density_scores if split.classes is None else class_scores
    result = {**scores(predicted, split.test_y), "seconds": seconds}
    return {**result, "unlike_the_prior": unlike} if model == NETWORK else result


@lru_cache(maxsize=1)
def _load(network: str, device: str) -> pfn.PFN:
    return pfn.load(network).to(device)


def _tensors(split: Split, device: str) -> tuple[torch.Tensor, ...]:
    rows = (split.train_X, split.train_y, split.test_X, split.test_y)
    return tuple(torch.as_tensor(v, dtype=torch.float64, device=device) for v in rows)


def _single_pass(split: Split, network: pfn.PFN) -> Any:
    """One forward pass."""
    if split.train_X.shape[1] > network.architecture.max_features:
        return _network(split, network, seed=0, num_ensemble=1)
    X, y, Q, targets = _tensors(split, str(next(network.parameters()).device))
    with torch.no_grad():
        options: dict[str, Any] = {"num_classes": split.classes, "check": False}
        posterior = network.condition(X, y, **options).posterior(Q, observation_noise=True)
        if split.classes is None:
            return prediction(posterior, targets)
        return posterior.mean[:, : split.classes].cpu().numpy()


def _network(split: Split, network: pfn.PFN, seed: int, **options: Any) -> Any:
    """The estimators with their defaults: ensembles over orders of columns and power transforms."""
    options["random_state"] = seed
    options["device"] = str(next(network.parameters()).device)
    if split.classes is None:
        made = pfn.PFNRegressor(network, **options).fit(split.train_X, split.train_y)
        posterior = made.predict_distribution(split.test_X)
        return prediction(posterior, torch.as_tensor(split.test_y).to(posterior.mean))
    made = pfn.PFNClassifier(network, **options).fit(split.train_X, split.train_y)
    found = np.zeros((len(split.test_X), split.classes))
    found[:, made.classes_.astype(int)] = made.predict_proba(split.test_X)
    return found


def prediction(posterior: Any, targets: torch.Tensor) -> Prediction:
    """Of a posterior of one output, at the targets `[m]`."""
    predictive = as_predictive(posterior)
    values = (predictive.mean, predictive.log_prob(targets[:, None]))
    others = (predictive.cdf(targets[:, None]), predictive.crps(targets[:, None]))
    return Prediction(*(v[:, 0].cpu().numpy() for v in (*values, *others)))


# Regression


def _single_task_gp(split: Split, seed: int, device: str) -> Prediction:
    """BoTorch's defaults, whose prior of the length-scales is meant for inputs in the unit cube."""
    X, y, Q, targets = _tensors(split, device)
    model = SingleTaskGP(
        X, y[:, None], input_transform=Normalize(X.shape[-1]), outcome_transform=Standardize(m=1)
    )
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    with torch.no_grad():
        return prediction(model.posterior(Q, observation_noise=True), targets)


def _gaussian_process(split: Split, seed: int, device: str) -> Prediction:
    """RBF or Matern 5/2, one length per feature, whichever has the larger marginal likelihood."""
    d = split.train_X.shape[1]
    fitted = []
    for base in (RBF(np.ones(d), (1e-2, 1e3)), Matern(np.ones(d), (1e-2, 1e3), nu=2.5)):
        kernel = ConstantKernel(1.0, (1e-3, 1e4)) * base + WhiteKernel(0.1, (1e-6, 10.0))
        model = GaussianProcessRegressor(
            kernel, normalize_y=True, n_restarts_optimizer=1, random_state=seed
        )
        fitted.append(model.fit(split.train_X, split.train_y))
    best = max(fitted, key=lambda model: model.log_marginal_likelihood_value_)
    mean, deviation = best.predict(split.test_X, return_std=True)  # of y: the kernel has the noise
    return _of_scipy(scipy.stats.norm(mean, deviation), split.test_y)


def _tuned(estimator: Any, grid: Mapping[str, Sequence[Any]]) -> Callable[..., Prediction]:
    def predict(split: Split, seed: int, device: str) -> Prediction:
        folds = KFold(5, shuffle=True, random_state=seed)
        model = _seeded(estimator, seed)
        search = GridSearchCV(model, grid, scoring="neg_mean_squared_error", cv=folds)
        search.fit(split.train_X, split.train_y)
        chosen = model.set_params(**search.best_params_)
        held_out = cross_val_predict(chosen, split.train_X, split.train_y, cv=folds)
        degrees, scale = residual_density(split.train_y - held_out)
        mean = search.predict(split.test_X)
        return _of_scipy(scipy.stats.t(degrees, mean, scale), split.test_y, mean)

    return predict


def _forest_density(split: Split, seed: int, device: str) -> Prediction:
    def forest(leaf: int) -> RandomForestRegressor:
        return RandomForestRegressor(
            TREES, min_samples_leaf=leaf, random_state=seed, n_jobs=_SKLEARN_JOBS
        )

    X, y = split.train_X, split.train_y
    totals: dict[tuple[int, float, float], float] = defaultdict(float)
    for rest, held_out in KFold(5, shuffle=True, random_state=seed).split(X):
        for leaf in (2, 8):
            weights = _shared_leaves(forest(leaf).fit(X[rest], y[rest]), X[rest], X[held_out])
            for share in np.logspace(-2.5, -0.5, 9):
                for degrees in (4.0, 30.0):  # no Gaussian: its tails underflow
                    kernel = scipy.stats.t(degrees, scale=share * y.std())
                    density = _averaged(kernel.pdf, weights, y[rest], y[held_out])
                    totals[leaf, share, degrees] += np.log(density).sum()
    leaf, share, degrees = max(totals, key=lambda setting: totals[setting])
    weights = _shared_leaves(forest(leaf).fit(X, y), X, split.test_X)
    kernel = scipy.stats.t(degrees, scale=share * y.std())
    return Prediction(
        weights @ y,
        np.log(_averaged(kernel.pdf, weights, y, split.test_y)),
        _averaged(kernel.cdf, weights, y, split.test_y),
        _crps_on_a_grid(scipy.stats.t(degrees, y, share * y.std()), weights, y, split.test_y),
    )


def _averaged(
    function: Callable[[np.ndarray], np.ndarray], weights: Any, y: np.ndarray, at: np.ndarray
) -> np.ndarray:
    """Weighed sums over training rows of a function of target less theirs, `[m]`."""
    pairs = weights.tocoo()
    values = pairs.data * function(at[pairs.row] - y[pairs.col])
    return np.bincount(pairs.row, values, minlength=len(at))


def _crps_on_a_grid(kernel: Any, weights: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """CRPS of mixtures of the kernels at training targets; their cdf linear between 4,000 values.

    Tails reach as far as 30 bandwidths; both kinds of kernel have no more than 1e-5 beyond.
    """
    reach = 30 * float(kernel.args[2])
    low, high = min(y.min(), at.min()) - reach, max(y.max(), at.max()) + reach
    grid = np.linspace(low, high, 4_000)
    step = grid[1] - grid[0]
    below = (weights @ kernel.cdf(grid[:, None]).T).T  # [grid, m]
    found = np.zeros(len(at))
    for i, target in enumerate(at):
        F = below[:, i]
        left, right = F[:-1].copy(), F[1:].copy()
        panel = int((target - low) / step)
        middle = np.interp(target, grid, F)
        # int (a + (b - a) s)^2 ds over a panel
        lower = (left**2 + left * right + right**2) / 3
        upper = ((1 - left) ** 2 + (1 - left) * (1 - right) + (1 - right) ** 2) / 3
        a, b, c = left[panel], middle, right[panel]
        share = (target - grid[panel]) / step
        inside = share * (a**2 + a * b + b**2) / 3
        inside += (1 - share) * ((1 - b) ** 2 + (1 - b) * (1 - c) + (1 - c) ** 2) / 3
        found[i] = step * (lower[:panel].sum() + inside + upper[panel + 1 :].sum())
    return found


def _shared_leaves(forest: Any, X: np.ndarray, queries: np.ndarray) -> scipy.sparse.csr_array:
    """Weights `[m, n]` of training rows: how much they share the leaves of queries; of sum 1."""
    own, asked = forest.apply(X), forest.apply(queries)
    trees, nodes = own.shape[1], int(own.max()) + 1

    def leaves(reached: np.ndarray) -> scipy.sparse.csr_array:
        columns = (reached + nodes * np.arange(trees)).ravel()
        rows = np.repeat(np.arange(len(reached)), trees)
        return scipy.sparse.csr_array(
            (np.ones(len(rows)), (rows, columns)), shape=(len(reached), nodes * trees)
        )

    members = leaves(own)
    sizes = np.maximum(members.sum(0), 1)
    return (leaves(asked) / sizes[None]) @ members.T / trees


def residual_density(residuals: np.ndarray) -> tuple[float, float]:
    """Degrees of freedom and scale of the centred Student t of largest likelihood."""
    fits = []
    for degrees in _DEGREES:
        square = np.square(residuals).mean()
        for _ in range(200):  # expectation maximisation for the scale
            weight = 1.0
            if np.isfinite(degrees):
                weight = (degrees + 1) / (degrees + np.square(residuals) / square)
            square = (weight * np.square(residuals)).mean()
        scale = float(np.sqrt(square))
        fits.append((scipy.stats.t(degrees, 0, scale).logpdf(residuals).sum(), degrees, scale))
    return max(fits)[1:]


def _training_mean(split: Split, seed: int, device: str) -> Prediction:
    normal = scipy.stats.norm(split.train_y.mean(), split.train_y.std(ddof=1))
    return _of_scipy(normal, split.test_y, np.full(len(split.test_y), split.train_y.mean()))


def _of_scipy(distribution: Any, y: np.ndarray, mean: np.ndarray | None = None) -> Prediction:
    centre = distribution.mean() if mean is None else mean
    return Prediction(centre, distribution.logpdf(y), distribution.cdf(y), _crps(distribution, y))


def _crps(distribution: Any, y: np.ndarray) -> np.ndarray:
    """Of a normal distribution, or of a Student t with more than one degree of freedom."""
    *degrees, location, scale = distribution.args
    u = torch.as_tensor((y - location) / scale)
    if not degrees or np.isinf(degrees[0]):
        return scale * crps_of_standard_normal(u).numpy()
    return scale * crps_of_standard_t(u, float(degrees[0])).numpy()


# Classification


def _gaussian_process_classes(split: Split, seed: int) -> np.ndarray:
    """RBF with one length, Laplace's approximation, one against the rest.

    One length per feature takes minutes per fit, as every evidence and class is a Newton iteration
    of its own.
    """
    kernel = ConstantKernel(10.0, (1e-2, 1e4)) * RBF(split.train_X.shape[1] ** 0.5, (1e-1, 1e2))
    model = GaussianProcessClassifier(kernel, n_restarts_optimizer=0, random_state=seed)
    return model.fit(split.train_X, split.train_y).predict_proba(split.test_X)


def _tuned_classes(estimator: Any, grid: Mapping[str, Sequence[Any]]) -> Callable[..., np.ndarray]:
    def predict(split: Split, seed: int) -> np.ndarray:
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        model = _seeded(estimator, seed)
        search = GridSearchCV(model, grid, scoring="neg_log_loss", cv=folds)
        return search.fit(split.train_X, split.train_y).predict_proba(split.test_X)

    return predict


def _class_frequencies(split: Split, seed: int) -> np.ndarray:
    counts = np.bincount(split.train_y.astype(int), minlength=split.classes or 0)
    return np.tile(counts / counts.sum(), (len(split.test_y), 1))


def _seeded(estimator: Any, seed: int) -> Any:
    from sklearn.base import clone

    model = clone(estimator)
    return model.set_params(random_state=seed) if "random_state" in model.get_params() else model


_BOOSTING: dict[str, list[Any]] = {
    "learning_rate": [0.03, 0.1],
    "max_leaf_nodes": [4, 16],
    "max_iter": [75, 300],
}

REGRESSORS: dict[str, Callable[..., Prediction]] = {
    "SingleTaskGP": _single_task_gp,
    "sklearn GP": _gaussian_process,
    "forest": _tuned(
        RandomForestRegressor(TREES, n_jobs=_SKLEARN_JOBS),
        {"max_features": [1.0, 0.5], "min_samples_leaf": [1, 4]},
    ),
    "forest density": _forest_density,
    "boosting": _tuned(HistGradientBoostingRegressor(min_samples_leaf=10), _BOOSTING),
    "linear": _tuned(Ridge(), {"alpha": list(np.logspace(-3, 3, 13))}),
    "training mean": _training_mean,
}

CLASSIFIERS: dict[str, Callable[..., np.ndarray]] = {
    "sklearn GP": _gaussian_process_classes,
    "forest": _tuned_classes(
        RandomForestClassifier(TREES, n_jobs=_SKLEARN_JOBS),
        {"max_features": ["sqrt", 0.5], "min_samples_leaf": [1, 3]},
    ),
    "boosting": _tuned_classes(
        HistGradientBoostingClassifier(min_samples_leaf=10),
        {"learning_rate": [0.03, 0.1], "max_leaf_nodes": [4, 16], "max_iter": [75]},
    ),
    "linear": _tuned_classes(
        LogisticRegression(max_iter=2000), {"C": list(np.logspace(-3, 3, 13))}
    ),
    "class frequencies": _class_frequencies,
}
