"""The Gaussian noise that models learn unless they are told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from gpytorch.constraints import GreaterThan
from gpytorch.likelihoods import (
    GaussianLikelihood,
    LaplaceLikelihood,
    Likelihood,
    StudentTLikelihood,
)
from gpytorch.likelihoods.noise_models import HomoskedasticNoise
from gpytorch.priors import LogNormalPrior
from torch import Tensor

from bayes.log_priors import log_priors

__all__ = ["LessNoise", "NoiseLevel", "learnt_noise"]

# The least noise variance, on the model's scale. Deterministic outcomes have none, and at BoTorch's
# floor of 1e-4 their intervals are several times too wide; in single precision a kernel matrix of
# some hundred rows is known no better than that.
_FLOOR = {torch.float64: 1e-6, torch.float32: 1e-4}
# Where it starts. From BoTorch's start, 0.007, the optimiser often ends at a function through all
# the outcomes, where there is a better optimum with noise; from 0.5 and above it may miss the
# optimum of outcomes with hardly any.
_START = 0.1
# Where the other start has it, see `LessNoise`, and what may be fine structure, not noise.
_LESS, _LITTLE = 1e-4, 1e-2


def learnt_noise(batch_shape: torch.Size, like: Tensor) -> GaussianLikelihood:
    """A noise variance to learn, with BoTorch's prior and a lower floor than BoTorch's.

    The prior LogNormal(-4, 1) of variances (Hvarfner, Hellsten & Nardi 2024, 2402.02229) holds
    fits of few rows back from a function through all of their outcomes, which a wide one does not.

    Args:
        batch_shape: A variance for each.
        like: Whose dtype and device.
    """
    prior = LogNormalPrior(-4.0, 1.0)
    floor = GreaterThan(_FLOOR.get(like.dtype, 1e-4), transform=None, initial_value=prior.mode)
    likelihood = GaussianLikelihood(prior, floor, batch_shape).to(like)
    likelihood.noise = _START
    return likelihood


@dataclass(frozen=True)
class NoiseLevel:
    """The noise variance that a fit learns.

    Attributes:
        read: Gives variances on the model's scale.
        assign: Sets them.
        log_prior: Gives the log density of their priors, nats.
        least: What they are bounded by.
    """

    read: Callable[[], Tensor]
    assign: Callable[[Tensor], object]
    log_prior: Callable[[], Tensor | float]
    least: float = 0.0

    @staticmethod
    def of(likelihood: Likelihood) -> NoiseLevel | None:
        """That of a likelihood, None where it learns none that is known."""
        noise = getattr(likelihood, "noise_covar", likelihood)
        if isinstance(noise, HomoskedasticNoise | StudentTLikelihood | LaplaceLikelihood):
            if not noise.raw_noise.requires_grad:
                return None
            return NoiseLevel(
                lambda: noise.noise,
                lambda values: noise.initialize(noise=values),
                lambda: log_priors(noise),
                float(noise.raw_noise_constraint.lower_bound),
            )
        return getattr(noise, "level", None)


class LessNoise:
    """Another start of a fit, from hardly any noise.

    The marginal likelihood often has two optima. From a start with noise optimisers may end at the
    one that takes for noise what oscillates or is fine in the function; from one without, at a
    function through all outcomes where there is noise. The prior of the noise variance, which has
    a few parts in a thousand in mind, is no judge between the two: the optimum of the other start
    must be better with it and without it.

    Args:
        level: Of the model, at the first start.
        num_rows: By which objectives are divided.
        approach: An objective, nats per row, that is to be ahead on the way before the model's own
            is looked at. Where a scale is unknown that explains any misfit, the model's own drives
            nothing away from a smooth function; that of a known scale does.
    """

    def __init__(
        self,
        level: NoiseLevel,
        num_rows: int,
        approach: Callable[[], Tensor] | None = None,
    ) -> None:
        self.approach = approach
        self._level, self._num_rows = level, num_rows
        self._first = level.read().detach().clone()

    @classmethod
    def beside(
        cls,
        level: NoiseLevel | None,
        num_rows: int,
        approach: Callable[[], Tensor] | None = None,
    ) -> LessNoise | None:
        """That of a model, None where it learns no noise that is known."""
        return None if level is None else cls(level, num_rows, approach)

    @property
    def is_another(self) -> bool:
        """Whether the first start has much more noise."""
        return bool((self._first > 10 * _LESS).any())

    def is_little(self) -> bool:
        """Whether the present noise may be fine structure, which takes long to be found."""
        return bool((self._level.read() < _LITTLE).any())

    def begin(self) -> None:
        """Set the noise of this start, all else being as at the first."""
        less = max(2 * self._level.least, _LESS)
        self._level.assign(self._first.clamp_max(less))

    def log_prior(self) -> float:
        """Log density of the present noise under its prior, nats per row."""
        with torch.no_grad():
            return float(self._level.log_prior()) / self._num_rows
