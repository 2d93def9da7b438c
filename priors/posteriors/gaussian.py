"""Gaussian posteriors: BoTorch's with the whole protocol, improvements in closed form."""

from __future__ import annotations

import torch
from botorch.posteriors import GPyTorchPosterior, Posterior
from gpytorch.distributions import MultivariateNormal
from torch import Tensor
from torch.distributions import Normal

from priors.posteriors.compat import is_stored_by_output, log_ndtr_integral
from priors.posteriors.protocol import PredictivePosterior, check_order, leading

__all__ = [
    "GaussianPosterior",
    "as_predictive",
    "gaussian_log_excess",
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
        ordered = Y.mT if is_stored_by_output(self.distribution) else Y
        return MultivariateNormal.log_prob(self.distribution, ordered.flatten(-2))

    def log_excess(self, threshold: Tensor | float, order: int, above: bool = True) -> Tensor:
        threshold = torch.as_tensor(threshold, dtype=self.dtype, device=self.device)
        return gaussian_log_excess(self.mean, self.variance, threshold, order, above)

    @property
    def shape(self) -> torch.Size:
        return self._extended_shape()

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


def gaussian_log_excess(
    mean: Tensor, variance: Tensor, threshold: Tensor, order: int, above: bool
) -> Tensor:
    """`PredictivePosterior.log_excess` of y ~ N(mean, variance), stable far from the threshold.

    Expected improvement by BoTorch's helper, Ament et al. 2023 (2310.20708), eq. 9.
    """
    check_order(order)
    std = variance.clamp_min(torch.finfo(variance.dtype).tiny ** 0.5).sqrt()
    u = (mean - threshold if above else threshold - mean) / std
    return log_ndtr_integral(u) + std.log() if order else torch.special.log_ndtr(u)
