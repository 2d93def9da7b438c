"""Architectures by number, as the kernels of one model compare them.

Models see a candidate as a row of numbers, so an architecture is a number of a table, in the first
column of X, and kernels look its features up. What the table begins with, the training rows,
decides which levels of motifs and which operations tell architectures apart and the units of
descriptors. Architectures can be added at any time, also after a model was fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nas.architectures import Architecture
from nas.kernels.motifs import Block, MotifStore

__all__ = ["ArchitectureTable"]

MAX_COMPARED = 256  # first architectures that decide which levels say something
NUM_LATEST = 2  # a prediction asks for two, and each model of a table for the same


class ArchitectureTable:
    """Architectures by number.

    Levels are of motifs and of paths, see `MotifStore`. Those that say nothing about the
    architectures that the table begins with, or what another says, are left out.

    Args:
        architectures: Those that the table begins with, the training rows.
        depth: Last level of motifs.
        assignment: Whether levels are optimal-assignment kernels, or inner products of counts.
        traits: Further descriptors of an architecture, as many numbers for each; NaN where it has
            none, which counts as the mean. See `nas.proxies.ProxyScores`.
        store: Where features are kept, of that depth and assignment; tables of one store have the
            same numbers. None makes a new one.

    Attributes:
        levels: Which levels are kept.
        operations: Operations whose number differs among the first architectures.
        code_sizes: Columns of each choice in the codes of the space; empty where there are none.

    Raises:
        ValueError: no architecture, or a negative depth.
    """

    def __init__(
        self,
        architectures: Iterable[Architecture],
        *,
        depth: int = 2,
        assignment: bool = True,
        traits: Callable[[Architecture], Sequence[float]] | None = None,
        store: MotifStore | None = None,
    ) -> None:
        self.store = MotifStore(depth=depth, assignment=assignment) if store is None else store
        self.traits = traits
        first = list(dict.fromkeys(self.numbers(architectures)))
        if not first:
            raise ValueError("A table needs the architectures of the training rows.")
        counts = [self.store.operations[number] for number in first]
        names = sorted({name for each in counts for name in each})
        self.operations = tuple(n for n in names if len({each.get(n, 0) for each in counts}) > 1)
        self.levels = self._telling(np.array(first[:MAX_COMPARED]))
        sizes = self._sizes(first)
        self._centre = sizes.nanmean(0).nan_to_num()
        spread = (sizes - self._centre).square().nanmean(0).sqrt()
        self._spread = torch.where(spread > 1e-9, spread, 1.0)
        self._scaled = sizes[:0]
        codes = [self.store.codes[number] for number in first] if self.store.codes else []
        columns = next((len(code) for code in codes if code is not None), 0)
        self.code_sizes = (self.store.code_sizes or (1,) * columns) if columns else ()
        self._coded = sizes.new_zeros(0, 1 + columns)
        self._latest: list[Block] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> ArchitectureTable:
        return self  # kernels that are copied share it

    def __len__(self) -> int:
        return len(self.store)

    def numbers(self, architectures: Iterable[Architecture]) -> list[int]:
        """Their numbers; those that are new are added."""
        return self.store.numbers(architectures)

    def gram(self, one: Tensor, two: Tensor) -> Tensor:
        """The levels that are kept between numbers `[n1]` and `[n2]`.

        Returns:
            `[levels, n1, n2]` in float64 on the CPU. 1 for equal architectures, except where one
            has none of the motifs: cells, in one without cells. It is 0 there.
        """
        rows, columns = one.cpu().numpy(), two.cpu().numpy()
        found = next((block for block in self._latest if block.holds(rows, columns)), None)
        if found is None:
            grams = [self.store.gram(level, rows, columns) for level in self.levels]
            found = Block(rows, columns, torch.from_numpy(np.stack(grams)))
            self._latest = [found, *self._latest[: NUM_LATEST - 1]]
        return found.values

    def pairs(self, one: Tensor, two: Tensor) -> Tensor:
        """The entries of `gram` for pairs of numbers `[n]`: `[levels, n]`."""
        rows, columns = one.cpu().numpy(), two.cpu().numpy()
        pairs = [self.store.pairs(level, rows, columns) for level in self.levels]
        return torch.from_numpy(np.stack(pairs))

    def descriptors(self) -> Tensor:
        """Log parameters, log FLOPs, depth, log counts of operations, traits, `[n, columns]`.

        Logs are of 1 + x, and each column is in units of its deviation over the first
        architectures, about their mean; float64 on the CPU.
        """
        done = len(self._scaled)
        if done < len(self):
            new = (self._sizes(range(done, len(self))) - self._centre) / self._spread
            self._scaled = torch.cat([self._scaled, new.nan_to_num(nan=0.0)])
        return self._scaled

    def codes(self) -> Tensor:
        """Whether an architecture has a code, 1 or 0, and the code, `[n, 1 + d]`.

        d is 0 where the store makes no codes; float64 on the CPU.
        """
        codes = self.store.codes
        if len(self._coded) < len(codes):
            missing = self._coded.new_zeros(self._coded.shape[1])
            new = [
                missing if code is None else torch.cat([torch.ones_like(code[:1]), code])
                for code in codes[len(self._coded) :]
            ]
            self._coded = torch.cat([self._coded, torch.stack(new)])
        return self._coded

    def _telling(self, first: np.ndarray) -> list[int]:
        kept: list[tuple[int, np.ndarray]] = []
        for level in range(self.store.num_levels):
            gram = self.store.gram(level, first, first)
            known = (gram[0, 0], *(other for _, other in kept))
            if not any(np.abs(gram - other).max() < 1e-12 for other in known):
                kept.append((level, gram))
        return [level for level, _ in kept] or [0]

    def _sizes(self, numbers: Iterable[int]) -> Tensor:
        store, traits = self.store, self.traits
        rows = [
            [
                *store.size_of(number, self.operations),
                *(() if traits is None else traits(store.architectures[number])),
            ]
            for number in numbers
        ]
        return torch.tensor(rows, dtype=torch.float64, device="cpu")
