"""Architectures by number, with their kernels computed once.

Models see a candidate as a row of numbers, so an architecture is a number of a table, in the first
column of X. The table keeps the Gram matrix of every level of motifs and the descriptors of every
architecture; a kernel looks entries up. Architectures can be added at any time, also after a model
was fitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nas.architectures import Architecture
from nas.kernels.computation import bodies_of, computation
from nas.kernels.weisfeiler_lehman import motif_counts, unary

__all__ = ["ArchitectureTable"]


class Features(NamedTuple):
    """What kernels compare of one architecture.

    Attributes:
        motifs: Counts, level by level; see `ArchitectureTable`.
        operations: How often each operation is in its graphs, a cell counted once.
        sizes: Log parameters, log FLOPs (of 1 + x) and depth.
    """

    motifs: tuple[dict[Hashable, int], ...]
    operations: dict[str, int]
    sizes: tuple[float, float, float]


class ArchitectureTable:
    """Architectures by number.

    Levels are of four kinds of motifs, `depth + 1` of each: of the network and of the cells that it
    repeats, by the names of operations and by names and arguments. Levels that say nothing about
    the architectures that the table begins with, or what another says, are left out.

    Args:
        architectures: Those that the table begins with, the training rows.
        depth: Last level of motifs.
        assignment: Whether levels are optimal-assignment kernels, or inner products of counts.
        traits: Further descriptors of an architecture, as many numbers for each; NaN where it has
            none, which counts as the mean. See `nas.proxies.ProxyScores`.

    Attributes:
        architectures: By number.
        levels: Which levels are kept.
        operations: Operations whose number differs among the first architectures.

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
    ) -> None:
        if depth < 0:
            raise ValueError(f"depth must not be negative, got {depth}.")
        self.depth = depth
        self.assignment = assignment
        self.traits = traits
        self.architectures: list[Architecture] = []
        self._numbers: dict[Architecture, int] = {}
        self._features: list[Features] = []
        self.levels: list[int] = list(range(4 * (depth + 1)))
        self._grams: Tensor
        self._forget()
        if not self.numbers(architectures):
            raise ValueError("A table needs the architectures of the training rows.")
        self.operations = self._differing()
        grams = self.grams()
        # The last of equal ones goes; with nothing to tell apart the first stays.
        self.levels = [
            level
            for level in self.levels
            if not _alike(grams[level], grams[level, 0, 0])
            and not any(_alike(grams[level], grams[other]) for other in range(level))
        ] or [0]
        self._forget()
        sizes = self._sizes(0)
        self._centre = sizes.nanmean(0).nan_to_num()
        spread = (sizes - self._centre).square().nanmean(0).sqrt()
        self._spread = torch.where(spread > 1e-9, spread, 1.0)
        self._scaled = sizes[:0]

    def __deepcopy__(self, memo: dict[int, Any]) -> ArchitectureTable:
        return self  # kernels that are copied share it

    def __len__(self) -> int:
        return len(self.architectures)

    def numbers(self, architectures: Iterable[Architecture]) -> list[int]:
        """Their numbers; those that are new are added."""
        found = []
        for architecture in architectures:
            number = self._numbers.setdefault(architecture, len(self.architectures))
            if number == len(self.architectures):
                self.architectures.append(architecture)
                self._features.append(_features(architecture, self.depth))
            found.append(number)
        return found

    def grams(self) -> Tensor:
        """The levels that are kept, `[levels, n, n]` in float64 on the CPU.

        1 on the diagonals, except where an architecture has none of the motifs: cells, in one
        without cells. It is 0 there.
        """
        done = self._grams.shape[-1]
        if done < len(self):
            shape = len(self.levels), len(self), len(self)
            grown = torch.zeros(shape, dtype=torch.float64, device="cpu")
            grown[:, :done, :done] = self._grams
            for place, level in enumerate(self.levels):
                rows = self._motifs(place, level, done)
                new = torch.from_numpy((rows[done:] @ rows.T).toarray())
                grown[place, done:] = new
                grown[place, :, done:] = new.T
            self._grams = grown
        return self._grams

    def descriptors(self) -> Tensor:
        """Log parameters, log FLOPs, depth, log counts of operations, traits, `[n, columns]`.

        Logs are of 1 + x, and each column is in units of its deviation over the first
        architectures, about their mean; float64 on the CPU.
        """
        done = len(self._scaled)
        if done < len(self):
            new = (self._sizes(done) - self._centre) / self._spread
            self._scaled = torch.cat([self._scaled, new.nan_to_num(nan=0.0)])
        return self._scaled

    def _forget(self) -> None:
        self._grams = torch.empty(len(self.levels), 0, 0, dtype=torch.float64, device="cpu")
        self._columns: list[dict[Hashable, int]] = [{} for _ in self.levels]
        self._rows: list[list[tuple[list[int], list[float]]]] = [[] for _ in self.levels]

    def _differing(self) -> tuple[str, ...]:
        counts = [features.operations for features in self._features]
        names = sorted({name for each in counts for name in each})
        return tuple(n for n in names if len({each.get(n, 0) for each in counts}) > 1)

    def _sizes(self, start: int) -> Tensor:
        rows = [
            [
                *f.sizes,
                *(math.log1p(f.operations.get(name, 0)) for name in self.operations),
                *(() if self.traits is None else self.traits(architecture)),
            ]
            for f, architecture in zip(
                self._features[start:], self.architectures[start:], strict=True
            )
        ]
        return torch.tensor(rows, dtype=torch.float64, device="cpu")

    def _motifs(self, place: int, level: int, done: int) -> Any:
        """Normalised counts of a level, a sparse matrix `[n, motifs]`."""
        from scipy.sparse import csr_array

        columns, rows = self._columns[place], self._rows[place]
        for features in self._features[done:]:
            counts = features.motifs[level]
            counts = unary(counts) if self.assignment else counts
            values = np.array(list(counts.values()), dtype=np.float64)
            values = values / max(float(np.linalg.norm(values)), 1e-300)
            places = [columns.setdefault(motif, len(columns)) for motif in counts]
            rows.append((places, values.tolist()))
        pointers = np.cumsum([0, *(len(places) for places, _ in rows)])
        indices = np.array([index for places, _ in rows for index in places], dtype=np.int64)
        values = np.array([value for _, values in rows for value in values], dtype=np.float64)
        shape = len(rows), max(1, len(columns))
        return csr_array((values, indices, pointers), shape=shape)


def _alike(one: Tensor, other: Tensor) -> bool:
    """Equal up to rounding."""
    return bool(((one - other).abs() < 1e-12).all())


@lru_cache(maxsize=1 << 14)
def _features(architecture: Architecture, depth: int) -> Features:
    network = computation(architecture.nodes)
    cells = [computation(body.nodes) for body in bodies_of(architecture)]
    motifs = [
        dict(counts)
        for graphs in ([network], cells)
        for with_arguments in (False, True)
        for counts in motif_counts(graphs, depth, with_arguments=with_arguments)
    ]
    names = [step.name for graph in (network, *cells) for step in graph]
    sizes = (
        math.log1p(architecture.num_parameters),
        math.log1p(architecture.flops),
        float(architecture.depth),
    )
    return Features(tuple(motifs), {name: names.count(name) for name in set(names)}, sizes)
