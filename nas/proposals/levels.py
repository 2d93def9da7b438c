"""At which fidelity a chosen candidate is trained: where a unit of cost tells most about its full
value.

Kandasamy et al. 2017 (1703.06240, section 3) choose the candidate as if every training were full,
and then the fidelity. Here the second step is by the share of the variance of the full value that a
training is expected to remove, for its cost: r^2, r the correlation of the two in the posterior. A
level that tells nothing, or has told it, is passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from botorch.models.model import Model
from torch import Tensor

from nas.proposals.moments import joint_moments

__all__ = ["explained", "most_for_its_cost"]


def explained(models: Sequence[Model], X: Tensor) -> Tensor:
    """How much of the variance of the full value a training at each level removes.

    Args:
        models: Of each objective, with joint posteriors; the mean over them is taken.
        X: The candidate at each level, full first, `[levels, d]`.

    Returns:
        `[levels]`, from 0 to 1.
    """
    shares = []
    for model in models:
        with torch.no_grad():
            _, covariance = joint_moments(model.posterior(X))
            noisy: Any = model.posterior(X, observation_noise=True)
            variance = noisy.variance[..., 0].clamp_min(1e-12)
        shares.append(covariance[0].square() / (covariance[0, 0].clamp_min(1e-12) * variance))
    return torch.stack(shares).mean(0)


def most_for_its_cost(shares: Tensor, costs: Sequence[float], allowed: Sequence[int]) -> int:
    """The level that explains most for its cost, the full one where they are alike.

    Args:
        shares: Of each level, full first, see `explained`.
        costs: Of each level, full first.
        allowed: Levels to choose from.
    """
    return max(allowed, key=lambda below: float(shares[below]) / costs[below])
