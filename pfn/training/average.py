"""The result of a training: averaged weights, the best of them by held-out loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pfn.compat import foreach_lerp_
from pfn.prior_fitted_network import PFN
from pfn.references import Reference, reference_nll
from pfn.training.config import TrainingConfig
from pfn.training.descent import Descent
from pfn.training.fabric import attention_of_any_shape
from pfn.training.loss import Loss
from pfn.training.tasks import Batch, fixed_tasks
from priors.tasks.task import Task, TaskPrior

__all__ = ["Average", "HeldOut"]


class HeldOut:
    """Tasks that no step sees, the same on any device, with what is known of them.

    Args:
        task_prior: The prior that draws them.
        config: How many, and their seed.
        reference: Whose losses are compared with the network's, if there is one.
        pfn: The network, for its units.
        device: Where it is.
    """

    def __init__(
        self,
        task_prior: TaskPrior,
        config: TrainingConfig,
        reference: Reference | None,
        pfn: PFN,
        device: torch.device,
    ) -> None:
        self.device = device
        generator = torch.Generator().manual_seed(config.seed + 2**31)
        drawn = fixed_tasks(task_prior, config, generator, config.held_out_tasks)
        self.tasks = [task.to(device) for task in drawn]
        self.exact = [self._exact(task, reference, pfn) for task in self.tasks]

    def loss(self, pfn: PFN) -> dict[str, float]:
        """Mean loss in the network's units, and its gap to the reference; nothing without tasks."""
        if not self.tasks:
            return {}
        training = pfn.training
        pfn.eval()  # as it will be used
        with torch.no_grad(), attention_of_any_shape(self.device):
            losses = [float(Loss(pfn)(Batch(task))[0]) for task in self.tasks]
        pfn.train(training)
        found = {"held_out": sum(losses) / len(losses)}
        if math.isfinite(sum(self.exact)):
            found["gap"] = found["held_out"] - sum(self.exact) / len(self.exact)
        return found

    @staticmethod
    def _exact(task: Task, reference: Reference | None, pfn: PFN) -> float:
        """Loss of the reference in the units of the network."""
        if reference is None:
            return math.nan
        n = task.num_context
        mask = None if task.points is None else task.points[:, :n]
        _, scale, _ = pfn.units(task.y[:, :n, 0], mask)
        return float(reference_nll(reference, task).mean() - scale.log().mean())


class Average:
    """The moving average of a network's weights, and the best of its earlier states.

    Args:
        pfn: Whose weights are averaged.
        descent: Which averages by itself if it is schedule-free.
        config: The decay.
    """

    def __init__(self, pfn: PFN, descent: Descent, config: TrainingConfig) -> None:
        self.pfn, self.descent, self.config = pfn, descent, config
        self.weights = {k: p.detach().clone() for k, p in pfn.network.named_parameters()}
        self.best = {k: v.clone() for k, v in self.weights.items()}
        self.best_loss = math.inf

    def update(self, step: int) -> None:
        """Take the weights of a step into account."""
        if self.config.optimizer == "schedule-free":
            return
        # A long average over the first steps would remember the initial weights.
        decay = min(self.config.average_decay, (1 + step) / (10 + step))
        parameters = dict(self.pfn.network.named_parameters())
        with torch.no_grad():
            foreach_lerp_(
                [self.weights[name] for name in parameters], list(parameters.values()), 1 - decay
            )

    def evaluate(self, held_out: HeldOut) -> dict[str, float]:
        """Losses of the average on held-out tasks; the best one is remembered."""
        own = {k: p.detach().clone() for k, p in self.pfn.network.named_parameters()}
        self._take_schedule_free()
        self.pfn.network.load_state_dict(self.weights, strict=False)
        found = held_out.loss(self.pfn)
        self.pfn.network.load_state_dict(own, strict=False)
        if found and found["held_out"] < self.best_loss:
            self.best_loss = found["held_out"]
            self.best = {k: v.clone() for k, v in self.weights.items()}
        return found

    def chosen(self) -> dict[str, Tensor]:
        """The best average, or today's where no held-out loss is known."""
        self._take_schedule_free()
        return self.best if math.isfinite(self.best_loss) else self.weights

    def _take_schedule_free(self) -> None:
        if self.config.optimizer != "schedule-free":
            return
        self.descent.of_average(True)
        for name, parameter in self.pfn.network.named_parameters():
            self.weights[name].copy_(parameter.detach())
        self.descent.of_average(False)
