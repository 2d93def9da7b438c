"""Gaussian process regression with noise that depends on the inputs."""

from __future__ import annotations

import copy
import math
import os
from typing import Any, Self

import torch
from gpytorch.kernels import Kernel, RBFKernel, ScaleKernel
from gpytorch.priors import GammaPrior, LogNormalPrior
from torch import Tensor

from bayes.checks import check_query, check_training_data
from bayes.processes.gaussian_process import GaussianProcess
from bayes.processes.input_noise import InputNoise, IntegratedNoiseLogLikelihood
from bayes.processes.marginal_likelihood import JointMarginalLogLikelihood
from priors.kernels.network import columns_together
from priors.posteriors.transforms import DEFAULT, fitted_input_transform

__all__ = ["HeteroscedasticGaussianProcess"]


class HeteroscedasticGaussianProcess(GaussianProcess):
    """A Gaussian process whose noise variance is a learnt function of the inputs.

    y = f(x) + e with e ~ N(0, exp(b + h(x))), f and h Gaussian processes (Goldberg et al. 1998). h
    is at its most probable value (Kersting et al. 2007); given it everything is exact, and the
    posterior a `priors.GaussianPosterior` as that of `GaussianProcess`. `fit` learns
    hyperparameters by the marginal likelihood with h integrated out, by Laplace's approximation,
    which is `log_marginal_likelihood` too: how uncertain h is keeps it from following chance. It
    does not widen the intervals of y: with few rows,
    `VariationalGaussianProcess(likelihood="heteroscedastic")` integrates over h there as well.

    Args:
        train_X: Inputs, `[n, d]`.
        train_Y: Outcomes, `[n, m]`; every column has a noise of its own.
        kernel: Prior covariance of f; copied.
        noise_kernel: Prior covariance of the log noise variance, on standardised inputs; copied. A
            scaled RBF kernel with one length per input if None.
        num_noise_points: At how many of the rows, drawn at random, h is represented.
        train_weights: As of `GaussianProcess`.
        input_transform: As of `GaussianProcess`.
        outcome_transform: As of `GaussianProcess`.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: shapes disagree or values are not finite.

    Methods:
        fit: Learn kernels and noise; returns the model.
        noise_variance: The noise variance at inputs.
        posterior: Predict, `model.posterior(X, observation_noise=True)` for y rather than f.
        leave_one_out: Each row's y given all the others.
        condition_on_observations: A model of further rows, with the noise as it is.
        save: Write to a file.
        load: Read it again.

    All else is as of `GaussianProcess`.
    """

    def __init__(
        self,
        train_X: Tensor,
        train_Y: Tensor,
        kernel: Kernel,
        *,
        noise_kernel: Kernel | None = None,
        num_noise_points: int = 50,
        train_weights: Tensor | None = None,
        input_transform: Any = DEFAULT,
        outcome_transform: Any = DEFAULT,
    ) -> None:
        owner = type(self).__name__
        check_training_data(owner, train_X, train_Y)
        if train_X.dim() != 2:
            raise ValueError(
                f"{owner} takes one data set [n, d], got train_X of shape {tuple(train_X.shape)}."
            )
        if not (noise_kernel is None or isinstance(noise_kernel, Kernel)):
            raise TypeError(
                f"{owner} needs noise_kernel as a gpytorch kernel or None, got "
                f"{type(noise_kernel).__name__}."
            )
        if num_noise_points < 1:
            raise ValueError(f"{owner} needs num_noise_points >= 1, got {num_noise_points}.")
        if noise_kernel is None:
            noise_kernel = _noise_kernel(train_X.shape[-1])
        self._num_noise_points = num_noise_points
        noise = InputNoise(
            copy.deepcopy(noise_kernel).to(train_X),
            _points(train_X, input_transform, kernel, num_noise_points),
            train_Y.shape[-1],
        )
        super().__init__(
            train_X,
            train_Y,
            kernel,
            train_weights=train_weights,
            likelihood=noise,
            input_transform=input_transform,
            outcome_transform=outcome_transform,
        )
        self._given["likelihood"] = False  # it is made here

    def noise_variance(self, X: Tensor) -> Tensor:
        """Variance of y about f at inputs, in squared units of Y.

        Args:
            X: Inputs, `[q, d]`.

        Returns:
            `[q, m]`.

        Raises:
            NotImplementedError: the outcome transform is not affine.
        """
        owner = type(self).__name__
        check_query(owner, X, self.train_X)
        outcome = self._outcome
        if not (outcome is None or outcome.affine):
            raise NotImplementedError(
                f"{owner}.noise_variance needs an affine outcome transform: through another the "
                "noise depends on f as well."
            )
        self.eval()
        X = self.transform_inputs(X)
        variance = self.likelihood.noise_covar(X).diagonal(dim1=-2, dim2=-1)
        variance = variance.mT if self.num_outputs > 1 else variance.unsqueeze(-1)
        return variance if outcome is None else outcome.variances(variance)

    @classmethod
    def load(  # type: ignore[override]  # another kernel in place of a likelihood
        cls,
        path: str | os.PathLike[str],
        kernel: Kernel | None = None,
        *,
        noise_kernel: Kernel | None = None,
        input_transform: Any = DEFAULT,
        outcome_transform: Any = DEFAULT,
    ) -> Self:
        """Read what `save` wrote.

        Args:
            path: The file.
            kernel: The same as at construction, with any parameter values; required.
            noise_kernel: The same as at construction.
            input_transform: The same as at construction.
            outcome_transform: The same as at construction.

        Raises:
            ValueError: the file is damaged or of another kind, or what was passed does not fit it.
            TypeError: no kernel was passed.
        """
        further = {"noise_kernel": noise_kernel}
        return cls._load(path, kernel, further, None, input_transform, outcome_transform)

    def _marginal_log_likelihood(self) -> JointMarginalLogLikelihood:
        return IntegratedNoiseLogLikelihood(self.likelihood, self)

    def _construction(self) -> dict[str, Any]:
        return {"num_noise_points": self._num_noise_points}


def _noise_kernel(d: int) -> Kernel:
    lengths = LogNormalPrior(math.sqrt(2) + 0.5 * math.log(d), math.sqrt(3))
    base = RBFKernel(ard_num_dims=d, lengthscale_prior=lengths)
    return ScaleKernel(base, outputscale_prior=GammaPrior(2.0, 1.0))


def _points(train_X: Tensor, input_transform: Any, kernel: Any, number: int) -> Tensor:
    """Some different rows on the model's scale."""
    together = columns_together(kernel) if isinstance(kernel, Kernel) else ()  # or refused later
    transform = fitted_input_transform(input_transform, train_X, together)
    X = torch.unique(train_X, dim=0)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(X), generator=generator, device="cpu")[:number]
    X = X[order.to(X.device)]
    return X if transform is None else transform(X)
