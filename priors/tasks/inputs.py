"""Distributions of the inputs of tasks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from priors.randomness import RandomSource
from priors.tasks.grouping import members
from priors.tasks.validation import check_probabilities

__all__ = ["INPUT_KINDS", "RandomInputs"]

INPUT_KINDS = ("uniform", "normal", "correlated", "clusters", "heavy", "grid", "line")


@dataclass(frozen=True)
class RandomInputs:
    """Inputs of random distribution, each feature of mean 0 and variance 1 under the prior.

    Kinds: "uniform"; "normal"; "correlated", a normal whose factors have decaying weights;
    "clusters", a mixture of 2 to 8 normals; "heavy", Student's t with 3 degrees of freedom; "grid",
    2 to 10 equidistant values; "line", points on one line through the origin.

    Attributes:
        kinds: Kinds to choose from, with equal probability.
        mixed: Probability that the features of a task are of different kinds.
    """

    kinds: tuple[str, ...] = INPUT_KINDS
    mixed: float = 0.3

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in INPUT_KINDS]
        if unknown or not self.kinds:
            raise ValueError(f"kinds of inputs must be among {INPUT_KINDS}, got {self.kinds}.")
        check_probabilities(self, "mixed")

    def draw(self, draws: RandomSource, batch: int, points: int, features: int) -> Tensor:
        """Inputs `[batch, points, features]`."""
        shared = draws.integers(len(self.kinds), batch, 1, 1)
        single = draws.integers(len(self.kinds), batch, 1, features)
        kind = torch.where(draws.bernoulli(self.mixed, batch, 1, 1), single, shared)
        kind = kind.expand(batch, 1, features)
        X = draws.uniform(0).new_empty(batch, points, features)
        kinds = torch.arange(len(self.kinds), device=X.device)
        having = members((kind[:, 0] == kinds[:, None, None]).any(-1))
        for index, (name, which) in enumerate(zip(self.kinds, having, strict=True)):
            if len(which):
                drawn = _input(name, draws, len(which), points, features)
                X[which] = torch.where(kind[which] == index, drawn, X[which])
        return X


def _input(kind: str, draws: RandomSource, batch: int, points: int, features: int) -> Tensor:
    shape = batch, points, features
    match kind:
        case "uniform":
            return (draws.uniform(*shape) - 0.5) * 12**0.5
        case "normal":
            return draws.normal(*shape)
        case "correlated":
            decay = 2 * draws.uniform(batch, 1, 1)
            rank = torch.arange(1, features + 1, device=draws.device)
            factors = draws.normal(batch, features, features) * rank**-decay
            return draws.normal(*shape) @ torch.nn.functional.normalize(factors, dim=-1).mT
        case "clusters":
            centres = draws.normal(batch, 8, features)
            usable = torch.arange(8, device=draws.device) < 2 + draws.integers(7, batch, 1)
            weights = (draws.uniform(batch, 8) + 0.05) * usable
            bounds = (weights / weights.sum(-1, keepdim=True)).cumsum(-1)
            chosen = torch.searchsorted(bounds, draws.uniform(batch, points)).clamp(max=7)
            spread = draws.log_uniform(1e-3, 0.5, batch, 1, 1)
            centre = centres.gather(1, chosen[..., None].expand(shape))
            return (1 - spread).sqrt() * centre + spread.sqrt() * draws.normal(*shape)
        case "heavy":
            # t_3 has variance 3; the floor keeps inputs below 1e3
            return draws.normal(*shape) / (2 * draws.gamma(1.5, *shape)).sqrt().clamp_min(1e-2)
        case "grid":
            count = (2 + draws.integers(9, batch, 1, features)).to(draws.dtype)
            level = (draws.uniform(*shape) * count).floor().minimum(count - 1)
            return (level - (count - 1) / 2) * (12 / (count**2 - 1)).sqrt()
        case "line":
            position = torch.where(
                draws.bernoulli(0.5, batch, 1, 1),
                (draws.uniform(batch, points, 1) - 0.5) * 12**0.5,
                draws.normal(batch, points, 1),
            )
            return position * draws.normal(batch, 1, features)
    raise ValueError(f"unknown kind of inputs {kind!r}, known are {INPUT_KINDS}.")
