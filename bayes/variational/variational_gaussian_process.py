"""Variational Gaussian processes with any likelihood, for few rows and many."""

from __future__ import annotations

import os
from typing import Any, Self

from gpytorch.kernels import Kernel
from gpytorch.likelihoods import Likelihood as GPyTorchLikelihood
from torch import Tensor

from bayes.description import check_module
from bayes.likelihoods import Likelihood, from_description, named
from bayes.variational.gpytorch_laws import gpytorch_law
from bayes.variational.laws import Law, own_law
from bayes.variational.variational_process import VariationalProcess
from priors.posteriors.transforms import DEFAULT

__all__ = ["VariationalGaussianProcess"]


class VariationalGaussianProcess(VariationalProcess):
    """A Gaussian process for outcomes of any kind, through inducing points.

    O(n M^2) time and O(n M) memory for n rows and M inducing points. With as many as there are rows
    and a Gaussian likelihood it is the exact process; fewer make its noise larger and its bound
    lower, never higher than the evidence.

    Args:
        train_X: Inputs, `[n, d]`.
        train_Y: Outcomes, `[n, m]`; of classes their numbers 0, 1, ..., `[n, 1]`.
        kernel: Prior covariance of every function; copied, so the learnt values are in
            `covar_module` and in the model's `repr`.
        likelihood: How outcomes arise from the functions: "gaussian", "student_t", "poisson",
            "ordinal", "categorical", "heteroscedastic" or "heteroscedastic_student_t", a
            `bayes.Likelihood` with settings, such as `StudentT(df=4)`, or a GPyTorch likelihood,
            copied.
        num_inducing: M, at most; all rows where they are fewer. They are chosen among the rows by
            the variance that they leave.
        inducing_points: Where to put them instead, `[M, d]` in the units of train_X.
        train_weights: Weights of the rows' log likelihoods, `[n]`, > 0; all 1 if None.
        learn_inducing_points: Whether `fit` moves them too, unless all rows are taken.
        input_transform: `DEFAULT` standardises by the training rows, columns that meet the same
            weights (the pixels of a channel) together; None applies none; or a BoTorch
            `InputTransform`, copied.
        outcome_transform: `DEFAULT` standardises by the training rows, None applies none; or an
            elementwise `torch.distributions` transform from the model's scale to Y's. Classes and
            counts have none.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: shapes disagree, or values are not finite or not those of the likelihood.
        NotImplementedError: a GPyTorch likelihood of several functions for each column.

    Methods:
        fit: Learn kernel, likelihood and inducing points; returns the model.
        posterior: Predict, `model.posterior(X, observation_noise=True)` for y rather than f.
        evidence_lower_bound: The bound, to decide among kernels.
        condition_on_observations: A model of further rows, with the hyperparameters as they are.
        subset_output: A model of some outputs.
        save: Write to a file.
        load: Read it again.

    All else is inherited from BoTorch's `Model`.
    """

    def __init__(
        self,
        train_X: Tensor,
        train_Y: Tensor,
        kernel: Kernel,
        *,
        likelihood: str | Likelihood | GPyTorchLikelihood = "gaussian",
        num_inducing: int = 200,
        inducing_points: Tensor | None = None,
        learn_inducing_points: bool = True,
        train_weights: Tensor | None = None,
        input_transform: Any = DEFAULT,
        outcome_transform: Any = DEFAULT,
    ) -> None:
        super().__init__(
            train_X,
            train_Y,
            kernel,
            likelihood=likelihood,
            num_inducing=num_inducing,
            inducing_points=inducing_points,
            learn_inducing_points=learn_inducing_points,
            train_weights=train_weights,
            input_transform=input_transform,
            outcome_transform=outcome_transform,
        )

    def _make_law(self, likelihood: Any, train_Y: Tensor) -> Law:
        if isinstance(likelihood, GPyTorchLikelihood):
            return gpytorch_law(likelihood, train_Y)
        return own_law(named(likelihood), train_Y)

    def _describe_likelihood(self) -> Any:
        own = self.law.likelihood
        if isinstance(own, Likelihood):
            return own.description()
        return {"class": type(own).__name__, "module": self.law.made_as}

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        kernel: Kernel | None = None,
        *,
        likelihood: Likelihood | GPyTorchLikelihood | None = None,
        input_transform: Any = DEFAULT,
        outcome_transform: Any = DEFAULT,
    ) -> Self:
        """Read what `save` wrote.

        The file holds no code: pass a kernel (and a likelihood of GPyTorch or of your own, and
        transforms, if the model was given its own) of the same make; their learnt values come from
        the file.

        Args:
            path: The file.
            kernel: The same as at construction, with any parameter values; required.
            likelihood: The same as at construction, unless it is one of `bayes.likelihoods`.
            input_transform: The same as at construction.
            outcome_transform: The same as at construction.

        Raises:
            ValueError: the file is damaged or of another kind, or what was passed does not fit it.
            TypeError: no kernel was passed.
        """
        transforms = {"input_transform": input_transform, "outcome_transform": outcome_transform}
        tensors, description = cls._read(path, kernel, transforms)
        assert kernel is not None
        saved = description["likelihood"]
        known = None if "module" in saved else from_description(saved)
        if (known is None) == (likelihood is None):
            raise ValueError(
                f"{path} was saved with the likelihood {saved['class']}; "
                + ("pass it to load." if known is None else "load knows it and needs none.")
            )
        if "module" in saved:
            assert likelihood is not None
            check_module(path, "likelihood", likelihood, saved["module"])  # type: ignore[arg-type]
        model = cls(
            tensors["train_X"],
            tensors["train_Y"],
            kernel,
            likelihood=known or likelihood or "gaussian",
            inducing_points=tensors["train_X"][:1].expand(
                len(tensors["state.inducing.points"]), -1
            ),
            train_weights=tensors.get("train_weights"),
            **transforms,
        )
        return model._take(path, tensors)
