"""Classes made of the functions of another task prior."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical

from priors.randomness import RandomSource
from priors.tasks.base import LatentTaskPrior
from priors.tasks.task import Task, TaskPrior, describe

__all__ = ["ClassificationTaskPrior"]


@dataclass(frozen=True)
class ClassificationTaskPrior:
    """Classes made of the functions of another prior.

    Per task, 2 to `max_classes` classes, half of the time log-uniform, come of one of two rules:
    intervals of y with random probabilities; or, where the prior is a `LatentTaskPrior`, the
    largest of as many functions, each with noise of the task's variance and a random offset that
    makes classes rarer or more common. Classes are numbered at random. In half of the tasks some
    labels, up to `max_label_noise`, are replaced by classes drawn uniformly.

    `Task.f` is None, `Task.noise_var` infinite, and not every class need occur in a task.
    Latents: "label_noise" `[B]`, the share of labels that are replaced; of every row "label"
    `[B, N]`, the class before that.

    Attributes:
        prior: Prior of the functions, over regression tasks.
        max_classes: Most classes, at least 2.
        max_label_noise: Largest share of labels that are replaced.
        intervals: Probability that a call's tasks take the first rule.
    """

    prior: TaskPrior
    max_classes: int = 10
    max_label_noise: float = 0.2
    intervals: float = 0.5

    def __post_init__(self) -> None:
        if self.max_classes < 2:
            raise ValueError(f"max_classes must be at least 2, got {self.max_classes}.")
        for name in ("max_label_noise", "intervals"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}.")

    @property
    def description(self) -> str:
        """One line for a checkpoint."""
        inner = describe(self.prior)
        return f"2-{self.max_classes} classes from {inner}"

    def sample(
        self,
        batch: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Task:
        """Draw `batch` tasks; see `Task`."""
        options: dict[str, Any] = {"generator": generator, "device": device, "dtype": dtype}
        start = RandomSource(generator, device, torch.float64)
        # A call computes one rule for all its tasks: several functions cost more than one.
        largest = start.number() >= self.intervals
        if largest and isinstance(self.prior, LatentTaskPrior):
            task, functions = self.prior.sample_outputs(batch, self.max_classes, **options)
        else:
            task, functions = self.prior.sample(batch, **options), None
        if task.num_classes is not None:
            raise ValueError("ClassificationTaskPrior needs a prior over regression tasks.")
        draws = RandomSource(generator, task.X.device, task.X.dtype)
        common = draws.log_uniform(2.0, self.max_classes + 1.0, batch).long()
        count = torch.where(
            draws.bernoulli(0.5, batch), common, 2 + draws.integers(self.max_classes - 1, batch)
        ).clamp(max=self.max_classes)
        if functions is None:
            label = self._by_intervals(draws, task, count)
        else:
            label = self._by_largest(draws, task, functions, count)
        number = draws.uniform(batch, self.max_classes)
        number = number + 2 * self._unusable(count)
        label = number.argsort(-1).argsort(-1).gather(1, label)
        share = self.max_label_noise * draws.uniform(batch, 1) * draws.bernoulli(0.5, batch, 1)
        noisy = draws.bernoulli(share, *label.shape)
        random = (draws.uniform(*label.shape) * count[:, None]).long()
        true, label = label, torch.where(noisy, random.minimum(count[:, None] - 1), label)
        return replace(
            task,
            y=label[..., None].to(task.y),
            f=None,
            noise_var=task.y.new_full((batch,), torch.inf),
            num_classes=count,
            latents={**task.latents, "label_noise": share[:, 0]},
            row_latents={**task.row_latents, "label": true},
        )

    @staticmethod
    def oracle(task: Task) -> Categorical:
        """Distribution of classes at the queries `[B, m, 1]` *given those before label noise*.

        It is given what a network has to infer, so that the gap to it is an upper bound of the gap
        to the exact posterior under this prior, and a loose one: it knows noise of f as well.

        Args:
            task: Drawn from this prior, alone or within a mixture or a table.
        """
        assert task.num_classes is not None
        n, C = task.num_context, int(task.num_classes.max())
        share = task.latents["label_noise"].double()[:, None, None]
        count = task.num_classes.double()[:, None, None]
        known = torch.arange(C, device=task.X.device)
        spread = share / count * (known < count)
        right = (1 - share) * (task.row_latents["label"][:, n:, None] == known)
        return Categorical(probs=(spread + right)[:, :, None])

    def _unusable(self, count: Tensor) -> Tensor:
        """Which class numbers a task does not have, `[B, max_classes]`."""
        return torch.arange(self.max_classes, device=count.device) >= count[:, None]

    def _by_intervals(self, draws: RandomSource, task: Task, count: Tensor) -> Tensor:
        B, N, _ = task.y.shape
        imbalance = 2 * draws.uniform(B, 1)
        weights = torch.exp(imbalance * draws.normal(B, self.max_classes))
        weights = weights.masked_fill(self._unusable(count), 0.0)
        bounds = (weights / weights.sum(-1, keepdim=True)).cumsum(-1)
        # Cuts are values of y, so that rows with the same y share a class.
        row = (bounds * N).long().clamp(max=N - 1)
        cuts = task.y[..., 0].sort(-1).values.gather(1, row)
        cuts = cuts.masked_fill(self._unusable(count - 1), torch.inf)
        return torch.searchsorted(cuts, task.y[..., 0].contiguous(), right=True)

    def _by_largest(
        self, draws: RandomSource, task: Task, functions: Tensor, count: Tensor
    ) -> Tensor:
        noise_std = task.row_noise_var.sqrt()
        noise_std = torch.where(noise_std.isfinite(), noise_std, 0.0)[..., None]
        offset = draws.uniform(len(count), 1, 1) * draws.normal(len(count), 1, self.max_classes)
        values = functions + offset + noise_std * draws.normal(*functions.shape)
        return values.masked_fill(self._unusable(count)[:, None], -torch.inf).argmax(-1)
