"""Gaussian posteriors: BoTorch's with the whole protocol, improvements in closed form."""

from __future__ import annotations

import math

import gpytorch
import linear_operator
import torch
from botorch.posteriors import GPyTorchPosterior, Posterior
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from linear_operator import to_linear_operator
from linear_operator.operators import (
    BlockDiagLinearOperator,
    ConstantMulLinearOperator,
    DiagLinearOperator,
    LinearOperator,
    SumBatchLinearOperator,
)
from torch import Tensor
from torch.distributions.transforms import AffineTransform

from priors.posteriors.categorical import CategoricalPosterior
from priors.posteriors.compat import is_stored_by_output, log_ndtr_integral
from priors.posteriors.crps import crps_of_standard_normal
from priors.posteriors.protocol import PredictivePosterior, check_order, leading

__all__ = [
    "GaussianPosterior",
    "as_predictive",
    "gaussian_log_excess",
    "scaled",
]


class GaussianPosterior(GPyTorchPosterior, PredictivePosterior):
    """A GPyTorch multivariate normal posterior that answers the whole protocol.

    GPyTorch's smallest variance (1e-10 in float64, 1e-6 in float32) and the jitter of its
    factorisations are absolute. A transform keeps them in the units of z, so that whatever is
    asked is equivariant in the unit of y; only what BoTorch reads off `distribution` is not.

    Args:
        distribution: Distribution of z, `[..., n]` or multitask `[..., n, m]`.
        transform: The map from z to y, of parameters that broadcast with `[..., 1, m]`, or with
            `[..., n, m]` where neither outputs nor points are to be averaged; if None, y is z.

    Attributes:
        distribution: Distribution of y.
        base: Distribution of z.
    """

    def __init__(
        self, distribution: MultivariateNormal, transform: AffineTransform | None = None
    ) -> None:
        super().__init__(distribution if transform is None else _image(distribution, transform))
        self.base = distribution
        self.transform = AffineTransform(0.0, 1.0) if transform is None else transform

    @property
    def variance(self) -> Tensor:
        return self._of_outputs(self.base.variance) * self._unit.square()

    @property
    def stddev(self) -> Tensor:
        """Marginal standard deviations, `[..., n, m]`."""
        return self._of_outputs(self.base.variance).sqrt() * self._unit

    def standardised(self, Y: Tensor) -> Tensor:
        """How many standard deviations `Y` is above the means, `[..., n, m]`."""
        above = self._centred(Y) / self._of_outputs(self.base.variance).sqrt()
        return above * self.transform.sign

    def log_prob(self, Y: Tensor) -> Tensor:
        square = self.standardised(Y).square()
        return -0.5 * square - self.stddev.log() - 0.5 * math.log(2 * math.pi)

    def cdf(self, Y: Tensor) -> Tensor:
        return torch.special.ndtr(self.standardised(Y))

    def crps(self, Y: Tensor) -> Tensor:
        return self.stddev * crps_of_standard_normal(self.standardised(Y))

    def quantile(self, value: Tensor) -> Tensor:
        return self.mean + self.stddev * torch.special.ndtri(leading(value, self.mean))

    def density(self, value: Tensor) -> Tensor:
        return self.log_prob(value).exp()

    def joint_log_prob(self, Y: Tensor) -> Tensor:
        quadratic, log_det = self.quadratic_and_log_det(Y)
        return -0.5 * (quadratic + log_det + self.shape[-2:].numel() * math.log(2 * math.pi))

    def quadratic_and_log_det(self, Y: Tensor) -> tuple[Tensor, Tensor]:
        """The two parts of the joint density.

        Args:
            Y: `[*s, ..., n, m]`.

        Returns:
            (Y - mean)' C^-1 (Y - mean), `[*s, ...]`, and log |C|, `[...]`, C the covariance of all
            points and outputs with variances not below GPyTorch's smallest.
        """
        covariance = self.base.lazy_covariance_matrix
        missing = gpytorch.settings.min_variance.value(self.dtype) - covariance.diagonal()
        if bool((missing > 0).any()):  # as in the marginals
            covariance = _with_added_diagonal(covariance, missing.clamp_min(0))
        covariance = covariance.expand(*self.batch_shape, *covariance.shape[-2:])
        centred = self._centred(Y)
        ordered = (centred.mT if is_stored_by_output(self.base) else centred).flatten(-2)
        extra = ordered.shape[: ordered.dim() - 1 - len(self.batch_shape)]
        columns = ordered.reshape(-1, *ordered.shape[len(extra) :]).movedim(0, -1)
        with _exact():
            quadratic, log_det = covariance.inv_quad_logdet(
                columns, logdet=True, reduce_inv_quad=False
            )
        units = self._unit.log().expand(self.shape).sum((-2, -1))
        return quadratic.movedim(-1, 0).reshape(extra + self.batch_shape), log_det + 2 * units

    def log_excess(self, threshold: Tensor | float, order: int, above: bool = True) -> Tensor:
        threshold = torch.as_tensor(threshold, dtype=self.dtype, device=self.device)
        u = self.standardised(threshold)
        return gaussian_log_excess(-u if above else u, self.stddev, order)

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        with _exact():
            z = GPyTorchPosterior(self.base).rsample_from_base_samples(sample_shape, base_samples)
        return self._in_units_of_y(z)

    def rsample(self, sample_shape: torch.Size | None = None) -> Tensor:
        with _exact():
            z = GPyTorchPosterior(self.base).rsample(sample_shape)
        return self._in_units_of_y(z)

    def scalarised(self, weights: Tensor, offset: float | Tensor = 0.0) -> GaussianPosterior:
        """Posterior `[..., n, 1]` of offset + the weighted sum of the outputs.

        Args:
            weights: One for each output, `[m]`.
            offset: Added to the sum.

        Raises:
            ValueError: another number of weights.
        """
        if weights.shape != self.shape[-1:]:
            raise ValueError(
                f"a posterior of {self.shape[-1]} outputs needs one weight for each, got "
                f"weights of shape {tuple(weights.shape)}."
            )
        loc, scale = (
            self._like_mean(value) for value in (self.transform.loc, self.transform.scale)
        )
        weights = weights.to(loc)
        loc, scale = offset + (weights * loc).sum(-1, keepdim=True), weights * scale
        mean = self._of_outputs(self.base.mean)
        covariance = self.base.lazy_covariance_matrix
        if len(weights) > 1:
            unit = scale.abs().amax(-1, keepdim=True)
            unit = torch.where(unit > 0, unit, 1)
            relative, scale = torch.atleast_2d(scale / unit), unit
            mean = (relative * mean).sum(-1, keepdim=True)
            if isinstance(covariance, BlockDiagLinearOperator):
                square = relative.square()[..., 0, :]
                covariance = SumBatchLinearOperator(_times(covariance.base_linear_op, square))
            else:
                covariance = self._summed(covariance, relative[..., 0, :])
        transform = AffineTransform(loc, scale)
        return GaussianPosterior(MultivariateNormal(mean.squeeze(-1), covariance), transform)

    @property
    def shape(self) -> torch.Size:
        return self._extended_shape()

    def _summed(self, covariance: LinearOperator, weights: Tensor) -> LinearOperator:
        """Covariance `[..., n, n]` of sums of dependent outputs, weights `[..., m]`."""
        n, m = self.shape[-2:]
        weights = weights.unsqueeze(-2)  # [..., 1, m]
        eye = torch.eye(n, dtype=weights.dtype, device=weights.device)
        if is_stored_by_output(self.base):
            rows = (weights.unsqueeze(-1) * eye.unsqueeze(-2)).flatten(-2)  # [..., n, m * n]
        else:
            rows = (eye.unsqueeze(-1) * weights.unsqueeze(-2)).flatten(-2)  # [..., n, n * m]
        return to_linear_operator(rows @ covariance.to_dense() @ rows.mT)

    @property
    def _unit(self) -> Tensor:
        """How many units of y one unit of z is, without its sign."""
        return self._like_mean(self.transform.scale).abs()

    def _like_mean(self, value: Tensor | float) -> Tensor:
        return torch.as_tensor(value, dtype=self.base.loc.dtype, device=self.base.loc.device)

    def _of_outputs(self, value: Tensor) -> Tensor:
        """What GPyTorch has as `[..., n]` for one output."""
        return value if self._is_mt else value.unsqueeze(-1)

    def _centred(self, Y: Tensor) -> Tensor:
        return self.transform.inv(Y) - self._of_outputs(self.base.mean)

    def _in_units_of_y(self, z: Tensor) -> Tensor:
        # A map of negative sign leaves the signs of deviations: they are those of `distribution`.
        mean = self._of_outputs(self.base.mean)
        return self.transform(mean + self.transform.sign * (z - mean))


