"""What a sampler need not find again for each proposal.

Nothing here changes what is proposed: it is all a function of the space, the seed and the stored
trials, and a sampler that was just made, copied or sent to another process finds the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from botorch.models.model import Model

from nas.architectures import Architecture
from nas.encoding.candidates import Encoder
from nas.proposals.pool import Pool
from nas.spaces import Space

__all__ = ["Learnt", "Memory", "num_learnt_from"]

GROWTH = 1.2


class Learnt(NamedTuple):
    """Models of the first trials.

    Attributes:
        encoder: Made for their rows.
        models: One of each objective, fitted to them; none where they are fitted anew each time.
    """

    encoder: Encoder
    models: tuple[Model, ...]


class Memory:
    """The pool of a study, which architectures are of the space, and the latest fit.

    Args:
        space: The search space.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self._pool: Pool | None = None
        self._members: dict[Architecture, bool] = {}
        self._key: object = None
        self._learnt: Learnt | None = None

    def __reduce__(self) -> tuple[type[Memory], tuple[Space]]:
        return Memory, (self.space,)

    def pool(self, seed: int) -> Pool:
        """The pool of draws of a seed."""
        if self._pool is None or self._pool.seed != seed:
            self._pool = Pool(self.space, seed)
        return self._pool

    def is_member(self, architecture: Architecture) -> bool:
        """Whether an architecture is of the space."""
        if architecture not in self._members:
            self._members[architecture] = architecture in self.space
        return self._members[architecture]

    def learnt(self, key: object, fit: Callable[[], Learnt]) -> Learnt:
        """The latest fit, made anew where it was of other data.

        Args:
            key: The data, equal only for equal ones.
            fit: Makes it, from these alone.
        """
        if self._learnt is None or self._key != key:
            self._learnt, self._key = fit(), key
        return self._learnt


def num_learnt_from(finished: int, first: int) -> int:
    """Of how many finished trials the hyperparameters are: again with each fifth more.

    Args:
        finished: All of them.
        first: With so many the surrogate is first used.
    """
    number = max(1, min(first, finished))
    while (after := max(number + 1, int(number * GROWTH))) <= finished:
        number = after
    return number
