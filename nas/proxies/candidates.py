"""What a proxy is asked about: a network at its initial weights, inputs and targets."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.architectures import Architecture
from priors.random_state import seeded

__all__ = ["Candidate", "network_of", "targets_of"]

Candidate = nn.Module | Architecture


def network_of(candidate: Candidate, X: Tensor) -> nn.Module:
    """A network of its own on the device of X, in its dtype, as it is used and not trained.

    An architecture is built with weights of a fixed seed; a module is copied with its own.
    """
    if isinstance(candidate, Architecture):
        with seeded(0, torch.device("cpu")):
            network = candidate.build()
    else:
        network = copy.deepcopy(candidate)
    return network.to(X).eval()


def targets_of(X: Tensor, y: Tensor) -> Tensor:
    """Targets as columns of mean 0, together of variance 1, `[n, m]` in float64.

    Args:
        X: Inputs, `[n, ...]`.
        y: Classes, integers `[n]`, which become one column each; or numbers `[n]` or `[n, m]`.

    Raises:
        ValueError: another shape, fewer than two rows, or targets that do not vary.
    """
    if y.shape[:1] != X.shape[:1] or y.dim() not in (1, 2) or len(X) < 2:
        raise ValueError(
            "A proxy needs two rows or more and a target for each, [n] or [n, m]; got X "
            f"{tuple(X.shape)} and y {tuple(y.shape)}."
        )
    if y.is_floating_point():
        columns = y.double().reshape(len(y), -1)
    else:
        columns = functional.one_hot(y.long().reshape(len(y))).double()
    columns = columns - columns.mean(0)
    spread = columns.square().mean().sqrt()
    if not spread > 0:
        raise ValueError("A proxy needs targets that vary; all rows have the same.")
    return columns / spread
