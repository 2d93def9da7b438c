"""Convergence of Markov chains in numbers, for many quantities at once.

R-hat (rank-normalised, split, the larger of bulk and folded) and the effective sample sizes of bulk
and tails are those of Vehtari, Gelman, Simpson, Carpenter & Buerkner 2021 (1903.08008, equations 1
to 4 and 10 to 15; Geyer's initial monotone sequence). Nested R-hat is that of Margossian et al.
2024 (2110.13017, definition 2.2), E-BFMI that of Betancourt 2016 (1604.00695, equation 4).

All take `[chains, draws, k]` and work in float64 where the draws are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "bulk_ess",
    "e_bfmi",
    "member_r_hat",
    "nested_r_hat",
    "r_hat",
    "standardised_members",
    "tail_ess",
]


def r_hat(values: Tensor) -> Tensor:
    """Rank-normalised split R-hat, `[k]`; NaN of fewer than 4 draws, and of constants."""
    halves = _split(values.double())
    if halves is None:
        return values.new_full(values.shape[-1:], math.nan).double()
    flat = halves.flatten(0, 1)
    folded = (halves - _quantile(flat, 0.5)).abs()
    ranks = [_rank_normalised(numbers) for numbers in (halves, folded)]
    found = torch.maximum(*(_r_hat(numbers, numbers.mean(1).var(0)) for numbers in ranks))
    return _where_finite(values, found)


def member_r_hat(values: Tensor) -> Tensor:
    """R-hat of chains that stay at modes of their own, `[k]`; NaN of fewer than 4 draws.

    As `r_hat`, of `standardised_members`; the variance between is that between the halves of a
    chain, averaged over the chains.

    Args:
        values: `[chains, draws, k]`.
    """
    halves = _split(standardised_members(values))
    if halves is None:
        return values.new_full(values.shape[-1:], math.nan).double()
    folded = (halves - _quantile(halves.flatten(0, 1), 0.5)).abs()
    found = []
    for numbers in (halves, folded):
        numbers = _rank_normalised(numbers)
        first, second = numbers.mean(1).unflatten(0, (2, -1))  # [chains, k]
        found.append(_r_hat(numbers, (first - second).square().mean(0) / 2))
    return _where_finite(values, torch.maximum(*found))


def standardised_members(values: Tensor) -> Tensor:
    """Each chain less its own mean, over its own deviation, `[chains, draws, k]`."""
    values = values.double()
    std = values.std(1, keepdim=True)
    return (values - values.mean(1, keepdim=True)) / torch.where(std > 0, std, 1.0)


def nested_r_hat(values: Tensor, size: int) -> Tensor:
    """R-hat of groups of chains, `[k]`: right for many chains of few draws.

    sqrt(1 + B / W): B is the variance of the groups' means, W the mean over groups of the variance
    of the chains' means in it and that within its chains. Chains of a group should have started at
    one place; if they have not, the groups differ less than the definition has in mind.

    Args:
        values: `[chains, draws, k]`.
        size: Chains of a group; they are taken one after another, and a rest is left out.

    Raises:
        ValueError: fewer than two groups.
    """
    groups = len(values) // size if size > 0 else 0
    if groups < 2:
        raise ValueError(f"{len(values)} chains are not two groups of {size}.")
    nested = values.double()[: groups * size].unflatten(0, (groups, size))  # [g, c, draws, k]
    means = nested.mean(2)
    between = means.mean(1).var(0)
    within = means.var(1) if size > 1 else torch.zeros_like(means[:, 0])
    if nested.shape[2] > 1:
        within = within + nested.var(2).mean(1)
    return (1 + between / within.mean(0)).sqrt()


def bulk_ess(values: Tensor) -> Tensor:
    """Effective sample size of the ranks, `[k]`; NaN of fewer than 4 draws."""
    halves = _split(values.double())
    if halves is None:
        return values.new_full(values.shape[-1:], math.nan).double()
    return _where_finite(values, _ess(_rank_normalised(halves)))


def tail_ess(values: Tensor) -> Tensor:
    """The smaller effective sample size of the 5% and 95% quantiles, `[k]`."""
    values = values.double()
    if values.shape[1] < 4:
        return values.new_full(values.shape[-1:], math.nan)
    flat = values.flatten(0, 1)
    found = []
    for level in (0.05, 0.95):
        halves = _split((values <= _quantile(flat, level)).double())
        assert halves is not None
        found.append(_ess(halves))
    return _where_finite(values, torch.minimum(*found))


def e_bfmi(energy: Tensor) -> Tensor:
    """Energy fraction of missing information of each chain, `[chains]`, from `[chains, draws]`.

    Mean squared change of the energy between draws over its variance; below 0.3 momenta explore
    the energies too slowly.
    """
    energy = energy.double()
    return energy.diff(dim=1).square().mean(1) / energy.var(1)


def _where_finite(values: Tensor, found: Tensor) -> Tensor:
    """NaN for quantities some of whose draws are not finite."""
    return torch.where(values.isfinite().flatten(0, 1).all(0), found, math.nan)


def _split(values: Tensor) -> Tensor | None:
    """Halves of chains as chains; None of fewer than 4 draws."""
    draws = values.shape[1]
    half = draws // 2
    return torch.cat([values[:, :half], values[:, draws - half :]]) if draws >= 4 else None


def _quantile(flat: Tensor, level: float) -> Tensor:
    """Of every column, `[k]`; torch's own takes 2^24 numbers at most."""
    ordered = flat.sort(0).values
    place = level * (len(flat) - 1)
    low = math.floor(place)
    return torch.lerp(ordered[low], ordered[min(low + 1, len(flat) - 1)], place - low)


