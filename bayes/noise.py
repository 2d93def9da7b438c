"""The Gaussian noise that models learn unless they are told."""

from __future__ import annotations

import torch
from gpytorch.constraints import GreaterThan
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.priors import LogNormalPrior
from torch import Tensor

__all__ = ["learnt_noise"]

# The least noise variance, on the model's scale. Deterministic outcomes have none, and at BoTorch's
# floor of 1e-4 their intervals are several times too wide; in single precision a kernel matrix of
# some hundred rows is known no better than that.
_FLOOR = {torch.float64: 1e-6, torch.float32: 1e-4}
# Where it starts. From BoTorch's start, 0.007, the optimiser often ends at a function through all
# the outcomes, where there is a better optimum with noise; from 0.5 and above it may miss the
# optimum of outcomes with hardly any.
_START = 0.1


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
