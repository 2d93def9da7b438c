"""The Gaussian noise that models learn unless they are told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from gpytorch.constraints import GreaterThan
from gpytorch.likelihoods import GaussianLikelihood, Likelihood
from gpytorch.priors import LogNormalPrior
from torch import Tensor

__all__ = ["NoiseLevel", "learnt_noise", "less_noise"]

# The least noise variance, on the model's scale. Deterministic outcomes have none, and at BoTorch's
# floor of 1e-4 their intervals are several times too wide; in single precision a kernel matrix of
# some hundred rows is known no better than that.
_FLOOR = {torch.float64: 1e-6, torch.float32: 1e-4}
# Where it starts. From BoTorch's start, 0.007, the optimiser often ends at a function through all
# the outcomes, where there is a better optimum with noise; from 0.5 and above it may miss the
# optimum of outcomes with hardly any.
_START = 0.1
# A fit that began above the first and ended below it is begun once more, with the second.
_LITTLE, _LESS = 1e-2, 1e-4


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
    """The noise variance that a fit learns, by how to read and to set it.

    Attributes:
        read: Gives variances on the model's scale.
        assign: Sets them.
        least: What they are bounded by.
    """

    read: Callable[[], Tensor]
    assign: Callable[[Tensor], object]
    least: float = 0.0

    @staticmethod
    def of(likelihood: Likelihood) -> NoiseLevel | None:
        """That of a likelihood, None where it has none that is known."""
        if isinstance(likelihood, GaussianLikelihood):
            return NoiseLevel(
                lambda: likelihood.noise,
                lambda noise: likelihood.initialize(noise=noise),
                float(likelihood.noise_covar.raw_noise_constraint.lower_bound),
            )
        return getattr(likelihood, "noise_level", None)


def less_noise(level: NoiseLevel | None) -> Callable[[], Callable[[], object] | None]:
    """Another start of a fit that ends with little noise, from still less of it.

    Where outcomes have hardly any noise, the marginal likelihood often has two optima; from a start
    with noise optimisers end at the one that takes what is fine in the function for noise, though
    the other is better. Where there is noise a second start is not worth its time.

    Args:
        level: Of the model, at the first start.

    Returns:
        To be called where the first start ended: gives what sets the noise of the other, or None
        if there is no need of one.
    """
    if level is None:
        return lambda: None
    first = level.read().detach().clone()
    less = max(2 * level.least, _LESS)

    def other() -> Callable[[], object] | None:
        fallen = (first > _LITTLE) & (level.read() < _LITTLE)
        if not fallen.any():
            return None
        return lambda: level.assign(first.masked_fill(fallen, less))

    return other
