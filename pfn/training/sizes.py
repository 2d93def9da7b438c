"""The sizes of a network that a given time can train.

A large network learns more from a task and sees fewer of them. What decides is the number of tasks
that a network of one size (64 numbers, 3 layers) could see in the time, on the device at hand; it
is measured. With fewer than so many tasks the next smaller network is nearer to the exact
posterior. Batches are as small as leaves some thousand steps. Slots are as
many as the tasks have features, where all have equally many: what fills few of many slots is learnt
later.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from pfn.architecture import ArchitectureConfig
from pfn.training.config import TrainingConfig
from pfn.training.state import TrainingState
from pfn.training.tasks import fixed_tasks
from priors.tasks.task import TaskPrior

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["RATES", "choose_sizes", "chosen_by_time"]


@dataclass(frozen=True)
class _Size:
    """Sizes, and how many tasks a network of the reference's could see where they are chosen.

    With the factor of the default learning rates: few steps have to be long ones.
    """

    tasks: int
    embedding: int
    layers: int
    heads: int
    rate: float = 1.0

    def of(self, architecture: ArchitectureConfig) -> ArchitectureConfig:
        return replace(
            architecture,
            embedding=self.embedding,
            layers=self.layers,
            heads=self.heads,
            hidden=2 * self.embedding,
        )


_REFERENCE = _Size(5_000, 64, 3, 4, rate=2.0)
_LADDER = (
    _Size(0, 32, 2, 2, rate=2.0),
    _REFERENCE,
    _Size(60_000, 64, 4, 4),
    _Size(400_000, 96, 6, 4),
)
_BATCHES = (8, 16, 32)
_STEPS = 3_000  # that a batch leaves at least, unless it is the smallest
# Learning rates that follow the time.
RATES = ("learning_rate", "matrix_learning_rate")
_MEASURED = 6
_SEEN = 512  # tasks that show the number of features


def chosen_by_time(config: TrainingConfig) -> bool:
    """Whether a time limit is all that is given: neither sizes of the network nor steps."""
    given, default = config.architecture, ArchitectureConfig()
    names = ("embedding", "layers", "heads", "hidden", "cell_layers", "decoupled_values")
    same = all(getattr(given, name) == getattr(default, name) for name in names)
    return config.time_limit is not None and same and config.steps == TrainingConfig().steps


def choose_sizes(task_prior: TaskPrior, config: TrainingConfig, fabric: Fabric) -> TrainingConfig:
    """The configuration with sizes of the network, batch and steps that suit its time limit.

    A batch and learning rates that are not the default ones stay.
    """
    if config.architecture.max_features == ArchitectureConfig().max_features:
        config = replace(config, architecture=_with_slots(config.architecture, task_prior, config))
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
    assert config.time_limit is not None
    tasks = config.time_limit / seconds
    size = [size for size in _LADDER if size.tasks <= tasks][-1]
    batch = config.batch
    if _is_default(config, "batch"):
        batch = max((b for b in _BATCHES if b * _STEPS <= tasks), default=_BATCHES[0])
    return replace(
        config,
        architecture=size.of(config.architecture),
        batch=batch,
        held_out_batch=config.held_out_batch or config.batch,
        **{name: size.rate * getattr(config, name) for name in RATES if _is_default(config, name)},
        steps=10**7,  # the time ends the training
    )


def _with_slots(
    architecture: ArchitectureConfig, task_prior: TaskPrior, config: TrainingConfig
) -> ArchitectureConfig:
    """With a slot for each feature; as it is where tasks differ in their number of features."""
    generator = torch.Generator().manual_seed(config.seed)
    tasks = fixed_tasks(task_prior, config, generator, _SEEN)
    widths = {task.X.shape[-1] for task in tasks}
    return replace(architecture, max_features=widths.pop()) if len(widths) == 1 else architecture


def _is_default(config: TrainingConfig, name: str) -> bool:
    default: bool = getattr(config, name) == getattr(TrainingConfig(), name)
    return default
