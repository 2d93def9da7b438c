"""Steps of the optimisers: their rates, and the steps that are skipped."""

from __future__ import annotations

import math
from typing import Any

import torch

from pfn.muon import Muon
from pfn.prior_fitted_network import PFN
from pfn.training.config import TrainingConfig

__all__ = ["Descent"]

_PATIENCE = 20  # steps in a row without a usable gradient before training gives up


class Descent:
    """Takes steps unless their gradient is useless.

    Args:
        pfn: Whose parameters move.
        config: Optimiser, rates and schedule.
    """

    def __init__(self, pfn: PFN, config: TrainingConfig) -> None:
        self.config = config
        self.optimisers, self.peaks = make_optimisers(pfn, config)
        self.steppers: list[Any] = list(self.optimisers)  # as Fabric wraps them
        self.typical_norm, self.skipped, self.failed = math.nan, 0, 0

    def zero_grad(self) -> None:
        """Forget gradients."""
        for optimiser in self.steppers:
            optimiser.zero_grad(set_to_none=True)

    def schedule(self, step: int, elapsed: float) -> float:
        """The share of the peak rates after so many steps and seconds."""
        share = step / self.config.steps
        if self.config.time_limit is not None:
            share = max(share, elapsed / self.config.time_limit)
        share = min(share, 1.0)
        warm = min(1.0, (step + 1) / max(1, self.config.warmup))
        if self.config.optimizer == "schedule-free":
            return warm
        match self.config.schedule:
            case "cosine":
                return warm * 0.5 * (1 + math.cos(math.pi * share))
            case "linear":
                return warm * (1 - share)
        return warm

    def take(self, step: int, elapsed: float, loss: float, norm: float) -> bool:
        """A step, unless its loss or the norm of its gradient tell against it; whether it was.

        Raises:
            RuntimeError: too many in a row could not be taken.
        """
        finite = math.isfinite(loss) and math.isfinite(norm)
        spike = step > self.config.warmup and norm > self.config.spike * self.typical_norm
        if not finite or spike:
            self.skipped, self.failed = self.skipped + 1, self.failed + 1
            if self.failed >= _PATIENCE:
                raise RuntimeError(
                    f"The loss of step {step} is {loss}, the norm of its gradient {norm}, and "
                    f"{self.failed} steps in a row were unusable. Lower the learning rates, or "
                    "look for infinite values in the tasks."
                )
            return False
        self.failed = 0
        known = math.isfinite(self.typical_norm)
        self.typical_norm = 0.98 * self.typical_norm + 0.02 * norm if known else norm
        factor = self.schedule(step, elapsed)
        for optimiser, stepper, peak in zip(
            self.optimisers, self.steppers, self.peaks, strict=True
        ):
            for group in optimiser.param_groups:
                group["lr"] = peak * factor
            stepper.step()
        return True

    def of_average(self, average: bool) -> None:
        """Schedule-free weights as they are averaged, or as they are trained."""
        if self.config.optimizer == "schedule-free":
            free: Any = self.optimisers[0]
            free.eval() if average else free.train()


def make_optimisers(
    pfn: PFN, config: TrainingConfig
) -> tuple[list[torch.optim.Optimizer], tuple[float, ...]]:
    """Optimisers and their peak learning rates."""
    named = {k: p for k, p in pfn.network.named_parameters() if p.requires_grad}
    inside = ("blocks.", "cells.layers.")
    matrices = [p for k, p in named.items() if k.startswith(inside) and p.dim() == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in named.values() if id(p) not in chosen]
    rate, decay = config.learning_rate, config.weight_decay
    match config.optimizer:
        case "muon":
            muon = Muon(matrices, lr=config.matrix_learning_rate, weight_decay=decay)
            rest = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
            return [muon, rest], (config.matrix_learning_rate, rate)
        case "adamw":
            groups = [
                {"params": matrices, "weight_decay": decay},
                {"params": others, "weight_decay": 0.0},
            ]
            return [torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))], (rate,)
    try:
        from schedulefree import AdamWScheduleFree
    except ImportError as error:
        raise ImportError(
            "optimizer='schedule-free' needs the package schedulefree: pip install schedulefree."
        ) from error
    free = AdamWScheduleFree(list(named.values()), lr=rate, weight_decay=decay)
    free.train()
    return [free], (rate,)
