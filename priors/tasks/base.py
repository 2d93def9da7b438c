"""Task priors that draw their own sizes, inputs and noise around random functions.

`LatentTaskPrior` is the base of the vectorised priors: a subclass draws functions, several at the
same inputs if asked (from which classes are made), and the base makes tasks of them. Where inputs
or noise depend on the function, a `WholeTaskPrior` draws all of a task. Everything is batched over
tasks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from priors.randomness import RandomSource
from priors.tasks.inputs import RandomInputs
from priors.tasks.noise import RandomNoise
from priors.tasks.sizes import TaskSize
from priors.tasks.task import Task

__all__ = ["LatentTaskPrior", "WholeTaskPrior", "relevance", "scaled_variance"]


class WholeTaskPrior(ABC):
    """Tasks drawn whole, in double precision."""

    @abstractmethod
    def draw_tasks(self, draws: RandomSource, batch: int) -> Task:
        """Draw tasks of one size in the dtype of `draws`."""

    def sample(
        self,
        batch: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Task:
        """Draw `batch` tasks of one size."""
        task = self.draw_tasks(RandomSource(generator, device, torch.float64), batch)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        return replace(
            task,
            X=task.X.to(dtype),
            y=task.y.to(dtype),
            f=None if task.f is None else task.f.to(dtype),
            noise_var=task.noise_var.to(dtype),
        )


@dataclass(frozen=True)
class LatentTaskPrior(ABC):
    """Tasks made of random functions f: y = f + noise, f of mean 0 and variance about 1.

    Features are exchangeable in distribution, which `exchangeable` says.

    Attributes:
        size: How large tasks are.
        inputs: How inputs are drawn.
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
        shape: Shape of the result.
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
