"""The prior of LC-PFN over learning curves, and its posterior by Markov chains.

A metric y_t at epochs t = 1 .. T is normal about f(t) with standard deviation exp(N(-4, 1)), and

    f(t) = w_1 (c_1 - a_1 t^-alpha) + w_2 (c_2 - a_2 / log(1 + t))
         + w_3 (a_3 - (a_3 - b) exp(-k t^delta)),   f in [0, 1],  f(T) > f(1),

pow3, ilog2 and Janoschek of Domhan et al. 2015 with independent uniform weights, which need not sum
to 1 (Adriaensen et al. 2023, 2310.20447, section 3.1; the numbers are those of `lcpfn` 0.1.3:
`curves.prior`, "peaked", and `domhan_prior.sample_prior_comb`).

All that is unknown is a function of 13 standard normal numbers z, so that the posterior is N(0, I)
times the likelihood. An ensemble of them goes from the prior to the posterior by sequential Monte
Carlo (Del Moral et al. 2006), which tempers the likelihood so that nearly all of the ensemble
remains effective, and is moved in turn by

    differences   z' = z + g (z_a - z_b) + small noise, a and b of the other half of the ensemble
                  (ter Braak 2006): steps as long and as correlated as the posterior is
    few numbers   z'_i = sqrt(1 - s^2) z_i + s e_i for a random subset, s random (Cotter et al.
                  2013, equation 4.3)

LC-PFN was compared with another ensemble, emcee's, which starts at a fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from priors.posteriors.gaussian_mixture import GaussianMixturePosterior

__all__ = ["EPOCHS", "NUMBERS", "Length", "is_allowed", "latents_of", "posterior", "values"]

EPOCHS = 100
NUMBERS = 13

_LARGEST_UNIFORM = 1 - 2.0**-53
# Many small steps with few moves each: with halves, as is usual, ensembles of the same cost end in
# different modes.
_EFFECTIVE = 0.97


@dataclass(frozen=True)
class Length:
    """How long a sampler runs.

    Attributes:
        particles: Members of the ensemble.
        moves: Moves of all of them at each temperature.
        final_moves: Further moves at the posterior.
    """

    particles: int
    moves: int
    final_moves: int


def latents_of(z: Tensor) -> dict[str, Tensor]:
    """What determines curves, each `[rows]`, and weights `[rows, 3]`, of z `[rows, NUMBERS]`.

    Not all of these curves are of the prior: see `is_allowed`.
    """
    u = torch.special.ndtr(z[:, :9]).clamp(max=_LARGEST_UNIFORM)
    return {
        "weights": u[:, :3],
        "pow3_c": 1.25 * u[:, 3],
        "pow3_a": 1.2 * u[:, 4] - 0.6,
        "pow3_alpha": torch.exp(2 * z[:, 9]),
        "ilog2_c": u[:, 5],
        "ilog2_a": u[:, 6] - 0.5,
        "janoschek_a": u[:, 7],
        "janoschek_beta": 2 * u[:, 8],
        "janoschek_k": torch.exp(z[:, 10] - 2),
        "janoschek_delta": torch.exp(0.5 * z[:, 11]),
        "noise_std": torch.exp(z[:, 12] - 4),
    }


def values(latents: dict[str, Tensor], epochs: Tensor) -> Tensor:
    """Smooth curves at `epochs` `[T]`: `[rows, T]`."""
    of = {name: value[:, None] for name, value in latents.items() if name != "weights"}
    log_t = epochs.log()
    pow3 = of["pow3_c"] - of["pow3_a"] * torch.exp(-of["pow3_alpha"] * log_t)
    ilog2 = of["ilog2_c"] - of["ilog2_a"] / torch.log1p(epochs)
    left = torch.exp(-of["janoschek_k"] * torch.exp(of["janoschek_delta"] * log_t))
    janoschek = of["janoschek_a"] - (of["janoschek_a"] - of["janoschek_beta"]) * left
    w = latents["weights"]
    return w[:, :1] * pow3 + w[:, 1:2] * ilog2 + w[:, 2:] * janoschek


def is_allowed(curves: Tensor) -> Tensor:
    """Whether curves `[rows, T]` stay in [0, 1] and end above their beginning, `[rows]`."""
    return ((curves >= 0) & (curves <= 1)).all(-1) & (curves[:, -1] > curves[:, 0])


def posterior(y: Tensor, length: Length, *, seed: int = 0) -> GaussianMixturePosterior:
    """Of the later values of one curve, given its first ones.

    Args:
        y: Metric at epochs 1 .. n, `[n]`.
        length: How long to sample.
        seed: Of everything random.

    Returns:
        Of y at epochs n + 1 .. `EPOCHS`, `[EPOCHS - n, 1]`.
    """
    n, y = len(y), y.double()
    epochs = torch.arange(1, EPOCHS + 1, dtype=torch.float64)

    def log_likelihood(z: Tensor) -> Tensor:
        latents = latents_of(z)
        curves, std = values(latents, epochs), latents["noise_std"]
        squares = (y - curves[:, :n]).square().sum(-1) / std.square()
        found = -0.5 * squares - n * (std.log() + 0.5 * math.log(2 * math.pi))
        return torch.where(is_allowed(curves), found, -torch.inf)

    latents = latents_of(_sample(log_likelihood, length, seed))
    means = values(latents, epochs[n:])[..., None]
    variances = latents["noise_std"].square()[:, None, None].expand_as(means)
    return GaussianMixturePosterior(means, variances)


def _sample(log_likelihood: Callable[[Tensor], Tensor], length: Length, seed: int) -> Tensor:
    """Numbers z `[S, NUMBERS]` from N(0, I) times a likelihood, which may be 0."""
    options: dict[str, Any] = {
        "generator": torch.Generator().manual_seed(seed),
        "dtype": torch.float64,
    }
    z = torch.randn(20 * length.particles, NUMBERS, **options)
    current = log_likelihood(z)
    kept = current.isfinite().nonzero()[: length.particles, 0]  # the prior, of allowed curves
    z, current = z[kept], current[kept]
    S, temperature = len(z), 0.0

    def move(differences: bool) -> None:
        order = torch.rand(S, **options).argsort()
        for own, other in ((order[::2], order[1::2]), (order[1::2], order[::2])):
            before = z[own]
            if differences:
                proposed, gain = _by_differences(before, z[other], options)
            else:
                proposed, gain = _by_few_numbers(before, options)
            value = log_likelihood(proposed)
            gain = gain + temperature * (value - current[own])
            accepted = torch.rand(len(own), **options).log() < gain
            z[own] = torch.where(accepted[:, None], proposed, before)
            current[own] = torch.where(accepted, value, current[own])

    while temperature < 1:
        step = _step(current, 1 - temperature)
        cumulated = (step * current).softmax(0).cumsum(0)
        places = (torch.arange(S) + torch.rand(1, **options)) / S
        kept = torch.searchsorted(cumulated, places).clamp(max=S - 1)
        z, current, temperature = z[kept], current[kept], temperature + step
        for i in range(length.moves):
            move(i % 2 == 0)
    for i in range(length.final_moves):
        move(i % 2 == 0)
    return z


def _step(values: Tensor, left: float) -> float:
    """The largest step of the temperature that keeps the ensemble effective."""
    low, high = 0.0, left
    for attempt in range(40):
        step = high if attempt == 0 else (low + high) / 2
        weights = (step * values).softmax(0)
        if 1 / float(weights.square().sum()) >= _EFFECTIVE * len(values):
            low = step
            if step == left:
                break
        else:
            high = step
    return max(low, 1e-6)


def _by_differences(z: Tensor, other: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Proposals, and log N(z'; 0, I) - log N(z; 0, I)."""
    rows = len(z)
    first = (torch.rand(rows, **options) * len(other)).long()
    apart = 1 + (torch.rand(rows, **options) * (len(other) - 1)).long()
    second = (first + apart) % len(other)
    # 2.38 / sqrt(2 d) is best for a normal posterior (ter Braak 2006); 1 leads from mode to mode.
    usual = 2.38 / math.sqrt(2 * NUMBERS) * torch.rand(rows, 1, **options) * 1.5
    factor = torch.where(torch.rand(rows, 1, **options) < 0.1, 1.0, usual)
    noise = 1e-4 * torch.randn(rows, NUMBERS, **options)
    proposed = z + factor * (other[first] - other[second]) + noise
    return proposed, 0.5 * (z.square() - proposed.square()).sum(-1)


def _by_few_numbers(z: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Proposals that leave N(0, I) as it is, so that there is nothing to correct."""
    rows = len(z)
    size = 0.02 ** torch.rand(rows, 1, **options)
    share = NUMBERS ** -torch.rand(rows, 1, **options)
    new = (1 - size.square()).sqrt() * z + size * torch.randn(rows, NUMBERS, **options)
    chosen = torch.rand(rows, NUMBERS, **options) < share
    return torch.where(chosen, new, z), z.new_zeros(rows)
