"""Gaussian processes whose overall scale is unknown.

sigma^2 ~ InverseGamma(concentration, rate), y | sigma^2 ~ N(0, sigma^2 (K + noise I)): the scale
multiplies the function *and* the noise, so `noise` is the ratio of the noise variance to the
kernel's scale. Integrating sigma^2 out gives a Student t process, in closed form (Shah, Wilson &
Ghahramani 2014, 1402.4306; the parametrisation is that of Lee et al. 2022, 2107.01408):

    prior       t with df 2a, scale (b/a) (K + noise I)
    posterior   t with df 2a + n, location K* (K + noise I)^-1 y,
                scale (2b + y'(K + noise I)^-1 y) / (2a + n) times the Gaussian posterior covariance

With m outputs that share sigma^2, n becomes n m and the quadratic forms are summed. A row given the
others is the posterior of n - 1 rows, whose quadratic form is that of all rows less
(y_i - mean_i)^2 / variance_i, the moments those of `left_out`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import Likelihood
from torch import Tensor
from torch.distributions.transforms import AffineTransform

from bayes.processes.exact_process import ExactProcess
from bayes.processes.left_out import independent_rows
from bayes.processes.marginal_likelihood import JointMarginalLogLikelihood
from bayes.processes.student_t import StudentTPosterior
from priors.posteriors.compat import is_stored_by_output
from priors.posteriors.gaussian import scaled
from priors.posteriors.transforms import DEFAULT

__all__ = ["StudentTProcess"]


class StudentTProcess(ExactProcess):
    """A Student t process conditioned exactly on data.

    The posterior is a `StudentTPosterior`, joint over points and outputs: intervals widen when
    the data are larger than the kernel expects. `fit()` maximises the closed-form marginal
    likelihood over kernel and noise ratio. Cost as a Gaussian process.

    Args:
        train_X: Inputs, `[..., n, d]`.
        train_Y: Outcomes, `[..., n, m]`; the columns share sigma^2.
        kernel: Prior covariance of f given sigma^2 = 1; copied.
        concentration: a of the inverse gamma, > 0. The prior mean of sigma^2 is b / (a - 1).
        rate: b of the inverse gamma, > 0, on the model's (standardised) scale.
        train_Yvar: Known noise variances relative to sigma^2, in the units of Y squared.
        train_weights: See `GaussianProcess`.
        likelihood: See `GaussianProcess`; its noise is the ratio.
        input_transform: See `GaussianProcess`.
        outcome_transform: See `GaussianProcess`.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: shapes disagree, values are not finite, or a or b is not positive.

    Methods:
        fit: Learn kernel and noise ratio; returns the model.
        posterior: Predict, `model.posterior(X, observation_noise=True)` for y rather than f.
        log_marginal_likelihood: The evidence, to decide among kernels.
        leave_one_out: Each row's y given all the others.
        sample_path: Functions drawn from the posterior, for any kernel.
        condition_on_observations: A model of further rows, with the hyperparameters as they are.
        fantasize: Such models of rows drawn from the posterior.
        save: Write to a file.
        load: Read it again.

    All else is inherited from BoTorch's `SingleTaskGP`.
    """

    _has_unknown_scale = True

    def __init__(
        self,
        train_X: Tensor,
        train_Y: Tensor,
        kernel: Kernel,
        *,
        concentration: float = 2.0,
        rate: float = 2.0,
        train_Yvar: Tensor | None = None,
        train_weights: Tensor | None = None,
        likelihood: Likelihood | None = None,
        input_transform: Any = DEFAULT,
        outcome_transform: Any = DEFAULT,
    ) -> None:
        """See the class for the arguments."""
        for name, value in (("concentration", concentration), ("rate", rate)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"StudentTProcess needs 0 < {name} < inf, got {value}.")
        super().__init__(
            train_X,
            train_Y,
            kernel,
            train_Yvar=train_Yvar,
            train_weights=train_weights,
            likelihood=likelihood,
            input_transform=input_transform,
            outcome_transform=outcome_transform,
        )
        self.concentration = float(concentration)
        self.rate = float(rate)

    def _construction(self) -> dict[str, Any]:
        return {"concentration": self.concentration, "rate": self.rate}

    def _marginal_log_likelihood(self) -> JointMarginalLogLikelihood:
        return _StudentTMarginalLogLikelihood(self.likelihood, self)

    def _process_posterior(
        self, gaussian: MultivariateNormal, transform: AffineTransform | None
    ) -> StudentTPosterior:
        # The prediction strategy holds K^-1 y of the rows just conditioned on.
        targets = self.train_targets
        quadratic = (targets * self.prediction_strategy.mean_cache).sum(-1)
        if self.num_outputs > 1:
            quadratic = quadratic.sum(-1)
        df = 2 * self.concentration + targets.shape[-1] * self.num_outputs
        factor = (2 * self.rate + quadratic) / df
        covariance = scaled(gaussian.lazy_covariance_matrix, factor)
        storage = {"interleaved": False} if is_stored_by_output(gaussian) else {}
        distribution = type(gaussian)(gaussian.mean, covariance, **storage)
        return StudentTPosterior(distribution, df, transform)

    def _left_out_posterior(
        self, mean: Tensor, variance: Tensor, transform: AffineTransform | None
    ) -> StudentTPosterior:
        # y' C^-1 y of all rows is that of the others plus the square of the row left out
        targets = self.train_targets
        squares = (targets - mean).square() / variance
        quadratic = (targets * (targets - mean) / variance).sum(-1, keepdim=True) - squares
        if self.num_outputs > 1:  # they share sigma^2
            quadratic = quadratic.sum(-2, keepdim=True)
        df = 2 * self.concentration + (targets.shape[-1] - 1) * self.num_outputs
        variance = variance * (2 * self.rate + quadratic.clamp_min(0)) / df
        distribution = independent_rows(mean, variance, self.num_outputs)
        return StudentTPosterior(distribution, df, transform)


class _StudentTMarginalLogLikelihood(JointMarginalLogLikelihood):
    """Log density of a multivariate t with df 2a and scale (b/a) (K + noise I)."""

    def log_marginal(self, quadratic: Tensor, log_det: Tensor, size: int) -> Tensor:
        a, b = self.model.concentration, self.model.rate
        return (
            math.lgamma(a + size / 2)
            - math.lgamma(a)
            - 0.5 * size * math.log(2 * math.pi * b)
            - 0.5 * log_det
            - (a + size / 2) * torch.log1p(quadratic / (2 * b))
        )
