"""What every posterior of this package answers, whichever engine made it.

A `PredictivePosterior` is a BoTorch `Posterior` that also knows the density of its own
marginals. Shapes: `n` points, `m` outputs, any batch dimensions before them; "marginal" means
per point and per output. Densities are in nats and in the units of the user's Y: transforms of
the outcome are undone with their Jacobian by `TransformedPosterior`.

Sampling goes through standard normal base samples (`rsample_from_base_samples`), so that
BoTorch's sample average approximation works: the same base samples give the same function of X.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from botorch.posteriors import Posterior
from botorch.sampling.get_sampler import GetSampler
from botorch.sampling.normal import SobolQMCNormalSampler
from torch import Tensor

__all__ = ["PredictivePosterior", "leading", "probabilities"]


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
        """Marginal log densities at `Y` `[..., n, m]`, in nats, `[..., n, m]`."""

    @abstractmethod
    def cdf(self, Y: Tensor) -> Tensor:
        """Marginal probabilities of a value at most `Y` `[..., n, m]`, `[..., n, m]`."""

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

    def __getattr__(self, name: str) -> Any:
        # `hasattr` of these is how BoTorch asks for a Gaussian.
        if name in ("distribution", "mvn"):
            raise AttributeError(
                f"{type(self).__name__} is not Gaussian and has no {name!r}. An acquisition "
                "function that needs a Gaussian takes GaussianApproximation(model)."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def joint_log_prob(self, Y: Tensor) -> Tensor:
        """Log density of all `n` points and `m` outputs together, `[...]`, in nats.

        Raises:
            NotImplementedError: this posterior has no joint density.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has marginal densities only; use log_prob(Y) for them."
        )

    def log_expected_improvement(self, best_f: Tensor | float, maximize: bool = True) -> Tensor:
        """Log of the marginal expected improvement over `best_f`, `[..., n, m]`.

        E[max(y - best_f, 0)], or E[max(best_f - y, 0)] when minimising, under the true marginal.

        Raises:
            NotImplementedError: no closed form; use a BoTorch Monte Carlo acquisition.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no closed-form expected improvement; use "
            "botorch.acquisition.qLogExpectedImprovement, which samples it."
        )

    def log_probability_of_improvement(
        self, best_f: Tensor | float, maximize: bool = True
    ) -> Tensor:
        """Log of the marginal probability to improve on `best_f`, `[..., n, m]`.

        P(y > best_f), or P(y < best_f) when minimising, under the true marginal, accurate however
        small it is.

        Raises:
            NotImplementedError: no closed form; use a BoTorch Monte Carlo acquisition.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no closed-form probability of improvement; use "
            "botorch.acquisition.qProbabilityOfImprovement, which samples it."
        )

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
    def batch_shape(self) -> torch.Size:
        """Batch shape of the posterior, without points and outputs."""
        return self._extended_shape()[:-2]

    def _extended_shape(self, sample_shape: torch.Size = torch.Size()) -> torch.Size:  # noqa: B008
        return torch.Size(sample_shape) + self.mean.shape

    @property
    def base_sample_shape(self) -> torch.Size:
        """Shape of the standard normals that one sample needs."""
        return self.mean.shape

    @property
    def batch_range(self) -> tuple[int, int]:
        """The dimensions of `base_sample_shape` over which base samples are shared."""
        return (0, -2)


@GetSampler.register(PredictivePosterior)
def _sampler(
    posterior: PredictivePosterior, sample_shape: torch.Size, *, seed: int | None = None
) -> SobolQMCNormalSampler:
    return SobolQMCNormalSampler(sample_shape=sample_shape, seed=seed)


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
