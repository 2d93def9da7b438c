"""The multivariate Student t distribution as a posterior, with exact marginals and tails.

y = mean + scale^(1/2) e sqrt(df / c), e standard normal, c chi-square with df degrees of freedom
shared by all points and outputs: that shared c is what makes the points dependent even where the
scale matrix is diagonal. Torch has no t distribution function; SciPy's is wrapped with its
analytic derivative, so that acquisition functions can be optimised through it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from gpytorch.distributions import MultivariateNormal
from scipy.special import gammainccinv, gammaincinv, ndtr
from torch import Tensor
from torch.distributions.transforms import AffineTransform

from priors.posteriors.crps import crps_of_standard_t
from priors.posteriors.gaussian import GaussianPosterior
from priors.posteriors.protocol import PredictivePosterior, check_order, leading
from priors.posteriors.student_t import (
    log_expected_excess,
    t_cdf,
    t_log_cdf,
    t_log_density,
    t_quantile,
)

__all__ = ["StudentTPosterior"]


class StudentTPosterior(PredictivePosterior):
    """A multivariate t posterior, jointly over points and outputs.

    Args:
        distribution: Gaussian with the t's location as mean and its scale matrix as covariance,
            `[..., n]` or multitask `[..., n, m]`.
        df: Degrees of freedom, > 0.
        transform: From the values of the distribution to y, as in `priors.GaussianPosterior`.

    Base samples are `[..., n * m + 1]`: the last one drives the shared chi-square.

    Raises:
        ValueError: df is not positive and finite.
    """

    def __init__(
        self, distribution: MultivariateNormal, df: float, transform: AffineTransform | None = None
    ) -> None:
        if not (math.isfinite(df) and df > 0):
            raise ValueError(f"StudentTPosterior needs 0 < df < inf, got {df}.")
        self.df = float(df)
        self._gaussian = GaussianPosterior(distribution, transform)

    @property
    def _kind(self) -> Sequence[str]:
        return [f"df {self.df:.4g}"]

    @property
    def location(self) -> Tensor:
        """Centres of symmetry, which are the medians, `[..., n, m]`."""
        return self._gaussian.mean

    @property
    def scale(self) -> Tensor:
        """Marginal scales (not standard deviations), `[..., n, m]`."""
        return self._gaussian.stddev

    @property
    def mean(self) -> Tensor:
        """Marginal means, `[..., n, m]`.

        Raises:
            ValueError: df <= 1, where no mean exists.
        """
        self._require_mean("mean")
        return self.location

    @property
    def variance(self) -> Tensor:
        """Marginal variances, `[..., n, m]`, infinite for df <= 2.

        Raises:
            ValueError: df <= 1, where no variance is defined.
        """
        self._require_mean("variance")
        factor = self.df / (self.df - 2) if self.df > 2 else math.inf
        return self._gaussian.variance * factor

    def _require_mean(self, what: str) -> None:
        if self.df <= 1:
            raise ValueError(
                f"A Student t with {self.df} degrees of freedom has no {what}; use its location, "
                "scale or quantiles."
            )

    def log_prob(self, Y: Tensor) -> Tensor:
        return t_log_density(self._gaussian.standardised(Y), self.df) - self.scale.log()

    def cdf(self, Y: Tensor) -> Tensor:
        return t_cdf(self._gaussian.standardised(Y), self.df)

    def crps(self, Y: Tensor) -> Tensor:
        if self.df <= 1:
            return super().crps(Y)
        return self.scale * crps_of_standard_t(self._gaussian.standardised(Y), self.df)

    def quantile(self, value: Tensor) -> Tensor:
        return self.location + self.scale * t_quantile(leading(value, self.location), self.df)

    def joint_log_prob(self, Y: Tensor) -> Tensor:
        quadratic, log_det = self._gaussian.quadratic_and_log_det(Y)
        size = self.shape[-2:].numel()
        return (
            math.lgamma((self.df + size) / 2)
            - math.lgamma(self.df / 2)
            - 0.5 * size * math.log(math.pi * self.df)
            - 0.5 * log_det
            - 0.5 * (self.df + size) * torch.log1p(quadratic / self.df)
        )

    def log_excess(self, threshold: Tensor | float, order: int, above: bool = True) -> Tensor:
        """See `PredictivePosterior.log_excess`; exact.

        Args:
            threshold: Broadcasting with `[..., n, m]`.
            order: 0 or 1.
            above: Whether values above the threshold count, rather than those below.

        Raises:
            ValueError: another order; or order 1 with df <= 1, where the expectation is infinite.
        """
        check_order(order)
        u = self._gaussian.standardised(_like(self.location, threshold))
        u = -u if above else u
        if order == 0:
            return t_log_cdf(u, self.df)
        self._require_mean("expected improvement")
        return log_expected_excess(u, self.df) + self.scale.log()

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        shape = torch.Size(sample_shape)
        if base_samples.shape[: len(shape)] != shape:
            raise ValueError(
                f"base_samples of shape {tuple(base_samples.shape)} do not start with the "
                f"sample_shape {tuple(shape)}."
            )
        normal, chi = base_samples[..., :-1], base_samples[..., -1]
        normal = normal.expand(shape + self.base_sample_shape[:-1] + normal.shape[-1:])
        normal = normal.reshape(shape + self._gaussian.base_sample_shape)
        centred = self._gaussian.rsample_from_base_samples(shape, normal) - self.location
        factor = (self.df / _chi_square(chi, self.df)).sqrt()
        return self.location + factor[..., None, None] * centred

    @property
    def base_sample_shape(self) -> torch.Size:
        *batch, n, m = self.location.shape
        return torch.Size([*batch, n * m + 1])

    @property
    def batch_range(self) -> tuple[int, int]:
        return (0, -1)

    @property
    def device(self) -> torch.device:
        return self.location.device

    @property
    def dtype(self) -> torch.dtype:
        return self.location.dtype

    @property
    def shape(self) -> torch.Size:
        return self.location.shape


def _chi_square(normal: Tensor, df: float) -> Tensor:
    """Chi-square variates as an increasing function of standard normals."""
    x = _numpy(normal)
    lower = gammaincinv(df / 2, ndtr(x.clip(max=0)))
    upper = gammainccinv(df / 2, ndtr(-x.clip(min=0)))
    return torch.where(normal > 0, _like(normal, 2 * upper), _like(normal, 2 * lower))


def _numpy(value: Tensor) -> Any:
    return value.detach().double().cpu().numpy()


def _like(tensor: Tensor, values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=tensor.dtype, device=tensor.device)
