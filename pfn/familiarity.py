"""A measure of how unlike the prior a data set is, in the view of the network.

The halves of a data set predict each other; how well they do under the prior is in the
certificate of the network, and a data set that scores below that range is unlike the prior.

Above it, two things look alike. Inputs that tell more of the targets than is usual, as on a
straight line without noise, are no cause for a warning: the network says so itself, and is right.
But targets that are nearly all the same in its units, because of an outlier or of wrong units,
score well with any inputs. So a high score counts only if it stays high when targets are given to
other inputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pfn.network import Network
from pfn.posteriors import predictive

__all__ = ["context_score", "unlike_the_prior"]

_ORDERS = 8  # in which targets are given to other inputs


def context_score(
    network: Network,
    X: Tensor,
    y: Tensor,
    *,
    categorical: Tensor | None = None,
) -> Tensor:
    """How well each half of a context predicts the other, `[B]`: mean log density or probability.

    In the network's units of the whole context, so that scores of data sets compare. `X` is
    `[B, n, d]` with n at least 2, `y` `[B, n]`; the halves are the even and the odd rows.
    """
    n, number = X.shape[1], None
    if network.architecture.classes:
        number = (y.long().amax(-1) + 1).repeat(2)
    # Both at once; of an odd number of rows the second half is filled up.
    rows = torch.arange(n + n % 2, device=X.device).reshape(-1, 2).T  # [2, h]
    there = rows < n
    rows = rows.clamp_max(n - 1)
    known_X, known_y = (value[:, rows].transpose(0, 1).flatten(0, 1) for value in (X, y))
    mask = there.repeat_interleave(len(X), 0) if n % 2 else None
    encoding = network.encode(
        known_X,
        known_y,
        mask=mask,
        categorical=None if categorical is None else categorical.repeat(2, 1),
        num_classes=number,
    )
    asked_X, asked_y = (value.roll(len(X), 0) for value in (known_X, known_y))
    logits = network.decode_one(encoding, asked_X, noisy=True)
    log_q = predictive(network, encoding, logits).log_prob(asked_y[..., None])[..., 0]
    if mask is not None:
        log_q = torch.where(mask.roll(len(X), 0), log_q, 0)
    total = log_q.sum(1).reshape(2, -1).sum(0)
    scale = 1.0 if network.architecture.classes else network.units(y)[1][:, 0]
    return total / y.shape[1] + torch.as_tensor(scale, dtype=total.dtype, device=total.device).log()


def unlike_the_prior(
    network: Network, X: Tensor, y: Tensor, *, categorical: Tensor | None = None
) -> str | None:
    """A sentence if data sets score outside what 99% of the prior's do, else None.

    Above it only if the inputs have no part in that, see the module. Of several data sets 1% may by
    chance, and three standard deviations of that share. None also where the certificate of the
    network has no scores of that size.

    Args:
        network: With its certificate.
        X: Inputs `[B, n, d]`.
        y: Targets `[B, n]`.
        categorical: `[B, d]`, True for categories.
    """
    n, certificate = X.shape[1], network.certificate
    usual = None if certificate is None else certificate.usual_scores(n)
    if usual is None:
        return None
    with torch.no_grad():  # noise is unknown, as for the scores of the prior
        scores = context_score(network, X, y, categorical=categorical)
        low, high = usual
        above = (scores > high).nonzero()[:, 0]
        if len(above):
            kinds = None if categorical is None else categorical.expand(len(X), -1)[above]
            told = _score_of_other_inputs(network, X[above], y[above], kinds)
            scores[above] = torch.where(told > high, scores[above], high)
    share = ((scores < low) | (scores > high)).double().mean().item()
    if share <= 0.01 + 3 * math.sqrt(0.01 * 0.99 / max(len(scores), 1)):
        return None
    worst = scores[(scores - (low + high) / 2).abs().argmax()].item()
    whose = (
        "This data set is"
        if len(scores) == 1
        else f"This data set is (in {share:.0%} of its parts)"
    )
    return (
        f"{whose} unlike the prior of the network: halves predict each other with a log score of "
        f"{worst:.3g} per row, 99% of the prior's data sets of {n} rows score between {low:.3g} "
        f"and {high:.3g}."
    )


def _score_of_other_inputs(
    network: Network, X: Tensor, y: Tensor, categorical: Tensor | None
) -> Tensor:
    """`context_score` where targets are given to other inputs, `[B]`, a mean over random orders."""
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(y.shape[1], generator=generator) for _ in range(_ORDERS)]
    shuffled = torch.cat([y[:, order.to(y.device)] for order in orders])
    kinds = None if categorical is None else categorical.repeat(_ORDERS, 1)
    scores = context_score(network, X.repeat(_ORDERS, 1, 1), shuffled, categorical=kinds)
    return scores.reshape(_ORDERS, -1).mean(0)
