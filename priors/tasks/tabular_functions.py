"""Tasks as tables have them: structural causal models, trees, linear models.

Sources: random structural models for tabular tasks, Hollmann et al. 2023 (2207.01848), section 4;
trees beside them, Qu et al. 2025 (2502.05564), section 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from priors.posteriors.gaussian import GaussianPosterior
from priors.randomness import RandomSource
from priors.tasks.base import LatentTaskPrior, gaussian_oracle, relevance
from priors.tasks.grouping import groups
from priors.tasks.observation import RandomNoise
from priors.tasks.task import Task
from priors.tasks.validation import check_probabilities

__all__ = ["CausalTaskPrior", "LinearTaskPrior", "TreeTaskPrior"]

REFERENCE_ROWS = 128

MECHANISMS: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.tanh,
    torch.relu,
    lambda x: x,
    torch.sin,
    torch.abs,
    lambda x: torch.nn.functional.leaky_relu(x, 0.1),
    lambda x: x.clamp(-3, 3).square(),
    lambda x: torch.exp(-x.square()),
    torch.sign,
    torch.floor,
)


@dataclass(frozen=True)
class CausalTaskPrior(LatentTaskPrior):
    """Structural causal models: features and target are nodes of one random graph.

    Root causes of random distribution feed layers of nodes. A node is a random nonlinearity of a
    sparse random sum of nodes of the two layers before it, plus noise of its own. Features are
    random nodes of any layer, the target is one of the last two: it may cause a feature, share
    causes with it, or have nothing to do with it. Nodes are standardised by rows that are then
    thrown away, so that the scale of a task tells nothing about its queries.

    There is no function of the features alone: `Task.f` is None and `Task.noise_var` infinite,
    unless `noise` adds measurement noise to the node, which is then f.

    Attributes:
        size: How large tasks are.
        inputs: Distribution of the root causes.
        noise: Noise of measurement; None where the target is the node itself.
        max_layers: Most layers after the root causes.
        max_width: Most nodes of a layer, more where features or outputs need them.
    """

    noise: RandomNoise | None = None
    max_layers: int = 4
    max_width: int = 32

    def __post_init__(self) -> None:
        if self.max_layers < 1 or self.max_width < 1:
            raise ValueError(
                "max_layers and max_width must be at least 1, got "
                f"{self.max_layers} and {self.max_width}."
            )

    @property
    def description(self) -> str:
        """One line for a checkpoint."""
        return (
            f"structural causal models of up to {self.max_layers} layers, "
            f"{self.size.description} (priors.CausalTaskPrior)"
        )

    def draw(
        self, draws: RandomSource, batch: int, points: int, features: int, outputs: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Inputs and targets, both nodes of the graph."""
        layers = draws.integer(1, self.max_layers)
        least = max(2, outputs, -(-(features + outputs) // (layers + 1)))
        width = draws.log_integer(least, max(least, self.max_width))
        rows = points + REFERENCE_ROWS
        causes = self.inputs.draw(draws, batch, rows, width)
        nodes = [_standardised(causes)]
        shared = draws.integers(len(MECHANISMS), batch)
        varied = draws.bernoulli(0.5, batch)
        density = draws.log_uniform(0.1, 1.0, batch, 1, 1)
        noise_std = draws.log_uniform(1e-3, 0.5, batch, 1, 1) * draws.bernoulli(0.8, batch, 1, 1)
        gain = draws.log_uniform(0.5, 3.0, batch, 1, 1)
        for _ in range(layers):
            parents = torch.cat(nodes[-2:], -1)
            weights = draws.normal(batch, parents.shape[-1], width)
            kept = draws.uniform(batch, parents.shape[-1], width)
            kept = (kept < density) | (kept == kept.amin(1, keepdim=True))
            weights = gain * torch.nn.functional.normalize(weights * kept, dim=1)
            z = torch.baddbmm(0.5 * draws.normal(batch, 1, width), parents, weights)
            mechanism = torch.where(varied, draws.integers(len(MECHANISMS), batch), shared)
            h = torch.empty_like(z)
            alike = groups(mechanism, len(MECHANISMS))
            for phi, which in zip(MECHANISMS, alike, strict=True):
                if len(which):
                    h[which] = phi(z[which])
            own = noise_std * torch.exp(draws.normal(batch, 1, width))
            nodes.append(_standardised(_standardised(h) + own * draws.normal(batch, rows, width)))
        # The targets are nodes of the last two layers, features any others.
        total = (layers + 1) * width
        order = draws.uniform(batch, total)
        late = torch.arange(total, device=draws.device) >= total - 2 * width
        targets = (order + late).argsort(-1, descending=True)[:, :outputs]
        order = order.scatter(1, targets, -1.0)
        chosen = torch.cat([order.argsort(-1, descending=True)[:, :features], targets], -1)
        values = torch.cat(nodes, -1)[:, :points]
        values = values.gather(-1, chosen[:, None].expand(-1, points, -1))
        latents = {"nodes": chosen}
        return values[..., :features], values[..., features:], latents


def _standardised(values: Tensor) -> Tensor:
    """To mean 0 and variance 1 over the last, thrown-away rows `[B, rows, nodes]`; constants to 0.

    Values are kept within 30 deviations.
    """
    reference = values[:, -REFERENCE_ROWS:]
    std = reference.std(1, keepdim=True, correction=0)
    centred = values - reference.mean(1, keepdim=True)
    return torch.where(std > 1e-4, centred / std.clamp_min(1e-4), 0.0).clamp(-30, 30)


@dataclass(frozen=True)
class TreeTaskPrior(LatentTaskPrior):
    """Sums of random decision trees: piecewise constant functions of mean 0 and variance 1.

    A node splits on one feature, or in some tasks on a random sum of few, at the value of a
    random row. Features of different relevance are split on with different probability. Every
    node adds a normal number to the value of the points in it, with weights that decay with the
    depth, so that neighbouring leaves are alike.

    Attributes:
        size: How large tasks are.
        inputs: Where inputs lie.
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
                "max_trees is at least 1 and max_depth lies in 1 .. 12, got "
                f"{self.max_trees} and {self.max_depth}."
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


@dataclass(frozen=True)
class LinearTaskPrior(LatentTaskPrior):
    """Linear functions: f = sum_j w_j x_j + c, w_j ~ N(0, v_j), c ~ N(0, v_0).

    The variances v sum to 1, so that f has variance 1 at inputs of unit variance.

    Attributes:
        size: How large tasks are.
        inputs: Where inputs lie.
        noise: Noise of the targets; see `LatentTaskPrior`.
        sparse: Probability that weights differ in their variance, some 0; see
            `priors.tasks.base.relevance`. Where they do not, all v_j are equal.
        intercept: Largest share of v_0, which is uniform from 0.
    """

    sparse: float = 0.5
    intercept: float = 0.5

    def __post_init__(self) -> None:
        check_probabilities(self, "sparse")
        if not 0 <= self.intercept < 1:
            raise ValueError(f"intercept is a share in [0, 1), got {self.intercept}.")

    @property
    def description(self) -> str:
        """One line for a checkpoint."""
        return f"linear functions, {self.size.description} (priors.LinearTaskPrior)"

    def draw(
        self, draws: RandomSource, batch: int, points: int, features: int, outputs: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Inputs, linear functions and the variances of their coefficients."""
        X = self.inputs.draw(draws, batch, points, features)
        weights = relevance(draws, batch, features, uneven=self.sparse)
        weights = weights / weights.sum(-1, keepdim=True)
        bias_var = self.intercept * draws.uniform(batch)
        weight_var = weights * (1 - bias_var)[:, None]
        w = weight_var.sqrt()[..., None] * draws.normal(batch, features, outputs)
        c = bias_var.sqrt()[:, None, None] * draws.normal(batch, 1, outputs)
        latents = {"weight_var": weight_var, "bias_var": bias_var}
        return X, torch.baddbmm(c, X, w), latents

    def covariance(self, X: Tensor, latents: dict[str, Tensor]) -> Tensor:
        """Covariance of f at `X` `[B, N, d]` given the variances, `[B, N, N]`."""
        products = (X * latents["weight_var"].to(X)[:, None]) @ X.mT
        return products + latents["bias_var"].to(X)[:, None, None]

    def oracle(self, task: Task) -> GaussianPosterior:
        """Posterior of y at the queries of `task` given its context and the variances.

        With `sparse` and `intercept` 0 only the noise variance is known that a network has to
        infer.
        """
        return gaussian_oracle(task, self.covariance(task.X.double(), task.latents))
