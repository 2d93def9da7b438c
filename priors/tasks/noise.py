"""The noise on the targets of tasks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from priors.randomness import RandomSource
from priors.tasks.validation import check_probabilities

__all__ = ["RandomNoise"]


@dataclass(frozen=True)
class RandomNoise:
    """Noise of random level and, in some tasks, of random shape.

    Some of the tasks have a log-uniform variance on [low, 1], the others a uniform one on
    [0.2, high]. Where noise is heteroscedastic, the logarithm of the variance is a random sinusoid
    of the inputs around that level; where it has outliers, a random share of the rows, up to a
    tenth, has noise with three degrees of freedom and five times the deviation.

    Attributes:
        low: Smallest variance.
        high: Largest variance.
        moderate: Share of the tasks whose variance is uniform on [0.2, high].
        heteroscedastic: Probability that the noise of a task depends on the inputs.
        outliers: Probability that a task has outliers. Its noise variance is then infinite: the
            noise is not Gaussian.
    """

    low: float = 1e-4
    high: float = 2.0
    moderate: float = 0.5
    heteroscedastic: float = 0.0
    outliers: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.low <= 1 or not self.high >= 0.2:
            raise ValueError(
                "low, the smallest noise variance, must lie in (0, 1], and high, the largest, "
                f"must be at least 0.2; got {self.low} and {self.high}."
            )
        check_probabilities(self, "moderate", "heteroscedastic", "outliers")

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
            draws.bernoulli(1 - self.moderate, B),
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
