"""The loss of a batch of tasks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pfn.network import Encoding
from pfn.prior_fitted_network import PFN
from pfn.training.tasks import Batch, Told
from priors.tasks.task import Task

__all__ = ["Loss"]


class Loss(nn.Module):
    """Loss of a batch of tasks, as a module so that it can be distributed and compiled."""

    def __init__(self, pfn: PFN) -> None:
        super().__init__()
        self.pfn = pfn

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Mean negative log density of the queries' y, and of their f where there is one."""
        pfn, task, told = self.pfn, batch.task, batch.told
        n = task.num_context
        noise = task.row_noise_var if told.noise else None
        encoding = _encoding(pfn, task, told, noise)
        query_noise = noise[:, n:] if noise is not None and told.query_noise else None
        logits_y, logits_f = pfn.decode(encoding, task.X[:, n:], noise_var=query_noise)
        weight = None if task.points is None else task.points[:, n:].to(task.y)
        if pfn.bars is None:
            target = task.y[:, n:, 0].long()
            nll = nn.functional.cross_entropy(logits_y.mT.float(), target, reduction="none")
            return _mean(nll, weight), None
        bars = pfn.bars

        def loss(logits: Tensor, target: Tensor) -> Tensor:
            z = (target[:, n:, 0] - encoding.location) / encoding.scale
            return _mean(-bars.log_prob(logits.float(), z), weight)

        if logits_f is None or task.f is None:
            unused = 0.0 if logits_f is None else 0.0 * logits_f.sum()  # DDP wants every gradient
            return loss(logits_y, task.y) + unused, None
        return loss(logits_y, task.y), loss(logits_f, task.f)


def _encoding(pfn: PFN, task: Task, told: Told, noise: Tensor | None) -> Encoding:
    """The context, its last `told.appended` rows appended to the others."""
    n = task.num_context
    first = n - told.appended
    mask = None if task.points is None else task.points[:, :first]
    encoding = pfn.encode(
        task.X[:, :first],
        task.y[:, :first, 0],
        mask=mask,
        noise_var=None if noise is None else noise[:, :first],
        categorical=task.categorical,
        num_classes=task.num_classes,
        codes=task.latents.get("column_codes"),
    )
    if told.appended == 0:
        return encoding
    rows = slice(first, n)
    y = task.y[:, rows, 0]
    noise = None if noise is None else noise[:, rows]
    if told.exact:
        assert task.f is not None
        y, noise = task.f[:, rows, 0], torch.zeros_like(y)
    return pfn.append(encoding, task.X[:, rows], y, noise_var=noise)


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    return values.mean() if weight is None else (values * weight).sum() / weight.sum().clamp_min(1)
