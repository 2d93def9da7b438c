"""Everything that a resumed run needs to continue as if nothing had happened."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pfn.coverage import Coverage
from pfn.prior_fitted_network import PFN
from pfn.references import Reference
from pfn.training.average import Average, HeldOut
from pfn.training.checkpoint import save_state
from pfn.training.config import TrainingConfig
from pfn.training.descent import Descent
from pfn.training.fabric import attention_of_any_shape
from pfn.training.loss import Loss
from pfn.training.start import initial_network
from pfn.training.tasks import Batch, Told, sample_tasks
from priors.random_state import seeded
from priors.tasks.task import Task, TaskPrior, describe

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["TrainingState"]


class TrainingState:
    """A training between two of its steps; its arguments are those of `train`."""

    def __init__(
        self,
        task_prior: TaskPrior,
        config: TrainingConfig,
        fabric: Fabric,
        reference: Reference | None,
        initial: PFN | None,
        held_out_prior: TaskPrior | None = None,
    ) -> None:
        self.task_prior, self.config, self.fabric = task_prior, config, fabric
        self.device = fabric.device
        self.step, self.elapsed, self.tasks = 0, 0.0, 0
        with seeded(config.seed):  # weights are made on the CPU, the same for every device
            self.pfn = initial_network(task_prior, config, initial).to(self.device).train()
        self.covered = self.pfn.coverage  # grows by what the tasks of the steps have
        # Processes share the weights but not the tasks, nor does a training with what it continues.
        stream = 1_000_003 * fabric.global_rank + (0 if initial is None else initial.tasks_seen)
        self.generator = torch.Generator(self.device).manual_seed(config.seed + 1 + stream)
        held_out = held_out_prior or task_prior
        self.held_out = HeldOut(held_out, config, reference, self.pfn, self.device)
        self.descent = Descent(self.pfn, config)
        self.average = Average(self.pfn, self.descent, config)
        if config.compile:
            # Block by block: they share one compilation, of a minute on a CPU. With all sizes
            # unknown that of the whole network did not end within seven.
            for block in self.pfn.network.blocks:
                block.compile(dynamic=True)
        self.loss, *wrapped = fabric.setup(Loss(self.pfn), *self.descent.optimisers)
        self.descent.steppers = wrapped

    def out_of_time(self) -> bool:
        """Whether the time limit is reached."""
        limit = self.config.time_limit
        return limit is not None and self.elapsed >= limit

    def advance(self) -> tuple[float, float]:
        """One step; returns the loss in nats per query and the norm of the gradient."""
        config, losses = self.config, []
        self.descent.zero_grad()
        for part in range(config.accumulate):
            task, told = self.draw()
            last = part + 1 == config.accumulate
            with self.fabric.no_backward_sync(self.loss, enabled=not last):
                with attention_of_any_shape(self.device):
                    loss_y, loss_f = self.loss(Batch(task, told))
                loss = loss_y if loss_f is None else loss_y + 0.5 * loss_f
                self.fabric.backward(loss / config.accumulate)
            losses.append(loss_y.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.pfn.network.parameters(), config.clip)
        # Read together: a GPU is waited for once a step.
        total, norm = torch.stack([torch.stack(losses).mean().to(norm), norm]).tolist()
        total = self._over_processes(total, "mean")  # so that all of them take the step, or none
        if self.descent.take(self.step, self.elapsed, total, norm):
            self.average.update(self.step)
        self.step += 1
        self.tasks += config.batch * config.accumulate * self.fabric.world_size
        return total, norm

    def take(self, seed: int, *, draw_only: bool = False) -> None:
        """A step whose randomness begins at a seed, or only the draws of one: to be timed."""
        self.generator.manual_seed(seed)
        if not draw_only:
            self.advance()
            return
        for _ in range(self.config.accumulate):
            self.draw()

    def draw(self) -> tuple[Task, Told]:
        """Tasks of a step, and the information given with them."""
        task = sample_tasks(self.task_prior, self.config, self.generator, self.device)
        told = Told.draw(task, self.config, self.generator)
        buffer = min(self.config.max_buffer, task.num_context) if told.appended else 0
        had = replace(
            self.covered,
            max_context=task.num_context,
            max_buffer=buffer,
            known_noise=told.noise,
            function=task.f is not None,
            num_features=task.X.shape[-1],
        )
        self.covered = self.covered.joined(had)
        return task, told

    def evaluate(self) -> dict[str, float]:
        """Loss of the average on the held-out tasks."""
        return self.average.evaluate(self.held_out)

    def keep(
        self, state: str | os.PathLike[str] | None, snapshot: str | os.PathLike[str] | None
    ) -> None:
        """Write the state of the training, and the network as it would be returned now."""
        self.covered = self._covered()  # asks every process, also those that write nothing
        if state is not None:
            save_state(self, Path(state))
        if snapshot is not None and self.fabric.is_global_zero:
            self._finished(copy.deepcopy(self.pfn)).save(snapshot)

    def result(self) -> PFN:
        """The trained network."""
        self.covered = self._covered()
        return self._finished(self.pfn)

    def _finished(self, pfn: PFN) -> PFN:
        """The trained network in `pfn`, a copy of this training's or, at its end, that itself."""
        pfn.network.load_state_dict(self.average.chosen(), strict=False)
        training = {
            "config": self.config.to_json(),
            "prior": describe(self.task_prior),
            "steps": self.step,
            "tasks": self.tasks,
            "seconds": round(self.elapsed, 1),
            "skipped": self.descent.skipped,
        }
        earlier = pfn.metadata.get("training")
        pfn.metadata["training"] = training if earlier is None else {**training, "from": earlier}
        pfn.metadata |= self.covered.to_json()
        return pfn.eval()

    def _over_processes(self, value: float, how: str) -> float:
        if self.fabric.world_size == 1:
            return value
        own = torch.tensor(value, dtype=torch.float64, device=self.device)
        shared = self.fabric.all_reduce(own, reduce_op=how)
        assert isinstance(shared, Tensor)
        return float(shared)

    def _covered(self) -> Coverage:
        """What the tasks of all processes had."""
        own = vars(self.covered)
        numbers = {k: v for k, v in own.items() if isinstance(v, int | float)}
        most: dict[str, Any] = {
            k: type(v)(self._over_processes(v, "max")) for k, v in numbers.items()
        }
        return replace(self.covered, **most)
