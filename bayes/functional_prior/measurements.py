"""Where functions are compared: fixed inputs, or inputs drawn anew."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Measurements", "Sampler", "TrainingBox", "checked_inputs"]

Sampler = Callable[[torch.Generator], Tensor]


class Measurements:
    """Measurement sets, each a matrix of inputs `[n, d]`.

    Args:
        given: Inputs, or a function from a generator (on the CPU) to inputs.
    """

    def __init__(self, given: Tensor | Sampler) -> None:
        self._given = given if callable(given) else checked_inputs(given)

    @property
    def drawn(self) -> bool:
        """Whether there are more than one."""
        return callable(self._given)

    def draw(self, generator: torch.Generator) -> Tensor:
        """The next set; always the same where the inputs are fixed."""
        if isinstance(self._given, Tensor):
            return self._given
        return checked_inputs(self._given(generator))

    def several(self, number: int, generator: torch.Generator) -> list[Tensor]:
        """So many sets, one where the inputs are fixed."""
        return [self.draw(generator) for _ in range(number if self.drawn else 1)]


class TrainingBox:
    """Measurement sets of training rows and of uniform points in the box that they span.

    The sets of Tran et al. 2022, who span the box by training and test rows; here the test rows
    have no part.

    Args:
        train_X: Training inputs `[n, d]`, on the scale that the model sees.
        num_points: Points of a set.
        share: Share of the points that are training rows, without repetition as far as there are
            enough.
    """

    def __init__(self, train_X: Tensor, *, num_points: int = 100, share: float = 0.7) -> None:
        self.train_X = checked_inputs(train_X)
        if num_points < 1 or not 0 <= share <= 1:
            raise ValueError(
                f"TrainingBox needs num_points >= 1 and share in [0, 1], got {num_points} and "
                f"{share}."
            )
        self.num_points, self.share = num_points, share

    def __call__(self, generator: torch.Generator) -> Tensor:
        """A set `[num_points, d]`."""
        X = self.train_X
        rows = min(round(self.share * self.num_points), len(X))
        chosen = torch.randperm(len(X), generator=generator, device="cpu")[:rows]
        low, high = X.min(0).values, X.max(0).values
        place = torch.rand(
            self.num_points - rows, X.shape[-1], generator=generator, dtype=X.dtype, device="cpu"
        )
        return torch.cat([X[chosen.to(X.device)], low + (high - low) * place.to(X.device)])


def checked_inputs(X: Tensor) -> Tensor:
    """The inputs themselves.

    Raises:
        ValueError: they are not a matrix of floats.
    """
    if not isinstance(X, Tensor) or X.dim() != 2 or not X.is_floating_point() or not len(X):
        found = tuple(X.shape) if isinstance(X, Tensor) else type(X).__name__
        raise ValueError(f"Measurement inputs must be a float matrix [n, d], got {found}.")
    return X
