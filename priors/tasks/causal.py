"""Random structural causal models as tasks.

Source: random structural models for tabular tasks, Hollmann et al. 2023 (2207.01848), section 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from priors.randomness import RandomSource
from priors.tasks.base import LatentTaskPrior
from priors.tasks.grouping import groups
from priors.tasks.noise import RandomNoise

__all__ = ["CausalTaskPrior"]

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
