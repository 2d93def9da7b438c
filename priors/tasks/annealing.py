"""Posterior draws of everything that a task prior draws: long runs of annealed Markov chains.

A task prior is a program that turns random numbers into hyperparameters. As a function of
independent standard normal numbers z its posterior is N(0, I) times the likelihood, whatever the
program does with them: discrete choices, masks, products. So one sampler serves every prior. Its
proposals leave N(0, I) invariant (the preconditioned Crank-Nicolson proposal, Cotter et al. 2013,
eq. 4.3; random numbers as the state of a chain: Kelemen et al. 2002),

    z'_i = sqrt(1 - b^2) z_i + b e_i,   e_i ~ N(0, 1), for a random subset of the numbers

with a random step b, and are accepted by the likelihood alone. Chains start in the prior and are
annealed to the posterior by sequential Monte Carlo (Del Moral et al. 2006), tempering the
likelihood so that at every stage half of the particles remain effective; all tasks at once.

The average of the particles' predictive distributions approaches the exact posterior predictive.
Short of it the average is another predictive distribution, which no more than any other beats the
exact one on average over tasks: the gap to it is a lower bound of the gap to the exact posterior.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from priors.posteriors.gaussian_mixture import GaussianMixturePosterior
from priors.randomness import RandomSource
from priors.tasks.oracles import (
    check_complete_regression,
    gaussian_log_evidence,
    gaussian_predictions,
)
from priors.tasks.task import Task
from priors.tasks.validation import check_at_least

__all__ = ["AnnealedSampler", "gaussian_average"]

# RandomSource, number of rows -> what is drawn, each [rows, ...].
Program = Callable[[RandomSource, int], dict[str, Tensor]]

_SMALLEST_STEP = 0.02
_MAX_STAGES = 200
_ELEMENTS = 2**23  # of the matrices that are held at once
_LARGEST_UNIFORM = 1 - 2.0**-53


@dataclass(frozen=True)
class AnnealedSampler:
    """A sequential Monte Carlo sampler, and how long it runs.

    Attributes:
        particles: Number of particles of each task.
        moves: Proposals to every particle at each temperature.
        final_moves: Further proposals at the posterior.
        effective: Share of the particles that stays effective from one temperature to the next.
        seed: Seed of everything random.
    """

    particles: int = 64
    moves: int = 5
    final_moves: int = 50
    effective: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(self, particles=2, moves=0, final_moves=0)
        if not 0 < self.effective < 1:
            raise ValueError(f"effective must be a share in (0, 1), got {self.effective}.")

    def run(
        self,
        program: Program,
        log_likelihood: Callable[[dict[str, Tensor]], Tensor],
        tasks: int,
        *,
        device: torch.device | str | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Draw from the posterior of each task.

        Args:
            program: From random numbers and a number of rows to what is drawn, `[rows, ...]`,
                every row from its own numbers. Always the same calls, in float64.
            log_likelihood: Of what was drawn, `[tasks * particles]`; rows of a task are together.
            tasks: Number B of tasks.
            device: Device to compute on.

        Returns:
            What was drawn, `[B * particles, ...]`, and the estimated log evidence `[B]`.

        Raises:
            ValueError: the log likelihood is NaN, or infinite for all particles of a task.
        """
        S, rows = self.particles, tasks * self.particles
        generator = torch.Generator("cpu" if device is None else device).manual_seed(self.seed)
        numbers = _Numbers(generator, rows)

        def evaluate() -> tuple[dict[str, Tensor], Tensor]:
            numbers.rewind()
            latents = program(numbers, rows)
            values = log_likelihood(latents).double()
            if values.shape != (rows,) or bool(values.isnan().any()):
                raise ValueError(
                    f"log_likelihood must give {rows} numbers, got shape {tuple(values.shape)} "
                    f"with {int(values.isnan().sum())} NaN."
                )
            return latents, values

        latents, current = evaluate()
        if not bool(current.view(tasks, S).isfinite().any(-1).all()):
            raise ValueError("No draw from the prior has a positive likelihood for some task.")
        temperature = current.new_zeros(tasks)
        evidence = current.new_zeros(tasks)

        def move() -> None:
            nonlocal latents, current
            before = numbers.propose()
            proposed, value = evaluate()
            gain = temperature.repeat_interleave(S) * (value - current)
            accepted = numbers.fresh_uniform(rows).log() < gain
            numbers.restore(before, ~accepted)
            current = torch.where(accepted, value, current)
            latents = {k: _choose(accepted, proposed[k], v) for k, v in latents.items()}

        for _ in range(_MAX_STAGES):
            if bool((temperature >= 1).all()):
                break
            step = self._next(temperature, current.view(tasks, S))
            weight = _tempered(step, current.view(tasks, S))
            evidence = evidence + weight.logsumexp(-1) - math.log(S)
            temperature = (temperature + step).clamp(max=1.0)
            kept = _resample(weight.softmax(-1), numbers.fresh_uniform(tasks, 1)).flatten()
            numbers.select(kept)
            current = current[kept]
            latents = {name: value[kept] for name, value in latents.items()}
            for _ in range(self.moves):
                move()
        for _ in range(self.final_moves):
            move()
        return latents, evidence

    def _next(self, temperature: Tensor, values: Tensor) -> Tensor:
        """The largest steps that keep the particles effective, `[B]`, by bisection."""
        left = 1 - temperature
        low, high = torch.zeros_like(left), left
        for _ in range(40):
            middle = (low + high) / 2
            effective = _effective(_tempered(middle, values))
            good = effective >= self.effective
            low, high = torch.where(good, middle, low), torch.where(good, high, middle)
        whole = _effective(_tempered(left, values)) >= self.effective
        # A stage always makes some progress, even where few draws have any likelihood.
        return torch.where(whole, left, low.clamp_min(1e-6).minimum(left))


