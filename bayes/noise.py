"""The Gaussian noise that models learn unless they are told."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from gpytorch.constraints import GreaterThan
from gpytorch.likelihoods import GaussianLikelihood, Likelihood
from gpytorch.priors import LogNormalPrior
from torch import Tensor

__all__ = ["learnt_noise", "less_noise"]

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


def less_noise(likelihood: Likelihood) -> Callable[[], Callable[[], None] | None]:
    """Another start of a fit that ends with little noise, from still less of it.

    Where outcomes have hardly any noise, the marginal likelihood often has two optima; from a start
    with noise optimisers end at the one that takes what is fine in the function for noise, though
    the other is better. Where there is noise a second start is not worth its time.

    Args:
        likelihood: Of the model, with the noise variances of the first start.

    Returns:
        To be called where the first start ended: gives what sets the noise variances of the other,
        or None if there is no need of one.
    """
    if not isinstance(likelihood, GaussianLikelihood):
        return lambda: None
    first = likelihood.noise.detach().clone()
    least = likelihood.noise_covar.raw_noise_constraint.lower_bound

    def other() -> Callable[[], None] | None:
        fallen = (first > _LITTLE) & (likelihood.noise < _LITTLE)
        if not fallen.any():
            return None
        noise = torch.where(fallen, (2 * least).clamp_min(_LESS).to(first), first)
        return partial(likelihood.initialize, noise=noise)

    return other
