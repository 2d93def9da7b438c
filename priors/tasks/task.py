"""Priors over whole supervised tasks, from which a prior-data fitted network learns.

A task is a data set with the function behind it: inputs, noisy targets, and how many of the
rows are context; the others are to be predicted. A `TaskPrior` is anything that draws batches
of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["Task", "TaskPrior", "describe", "exchangeable"]


@dataclass(frozen=True)
class Task:
    """A batch of B tasks of N rows and d features.

    Attributes:
        X: Inputs `[B, N, d]`; NaN where a value is missing; category numbers 0, 1, ... in
            categorical columns.
        y: Noisy targets `[B, N, 1]`; in classification the class, 0 .. num_classes - 1.
        f: Noise-free function values `[B, N, 1]`, or None where there are none.
        noise_var: Variance of y - f given the task, `[B]`, or `[B, N]` where it differs by row;
            infinite or meaningless where y - f is not of that kind (classes, outliers).
        num_context: The first rows are context, the rest are queries.
        points: `[B, N]`, False where a row is padding; None means all rows count.
        features: `[B, d]`, False where a feature is padding; None means all count.
        categorical: `[B, d]`, True where a feature is a category; None means none is.
        num_classes: Classes of each task `[B]`; None means regression.
        latents: Latent variables by name, each `[B, ...]`.
        row_latents: Latent variables of every row by name, each `[B, N, ...]`.
    """

    X: Tensor
    y: Tensor
    f: Tensor | None
    noise_var: Tensor
    num_context: int
    points: Tensor | None = None
    features: Tensor | None = None
    categorical: Tensor | None = None
    num_classes: Tensor | None = None
    latents: dict[str, Tensor] = field(default_factory=dict)
    row_latents: dict[str, Tensor] = field(default_factory=dict)

    @property
    def row_noise_var(self) -> Tensor:
        """Noise variance of every row, `[B, N]`."""
        noise = self.noise_var if self.noise_var.dim() == 2 else self.noise_var[:, None]
        return noise.expand(self.X.shape[:2])

    def to(self, device: torch.device | str) -> Task:
        """The same tasks on a device."""

        def moved(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: moved(part) for name, part in value.items()}
            return value.to(device) if isinstance(value, Tensor) else value

        return replace(self, **{name: moved(value) for name, value in vars(self).items()})


@runtime_checkable
class TaskPrior(Protocol):
    """A distribution over tasks."""

    def sample(
        self,
        batch: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Task:
        """Draw `batch` tasks of one size together."""
        ...


def describe(task_prior: object) -> str:
    """One line on a task prior: its `description` if it has one, else the name of its kind."""
    return getattr(task_prior, "description", type(task_prior).__name__)


def exchangeable(task_prior: object) -> bool:
    """Whether features may change places under a prior: its `exchangeable`, else that of `prior`.

    Which is what a task prior made of another one has; False where neither says so.
    """
    own = getattr(task_prior, "exchangeable", None)
    if own is not None:
        return bool(own)
    inner = getattr(task_prior, "prior", None)
    return inner is not None and exchangeable(inner)
