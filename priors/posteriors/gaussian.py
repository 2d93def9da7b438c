"""Gaussian posteriors: BoTorch's with the whole protocol, improvements in closed form."""

from __future__ import annotations

import torch
from botorch.posteriors import GPyTorchPosterior, Posterior
from gpytorch.distributions import MultivariateNormal
from torch import Tensor
from torch.distributions import Normal

from priors.posteriors.protocol import PredictivePosterior, leading

__all__ = [
    "GaussianPosterior",
    "as_predictive",
    "gaussian_log_expected_improvement",
    "gaussian_log_probability_of_improvement",
]


class GaussianPosterior(GPyTorchPosterior, PredictivePosterior):
    """A GPyTorch multivariate normal posterior that answers the whole protocol."""

    def log_prob(self, Y: Tensor) -> Tensor:
        return self._marginals.log_prob(Y)

    def cdf(self, Y: Tensor) -> Tensor:
        return self._marginals.cdf(Y)

    def quantile(self, value: Tensor) -> Tensor:
        return self._marginals.icdf(leading(value, self.mean))

    def density(self, value: Tensor) -> Tensor:
        return self.log_prob(value).exp()

    def joint_log_prob(self, Y: Tensor) -> Tensor:
        # GPyTorch's multitask log_prob scrambles values of a distribution that is not interleaved.
        ordered = Y if not self._is_mt or self.distribution._interleaved else Y.mT
        return MultivariateNormal.log_prob(self.distribution, ordered.flatten(-2))

    def log_expected_improvement(self, best_f: Tensor | float, maximize: bool = True) -> Tensor:
        sign = 1.0 if maximize else -1.0
        best = torch.as_tensor(best_f, dtype=self.dtype, device=self.device)
        return gaussian_log_expected_improvement(sign * self.mean, self.variance, sign * best)

    def log_probability_of_improvement(
        self, best_f: Tensor | float, maximize: bool = True
    ) -> Tensor:
        sign = 1.0 if maximize else -1.0
        best = torch.as_tensor(best_f, dtype=self.dtype, device=self.device)
        return gaussian_log_probability_of_improvement(sign * self.mean, self.variance, sign * best)

    @property
    def _marginals(self) -> Normal:
        return Normal(self.mean, self.variance.sqrt(), validate_args=False)


def as_predictive(posterior: Posterior) -> PredictivePosterior:
    """A posterior that answers for its densities.

    Args:
        posterior: One of this package's, or BoTorch's Gaussian one.

    Raises:
        TypeError: any other kind, whose density is not known.
    """
    if isinstance(posterior, PredictivePosterior):
        return posterior
    if isinstance(posterior, GPyTorchPosterior):
        return GaussianPosterior(posterior.distribution)
    raise TypeError(
        f"A {type(posterior).__name__} has no exact marginal density. BoTorch's outcome "
        "transforms other than Standardize lose it: give the outcome transform to a model of "
        "this package."
    )


def gaussian_log_expected_improvement(mean: Tensor, variance: Tensor, best_f: Tensor) -> Tensor:
    """Log E[max(y - best_f, 0)] for y ~ N(mean, variance), stable far below `best_f`.

    Uses BoTorch's `_log_ei_helper`, Ament et al. 2023 (2310.20708), eq. 9.
    """
    from botorch.acquisition.analytic import _log_ei_helper

    std = _positive_std(variance)
    return _log_ei_helper((mean - best_f) / std) + std.log()


def gaussian_log_probability_of_improvement(
    mean: Tensor, variance: Tensor, best_f: Tensor
) -> Tensor:
    """Log P(y > best_f) for y ~ N(mean, variance), stable far below `best_f`."""
    return torch.special.log_ndtr((mean - best_f) / _positive_std(variance))


def _positive_std(variance: Tensor) -> Tensor:
    return variance.clamp_min(torch.finfo(variance.dtype).tiny ** 0.5).sqrt()
