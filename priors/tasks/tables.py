"""Columns as in real tables: categories, missing values, irrelevant ones, odd scales.

`Tabular` changes what is seen of the tasks of any prior, not the functions behind them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from priors.randomness import RandomSource
from priors.tasks.inputs import RandomInputs
from priors.tasks.task import Task, TaskPrior, describe

__all__ = ["Tabular"]

MAX_CATEGORIES = 10


@dataclass(frozen=True)
class Tabular:
    """Tasks of another prior, seen as the columns of a table.

    The share of columns that is changed differs by task, and is 0 for many tasks; see
    `priors.randomness.RandomSource.share`. In this order, columns are

    * warped: a random monotone function (sinh-arcsinh: skewed, or with other tails);
    * joined by irrelevant ones at random positions;
    * made categorical: cut at the values of random rows into up to 10 categories, numbered at
      random;
    * given missing values (NaN): in random rows, or in those with the largest or the smallest
      values.

    Targets are warped in a share of the tasks, f with them; the noise variance is then infinite,
    since the noise is no longer of one kind. Classes are left alone.

    `f` and `noise_var` stay those of the underlying inputs: what the columns no longer show is left
    to be inferred. The latent "column" `[B, d]` has the feature of the underlying task at every
    column, -1 for an irrelevant one; other latents keep the underlying order.

    Attributes:
        prior: The prior that draws the tasks.
        categorical: Mean share of categorical columns.
        missing: Mean share of missing values.
        irrelevant: Mean number of irrelevant columns for each relevant one; one number per call.
        warp: Mean share of warped columns, among those not categorical.
        warp_target: Probability that the targets of a task are warped.
        max_features: Most columns altogether; fewer irrelevant ones are added if necessary.
        inputs: Distribution of the irrelevant columns.
    """

    prior: TaskPrior
    categorical: float = 0.2
    missing: float = 0.1
    irrelevant: float = 0.2
    warp: float = 0.2
    warp_target: float = 0.1
    max_features: int = 20
    inputs: RandomInputs = RandomInputs()

    def __post_init__(self) -> None:
        for name in ("categorical", "missing", "irrelevant", "warp", "warp_target"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}.")
        if self.max_features < 1:
            raise ValueError(f"max_features must be at least 1, got {self.max_features}.")

    @property
    def description(self) -> str:
        """One line for a checkpoint."""
        inner = describe(self.prior)
        return (
            f"{inner}; columns categorical {self.categorical:g}, missing {self.missing:g}, "
            f"irrelevant {self.irrelevant:g}, warped {self.warp:g}, targets warped "
            f"{self.warp_target:g}"
        )

    def sample(
        self,
        batch: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Task:
        """Draw `batch` tasks; see `Task`."""
        task = self.prior.sample(batch, generator=generator, device=device, dtype=dtype)
        draws = RandomSource(generator, task.X.device, task.X.dtype)
        B, N, d = task.X.shape
        before = torch.zeros(B, d, dtype=torch.bool, device=draws.device)
        if task.categorical is not None:
            before = task.categorical
        X = task.X
        if self.warp > 0:
            chosen = draws.bernoulli(draws.share(self.warp, B, 1), B, d) & ~before
            X = torch.where(chosen[:, None], _warp(draws, X, B, 1, d), X)
        column = torch.arange(d, device=draws.device).expand(B, d)
        most = min(round(2 * self.irrelevant * d), self.max_features - d)
        extra = draws.integer(0, most) if most > 0 else 0
        if extra:
            X = torch.cat([X, self.inputs.draw(draws, B, N, extra)], -1)
            column = torch.cat([column, column.new_full((B, extra), -1)], -1)
            before = torch.cat([before, before.new_zeros(B, extra)], -1)
            order = draws.permutations(d + extra, B)
            X = X.gather(-1, order[:, None].expand_as(X))
            column, before = column.gather(-1, order), before.gather(-1, order)
        chosen = draws.bernoulli(draws.share(self.categorical, B, 1), B, d + extra) & ~before
        if bool(chosen.any()):
            X = torch.where(chosen[:, None] & ~X.isnan(), _categories(draws, X), X)
        if self.missing > 0:
            X = X.masked_fill(_missing(draws, X, self.missing), torch.nan)
        task = replace(
            task,
            X=X,
            categorical=before | chosen,
            latents={**task.latents, "column": column},
            features=None if task.features is None else _moved(task.features, column),
        )
        return self._warped_targets(draws, task)

    def _warped_targets(self, draws: RandomSource, task: Task) -> Task:
        if task.num_classes is not None or self.warp_target == 0:
            return task
        B = len(task.y)
        chosen = draws.bernoulli(self.warp_target, B)
        y, f = (task.y, task.y) if task.f is None else (task.y, task.f)
        both = torch.where(
            chosen[:, None, None],
            _warp(draws, torch.cat([y, f], -1), B, 1, 1),
            torch.cat([y, f], -1),
        )
        by_row = chosen[:, None] if task.noise_var.dim() == 2 else chosen
        return replace(
            task,
            y=both[..., :1],
            f=None if task.f is None else both[..., 1:],
            noise_var=task.noise_var.masked_fill(by_row, torch.inf),
        )


def _moved(features: Tensor, column: Tensor) -> Tensor:
    return features.gather(-1, column.clamp_min(0)) | (column < 0)


def _warp(draws: RandomSource, values: Tensor, *shape: int) -> Tensor:
    """Random increasing functions, one for each of `shape`, which broadcasts with `values`.

    sinh(delta (arcsinh(x) + epsilon)) (Jones & Pewsey 2009), brought to mean 0 and variance 1 for
    standard normal x.
    """
    delta, epsilon = draws.log_uniform(0.5, 1.5, *shape), 0.7 * draws.normal(*shape)

    def curve(x: Tensor) -> Tensor:
        return torch.sinh(delta * (torch.asinh(x.clamp(-50, 50)) + epsilon.clamp(-1.5, 1.5)))

    levels = (torch.arange(100, dtype=draws.dtype, device=draws.device) + 0.5) / 100
    reference = curve(torch.special.ndtri(levels).reshape(-1, *(1,) * len(shape)))
    mean, std = reference.mean(0), reference.std(0)
    return (curve(values) - mean) / std


def _categories(draws: RandomSource, X: Tensor) -> Tensor:
    """Category numbers of every value of `X` `[B, N, d]`, with cuts and numbers of its column."""
    B, N, d = X.shape
    count = 2 + draws.integers(MAX_CATEGORIES - 1, B, 1, d)
    cuts = X.gather(1, draws.integers(N, B, MAX_CATEGORIES - 1, d))
    number = torch.zeros(B, N, d, dtype=torch.long, device=X.device)
    for index in range(MAX_CATEGORIES - 1):
        number += (X > cuts[:, index : index + 1]) & (count > index + 1)
    usable = torch.arange(MAX_CATEGORIES, device=X.device)[:, None] < count
    names = (draws.uniform(B, MAX_CATEGORIES, d) + 2 * ~usable).argsort(1)
    # the names of the usable numbers are the ranks of their keys
    return names.argsort(1).gather(1, number).to(X)


def _missing(draws: RandomSource, X: Tensor, mean: float) -> Tensor:
    """Which values of `X` `[B, N, d]` are missing, at the mean rate `mean`.

    Half of the columns lose values at random, the others their largest or smallest.
    """
    B, N, d = X.shape
    rate = draws.share(mean, B, 1, 1)
    rate = rate + (2 * draws.uniform(B, 1, d) - 1) * rate.minimum(1 - rate)
    sign = torch.where(draws.bernoulli(0.5, B, 1, d), 1.0, -1.0).to(X)
    noise = draws.uniform(B, N, d)
    # Ranks are softened by noise: which values are missing is a matter of chance all the same.
    soft = sign * X + 0.3 * draws.normal(B, N, d)
    rank = (soft.argsort(1).argsort(1).to(X) + noise) / N
    return torch.where(draws.bernoulli(0.5, B, 1, d), noise, rank) < rate
