"""Which Gaussian process suits a number of rows."""

from __future__ import annotations

import warnings
from typing import Any

from botorch.models.model import Model
from gpytorch.kernels import Kernel
from torch import Tensor

from bayes.checks import check_training_data
from bayes.large_n.weight_space_process import WeightSpaceProcess, feature_map
from bayes.processes.gaussian_process import GaussianProcess
from bayes.variational.variational_gaussian_process import VariationalGaussianProcess
from priors.posteriors.transforms import DEFAULT

__all__ = ["gaussian_process_for"]

# Rows up to which every evaluation of the marginal likelihood may factorise all of them, and up to
# which one factorisation is made.
_EXACT, _SUBSET = 2_000, 10_000
_METHODS = ("exact", "subset", "inducing", "features")


def gaussian_process_for(
    train_X: Tensor,
    train_Y: Tensor,
    kernel: Kernel,
    *,
    method: str | None = None,
    max_rows: int = _EXACT,
    num_inducing: int = 500,
    num_features: int = 1024,
    input_transform: Any = DEFAULT,
    outcome_transform: Any = DEFAULT,
    **fit_options: Any,
) -> Model:
    """A fitted Gaussian process of a kind that suits the number of rows.

    * "exact", up to 2,000 rows: `GaussianProcess`, hyperparameters from all rows.
    * "subset", up to 10,000: `GaussianProcess`, hyperparameters from `max_rows` random rows, then
      conditioned on all exactly (10,000 rows in float64: about a minute of one core, 2.5 to 4 GB).
    * "inducing", beyond: `VariationalGaussianProcess`, whose bound is of all rows, started from the
      hyperparameters of `max_rows` random rows.
    * "features", only if asked for: `WeightSpaceProcess` on random features of a network's kernel,
      whose hyperparameters are learnt on `max_rows` random rows.

    Args:
        train_X: Inputs, `[n, d]`.
        train_Y: Outcomes, `[n, m]`.
        kernel: Prior covariance; copied.
        method: One of these names; None chooses by the number of rows, and warns where that is not
            the exact one.
        max_rows: Rows of a subset.
        num_inducing: Inducing points.
        num_features: Width of random features.
        input_transform: As of `GaussianProcess`.
        outcome_transform: As of `GaussianProcess`.
        **fit_options: Of the fit: `max_iter`, `timeout`, `progress`, `num_restarts`, `seed`.

    Raises:
        ValueError: another method, or what the models refuse.

    Warns:
        Which approximation was chosen, and why; a method silences it.
    """
    check_training_data("gaussian_process_for", train_X, train_Y)
    if method is not None and method not in _METHODS:
        raise ValueError(
            f"method must be {', '.join(map(repr, _METHODS))} or None, got {method!r}."
        )
    transforms = {"input_transform": input_transform, "outcome_transform": outcome_transform}
    if method is None:
        method = _chosen(train_X.shape[-2], max_rows, num_inducing)
    # the process of a subset takes its time, so what comes after it is refused before
    if method in ("inducing", "features") and train_X.dim() != 2:
        raise ValueError(
            f'method="{method}" takes one data set [n, d], got train_X of shape '
            f"{tuple(train_X.shape)}."
        )
    if method == "inducing" and num_inducing < 1:
        raise ValueError(f"gaussian_process_for needs num_inducing >= 1, got {num_inducing}.")
    if method == "features":
        feature_map("WeightSpaceProcess", kernel, num_features, 0)
    if method == "exact":
        return GaussianProcess(train_X, train_Y, kernel, **transforms).fit(**fit_options)
    process = GaussianProcess(train_X, train_Y, kernel, **transforms)
    process.fit(max_rows=max_rows, **fit_options)
    if method == "subset":
        return process
    if method == "inducing":  # from where the subset led, or the first steps are spent on that
        variational = VariationalGaussianProcess(
            train_X,
            train_Y,
            process.covar_module,
            likelihood=process.likelihood,
            num_inducing=num_inducing,
            **transforms,
        )
        return variational.fit(**fit_options)
    features = WeightSpaceProcess(
        train_X, train_Y, process.covar_module, num_features=num_features, **transforms
    )
    return features.fit()


def _chosen(rows: int, max_rows: int, num_inducing: int) -> str:
    """The method for a number of rows, with a warning of what it approximates."""
    if rows <= _EXACT:
        return "exact"
    if rows <= _SUBSET:
        method, what = "subset", f"learns hyperparameters from {max_rows:,} random rows and "
        what += "conditions on all exactly, since each step of a fit of all would factorise them"
    else:
        method, what = "inducing", f"goes through {num_inducing} inducing points, since a "
        what += f"covariance of {rows:,} rows is {8e-9 * rows**2:.1f} GB, factorised in O(n^3)"
    warnings.warn(
        f'gaussian_process_for took method="{method}" for {rows:,} rows: it {what}. Give method= '
        "to choose yourself, and to silence this.",
        stacklevel=3,
    )
    return method
