"""Tasks whose functions are random networks, finite here, infinite in `gaussian_processes`.

One random family for both: depth, activation phi and variances w (weights) and b (biases) are
drawn per network. With m(q) = E phi(z)^2, z ~ N(0, q), and relevances r_j of the features that sum
to 1, the layers are

    z_1 = sqrt(w) sum_j sqrt(r_j) W_j x_j + sqrt(b) B
    h_l = phi(z_l) / sqrt(m(w + b))
    z_{l+1} = sqrt(w / width) W h_l + sqrt(b) B,   f = sqrt(1 / width) V h_L

with standard normal W, B and V: the NTK parametrisation of `priors.networks`, with the weight
variance w / m(w + b). At an input of sum_j r_j x_j^2 = 1 every z_l has variance w + b and f has
variance 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from priors.gaussian.activations import GELU, ABReLU, Activation, Erf, Sine
from priors.randomness import RandomSource
from priors.tasks.base import LatentTaskPrior, relevance
from priors.tasks.grouping import groups, members

__all__ = ["ACTIVATIONS", "NetworkTaskPrior", "draw_networks", "network_covariance"]

ACTIVATIONS: tuple[Activation, ...] = (
    ABReLU(0.0, 1.0),
    ABReLU(0.2, 1.0),
    ABReLU(-1.0, 1.0),
    Erf(),
    GELU(),
    Sine(),
)
MAX_DEPTH = 5


def draw_networks(draws: RandomSource, *shape: int) -> dict[str, Tensor]:
    """Hyperparameters of random networks, each `[*shape]`."""
    return {
        "activation": draws.integers(len(ACTIVATIONS), *shape),
        "depth": ((MAX_DEPTH + 1) ** draws.uniform(*shape)).long().clamp(1, MAX_DEPTH),
        "weight_var": draws.log_uniform(0.25, 4.0, *shape),
        "bias_var": draws.log_uniform(1e-2, 1.0, *shape) * draws.bernoulli(0.7, *shape),
    }


def network_covariance(
    products: Tensor, pairs: tuple[Tensor, Tensor], squares: Tensor, latents: dict[str, Tensor]
) -> Tensor:
    """Covariance of the outputs of infinitely wide networks, at pairs of rows.

    Args:
        products: sum_j r_j x_j x'_j for P pairs of rows, `[A, P]`.
        pairs: The numbers of the rows of each pair, both `[P]`.
        squares: sum_j r_j x_j^2 of every row, `[A, N]`.
        latents: As from `draw_networks`, each `[A]`.

    Returns:
        `[A, P]`.
    """
    w, b = latents["weight_var"][:, None], latents["bias_var"][:, None]
    out = w * products + b
    kind = MAX_DEPTH * latents["activation"] + latents["depth"] - 1
    alike = groups(kind, MAX_DEPTH * len(ACTIVATIONS))
    for index, phi in enumerate(ACTIVATIONS):
        by_depth = alike[MAX_DEPTH * index : MAX_DEPTH * (index + 1)]
        which = torch.cat(by_depth)
        if not len(which):
            continue
        K, q = out[which], (w * squares + b)[which]
        for ending in by_depth:
            w1, b1 = w[which], b[which]
            scale = phi.second_moment(w1 + b1)
            K = phi.dual(phi, q[:, pairs[0]], q[:, pairs[1]], K) / scale
            done = len(ending)  # those of this depth come first
            out[ending] = K[:done]
            which = which[done:]
            if not len(which):
                break
            K = w1[done:] * K[done:] + b1[done:]
            q = (w1 * phi.second_moment(q) / scale + b1)[done:]
    return out


@dataclass(frozen=True)
class NetworkTaskPrior(LatentTaskPrior):
    """Functions of finite random multilayer perceptrons.

    The width is log-uniform, one per call; depth (1 to 5 hidden layers), activation, variances and
    relevances of the features are drawn per task. f has mean 0 and variance about 1.

    Attributes:
        size: How large tasks are.
        inputs: How inputs are drawn.
        noise: Noise of the targets; see `LatentTaskPrior`.
        min_width: Least width of hidden layers.
        max_width: Largest width of hidden layers.
    """

    min_width: int = 4
    max_width: int = 128

    def __post_init__(self) -> None:
        if not 1 <= self.min_width <= self.max_width:
            raise ValueError(
                f"min_width must be at least 1 and at most max_width, got {self.min_width} and "
                f"{self.max_width}."
            )

    @property
    def description(self) -> str:
        """One line for a checkpoint."""
        return (
            f"finite random networks of width {self.min_width}-{self.max_width}, "
            f"{self.size.description} (priors.NetworkTaskPrior)"
        )

    def draw(
        self, draws: RandomSource, batch: int, points: int, features: int, outputs: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Inputs, network outputs and the networks' hyperparameters."""
        X = self.inputs.draw(draws, batch, points, features)
        latents = draw_networks(draws, batch)
        weights = relevance(draws, batch, features)
        latents["relevance"] = weights / weights.sum(-1, keepdim=True)
        span = (self.max_width + 1) / self.min_width
        width = min(int(self.min_width * span ** draws.number()), self.max_width)
        w = latents["weight_var"][:, None, None]
        b = latents["bias_var"][:, None, None]
        h = X * latents["relevance"][:, None].sqrt()
        fan_in = 1
        F = X.new_zeros(batch, points, outputs)
        depth, layers = latents["depth"], torch.arange(1, MAX_DEPTH + 1, device=X.device)[:, None]
        reached, ending = members(depth >= layers), members(depth == layers)
        for which, last in zip(reached, ending, strict=True):
            if not len(which):
                break
            matrix = draws.normal(batch, h.shape[-1], width)
            bias = draws.normal(batch, 1, width)
            readout = draws.normal(batch, width, outputs) * width**-0.5
            z = torch.baddbmm(
                b[which].sqrt() * bias[which], h[which], (w[which] / fan_in).sqrt() * matrix[which]
            )
            new = torch.empty_like(z)
            alike = groups(latents["activation"][which], len(ACTIVATIONS))
            for phi, chosen in zip(ACTIVATIONS, alike, strict=True):
                if len(chosen):
                    q = (w + b)[which[chosen]]
                    new[chosen] = phi(z[chosen]) / phi.second_moment(q).sqrt()
            h = X.new_zeros(batch, points, width)
            h[which] = new
            F[last] = h[last] @ readout[last]
            fan_in = width
        return X, F, latents
