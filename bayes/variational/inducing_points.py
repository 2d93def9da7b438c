"""Inducing points: those given, all rows, or those that say most of the others."""

from __future__ import annotations

from typing import Any, Self

import gpytorch
import torch
from torch import Tensor, nn

from bayes.variational.projection import chosen_rows

__all__ = ["InducingPoints"]

_CANDIDATES = 20_000  # rows among which they are chosen


class InducingPoints(gpytorch.Module):
    """Inputs `[M, d]` on a model's scale.

    Args:
        points: Where they are.
        learn: Whether a fit moves them.
    """

    def __init__(self, points: Tensor, learn: bool) -> None:
        super().__init__()
        self.points = nn.Parameter(points.clone(), requires_grad=learn)

    @classmethod
    def among(cls, rows: Tensor, kernel: Any, number: int, learn: bool) -> Self:
        """Chosen among rows `[n, d]`; all of them, which stay where they are, if that few differ.

        Args:
            rows: On the model's scale.
            kernel: Says how much rows tell of each other.
            number: M at most.
            learn: Whether a fit moves them where there are rows besides.
        """
        with torch.no_grad():
            distinct = torch.unique(rows, dim=0)
            if len(distinct) <= number:
                return cls(distinct, False)
            generator = torch.Generator().manual_seed(0)
            order = torch.randperm(len(distinct), generator=generator, device="cpu")
            distinct = distinct[order[:_CANDIDATES].to(distinct.device)]
            chosen = chosen_rows(kernel, distinct, number)
            left = torch.ones(len(distinct), dtype=torch.bool, device=distinct.device)
            left[chosen] = False
            others = left.nonzero()[: number - len(chosen), 0]
            return cls(distinct[torch.cat([chosen, others])], learn)

    def untransformed(self, transform: Any) -> Tensor:
        """Their places before an input transform, or none."""
        points = self.points.detach()
        return points if transform is None else transform.untransform(points)
