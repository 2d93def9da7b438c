"""Task priors that draw their own sizes, inputs and noise around random functions.

`TaskSize` says how large tasks are, `LatentTaskPrior` is the base of the vectorised priors: a
subclass draws functions, several at the same inputs if asked (from which classes are made), and
the base makes tasks of them. Everything is batched over tasks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from priors.randomness import RandomSource
from priors.tasks.inputs import RandomInputs
from priors.tasks.noise import RandomNoise
from priors.tasks.task import Task
from priors.tasks.validation import check_at_least

__all__ = ["LatentTaskPrior", "TaskSize", "relevance", "scaled_variance"]


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
class LatentTaskPrior(ABC):
    """Tasks made of random functions f: y = f + noise, f of mean 0 and variance about 1.

    Features are exchangeable in distribution, which `exchangeable` says.

    Attributes:
        size: How large tasks are.
        inputs: Where inputs lie.
        noise: Noise of the targets. None: y is the function itself, and `Task.f` is None.
    """

    size: TaskSize = TaskSize()
    inputs: RandomInputs = RandomInputs()
    noise: RandomNoise | None = RandomNoise()
    exchangeable: ClassVar[bool] = True

    @property
    @abstractmethod
    def description(self) -> str:
        """One line for a checkpoint."""

    @abstractmethod
    def draw(
        self, draws: RandomSource, batch: int, points: int, features: int, outputs: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Draw inputs and functions.

        Args:
            draws: Source of all randomness, which also says dtype and device.
            batch: B, number of tasks.
            points: N, rows of a task.
            features: d.
            outputs: m, functions at the same inputs, given the same hyperparameters.

        Returns:
            Inputs `[B, N, d]`, functions `[B, N, m]` and latents by name, each `[B, ...]`.
        """

    def sample(
        self,
        batch: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Task:
        """Draw `batch` tasks of one size."""
        return self.sample_outputs(batch, 1, generator=generator, device=device, dtype=dtype)[0]

    def sample_outputs(
        self,
        batch: int,
        outputs: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Task, Tensor]:
        """Draw tasks and several functions at the inputs of each.

        Returns:
            The tasks, whose function is the first one, and all functions `[B, N, outputs]`.
        """
        dtype = torch.get_default_dtype() if dtype is None else dtype
        d, n = self.size.draw(generator, device)
        draws = RandomSource(generator, device, self._working_dtype(dtype))
        with torch.no_grad():
            X, F, latents = self.draw(draws, batch, n + self.size.num_queries, d, outputs)
            f = F[..., :1]
            if self.noise is None:
                noise_var = f.new_full((batch,), torch.inf)
                y = f
            else:
                noise, noise_var = self.noise.draw(draws, X)
                if "scale" in latents:  # a scale mixture scales its noise too
                    noise = noise * latents["scale"].sqrt()[:, None]
                    noise_var = scaled_variance(noise_var, latents)
                y = f + noise[..., None]
        task = Task(
            X=X.to(dtype),
            y=y.to(dtype),
            f=None if self.noise is None else f.to(dtype),
            noise_var=noise_var.to(dtype),
            num_context=n,
            latents=latents,
        )
        return task, F.to(dtype)

    def _working_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.float64 if dtype == torch.float64 else torch.float32


def relevance(draws: RandomSource, *shape: int, uneven: float = 0.5) -> Tensor:
    """Random weights of features, `[*shape]` with features last, at least one of them positive.

    Args:
        draws: Source of randomness.
        shape: Of the result.
        uneven: Probability that features differ: that weights are spread out and a random share
            of them, half on average, is 0. Otherwise all are 1.
    """
    lead = shape[:-1]
    differ = draws.bernoulli(uneven, *lead, 1)
    kept = draws.bernoulli(0.1 + 0.8 * draws.uniform(*lead, 1), *shape)
    chances = draws.uniform(*shape)
    kept = kept | (chances == chances.amax(-1, keepdim=True))
    weights = torch.exp(1.5 * draws.normal(*shape)) * kept
    return torch.where(differ, weights, torch.ones_like(weights))


def scaled_variance(noise_var: Tensor, latents: dict[str, Tensor]) -> Tensor:
    """Noise variances `[B]` or `[B, N]` times the tasks' "scale", if they have one."""
    if "scale" not in latents:
        return noise_var
    return noise_var * latents["scale"].reshape(-1, *(1,) * (noise_var.dim() - 1))
