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
    """z = location + std (factor u + e).

    The factor is in units of the deviations, so that steps of an optimiser mean as much where these
    are small: in units of z, the noise of some thousand of them adds up to wide columns.
    """

    def __init__(self, start: Tensor, std: float, rank: int, generator: torch.Generator) -> None:
        self.location = start.clone()
        self.log_std = torch.full_like(start, math.log(std))
        # random: columns that are equal would stay so
        self.factor = start.new_empty(len(start), rank).normal_(generator=generator)
        self.factor /= math.sqrt(rank)
        self.parameters = [self.location, self.log_std, self.factor]

    def sample(self, number: int, generator: torch.Generator) -> tuple[Tensor, list[Tensor]]:
        dimension, rank = self.factor.shape
        e = self.location.new_empty(number, dimension).normal_(generator=generator)
        u = self.location.new_empty(number, rank).normal_(generator=generator)
        away = u @ self.factor.mT + e
        return self.location + self.log_std.exp() * away, [away, u]

    def score(self, position: Tensor) -> Tensor:
        # (F F^T + I)^-1 = I - F (I + F^T F)^-1 F^T
        std = self.log_std.exp()
        away = (self.location - position) / std
        inner = torch.cholesky_solve((away @ self.factor).mT, self._capacitance()).mT
        return (away - inner @ self.factor.mT) / std

    def pull(self, gradient: Tensor, normals: list[Tensor]) -> list[Tensor]:
        away, u = normals
        scaled = gradient * self.log_std.exp()
        return [gradient.mean(0), (scaled * away).mean(0), scaled.mT @ u / len(u)]

    def entropy(self) -> Tensor:
        constant = self.log_std + 0.5 * math.log(2 * math.pi * math.e)
        return constant.sum() + self._capacitance().diagonal().log().sum()

    def _capacitance(self) -> Tensor:
        """The Cholesky factor of I + F^T F."""
        inner = self.factor.mT @ self.factor
        inner.diagonal().add_(1)
        return torch.linalg.cholesky(inner)
