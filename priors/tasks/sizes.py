"""The sizes of the tasks of one call: each class is a distribution of sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from priors.randomness import RandomSource
from priors.tasks.validation import check_at_least

__all__ = ["LearningCurveSize", "OptimizationSize", "TaskSize"]


@dataclass(frozen=True)
class TaskSize:
    """How many features and rows the tasks of one call have.

    Both numbers are drawn uniformly half of the time, log-uniformly otherwise, so that small
    tasks are common.

    Attributes:
        max_features: Most features, at least one.
        max_context: Most context rows; there may be none.
        num_queries: Rows to be predicted.
        num_features: Fixed number of features; drawn if None.
        num_context: Fixed number of context rows; drawn if None.
    """

    max_features: int = 20
    max_context: int = 512
    num_queries: int = 64
    num_features: int | None = None
    num_context: int | None = None

    def __post_init__(self) -> None:
        check_at_least(
            self, max_features=1, max_context=0, num_queries=1, num_features=1, num_context=0
        )

    def draw(
        self,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> tuple[int, int]:
        """Numbers of features and of context rows."""
        draws = RandomSource(generator, device, torch.float64)
        d, n = self.num_features, self.num_context
        if d is None:
            pick = draws.log_integer if draws.number() < 0.5 else draws.integer
            d = pick(1, self.max_features)
        if n is None:
            pick = draws.log_integer if draws.number() < 0.5 else draws.integer
            n = pick(0, self.max_context)
        return d, n

    @property
    def description(self) -> str:
        """Part of a prior's description."""
        d = f"1-{self.max_features}" if self.num_features is None else f"{self.num_features}"
        n = f"up to {self.max_context}" if self.num_context is None else f"{self.num_context}"
        return f"{d} features, {n} context rows"


@dataclass(frozen=True)
class OptimizationSize(TaskSize):
    """Sizes of the tasks of an `OptimizationTaskPrior`.

    The number of features is uniform on 1 .. `max_features`; that of context rows is half of the
    time uniform on 0 .. `max_context`, half of the time log-uniform.
    """

    max_features: int = 10
    max_context: int = 128

    def draw(
        self,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> tuple[int, int]:
        draws = RandomSource(generator, device, torch.float64)
        # all are drawn, so that fixing one number leaves what follows as it was
        feature, row, law = (draws.number() for _ in range(3))
        d = self.num_features or 1 + int(feature * self.max_features)
        n = self.num_context
        return d, _rows(row, law, self.max_context) if n is None else n


@dataclass(frozen=True)
class LearningCurveSize:
    """Sizes of the tasks of a `LearningCurveTaskPrior`.

    The number of hyperparameters is uniform on 0 .. `max_hyperparameters`; there is one curve
    without hyperparameters, and with them log-uniformly up to `max_curves`; that of context rows
    is half of the time uniform on 0 .. `max_context`, half of the time log-uniform.

    Attributes:
        max_hyperparameters: Most hyperparameters; a task has one feature more, the time.
        max_curves: Most curves of a task.
        max_context: Most context rows.
        num_queries: Rows to be predicted.
        num_hyperparameters: Fixed number of hyperparameters; drawn if None.
        num_curves: Fixed number of curves; drawn if None.
        num_context: Fixed number of context rows; drawn if None.

    Raises:
        ValueError: a size is too small, or several curves are asked for but no hyperparameters to
            distinguish them.
    """

    max_hyperparameters: int = 4
    max_curves: int = 32
    max_context: int = 256
    num_queries: int = 64
    num_hyperparameters: int | None = None
    num_curves: int | None = None
    num_context: int | None = None

    def __post_init__(self) -> None:
        check_at_least(
            self,
            max_hyperparameters=0,
            max_curves=1,
            max_context=0,
            num_queries=1,
            num_hyperparameters=0,
            num_curves=1,
            num_context=0,
        )
        if (self.num_curves or 1) > 1 and 0 in (self.num_hyperparameters, self.max_hyperparameters):
            raise ValueError(
                f"{self.num_curves} curves cannot be distinguished without hyperparameters; "
                "allow some, or ask for one curve."
            )

    def draw(
        self,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> tuple[int, int, int]:
        """Numbers of hyperparameters, of curves and of context rows."""
        draws = RandomSource(generator, device, torch.float64)
        # all are drawn, so that fixing one number leaves what follows as it was
        hyperparameter, curve, row, law = (draws.number() for _ in range(4))
        least = 1 if (self.num_curves or 1) > 1 else 0
        p, C, n = self.num_hyperparameters, self.num_curves, self.num_context
        if p is None:
            p = least + int(hyperparameter * (self.max_hyperparameters + 1 - least))
        if C is None:
            C = 1 if p == 0 else int(math.exp(curve * math.log(self.max_curves + 1)))
        return p, C, _rows(row, law, self.max_context) if n is None else n


def _rows(u: float, law: float, most: int) -> int:
    """A number of rows on 0 .. `most`, uniform or log-uniform, of two uniform numbers."""
    size = most + 1
    return int(u * size if law < 0.5 else math.exp(u * math.log(size)))
