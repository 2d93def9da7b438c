"""How tasks are observed: where their inputs lie, and what noise is on their targets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from priors.randomness import RandomSource
from priors.tasks.grouping import members
from priors.tasks.validation import check_probabilities

__all__ = ["INPUT_KINDS", "RandomInputs", "RandomNoise"]

INPUT_KINDS = ("uniform", "normal", "correlated", "clusters", "heavy", "grid", "line")


@dataclass(frozen=True)
class RandomInputs:
    """Inputs of random distribution, each feature of mean 0 and variance 1 under the prior.

    Kinds: "uniform"; "normal"; "correlated", a normal whose factors have decaying weights;
    "clusters", a mixture of 2 to 8 normals; "heavy", Student's t with 3 degrees of freedom; "grid",
    2 to 10 equidistant values; "line", points on one line through the origin.

    Attributes:
        kinds: What to choose from, with equal probability.
        mixed: Probability that the features of a task are of different kinds.
    """

    kinds: tuple[str, ...] = INPUT_KINDS
    mixed: float = 0.3

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in INPUT_KINDS]
        if unknown or not self.kinds:
            raise ValueError(f"kinds of inputs are {INPUT_KINDS}, got {self.kinds}.")
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


@dataclass(frozen=True)
class RandomNoise:
    """Noise of random level and, in some tasks, of random shape.

    Half of the tasks have a log-uniform variance on [low, 1], the others a uniform one on
    [0.2, high]. Where noise is heteroscedastic, the logarithm of the variance is a random sinusoid
    of the inputs around that level; where it has outliers, a random share of the rows, up to a
    tenth, has noise with three degrees of freedom and five times the deviation.

    Attributes:
        low: Smallest variance.
        high: Largest variance.
        heteroscedastic: Probability that the noise of a task depends on the inputs.
        outliers: Probability that a task has outliers. Its noise variance is then infinite: the
            noise is not Gaussian.
    """

    low: float = 1e-4
    high: float = 2.0
    heteroscedastic: float = 0.0
    outliers: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.low <= 1 or not self.high >= 0.2:
            raise ValueError(
                "low, the least noise variance, lies in (0, 1] and high, the largest, is at least "
                f"0.2; got {self.low} and {self.high}."
            )
        check_probabilities(self, "heteroscedastic", "outliers")

    def draw(self, draws: RandomSource, X: Tensor) -> tuple[Tensor, Tensor]:
        """Noise at the inputs `X` `[B, N, d]`.

        Returns:
            The noise `[B, N]` and its variance, `[B]`, or `[B, N]` where it may differ by row.
        """
        B, N, _ = X.shape
        noise_var = self.draw_variance(draws, X)
        rows = noise_var if noise_var.dim() == 2 else noise_var[:, None]
        noise = rows.sqrt() * draws.normal(B, N)
        if self.outliers > 0:
            has = draws.bernoulli(self.outliers, B)
            wild = draws.bernoulli(draws.uniform(B, 1) * 0.1, B, N) & has[:, None]
            t = draws.normal(B, N) / (2 * draws.gamma(1.5, B, N)).sqrt().clamp_min(1e-2)
            noise = torch.where(wild, 5 * rows.sqrt() * t, noise)
            infinite = has if noise_var.dim() == 1 else has[:, None]
            noise_var = noise_var.masked_fill(infinite, torch.inf)
        return noise, noise_var

    def draw_variance(self, draws: RandomSource, X: Tensor) -> Tensor:
        """Noise variances at the inputs but for outliers, `[B]`, or `[B, N]` if they may differ."""
        B, _, d = X.shape
        noise_var = torch.where(
            draws.bernoulli(0.5, B),
            draws.log_uniform(self.low, 1.0, B),
            0.2 + (self.high - 0.2) * draws.uniform(B),
        )
        if self.heteroscedastic > 0:
            direction = torch.nn.functional.normalize(draws.normal(B, d, 1), dim=1)
            frequency = draws.log_uniform(0.2, 3.0, B, 1, 1)
            wave = torch.sin(X @ direction * frequency + 6.2832 * draws.uniform(B, 1, 1))[..., 0]
            strength = draws.log_uniform(0.5, 3.0, B, 1)
            strength = strength * draws.bernoulli(self.heteroscedastic, B, 1)
            # E exp(s sin U) = I_0(s)
            noise_var = noise_var[:, None] * torch.exp(strength * wave) / torch.i0(strength)
        return noise_var
