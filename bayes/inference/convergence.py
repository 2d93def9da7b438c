"""Whether chains have converged, in one line.

R-hat (rank-normalised and split) and the effective sample size of bulk and tails are those of
Vehtari et al. 2021 (1903.08008), who ask for R-hat below 1.01 and 100 effective draws for each of
four chains. Many chains are short ones, whose means differ by chance: from eight on, R-hat compares
groups of four, as Margossian et al. 2024 (2110.13017) do, and 400 effective draws are enough.
They are asked of what is predicted: weights of a network have symmetries, by which chains differ
that agree in every function. Members of an ensemble that stay at modes of their own need not agree
in anything: the halves of each are compared, in the way of Sommer et al. 2024 (2402.01484).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from bayes.inference.chain_statistics import (
    bulk_ess,
    member_r_hat,
    r_hat,
    standardised_members,
    tail_ess,
)
from bayes.inference.draws import SMALLER_STEPS, Draws

__all__ = [
    "GROUP",
    "MAX_R_HAT",
    "MIN_EFFECTIVE",
    "MIN_EFFECTIVE_PER_CHAIN",
    "agreement",
    "effective_sizes",
    "grouped",
    "warn_of_draws",
    "warn_unless_converged",
]

MAX_R_HAT = 1.01
MIN_EFFECTIVE_PER_CHAIN = 100
MIN_EFFECTIVE = 400
# Chains that R-hat takes as one, where there are two such groups
GROUP = 4


def warn_unless_converged(
    owner: str,
    quantities: Tensor,
    stats: Mapping[str, Tensor],
    *,
    what: str = "predictions at the training rows",
    smaller_steps: str = SMALLER_STEPS,
    members_apart: bool = False,
    stacklevel: int = 2,
) -> None:
    """Warn of divergences and infinities, chains that disagree and few effective draws.

    Args:
        owner: Name of the model, for the message.
        quantities: What is predicted, `[chains, draws, k]`.
        stats: Of the sampler by ArviZ's names, `[chains, draws]`; "diverging" is read if there.
        what: What the quantities are, for the message.
        smaller_steps: What to do where draws diverge, as of `Draws`.
        members_apart: Whether chains are judged each for itself, as of `Draws`.
        stacklevel: As for `warnings.warn`, of the caller.
    """
    chains, draws = quantities.shape[:2]
    troubles = []
    diverging = int(stats["diverging"].sum()) if "diverging" in stats else 0
    if diverging:
        troubles.append(f"{diverging} of {chains * draws} draws diverged ({smaller_steps})")
    wanted = min(MIN_EFFECTIVE, MIN_EFFECTIVE_PER_CHAIN * chains)
    finite = bool(quantities.isfinite().all())
    differ, effective = math.nan, math.nan
    if finite:
        differ, effective = _worst(quantities, members_apart)
    if not finite:
        troubles.append("some draws are not finite (check the model for infinities)")
    elif math.isnan(effective):
        troubles.append(f"{draws} draws are too few to tell (raise num_samples)")
    elif math.isnan(differ):
        found = f"{effective:.3g} effective draws (wanted: {wanted}) of {draws}"
        troubles.append(
            "one chain cannot show whether chains agree (R-hat takes num_chains of 2 or more)"
            + (f", and has from {found}" if effective < wanted else "")
        )
    elif differ > MAX_R_HAT or effective < wanted:
        within = " within members" if members_apart else ""
        troubles.append(
            f"{what} have R-hat up to {differ:.4g}{within} (wanted: at most "
            f"{MAX_R_HAT}) and from {effective:.3g} effective draws (wanted: {wanted}) of "
            f"{chains * draws} in {chains} chains (raise num_warmup and num_samples)"
        )
    if troubles:
        warnings.warn(
            f"This {owner} may not have converged: {'; '.join(troubles)}.",
            stacklevel=stacklevel + 1,
        )


def warn_of_draws(method: str, draws: Draws) -> None:
    """The same of all that was drawn, where chains should agree in it.

    Args:
        method: Its name, whose `run` was called.
        draws: Of Markov chains.
    """
    quantities = [value.reshape(*value.shape[:2], -1) for value in draws.samples.values()]
    warn_unless_converged(
        f"run of {method}",
        torch.cat(quantities, -1),
        draws.stats,
        what="draws",
        smaller_steps=draws.smaller_steps,
        members_apart=draws.members_apart,
        stacklevel=3,
    )


def _worst(quantities: Tensor, members_apart: bool) -> tuple[float, float]:
    """Largest R-hat, NaN of a single chain that is no member, and smallest effective sample size.

    Both are NaN if there are too few draws.
    """
    # Numbers that never change have converged.
    moving = (quantities != quantities[:1, :1]).flatten(0, 1).any(0)
    if not bool(moving.any()):
        return 1.0, float(quantities.shape[:2].numel())
    if quantities.shape[1] < 4:
        return math.nan, math.nan
    quantities = quantities[..., moving]
    effective = torch.minimum(*effective_sizes(quantities, members_apart)).min().item()
    if quantities.shape[0] < 2 and not members_apart:
        return math.nan, effective
    return agreement(quantities, members_apart).max().item(), effective


def agreement(quantities: Tensor, members_apart: bool) -> Tensor:
    """R-hat of each quantity, `[k]`: of groups of chains, or of the halves of members.

    Args:
        quantities: `[chains, draws, k]`.
        members_apart: As of `Draws`.
    """
    if not members_apart:
        return r_hat(grouped(quantities))
    return member_r_hat(quantities)


def effective_sizes(quantities: Tensor, members_apart: bool) -> tuple[Tensor, Tensor]:
    """Effective sample sizes of bulk and tails, each `[k]`; of members less their differences.

    Args:
        quantities: `[chains, draws, k]`.
        members_apart: As of `Draws`.
    """
    if members_apart:
        quantities = standardised_members(quantities)
    return bulk_ess(quantities), tail_ess(quantities)


def grouped(quantities: Tensor) -> Tensor:
    """Groups of chains as chains, one after another; few chains as they are."""
    chains, draws, numbers = quantities.shape
    if chains < 2 * GROUP:
        return quantities
    return quantities[: chains - chains % GROUP].reshape(-1, GROUP * draws, numbers)