def _image(distribution: MultivariateNormal, transform: AffineTransform) -> MultivariateNormal:
    """The distribution of y, the covariance as lazy as that of z."""
    covariance = distribution.lazy_covariance_matrix
    like = distribution.loc
    scale = torch.as_tensor(transform.scale, dtype=like.dtype, device=like.device)
    scale = torch.atleast_2d(scale)
    by_point = scale.shape[-2] > 1
    if not isinstance(distribution, MultitaskMultivariateNormal):
        mean = transform(distribution.mean.unsqueeze(-1)).squeeze(-1)
        if by_point:
            return MultivariateNormal(mean, _in_units(covariance, scale[..., 0]))
        return MultivariateNormal(mean, _times(covariance, scale.square()[..., 0, 0]))
    mean = transform(distribution.mean)
    by_output = is_stored_by_output(distribution)
    if isinstance(covariance, BlockDiagLinearOperator):
        each = covariance.base_linear_op
        if by_point:
            each = _in_units(each, scale.expand(mean.shape).mT)
        else:
            each = _times(each, scale.square()[..., 0, :])
        covariance = BlockDiagLinearOperator(each)
    else:
        scale = scale.expand(mean.shape)
        covariance = _in_units(covariance, (scale.mT if by_output else scale).flatten(-2))
    return MultitaskMultivariateNormal(mean, covariance, interleaved=not by_output)


