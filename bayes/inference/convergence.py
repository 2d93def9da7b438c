"""Whether chains have converged, in one line.

R-hat (rank-normalised and split) and the effective sample size of bulk and tails are those of
Vehtari et al. 2021 (1903.08008), who ask for R-hat below 1.01 and 100 effective draws for each of
four chains. Many chains are short ones, whose means differ by chance: from eight on, R-hat compares
groups of four, as Margossian et al. 2024 (2110.13017) do, and 400 effective draws are enough.
They are asked of what is predicted: weights of a network have symmetries, by which chains differ
that agree in every function.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from bayes.inference_data import import_arviz, many_chains

__all__ = ["MAX_R_HAT", "MIN_EFFECTIVE", "MIN_EFFECTIVE_PER_CHAIN", "warn_unless_converged"]

MAX_R_HAT = 1.01
MIN_EFFECTIVE_PER_CHAIN = 100
MIN_EFFECTIVE = 400
# Chains that R-hat takes as one, where there are two such groups
_GROUP = 4


def warn_unless_converged(
    owner: str,
    quantities: Tensor,
    stats: Mapping[str, Tensor],
    *,
    what: str = "predictions at the training rows",
    stacklevel: int = 2,
) -> None:
    """Warn of divergences, of chains that disagree and of few effective draws.

    Args:
        owner: Name of the model, for the message.
        quantities: What is predicted, `[chains, draws, k]`.
        stats: Of the sampler by ArviZ's names, `[chains, draws]`; "diverging" is read if there.
        what: What the quantities are, for the message.
        stacklevel: As for `warnings.warn`, of the caller.
    """
    chains, draws = quantities.shape[:2]
    troubles = []
    diverging = int(stats["diverging"].sum()) if "diverging" in stats else 0
    if diverging:
        troubles.append(
            f"{diverging} of {chains * draws} draws diverged (raise target_accept_prob)"
        )
    r_hat, effective = _worst(quantities)
    wanted = min(MIN_EFFECTIVE, MIN_EFFECTIVE_PER_CHAIN * chains)
    # NaN of too few draws to tell is no pass.
    if not r_hat <= MAX_R_HAT or not effective >= wanted:
        troubles.append(
            f"{what} have R-hat up to {r_hat:.4g} (wanted: at most "
            f"{MAX_R_HAT}) and from {effective:.3g} effective draws (wanted: "
            f"{wanted}) of {chains * draws} in {chains} chains (raise "
            "num_warmup and num_samples)"
        )
    if troubles:
        warnings.warn(
            f"This {owner} may not have converged: {'; '.join(troubles)}.",
            stacklevel=stacklevel + 1,
        )


def _worst(quantities: Tensor) -> tuple[float, float]:
    """Largest R-hat and smallest effective sample size; NaN if there are too few draws."""
    # Numbers that never change have converged.
    moving = (quantities != quantities[:1, :1]).flatten(0, 1).any(0)
    if not bool(moving.any()):
        return 1.0, float(quantities.shape[:2].numel())
    if quantities.shape[1] < 4:
        return math.nan, math.nan
    arviz = import_arviz()
    quantities = quantities[..., moving].double().cpu()
    with many_chains():
        data = arviz.convert_to_dataset({"f": quantities.numpy()})
        groups = arviz.convert_to_dataset({"f": _grouped(quantities).numpy()})
    found = [arviz.rhat(groups), arviz.ess(data), arviz.ess(data, method="tail")]
    r_hat, bulk, tail = (torch.as_tensor(one["f"].to_numpy()) for one in found)
    return float(r_hat.max()), float(torch.minimum(bulk, tail).min())


def _grouped(quantities: Tensor) -> Tensor:
    """Groups of chains as chains, one after another; few chains as they are."""
    chains, draws, numbers = quantities.shape
    if chains < 2 * _GROUP:
        return quantities
    return quantities[: chains - chains % _GROUP].reshape(-1, _GROUP * draws, numbers)
