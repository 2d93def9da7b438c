"""The tasks of a training, and the information that the network gets with them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from pfn.architecture import CODE_SIZE
from pfn.training.config import TrainingConfig
from priors.randomness import RandomSource
from priors.tasks.task import Task, TaskPrior

__all__ = ["Batch", "Told", "fixed_tasks", "sample_tasks"]


@dataclass(frozen=True)
class Told:
    """The information that the network is given in one step."""

    noise: bool = False
    query_noise: bool = False
    appended: int = 0
    exact: bool = False

    @classmethod
    def draw(cls, task: Task, config: TrainingConfig, generator: torch.Generator) -> Told:
        """At random, as far as the tasks allow."""
        uniform = RandomSource(generator).number
        noise = uniform() < config.known_noise and task.num_classes is None
        noise = noise and bool(task.noise_var.isfinite().all())
        query_noise = noise and uniform() < 0.5
        appended, exact = 0, False
        # Padding can be hidden among encoded rows, not among appended ones.
        if task.num_context and task.points is None and uniform() < config.appended:
            appended = 1 + int(uniform() * min(config.max_buffer, task.num_context))
            exact = task.f is not None and uniform() < 0.5
        return cls(noise, query_noise, appended, exact)


class Batch:
    """Tasks and the information given with them; not a dataclass, which Fabric would convert."""

    def __init__(self, task: Task, told: Told | None = None) -> None:
        self.task, self.told = task, Told() if told is None else told


def sample_tasks(
    task_prior: TaskPrior, config: TrainingConfig, generator: torch.Generator, device: torch.device
) -> Task:
    """Tasks, with fresh codes for their columns where the network has cells."""
    task = task_prior.sample(config.batch, generator=generator, device=device, dtype=torch.float32)
    if task.points is not None:  # whatever padding holds, NaN too: weights of 0 would keep that
        there = task.points[..., None]
        task = replace(
            task,
            X=torch.where(there, task.X, 0),
            y=torch.where(there, task.y, 0),
            f=None if task.f is None else torch.where(there, task.f, 0),
        )
    # Always one draw, so that networks of both kinds are trained and compared on the same tasks.
    seed = int(torch.randint(2**62, (), generator=generator, device=device))
    if config.architecture.cell_layers:
        shape = (len(task.X), task.X.shape[-1], CODE_SIZE)
        own = torch.Generator(device).manual_seed(seed)
        task.latents["column_codes"] = torch.randn(shape, generator=own, device=device)
    return task


def fixed_tasks(
    task_prior: TaskPrior, config: TrainingConfig, generator: torch.Generator, count: int
) -> list[Task]:
    """At least `count` tasks on the CPU, in batches that do not depend on that of the training."""
    config = replace(config, batch=config.held_out_batch or config.batch)
    batches = -(-count // config.batch)
    return [sample_tasks(task_prior, config, generator, generator.device) for _ in range(batches)]
