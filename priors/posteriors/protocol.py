"""The protocol of this package's posteriors, whichever engine made them.

A `PredictivePosterior` is a BoTorch `Posterior` that also knows the density of its own
marginals. Shapes: `n` points, `m` outputs, any batch dimensions before them, together the
posterior's `shape`; "marginal" means per point and per output. Values Y that a posterior is asked
about broadcast with its shape and may have further dimensions before it, which the answer has too.
Densities are in nats and in the units of the user's Y: transforms of
the outcome are undone with their Jacobian by `TransformedPosterior`.

Sampling goes through standard normal base samples (`rsample_from_base_samples`), so that
BoTorch's sample average approximation works: the same base samples give the same function of X.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from botorch.posteriors import Posterior
from botorch.sampling.base import MCSampler
from botorch.sampling.get_sampler import GetSampler
from botorch.sampling.normal import SobolQMCNormalSampler
from torch import Tensor

from priors.posteriors.copula import CopulaSampler
from priors.posteriors.crps import crps_by_quadrature, knot_probabilities
from priors.representation import as_predictions

__all__ = ["PredictivePosterior", "check_order", "leading", "probabilities"]

# More than BoTorch's acquisition functions draw of themselves, and fewer than it prunes a baseline
# by.
_MANY_SAMPLES = 1024


class PredictivePosterior(Posterior, ABC):
    """A predictive distribution with exact marginals.

    Subclasses give the abstract members below; `device`, `dtype` and the sampling shapes follow
    from `mean`. An infinite variance is `inf`; what is undefined raises.
    """

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """Marginal means, `[..., n, m]`."""

    @property
    @abstractmethod
    def variance(self) -> Tensor:
        """Marginal variances, `[..., n, m]`."""

    @abstractmethod
    def log_prob(self, Y: Tensor) -> Tensor:
        """Marginal log densities at `Y`, in nats, `[..., n, m]`.

        Raises:
            NotImplementedError: there is no density; see `has_density`.
        """

    @abstractmethod
    def cdf(self, Y: Tensor) -> Tensor:
        """Marginal probabilities of a value at most `Y`, `[..., n, m]`."""

    @abstractmethod
    def quantile(self, value: Tensor) -> Tensor:
        """Marginal quantiles.

        Args:
            value: Probabilities in (0, 1), any shape `[*p]`.

        Returns:
            `[*p, ..., n, m]`.
        """

    @abstractmethod
    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        """Samples as a differentiable function of standard normals.

        Args:
            sample_shape: Shape of the sample dimensions.
            base_samples: Standard normals `[*sample_shape, *base_sample_shape]`; the batch
                dimensions may be 1 and broadcast.

        Returns:
            `[*sample_shape, ..., n, m]`, joint over points where the engine has a joint.
        """

    def __repr__(self) -> str:
        where = as_predictions(self.shape, self.dtype, self.device)
        return f"{type(self).__name__}({', '.join([*self._kind, where])})"

    @property
    def _kind(self) -> Sequence[str]:
        """What `repr` says of a posterior before its shape."""
        return ()

    def __getattr__(self, name: str) -> Any:
        # `hasattr` of these is how BoTorch asks for a Gaussian.
        if name in ("distribution", "mvn", "covariance_matrix"):
            raise AttributeError(
                f"{type(self).__name__} is not Gaussian and has no {name!r}. For an acquisition "
                "function that needs a Gaussian, pass GaussianApproximation(model)."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def atoms(self) -> tuple[Tensor, Tensor] | None:
        """Values `[S, ..., n, m]` and log probabilities `[S]` of a finitely supported distribution.

        None for any other distribution.
        """
        return None

    @property
    def has_density(self) -> bool:
        """Whether `log_prob` exists, that is, no single value has positive probability."""
        return self.atoms is None

    def joint_log_prob(self, Y: Tensor) -> Tensor:
        """Log density of all `n` points and `m` outputs together, `[...]`, in nats.

        Raises:
            NotImplementedError: this posterior has no joint density.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has marginal densities only; use log_prob(Y) for them."
        )

    def log_excess(self, threshold: Tensor | float, order: int, above: bool = True) -> Tensor:
        """Log of a marginal partial moment, accurate however small it is.

        log E[max(y - t, 0)^k], or log E[max(t - y, 0)^k] below the threshold t, with 0^0 = 0: for
        k = 0 the log probability of a value beyond t, for k = 1 the log expected improvement on
        it, in log units of y.

        Args:
            threshold: t, broadcasting with `[..., n, m]`.
            order: k, 0 or 1.
            above: Whether values above the threshold count, rather than those below.

        Returns:
            `[..., n, m]`.

        Raises:
            NotImplementedError: no closed form; use a BoTorch Monte Carlo acquisition.
            ValueError: another order.
        """
        check_order(order)
        what, sampled = (
            ("probability", "qProbabilityOfImprovement"),
            ("expected improvement", "qLogExpectedImprovement"),
        )[order]
        raise NotImplementedError(
            f"{type(self).__name__} has no closed-form {what}; use "
            f"botorch.acquisition.{sampled}, which samples it."
        )

    def crps(self, Y: Tensor) -> Tensor:
        """Marginal continuous ranked probability scores, >= 0, smaller is better.

        Closed for Gaussians, Student's t, mixtures of Gaussians, draws and counts, seen through
        affine maps too. Otherwise without gradients and by quadrature of `cdf` between quantiles,
        those beyond 1e-9 (1e-6 in float32) left out: to about 1e-4 of the standard deviation, and
        2e-2 of it where narrow modes are far apart.

        Args:
            Y: Targets, broadcasting with `[..., n, m]`.

        Returns:
            `[..., n, m]`, units of Y.

        Source: Gneiting & Raftery 2007, eq. 20.
        """
        Y = Y.expand(torch.broadcast_shapes(Y.shape, self.shape))
        with torch.no_grad():
            levels = knot_probabilities(self.dtype, self.device)
            return crps_by_quadrature(self.cdf, self._knots(levels), Y)

    def _knots(self, levels: Tensor) -> Tensor:
        """Increasing values `[k, ..., n, m]` that cover the distribution, where it has its mass.

        Those with probabilities `levels` below them, or of components of a mixture.
        """
        return self.quantile(levels)

    def independent(self) -> PredictivePosterior | None:
        """One of the same marginals whose points do not depend on each other.

        None where joint samples cost no more than its own. Where they do, BoTorch prunes the
        baseline of a noisy acquisition function by samples of a Gaussian copula
        (`copula.CopulaSampler`), which its `get_sampler` gives for more than 1,024 samples of
        several points. Samplers of one's own and `rsample` always draw from the joint itself.
        """
        return None

    def rsample(self, sample_shape: torch.Size | None = None) -> Tensor:
        """Draw samples with gradients, `[*sample_shape, ..., n, m]`; one, `[1, ...]`, without."""
        shape = torch.Size([1]) if sample_shape is None else torch.Size(sample_shape)
        base = torch.randn(shape + self.base_sample_shape, dtype=self.dtype, device=self.device)
        return self.rsample_from_base_samples(shape, base)

    def density(self, value: Tensor) -> Tensor:
        """Marginal densities at `value`, `[..., n, m]`."""
        return self.log_prob(value).exp()

    @property
    def device(self) -> torch.device:
        """Device of the distribution."""
        return self.mean.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the distribution."""
        return self.mean.dtype

    @property
    def shape(self) -> torch.Size:
        """Shape of the posterior's moments and of one sample, `[..., n, m]`."""
        return self.mean.shape

    @property
    def batch_shape(self) -> torch.Size:
        """Batch shape of the posterior, without points and outputs."""
        return self.shape[:-2]

    def _extended_shape(self, sample_shape: torch.Size = torch.Size()) -> torch.Size:  # noqa: B008
        return torch.Size(sample_shape) + self.shape

    @property
    def base_sample_shape(self) -> torch.Size:
        """Shape of the standard normals that one sample needs."""
        return self.shape

    @property
    def batch_range(self) -> tuple[int, int]:
        """The dimensions of `base_sample_shape` over which base samples are shared."""
        return (0, -2)