class _Numbers(RandomSource):
    """The random numbers of a program, kept, so that they can be changed and used again."""

    def __init__(self, generator: torch.Generator, rows: int) -> None:
        super().__init__(generator, generator.device, torch.float64)
        self.rows = rows
        self.state: list[Tensor] = []
        self.position = 0

    def rewind(self) -> None:
        self.position = 0

    def normal(self, *shape: int) -> Tensor:
        if not shape or shape[0] != self.rows:
            raise ValueError(
                f"A program to be sampled must draw arrays of {self.rows} rows, got shape {shape}."
            )
        if self.position == len(self.state):
            self.state.append(super().normal(*shape))
        found = self.state[self.position]
        if found.shape != shape:
            raise ValueError(
                f"A program to be sampled must always make the same draws; draw {self.position} "
                f"had shape {tuple(found.shape)} and now has {shape}."
            )
        self.position += 1
        return found

    def uniform(self, *shape: int) -> Tensor:
        return torch.special.ndtr(self.normal(*shape)).clamp(max=_LARGEST_UNIFORM)

    def integers(self, count: int, *shape: int) -> Tensor:
        return (self.uniform(*shape) * count).long()

    def fresh_uniform(self, *shape: int) -> Tensor:
        """Uniform numbers that are not part of the state."""
        return super().uniform(*shape)

    def propose(self) -> list[Tensor]:
        """Replace the numbers by a proposal; returns those before."""
        before = self.state
        step = _SMALLEST_STEP ** self.fresh_uniform(self.rows)
        # Half of the rows change all of their numbers, the others as few as one.
        count = sum(z[0].numel() for z in before)
        share = count ** -(2 * self.fresh_uniform(self.rows) - 1).clamp_min(0)
        self.state = []
        for z in before:
            b, chance = (v.view(-1, *(1,) * (z.dim() - 1)) for v in (step, share))
            new = (1 - b.square()).sqrt() * z + b * super().normal(*z.shape)
            self.state.append(torch.where(self.fresh_uniform(*z.shape) < chance, new, z))
        return before

    def restore(self, before: list[Tensor], rows: Tensor) -> None:
        """Undo a proposal where `rows` is true."""
        self.state = [_choose(rows, old, new) for old, new in zip(before, self.state, strict=True)]

    def select(self, rows: Tensor) -> None:
        """Keep these rows, some of them several times."""
        self.state = [z[rows] for z in self.state]