def _in_units(covariance: LinearOperator, units: Tensor) -> LinearOperator:
    """A covariance `[..., k, k]` of what is multiplied by units `[..., k]`, as lazy."""
    diagonal = DiagLinearOperator(units)
    return diagonal @ covariance @ diagonal


def scaled(covariance: LinearOperator, factor: Tensor) -> LinearOperator:
    """A multiple of a covariance, as lazy; its root is that of the covariance, scaled.

    Args:
        covariance: `[..., k, k]`.
        factor: Positive, `[...]`.
    """
    if isinstance(covariance, BlockDiagLinearOperator):
        return BlockDiagLinearOperator(_times(covariance.base_linear_op, factor.unsqueeze(-1)))
    return _times(covariance, factor)


def _times(covariance: LinearOperator, factor: Tensor) -> LinearOperator:
    if factor.dim() > len(covariance.batch_shape):
        covariance = covariance.expand(*factor.shape, *covariance.shape[-2:])
    return ConstantMulLinearOperator(covariance, factor)


def _with_added_diagonal(covariance: LinearOperator, diagonal: Tensor) -> LinearOperator:
    """The sum, by blocks where the covariance is."""
    if isinstance(covariance, BlockDiagLinearOperator):
        blocks = covariance.base_linear_op
        diagonal = diagonal.reshape(blocks.shape[:-1])
        return BlockDiagLinearOperator(blocks + DiagLinearOperator(diagonal))
    return covariance + DiagLinearOperator(diagonal)


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
    if isinstance(posterior, CategoricalPosterior):
        raise TypeError(
            "A CategoricalPosterior is of classes, which have no intervals; take its mean, the "
            "class probabilities, its log_prob, or bayes.calibration for their reliability."
        )
    raise TypeError(
        f"A {type(posterior).__name__} has no exact marginal density. BoTorch's outcome "
        "transforms other than Standardize lose it: give the outcome transform to a model of "
        "this package."
    )


def gaussian_log_excess(u: Tensor, std: Tensor, order: int) -> Tensor:
    """`PredictivePosterior.log_excess` of a Gaussian, stable far from the threshold.

    Expected improvement by BoTorch's helper, Ament et al. 2023 (2310.20708), eq. 9.

    Args:
        u: By how many standard deviations the mean is beyond the threshold.
        std: Standard deviations.
        order: 0 or 1.
    """
    check_order(order)
    return log_ndtr_integral(u) + std.log() if order else torch.special.log_ndtr(u)


def _exact() -> linear_operator.settings.max_cholesky_size:
    """Cholesky factors whatever the size and the global settings, no Lanczos approximation."""
    return linear_operator.settings.max_cholesky_size(2**31)