@GetSampler.register(PredictivePosterior)
def _sampler(
    posterior: PredictivePosterior, sample_shape: torch.Size, *, seed: int | None = None
) -> MCSampler:
    many = sample_shape.numel() > _MANY_SAMPLES and posterior.shape[-2] > 1
    if many and posterior.independent() is not None:
        return CopulaSampler(sample_shape, seed=seed)
    return SobolQMCNormalSampler(sample_shape=sample_shape, seed=seed)


def check_order(order: int) -> None:
    """Refuse partial moments of another order than 0 and 1."""
    if order not in (0, 1):
        raise ValueError(
            f"log_excess takes order 0 (probability) or 1 (expected improvement), got {order!r}."
        )


def probabilities(value: Tensor, like: Tensor) -> Tensor:
    """`value` in the dtype and on the device of `like`.

    Raises:
        ValueError: one of them is outside [0, 1].
    """
    value = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    fine = (value >= 0) & (value <= 1)
    if not bool(fine.all()):
        raise ValueError(f"quantile takes probabilities in [0, 1], got {value[~fine].tolist()}.")
    return value


def leading(value: Tensor, like: Tensor) -> Tensor:
    """Probabilities `[*p]` as `[*p, 1, ..., 1]`, to broadcast over the shape of `like`.

    Raises:
        ValueError: one of them is outside [0, 1].
    """
    value = probabilities(value, like)
    return value.reshape(value.shape + (1,) * like.dim())
