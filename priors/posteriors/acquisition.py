"""Acquisition functions of the true marginal, for any engine that has them in closed form.

BoTorch's analytic acquisition functions read only mean and variance, which is exact for a
Gaussian alone. Those here ask the posterior itself; `GaussianApproximation` is the explicit way to
feed a non-Gaussian engine to the Gaussian-only ones.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, cast

import torch
from botorch.acquisition import AcquisitionFunction
from botorch.acquisition.objective import PosteriorTransform
from botorch.exceptions import UnsupportedError
from botorch.models.model import Model
from botorch.posteriors import GPyTorchPosterior, Posterior, TorchPosterior
from botorch.sampling.base import MCSampler
from botorch.sampling.get_sampler import get_sampler
from botorch.sampling.normal import SobolQMCNormalSampler
from botorch.utils.transforms import t_batch_mode_transform
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from linear_operator.operators import DiagLinearOperator
from torch import Tensor

from priors.posteriors.gaussian import GaussianPosterior, as_predictive
from priors.posteriors.protocol import PredictivePosterior
from priors.posteriors.transformed import apply_posterior_transform

__all__ = [
    "ExpectedImprovement",
    "GaussianApproximation",
    "LogExpectedImprovement",
    "LogProbabilityOfImprovement",
    "ProbabilityOfImprovement",
    "UpperConfidenceBound",
]


class _MarginalAcquisition(AcquisitionFunction, ABC):
    """A function of the marginal posterior at one candidate."""

    def __init__(self, model: Model) -> None:
        super().__init__(model=model)
        if model.num_outputs != 1:
            raise ValueError(
                f"{type(self).__name__} needs one output, the model has {model.num_outputs}; "
                "choose one by model.subset_output, or use a Monte Carlo one with an objective."
            )

    def set_X_pending(self, X_pending: Tensor | None = None) -> None:
        """Marginals cannot know of points whose values are still to come.

        Args:
            X_pending: None.

        Raises:
            UnsupportedError: there are pending points.
        """
        if X_pending is not None:
            raise UnsupportedError(
                f"{type(self).__name__} reads the marginal at one candidate and cannot account for "
                "pending points; use botorch.acquisition.qLogExpectedImprovement, "
                "qProbabilityOfImprovement or qUpperConfidenceBound, which sample jointly, with "
                "q > 1, sequential or not."
            )
        super().set_X_pending(None)

    @t_batch_mode_transform(expected_q=1)  # type: ignore[arg-type]  # says "of any acquisition"
    def forward(self, X: Tensor) -> Tensor:
        """Value at each candidate, `[b, 1, d]` to `[b]`."""
        return self._value(as_predictive(self.model.posterior(X)), X)[..., 0, 0]

    @abstractmethod
    def _value(self, posterior: PredictivePosterior, X: Tensor) -> Tensor:
        """Value `[b, 1, 1]`."""


class _Improvement(_MarginalAcquisition, ABC):
    best_f: Tensor

    def __init__(self, model: Model, best_f: float | Tensor, maximize: bool = True) -> None:
        super().__init__(model)
        if not isinstance(best_f, Tensor):
            # as exact as it was given
            best_f = torch.tensor(best_f, dtype=torch.float64, device="cpu")
        self.register_buffer("best_f", best_f)
        self.maximize = maximize

    def _threshold(self, X: Tensor) -> Tensor:
        return self.best_f.to(X)[..., None, None]


class LogExpectedImprovement(_Improvement):
    """Logarithm of the exact expected improvement of the noise-free function.

    Args:
        model: A single-output model of this package, or a Gaussian one of BoTorch.
        best_f: Best value so far, scalar or `[...]` broadcasting with the t-batch.
        maximize: Whether larger is better.

    Raises:
        NotImplementedError: on evaluation, when the model's posterior has no closed form.
    """

    _log = True  # as BoTorch marks its own

    def _value(self, posterior: PredictivePosterior, X: Tensor) -> Tensor:
        return posterior.log_excess(self._threshold(X), 1, self.maximize)


class ExpectedImprovement(LogExpectedImprovement):
    """Exact expected improvement, in units of Y; see `LogExpectedImprovement`."""

    _log = False

    def _value(self, posterior: PredictivePosterior, X: Tensor) -> Tensor:
        return super()._value(posterior, X).exp()


class LogProbabilityOfImprovement(_Improvement):
    """Logarithm of the exact probability that the noise-free function improves on `best_f`.

    Args:
        model: A single-output model of this package, or a Gaussian one of BoTorch.
        best_f: Best value so far, scalar or `[...]` broadcasting with the t-batch.
        maximize: Whether larger is better.
    """

    _log = True

    def _value(self, posterior: PredictivePosterior, X: Tensor) -> Tensor:
        return posterior.log_excess(self._threshold(X), 0, self.maximize)


class ProbabilityOfImprovement(LogProbabilityOfImprovement):
    """Exact probability of improvement; see `LogProbabilityOfImprovement`."""

    _log = False

    def _value(self, posterior: PredictivePosterior, X: Tensor) -> Tensor:
        return super()._value(posterior, X).exp()


class UpperConfidenceBound(_MarginalAcquisition):
    """Quantile of the noise-free function: what it exceeds with probability 1 - level.

    The level ends at the largest number below 1 of X's dtype: a beta above 28 counts as 28 in
    float32, one above 67 as 67 in float64.

    Args:
        model: A single-output model of this package, or a Gaussian one of BoTorch.
        beta: The bound is at the probability that a Gaussian has below mean + sqrt(beta) standard
            deviations, so that for a Gaussian model this is BoTorch's. Pass either it or `level`.
        maximize: Whether larger is better; if not, the value is minus the lower bound.
        level: Probability below the bound, in (0, 1).

    Raises:
        ValueError: both or neither of beta and level, or one out of range.
    """

    def __init__(
        self,
        model: Model,
        beta: float | None = None,
        maximize: bool = True,
        *,
        level: float | None = None,
    ) -> None:
        super().__init__(model)
        if (beta is None) == (level is None):
            raise ValueError(f"pass either beta or level, got beta={beta} and level={level}.")
        if beta is not None:
            if beta < 0:
                raise ValueError(f"beta must be at least 0, got {beta}.")
            level = NormalDist().cdf(math.sqrt(beta))
        elif level is not None and not 0 < level < 1:
            raise ValueError(f"the probability below the bound must lie in (0, 1), got {level}.")
        assert level is not None
        self.level = level
        self.maximize = maximize

    def _value(self, posterior: PredictivePosterior, X: Tensor) -> Tensor:
        level = min(self.level, 1 - torch.finfo(X.dtype).eps / 2)
        bound = posterior.quantile(X.new_tensor(level if self.maximize else 1 - level))
        return bound if self.maximize else -bound


class GaussianApproximation(Model):
    """A model whose posterior is the Gaussian with the moments of another's.

    Use it, knowingly, where an acquisition function needs a Gaussian. Marginal means and variances
    are exact; points and outputs are independent, or have the correlations of joint samples.

    Args:
        model: Any model whose posterior has `mean` and `variance`.
        num_samples: Joint samples from which to estimate the correlations; None for independence.
            The same quasi-random ones each time, so that the approximation is a smooth function.
    """

    def __init__(self, model: Model, num_samples: int | None = None) -> None:
        super().__init__()
        if num_samples is not None and num_samples < 2:
            raise ValueError(f"num_samples must be at least 2 or None, got {num_samples}.")
        self.model = model
        self.num_samples = num_samples

    @property
    def num_outputs(self) -> int:
        """Number of outputs."""
        return self.model.num_outputs

    @property
    def batch_shape(self) -> torch.Size:
        """Batch shape of the model."""
        return self.model.batch_shape

    @property
    def train_inputs(self) -> Any:
        """Those of the model, for m outputs `[m, n, d]` as BoTorch's Gaussian processes do."""
        inputs: Any = self.model.train_inputs
        if self.num_outputs > 1 and isinstance(inputs[0], Tensor) and inputs[0].dim() == 2:
            return tuple(X.expand(self.num_outputs, -1, -1) for X in inputs)
        return inputs

    def posterior(
        self,
        X: Tensor,
        output_indices: Sequence[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> GPyTorchPosterior | Posterior:
        """Moment-matched posterior at `X` `[..., n, d]`.

        Args:
            X: Queries.
            output_indices: Passed to the model.
            observation_noise: Passed to the model.
            posterior_transform: Applied to the Gaussian.

        Raises:
            ValueError: the variance is not finite, so that no Gaussian matches.
        """
        # whose mean and variance BoTorch's base class does not declare
        posterior: Any = self.model.posterior(
            X,
            output_indices=None if output_indices is None else list(output_indices),
            observation_noise=observation_noise,
        )
        mean, variance = posterior.mean, posterior.variance
        if not bool(variance.isfinite().all()):
            raise ValueError(
                "GaussianApproximation needs finite variances; this posterior has none at some "
                "points. Use the model itself with a Monte Carlo acquisition function."
            )
        # output by output, as BoTorch reads it
        covariance: Any = DiagLinearOperator(variance.mT.flatten(-2))
        if self.num_samples is not None and variance.shape[-2:].numel() > 1:
            covariance = self._covariance(posterior, variance.mT.flatten(-2))
        if mean.shape[-1] == 1:
            gaussian = MultivariateNormal(mean[..., 0], covariance)
        else:
            gaussian = MultitaskMultivariateNormal(mean, covariance, interleaved=False)
        return apply_posterior_transform(posterior_transform, GaussianPosterior(gaussian), X)

    def forward(self, X: Tensor) -> MultivariateNormal:
        """The Gaussian at `X`, as a GPyTorch model returns it in evaluation mode."""
        gaussian = cast(GPyTorchPosterior, self.posterior(X)).distribution
        if isinstance(gaussian, MultitaskMultivariateNormal):
            covariance = gaussian.covariance_matrix
            return MultitaskMultivariateNormal(gaussian.mean, covariance, interleaved=False)
        return MultivariateNormal(gaussian.mean, gaussian.covariance_matrix)

    def condition_on_observations(
        self, X: Tensor, Y: Tensor, **kwargs: Any
    ) -> GaussianApproximation:
        """The approximation of the conditioned model; arguments go to that."""
        model = self.model.condition_on_observations(X, Y, **kwargs)
        return GaussianApproximation(model, self.num_samples)

    def fantasize(self, X: Tensor, sampler: MCSampler, **kwargs: Any) -> GaussianApproximation:
        """The approximation of the model's own fantasies; arguments go to that."""
        model: Any = self.model  # in BoTorch not every model fantasizes
        return GaussianApproximation(model.fantasize(X, sampler, **kwargs), self.num_samples)

    def subset_output(self, idcs: list[int]) -> GaussianApproximation:
        """The approximation of the model of some outputs."""
        return GaussianApproximation(self.model.subset_output(idcs), self.num_samples)

    def _covariance(self, posterior: TorchPosterior, variance: Tensor) -> Tensor:
        """Correlations of joint samples with the exact variances, `[..., m n, m n]`."""
        assert self.num_samples is not None
        # Of a seed of its own: the global generator is left alone.
        shape = torch.Size([self.num_samples])
        if isinstance(posterior, PredictivePosterior):  # which may give get_sampler a cheaper one
            samples = SobolQMCNormalSampler(shape, seed=0)(posterior)
        else:
            samples = get_sampler(posterior, shape, seed=0)(posterior)
        samples = samples.mT.flatten(-2)
        centred = samples - samples.mean(0)
        normed = centred / centred.square().sum(0, keepdim=True).sqrt()
        correlation = torch.einsum("s...i,s...j->...ij", normed, normed)
        # Fewer samples than points, or the same point twice, leave it singular.
        shrink = torch.finfo(variance.dtype).eps ** 0.5
        identity = torch.eye(variance.shape[-1], dtype=variance.dtype, device=variance.device)
        correlation = (1 - shrink) * correlation + shrink * identity
        std = variance.sqrt()
        return std.unsqueeze(-1) * correlation * std.unsqueeze(-2)
