"""References for certificates: densities of the queries of a task.

The exact posterior where it is known; one that knows more than the context tells; or another
approximation, such as a long-run sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

from torch import Tensor

from priors.tasks.task import Task

__all__ = ["Density", "LowerReference", "Reference", "own_reference", "reference_nll"]


class Density(Protocol):
    """A posterior of y, or a distribution of it."""

    def log_prob(self, Y: Tensor, /) -> Tensor:
        """Log densities of values `[B, m, 1]`, of the same shape."""
        ...


# Task -> density of y at its query rows, [B, m, 1].
Reference = Callable[[Task], Density]
# One that may decline, where a task is too large for it.
LowerReference = Callable[[Task], Density | None]


def own_reference(prior: object) -> tuple[LowerReference | None, str]:
    """The `oracle` of a task prior, None for tasks that it refuses, and what it is.

    That is what the prior's `oracle_is` says, "upper bound" if nothing: oracles know latents.
    """
    oracle = getattr(prior, "oracle", None)
    if oracle is None:
        return None, "none"

    def reference(task: Task) -> Density | None:
        try:
            return cast(Density, oracle(task))
        except ValueError:  # noise that is not Gaussian, say
            return None

    return reference, str(getattr(prior, "oracle_is", "upper bound"))


def reference_nll(reference: Reference, task: Task) -> Tensor:
    """Mean negative log density of a reference at the queries of each task, `[B]`, nats."""
    log_p = reference(task).log_prob(task.y[:, task.num_context :].double())
    return -log_p.mean(dim=(1, 2)).to(task.y)
