"""Sums of random decision trees as tasks.

Source: trees beside structural models, Qu et al. 2025 (2502.05564), section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from priors.randomness import RandomSource
from priors.tasks.base import LatentTaskPrior, relevance
from priors.tasks.validation import check_probabilities

__all__ = ["TreeTaskPrior"]


@dataclass(frozen=True)
class TreeTaskPrior(LatentTaskPrior):
    """Sums of random decision trees: piecewise constant functions of mean 0 and variance 1.

    A node splits on one feature, or in some tasks on a random sum of few, at the value of a
    random row. Features of different relevance are split on with different probability. Every
    node adds a normal number to the value of the points in it, with weights that decay with the
    depth, so that neighbouring leaves are alike.

    Attributes:
        size: How large tasks are.
        inputs: How inputs are drawn.
        noise: Noise of the targets; see `LatentTaskPrior`.
        max_trees: Most trees of a function.
        max_depth: Most splits above a leaf.
        oblique: Probability that a task splits on sums of features.
    """

    max_trees: int = 16
    max_depth: int = 6
    oblique: float = 0.2

    def __post_init__(self) -> None:
        if self.max_trees < 1 or not 1 <= self.max_depth <= 12:
            raise ValueError(
                f"max_trees must be at least 1 and max_depth in 1 .. 12, got {self.max_trees} "
                f"and {self.max_depth}."
            )
        check_probabilities(self, "oblique")

    @property
    def description(self) -> str:
        """One line for a checkpoint."""
        return (
            f"ensembles of 1-{self.max_trees} random trees, {self.size.description} "
            "(priors.TreeTaskPrior)"
        )

    def draw(
        self, draws: RandomSource, batch: int, points: int, features: int, outputs: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Inputs and the values of the trees."""
        X = self.inputs.draw(draws, batch, points, features)
        trees = draws.log_integer(1, self.max_trees)
        relevant = relevance(draws, batch, features)
        # Column j of `sums` is feature j, in oblique tasks plus random others.
        sparse = draws.normal(batch, features, features)
        sparse = sparse * draws.bernoulli(2 / features, batch, features, features)
        sums = torch.eye(features, dtype=X.dtype, device=X.device)
        sums = sums + sparse * relevant[:, :, None] * draws.bernoulli(self.oblique, batch, 1, 1)
        split = X @ sums
        bounds = (relevant / relevant.sum(-1, keepdim=True)).cumsum(-1)
        depth = 1 + draws.integers(self.max_depth, batch)
        decay = 0.5 + 0.7 * draws.uniform(batch)
        nodes = 2**self.max_depth - 1
        feature = torch.searchsorted(bounds, draws.uniform(batch, trees * nodes), right=True)
        feature = feature.clamp(max=features - 1)
        row = draws.integers(points, batch, trees * nodes)
        threshold = split.flatten(1).gather(1, row * features + feature)
        values = draws.normal(batch, trees * (2 * nodes + 1), outputs)
        first = (torch.arange(trees, device=X.device) * nodes)[:, None]
        node = torch.zeros(batch, trees, points, dtype=torch.long, device=X.device)
        rows = torch.arange(points, device=X.device) * features
        F = X.new_zeros(batch, points, outputs)
        squares = X.new_zeros(batch)
        for level in range(1, self.max_depth + 1):
            at = (first + node).flatten(1)
            column = feature.gather(1, at).view_as(node)
            value = split.flatten(1).gather(1, (rows + column).flatten(1))
            right = value > threshold.gather(1, at)
            node = 2 * node + 1 + right.view_as(node)
            weight = decay**level * (depth >= level)
            index = node + (2 * nodes + 1) * torch.arange(trees, device=X.device)[:, None]
            index = index.flatten(1)[..., None].expand(-1, -1, outputs)
            part = values.gather(1, index).view(batch, trees, points, outputs).sum(1)
            F += weight[:, None, None] * part
            squares += trees * weight.square()
        latents = {"depth": depth, "relevance": relevant}
        return X, F / squares.sqrt()[:, None, None], latents
