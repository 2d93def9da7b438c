"""The sizes of a network that a given time can train.

A large network learns more from a task and sees fewer of them. What decides is the number of tasks
that a network of one size (64 numbers, 3 layers) could see in the time, on the device at hand; it
is measured. With fewer than so many tasks the next smaller network is nearer to the exact
posterior. Batches are as small as leaves some thousand steps.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from pfn.architecture import ArchitectureConfig
from pfn.training.config import TrainingConfig
from pfn.training.state import TrainingState
from priors.tasks.task import TaskPrior

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["choose_sizes", "chosen_by_time"]


@dataclass(frozen=True)
class _Size:
    """Sizes, and how many tasks a network of the reference's could see where they are chosen."""

    tasks: int
    embedding: int
    layers: int
    heads: int

    def of(self, architecture: ArchitectureConfig) -> ArchitectureConfig:
        return replace(
            architecture,
            embedding=self.embedding,
            layers=self.layers,
            heads=self.heads,
            hidden=2 * self.embedding,
        )


_REFERENCE = _Size(5_000, 64, 3, 4)
_LADDER = (_Size(0, 32, 2, 2), _REFERENCE, _Size(60_000, 64, 4, 4), _Size(400_000, 96, 6, 4))
_BATCHES = (8, 16, 32)
_STEPS = 3_000  # that a batch leaves at least, unless it is the smallest
_MEASURED = 6


def chosen_by_time(config: TrainingConfig) -> bool:
    """Whether a time limit is all that is given: neither sizes of the network nor steps."""
    given, default = config.architecture, ArchitectureConfig()
    names = ("embedding", "layers", "heads", "hidden", "cell_layers", "decoupled_values")
    same = all(getattr(given, name) == getattr(default, name) for name in names)
    return config.time_limit is not None and same and config.steps == TrainingConfig().steps


def choose_sizes(task_prior: TaskPrior, config: TrainingConfig, fabric: Fabric) -> TrainingConfig:
    """The configuration with sizes of the network, batch and steps that suit its time limit.

    A batch that is not the default one stays.
    """
    assert config.time_limit is not None
    small = replace(
        config,
        architecture=_REFERENCE.of(config.architecture),
        batch=16,
        accumulate=1,
        border_tasks=64,
        held_out_tasks=0,
        compile=False,
    )
    state = TrainingState(task_prior, small, fabric, None, None)
    for step in range(2):
        state.take(step)
    start = time.perf_counter()
    for step in range(_MEASURED):
        state.take(step)
    if fabric.device.type == "cuda":
        torch.cuda.synchronize(fabric.device)
    seconds = fabric.broadcast((time.perf_counter() - start) / (_MEASURED * small.batch))
    tasks = config.time_limit / seconds
    size = [size for size in _LADDER if size.tasks <= tasks][-1]
    batch = config.batch
    if batch == TrainingConfig().batch:
        batch = max((b for b in _BATCHES if b * _STEPS <= tasks), default=_BATCHES[0])
    return replace(
        config,
        architecture=size.of(config.architecture),
        batch=batch,
        held_out_batch=config.held_out_batch or config.batch,
        steps=10**7,  # the time ends the training
    )
