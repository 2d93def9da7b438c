"""Variational inference with a Gaussian of low rank: the strongest correlations are kept.

q = N(m, F F^T + diag(s^2)) with F of few columns (Ong, Nott & Smith 2018, 1701.03208). A column
holds what mean field loses first: weights that do a task together, along whose common direction
the data speak (`mean_field` tells what goes wrong without).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bayes.inference.variational import Guide, Variational

__all__ = ["LowRank"]


@dataclass(frozen=True)
class LowRank(Variational):
    """A Gaussian guide whose covariance is a diagonal and some columns.

    Attributes:
        rank: Columns; cost grows with it as that of mean field with the particles.
    """

    rank: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise ValueError(f"LowRank needs rank >= 1, got {self.rank}; MeanField() has none.")

    @property
    def _name(self) -> str:
        return f"rank {self.rank}"

    def _guide(self, start: Tensor, generator: torch.Generator) -> Guide:
        return _Factored(start, self.init_std, min(self.rank, len(start)), generator)


class _Factored(Guide):
    """z = location + factor u + exp(log std) e."""

    def __init__(self, start: Tensor, std: float, rank: int, generator: torch.Generator) -> None:
        self.location = start.clone()
        self.log_std = torch.full_like(start, math.log(std))
        # random: columns that are equal would stay so
        self.factor = start.new_empty(len(start), rank).normal_(generator=generator)
        self.factor *= std / math.sqrt(rank)
        self.parameters = [self.location, self.log_std, self.factor]

    def sample(self, number: int, generator: torch.Generator) -> tuple[Tensor, list[Tensor]]:
        dimension, rank = self.factor.shape
        e = self.location.new_empty(number, dimension).normal_(generator=generator)
        u = self.location.new_empty(number, rank).normal_(generator=generator)
        return self.location + u @ self.factor.mT + self.log_std.exp() * e, [e, u]

    def score(self, position: Tensor) -> Tensor:
        # (F F^T + S)^-1 = S^-1 - S^-1 F (I + F^T S^-1 F)^-1 F^T S^-1
        inverse = (-2 * self.log_std).exp()
        scaled = inverse * (self.location - position)
        inner = torch.cholesky_solve((scaled @ self.factor).mT, self._capacitance()).mT
        return scaled - inner @ self.factor.mT * inverse

    def pull(self, gradient: Tensor, normals: list[Tensor]) -> list[Tensor]:
        e, u = normals
        return [
            gradient.mean(0),
            (gradient * e).mean(0) * self.log_std.exp(),
            gradient.mT @ u / len(u),
        ]

    def entropy(self) -> Tensor:
        constant = self.log_std + 0.5 * math.log(2 * math.pi * math.e)
        return constant.sum() + self._capacitance().diagonal().log().sum()

    def _capacitance(self) -> Tensor:
        """The Cholesky factor of I + F^T S^-1 F."""
        scaled = self.factor * (-self.log_std).exp().unsqueeze(-1)
        inner = scaled.mT @ scaled
        inner.diagonal().add_(1)
        return torch.linalg.cholesky(inner)