def _rank_normalised(values: Tensor) -> Tensor:
    """Normal scores of ranks over chains and draws; equal values share their mean rank."""
    flat = values.flatten(0, 1).mT.contiguous()  # [k, N]
    ordered, order = flat.sort(-1)
    # where runs of equal values begin and end, numbers of those below and up to them
    number = flat.shape[-1]
    place = torch.arange(number, device=flat.device).expand_as(order)
    starts = torch.ones_like(order, dtype=torch.bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    below = torch.where(starts, place, 0).cummax(-1).values
    ends = starts.roll(-1, -1)  # the first value starts a run, so the last ends one
    up_to = torch.where(ends, place + 1, number).flip(-1).cummin(-1).values.flip(-1)
    rank = (below + up_to + 1).double() / 2
    found = torch.special.ndtri((rank - 3 / 8) / (number + 1 / 4))
    scores = torch.empty_like(found).scatter_(-1, order, found)
    return scores.mT.unflatten(0, values.shape[:2])


def _r_hat(values: Tensor, variance_between: Tensor) -> Tensor:
    draws = values.shape[1]
    within = values.var(1).mean(0)
    return ((draws * variance_between / within + draws - 1) / draws).sqrt()


def _ess(values: Tensor) -> Tensor:
    """Of the mean, `[k]`, from `[chains, draws, k]`."""
    chains, draws, _ = values.shape
    centred = values - values.mean(1, keepdim=True)
    length = 2 * draws
    spectrum = torch.fft.rfft(centred, n=length, dim=1)
    covariance = torch.fft.irfft(spectrum.abs().square(), n=length, dim=1)[:, :draws] / draws
    covariance = covariance.mean(0)  # [lags, k]
    variance = covariance[0] * draws / (draws - 1)
    pooled = covariance[0] + (values.mean(1).var(0) if chains > 1 else 0)
    correlation = 1 - (variance - covariance) / pooled
    correlation[0] = 1
    # Sums of neighbours, positive and falling for a reversible chain (Geyer 1992)
    even = correlation[0 : draws - draws % 2 : 2]
    pairs = even + correlation[1 : draws - draws % 2 + 1 : 2]
    index = torch.arange(len(pairs), device=values.device).unsqueeze(-1)
    ends = (pairs <= 0) | (1 + 2 * index >= draws - 3)
    last = ends.double().argmax(0)  # the first pair that is not counted
    falling = torch.where(index < last, pairs, 0).cummin(0).values
    total = torch.where(index < last, falling, 0).sum(0)
    end = last.unsqueeze(0)
    rest, pair = even.gather(0, end)[0], pairs.gather(0, end)[0]
    rest = torch.where((rest > 0) | (pair >= 0), rest, 0)
    number = chains * draws
    time = (2 * total - 1 + rest).clamp_min(1 / math.log10(number))
    same = values.amax((0, 1)) - values.amin((0, 1)) < 1e-15
    return torch.where(same, float(number), number / time)
