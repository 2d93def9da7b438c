"""Mixtures of task priors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from priors.randomness import RandomSource
from priors.tasks.task import Task, TaskPrior, describe, exchangeable

__all__ = ["MixtureTaskPrior"]


class MixtureTaskPrior:
    """Each call draws its tasks from one of several priors.

    The latent "component" `[B]` has the prior's number.

    Args:
        priors: The components.
        weights: Relative probabilities; equal if None.

    Raises:
        ValueError: no component, or weights that do not fit.
    """

    def __init__(self, priors: Sequence[TaskPrior], weights: Sequence[float] | None = None) -> None:
        self.priors = tuple(priors)
        self.weights = tuple([1.0] * len(self.priors) if weights is None else weights)
        if not self.priors:
            raise ValueError("a mixture needs at least one prior.")
        if len(self.weights) != len(self.priors):
            raise ValueError(
                f"a mixture needs one weight per prior, got {len(self.weights)} weights for "
                f"{len(self.priors)} priors."
            )
        if min(self.weights) < 0 or sum(self.weights) <= 0:
            raise ValueError(f"weights must be non-negative and not all 0, got {self.weights}.")

    def __repr__(self) -> str:
        return f"MixtureTaskPrior({self.priors!r}, {self.weights!r})"

    @property
    def exchangeable(self) -> bool:
        """Whether the order of the features means nothing."""
        return all(exchangeable(prior) for prior in self.priors)

    @property
    def description(self) -> str:
        """One line for a checkpoint."""
        total = sum(self.weights)
        parts = (
            f"{weight / total:.3g} {describe(prior)}"
            for weight, prior in zip(self.weights, self.priors, strict=True)
        )
        return "mixture of " + "; ".join(parts)

    def sample(
        self,
        batch: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Task:
        """Draw `batch` tasks of one component; see `Task`."""
        left = RandomSource(generator, device, torch.float64).number() * sum(self.weights)
        component = max(i for i, weight in enumerate(self.weights) if weight > 0)
        for index, weight in enumerate(self.weights):
            if left < weight:
                component = index
                break
            left -= weight
        task = self.priors[component].sample(batch, generator=generator, device=device, dtype=dtype)
        drawn = torch.full((batch,), component, device=task.X.device)
        return replace(task, latents={**task.latents, "component": drawn})
