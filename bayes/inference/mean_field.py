"""Mean-field variational inference: the closest independent Gaussians.

Every latent number of the model gets its own Gaussian; their means and deviations maximise the
evidence lower bound (`variational`).

Fast, and wrong in two ways, since correlations between weights are lost. A Gaussian posterior of
precision matrix P gets the deviations P_ii^-1/2, those of each weight when the others are known:
every single weight is overconfident. Predictions are too *wide*, though, where many weights share
a task, as in a wide layer or with few rows: of k weights that do the same, in n rows that tell
their sum with precision S, each learns its k-th part alone, and the sum keeps the variance
1 / (1 + S / k) of the prior's 1 where 1 / (1 + S) is right. The bound then explains the data by
noise rather than by the network: 20 tanh units on 12 rows of a sine are left at their prior from
every start (also from weights that fit), with a noise of the data's own size. Take `NUTS` there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bayes.inference.variational import Guide, Variational

__all__ = ["MeanField"]


@dataclass(frozen=True)
class MeanField(Variational):
    """A mean-field Gaussian guide.

    Single weights come out too narrow and predictions from few rows too wide; see the module.
    """

    @property
    def _name(self) -> str:
        return "mean field"

    def _guide(self, start: Tensor, generator: torch.Generator) -> Guide:
        return _Independent(start, self.init_std)


class _Independent(Guide):
    """z = location + exp(log std) e."""

    def __init__(self, start: Tensor, std: float) -> None:
        self.location = start.clone()
        self.log_std = torch.full_like(start, math.log(std))
        self.parameters = [self.location, self.log_std]

    def sample(self, number: int, generator: torch.Generator) -> tuple[Tensor, list[Tensor]]:
        e = self.location.new_empty(number, len(self.location)).normal_(generator=generator)
        return self.location + self.log_std.exp() * e, [e]

    def score(self, position: Tensor) -> Tensor:
        return (self.location - position) * (-2 * self.log_std).exp()

    def pull(self, gradient: Tensor, normals: list[Tensor]) -> list[Tensor]:
        (e,) = normals
        return [gradient.mean(0), (gradient * e).mean(0) * self.log_std.exp()]

    def entropy(self) -> Tensor:
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()
