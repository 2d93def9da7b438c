"""Fine-tuning of a network on one data set of a user.

The rows are split at random into contexts and queries, again and again, and the network takes small
steps that predict the queries better. It is judged by rows kept apart, with all others as context,
and the best of its states on the way, the first one included, is the result. So it fits data like
these better, and is further from the posterior under the prior that it was trained on.
"""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from pfn.coverage import check_data
from pfn.network import Network
from priors.randomness import RandomSource

__all__ = ["finetuned"]

_Network = TypeVar("_Network", bound=Network)

_FEWEST = 20  # rows
_KEPT, _MOST_KEPT = 0.2, 256  # share of the rows that judge, and their largest number
_TASKS, _QUERIES = 4, 64  # of a step
_JUDGED = 10  # steps between judgements
_CLIP = 1.0
_BAR_AFTER = 10.0  # seconds


def finetuned(
    network: _Network,
    X: Tensor,
    y: Tensor,
    *,
    categorical: Tensor | None,
    steps: int,
    seconds: float,
    learning_rate: float,
    seed: int,
    progress: bool | None,
) -> _Network:
    """See `PFN.finetune`."""
    y = y[..., 0] if y.dim() == 2 and y.shape[-1] == 1 else y
    if X.dim() != 2 or y.dim() != 1:
        raise ValueError(
            f"finetune takes one data set, X [n, d] and y [n] or [n, 1], got {tuple(X.shape)} and "
            f"{tuple(y.shape)}."
        )
    if network.architecture.classes and not y.is_floating_point():
        y = y.to(X)
    check_data(network.architecture, network.coverage, X, y[:, None])
    network.coverage.check_categorical(categorical, X)
    n = len(y)
    if n < _FEWEST or steps < 1 or not seconds > 0 or not learning_rate > 0:
        raise ValueError(
            f"finetune needs at least {_FEWEST} rows and positive steps, seconds and "
            f"learning_rate; got {n} rows, {steps}, {seconds} and {learning_rate}."
        )
    start = time.monotonic()
    tuned = copy.deepcopy(network).to(X).train().requires_grad_(True)
    draws = RandomSource(torch.Generator(X.device).manual_seed(seed), X.device, X.dtype)
    order = draws.uniform(n).argsort()
    kept, rest = order.split([min(int(_KEPT * n), _MOST_KEPT), n - min(int(_KEPT * n), _MOST_KEPT)])
    most = int(min(tuned.coverage.max_context, len(rest)))
    classes = None
    if tuned.architecture.classes:
        classes = y.long().max()[None] + 1
    kinds = None if categorical is None else categorical[None]

    def loss(known: Tensor, asked: Tensor) -> Tensor:
        """Of tasks whose rows are `[B, k]` and `[B, q]`."""
        B = len(known)
        encoding = tuned.encode(
            X[known],
            y[known],
            categorical=None if kinds is None else kinds.expand(B, -1),
            num_classes=None if classes is None else classes.expand(B),
        )
        logits, _ = tuned.decode(encoding, X[asked])
        if tuned.bars is None:
            return F.cross_entropy(logits.mT, y[asked].long())
        z = (y[asked] - encoding.location) / encoding.scale
        return (encoding.scale.log() - tuned.bars.log_prob(logits, z)).mean()

    @torch.no_grad()
    def judged() -> float:
        tuned.eval()  # as it will be used
        value = float(loss(rest[None, :most], kept[None]))
        tuned.train()
        return value

    found = [(0, judged())]
    best = {name: value.detach().clone() for name, value in tuned.state_dict().items()}
    trained = [p for p in tuned.network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    queries = min(_QUERIES, max(1, len(rest) // 4))
    delay = 0 if progress else _BAR_AFTER
    bar = tqdm(total=steps, desc="finetune", disable=progress is False, delay=delay, leave=False)
    for step in range(1, steps + 1):
        share = 0.5 + 0.5 * draws.number()  # of the rows that are context
        context = max(1, min(most, int(share * (len(rest) - queries))))
        chosen = rest[draws.uniform(_TASKS, len(rest)).argsort(-1)]
        optimiser.zero_grad(set_to_none=True)
        loss(chosen[:, :context], chosen[:, context : context + queries]).backward()
        torch.nn.utils.clip_grad_norm_(trained, _CLIP)
        optimiser.step()
        late = time.monotonic() - start > seconds
        if step % _JUDGED == 0 or step == steps or late:
            found.append((step, judged()))
            if found[-1][1] <= min(value for _, value in found):
                best = {name: value.detach().clone() for name, value in tuned.state_dict().items()}
            bar.set_postfix_str(f"{found[-1][1]:.4f} nats per row", refresh=False)
        bar.update()
        if late:
            break
    bar.close()
    tuned.load_state_dict(best)
    kept_loss = dict(found)
    taken = min(kept_loss, key=lambda step: kept_loss[step])
    tuned.metadata["finetuned"] = {
        "rows": n,
        "steps": taken,
        "held_out_rows": len(kept),
        "before": found[0][1],
        "after": kept_loss[taken],
    }
    measured = network.certificate
    if measured is not None and taken:
        told = f"fine-tuned since on {n} rows of a user, measured before that on: {measured.prior}"
        tuned.certificate = replace(measured, prior=told)
    dtype = next(network.parameters())
    return tuned.to(dtype).eval().requires_grad_(True)
