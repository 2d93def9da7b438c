"""Expected improvement under the true predictive, for any engine that has it in closed form.

BoTorch's analytic acquisition functions read only mean and variance, which is exact for a
Gaussian alone. `LogExpectedImprovement` here asks the posterior itself; `GaussianApproximation`
is the explicit way to feed a non-Gaussian engine to the Gaussian-only ones.
"""

from __future__ import annotations

from typing import Any

import torch
from botorch.acquisition import AcquisitionFunction
from botorch.models.model import Model
from botorch.utils.transforms import t_batch_mode_transform
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from linear_operator.operators import DiagLinearOperator
from torch import Tensor

from priors.posterior import GaussianPosterior, as_predictive

__all__ = ["ExpectedImprovement", "GaussianApproximation", "LogExpectedImprovement"]


class LogExpectedImprovement(AcquisitionFunction):
    """Logarithm of the exact expected improvement of the noise-free function.

    Args:
        model: A single-output model of this package, or a Gaussian one of BoTorch.
        best_f: Best value so far, scalar or `[...]` broadcasting with the t-batch.
        maximize: Whether larger is better.

    Raises:
        NotImplementedError: on evaluation, when the model's posterior has no closed form.
    """

    def __init__(self, model: Model, best_f: float | Tensor, maximize: bool = True) -> None:
        super().__init__(model=model)
        if model.num_outputs != 1:
            raise ValueError(
                f"Expected improvement needs one output, the model has {model.num_outputs}."
            )
        self.register_buffer("best_f", torch.as_tensor(best_f))
        self.maximize = maximize

    @t_batch_mode_transform(expected_q=1)
    def forward(self, X: Tensor) -> Tensor:
        """Value at each candidate, `[b, 1, d]` to `[b]`."""
        best_f = self.best_f.to(X)
        posterior = as_predictive(self.model.posterior(X))
        value = posterior.log_expected_improvement(best_f[..., None, None], self.maximize)
        return value[..., 0, 0]


class ExpectedImprovement(LogExpectedImprovement):
    """Exact expected improvement, in units of Y."""

    @t_batch_mode_transform(expected_q=1)
    def forward(self, X: Tensor) -> Tensor:
        """Value at each candidate, `[b, 1, d]` to `[b]`."""
        return super().forward(X).exp()


class GaussianApproximation(Model):
    """A model whose posterior is the moment-matched independent Gaussian of another's.

    Use it, knowingly, where an acquisition function needs a Gaussian. Points are independent.

    Args:
        model: Any model whose posterior has `mean` and `variance`.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    @property
    def num_outputs(self) -> int:
        """Number of outputs."""
        return self.model.num_outputs

    @property
    def batch_shape(self) -> torch.Size:
        """Batch shape of the model."""
        return self.model.batch_shape

    def posterior(self, X: Tensor, *args: Any, **kwargs: Any) -> GaussianPosterior:
        """Moment-matched posterior at `X` `[..., n, d]`; other arguments go to the model.

        Raises:
            ValueError: the variance is not finite, so that no Gaussian matches.
        """
        posterior = self.model.posterior(X, *args, **kwargs)
        mean, variance = posterior.mean, posterior.variance
        if not bool(variance.isfinite().all()):
            raise ValueError(
                "GaussianApproximation needs finite variances; this posterior has none at some "
                "points. Use the model itself with a Monte Carlo acquisition function."
            )
        if mean.shape[-1] == 1:
            covariance = DiagLinearOperator(variance[..., 0])
            return GaussianPosterior(MultivariateNormal(mean[..., 0], covariance))
        covariance = DiagLinearOperator(variance.flatten(-2))
        return GaussianPosterior(MultitaskMultivariateNormal(mean, covariance))
