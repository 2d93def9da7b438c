"""Modes of a log density: many positions trained at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm.auto import tqdm

__all__ = ["polished", "trained"]

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]


def trained(
    objective: Objective,
    position: Tensor,
    num_steps: int,
    learning_rate: float,
    *,
    name: str,
    progress: bool,
    noisy: bool = False,
) -> tuple[Tensor, Tensor]:
    """Ascend from every position by Adam, whose rate falls to a hundredth along a cosine.

    Args:
        objective: Positions `[c, d]` to values `[c]` and gradients `[c, d]`.
        position: Where to begin, `[c, d]`.
        num_steps: Of each.
        learning_rate: At the beginning.
        name: Of the bar.
        progress: Whether to show one.
        noisy: Whether the objective is random, as that of minibatches.

    Returns:
        The positions of the largest values, the last ones of a noisy objective, and the mean
        objective at every step, `[num_steps]`.
    """
    position = position.detach().clone()
    best, reached = position.clone(), torch.full_like(position[:, 0], -torch.inf)
    optimiser = torch.optim.Adam([position], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimiser, num_steps, eta_min=learning_rate / 100
    )
    history = position.new_empty(num_steps)
    steps = tqdm(range(num_steps), desc=name, disable=not progress)
    for step in steps:
        value, gradient = objective(position)
        history[step] = value.mean()
        better = value > reached
        best = torch.where(better.unsqueeze(-1), position, best)
        reached = torch.where(better, value, reached)
        position.grad = -torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        optimiser.step()
        schedule.step()
        if progress and step % 50 == 0:
            steps.set_postfix_str(f"log density {float(value.mean()):.1f} nats", refresh=False)
    return position if noisy else best, history


def polished(objective: Objective, position: Tensor, *, num_steps: int = 200) -> Tensor:
    """The maximum near `position` `[1, d]` to the precision of its dtype, by L-BFGS.

    Args:
        objective: Positions `[1, d]` to values `[1]` and gradients `[1, d]`.
        position: Where to begin; comes back where nothing better is found.
        num_steps: At most.
    """
    best = position.detach().clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [best],
        max_iter=num_steps,
        history_size=20,
        tolerance_grad=1e-9,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        value, gradient = objective(best.detach())
        best.grad = -gradient
        return -float(value)

    before, _ = objective(position)
    optimiser.step(closure)
    found = best.detach()
    after, _ = objective(found)
    return found if bool(found.isfinite().all() and after >= before) else position.detach()