def _choose(rows: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(rows.view(-1, *(1,) * (a.dim() - 1)), a, b)


def _tempered(step: Tensor, values: Tensor) -> Tensor:
    """Log weights `[B, S]`; 0 times an infinite log likelihood is still no weight."""
    return torch.where(values.isfinite(), step[:, None] * values, -torch.inf)


def _effective(log_weights: Tensor) -> Tensor:
    """Share of the particles that is effective: Kish's effective sample size over S, `[B]`."""
    weights = log_weights.softmax(-1)
    return 1 / (weights.square().sum(-1) * weights.shape[-1])


def _resample(weights: Tensor, u: Tensor) -> Tensor:
    """Systematic resampling within tasks: rows of the B * S particles, `[B, S]`.

    Args:
        weights: `[B, S]`, of sum 1.
        u: Uniform, `[B, 1]`.
    """
    B, S = weights.shape
    places = torch.arange(S, device=weights.device)
    chosen = torch.searchsorted(weights.cumsum(-1), (places + u) / S).clamp(max=S - 1)
    return chosen + S * torch.arange(B, device=weights.device)[:, None]


def gaussian_average(
    task: Task,
    program: Program,
    covariance: Callable[[Tensor, dict[str, Tensor]], Tensor],
    sampler: AnnealedSampler,
) -> GaussianMixturePosterior:
    """Posterior of y at the queries for Gaussian f and noise of unknown hyperparameters.

    Args:
        task: B tasks of N rows; its own latents are not looked at.
        program: RandomSource hyperparameters, among them "noise_var", `[rows]` or `[rows, N]`.
        covariance: Covariance of f at inputs `[rows, N, d]` given hyperparameters, `[rows, N, N]`.
        sampler: How long to sample.

    Raises:
        ValueError: classes or missing values.
    """
    check_complete_regression(task, "sampler")
    B, N, _ = task.X.shape
    S, n = sampler.particles, task.num_context
    X, y = task.X.double(), task.y[..., 0].double()

    def blocks(points: int) -> list[tuple[Tensor, Tensor]]:
        """Rows that are computed together, and the tasks that they belong to."""
        rows = torch.arange(B * S, device=X.device)
        return [(part, part // S) for part in rows.split(max(1, _ELEMENTS // max(1, points) ** 2))]

    def given(points: int, rows: Tensor, of: Tensor, latents: dict[str, Tensor]) -> Tensor:
        return covariance(X[of, :points], {name: value[rows] for name, value in latents.items()})

    def noise(points: int, latents: dict[str, Tensor]) -> Tensor:
        value = latents["noise_var"]
        return (value if value.dim() == 2 else value[:, None].expand(-1, N))[:, :points]

    def log_likelihood(latents: dict[str, Tensor]) -> Tensor:
        if n == 0:
            return X.new_zeros(B * S)
        variance = noise(n, latents)
        return torch.cat(
            [
                gaussian_log_evidence(given(n, rows, of, latents), variance[rows], y[of, :n])
                for rows, of in blocks(n)
            ]
        )

    latents, _ = sampler.run(program, log_likelihood, B, device=task.X.device)
    variance = noise(N, latents)
    parts = [
        gaussian_predictions(given(N, rows, of, latents), variance[rows], y[of, :n])
        for rows, of in blocks(N)
    ]
    means, variances = (
        torch.cat(part).view(B, S, -1, 1).transpose(0, 1) for part in zip(*parts, strict=True)
    )
    return GaussianMixturePosterior(means.to(task.y), variances.to(task.y))
