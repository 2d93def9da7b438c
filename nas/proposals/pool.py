"""Architectures that every proposal of a study looks at.

Scoring an architecture costs little once its features are known, so what was drawn for one proposal
is looked at by the later ones too, which draw some more: the pool grows with the trials, and the
cost of a proposal with it, slowly. The draws come from one seed, so they do not depend on when they
are made.
"""

from __future__ import annotations

from torch import Generator

from nas.architectures import Architecture
from nas.spaces import Space

__all__ = ["Pool"]

NUM_MEMBERS = 1024  # up to which all architectures of a space are in the pool
NUM_FIRST = 256
NUM_PER_TRIAL = 32
MAX_POOL = 1 << 14
MAX_PAIRS = 1 << 19  # of pool and trials, whose kernel a proposal evaluates


class Pool:
    """All members of a small space; draws of any other.

    Args:
        space: Of the architectures.
        seed: Of the draws.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self.space = space
        self.seed = seed
        self._generator = Generator().manual_seed(seed)
        self._drawn: list[Architecture] = []
        self._members = space.members(NUM_MEMBERS)

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the space."""
        return self._members is not None

    def first(self, trials: int) -> list[Architecture]:
        """Different architectures, for a study with so many finished trials."""
        if self._members is not None:
            return self._members
        number = NUM_FIRST + NUM_PER_TRIAL * trials
        number = min(number, MAX_POOL, max(NUM_FIRST, MAX_PAIRS // max(1, trials)))
        while len(self._drawn) < number:
            self._drawn.append(self.space.random(self._generator))
        return list(dict.fromkeys(self._drawn[:number]))
