"""Features of architectures by number, counted once and kept.

Counting motifs of a graph costs far more than looking them up, and a search asks for the same
architectures again and again, so a store of features outlives the proposals that it is made for.
Inner products of counts are whole numbers, exact in whatever order they are summed: what is read
from a store does not depend on what else is in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from nas.architectures import Architecture
from nas.kernels.computation import Operation, bodies_of, computation
from nas.kernels.paths import path_counts
from nas.kernels.weisfeiler_lehman import motif_counts, unary

__all__ = ["MotifStore"]


class MotifStore:
    """Motif counts, sizes and operations of architectures.

    Levels are of four kinds of motifs, `depth + 1` of each: of the network and of the cells that it
    repeats, by the names of operations and by names and arguments; and last the paths from input to
    output by names of operations, of the network and of its cells.

    Args:
        depth: Last level of motifs.
        assignment: Whether levels are optimal-assignment kernels, or inner products of counts.
        code: A point of the unit cube for an architecture, None for one of another space.
        code_sizes: Columns of each choice in a code, see `nas.spaces.FlatSpace.code_sizes`.

    Attributes:
        architectures: By number.
        codes: What `code` gives for each; empty without it.
    """

    def __init__(
        self,
        *,
        depth: int = 2,
        assignment: bool = True,
        code: Callable[[Architecture], Tensor | None] | None = None,
        code_sizes: tuple[int, ...] | None = None,
    ) -> None:
        if depth < 0:
            raise ValueError(f"depth must not be negative, got {depth}.")
        self.depth = depth
        self.assignment = assignment
        self.code = code
        self.code_sizes = code_sizes
        self.codes: list[Tensor | None] = []
        self.architectures: list[Architecture] = []
        self._numbers: dict[Architecture, int] = {}
        self._counts = [_Counts() for _ in range(4 * (depth + 1) + 2)]
        self.operations: list[dict[str, int]] = []
        self.sizes: list[tuple[float, float, float]] = []

    def __len__(self) -> int:
        return len(self.architectures)

    @property
    def num_levels(self) -> int:
        """All levels."""
        return len(self._counts)

    def numbers(self, architectures: Iterable[Architecture]) -> list[int]:
        """Their numbers; those that are new are added."""
        found = []
        for architecture in architectures:
            number = self._numbers.setdefault(architecture, len(self.architectures))
            if number == len(self.architectures):
                self._add(architecture)
            found.append(number)
        return found

    def gram(self, level: int, one: np.ndarray, two: np.ndarray) -> np.ndarray:
        """Normalised kernel of a level between two lists of numbers, `[n1, n2]`.

        1 for equal architectures, except where an architecture has none of the motifs: cells, in
        one without cells. It is 0 there.
        """
        counts, lengths = self._counts[level].rows()
        products = (counts[one] @ counts[two].T).toarray()
        products /= lengths[one][:, None]
        products /= lengths[two]
        return products

    def pairs(self, level: int, one: np.ndarray, two: np.ndarray) -> np.ndarray:
        """The entries of `gram` for pairs of numbers, `[n]`."""
        counts, lengths = self._counts[level].rows()
        products = np.asarray(counts[one].multiply(counts[two]).sum(axis=1)).ravel()
        return products / (lengths[one] * lengths[two])

    def size_of(self, number: int, operations: Iterable[str]) -> list[float]:
        """Log parameters, log FLOPs, depth and log counts of some operations; logs of 1 + x."""
        counts = self.operations[number]
        return [*self.sizes[number], *(math.log1p(counts.get(name, 0)) for name in operations)]

    def _add(self, architecture: Architecture) -> None:
        network = tuple(computation(architecture.nodes))
        cells = tuple(tuple(computation(body.nodes)) for body in bodies_of(architecture))
        *motifs, paths = _levels((network,), self.depth, self.assignment)
        *of_cells, paths_of_cells = _levels(cells, self.depth, self.assignment)
        levels = [*motifs, *of_cells, paths, paths_of_cells]
        for kept, counts in zip(self._counts, levels, strict=True):
            kept.add(counts)
        names = [step.name for graph in (network, *cells) for step in graph]
        self.operations.append({name: names.count(name) for name in set(names)})
        self.sizes.append(
            (
                math.log1p(architecture.num_parameters),
                math.log1p(architecture.flops),
                float(architecture.depth),
            )
        )
        if self.code is not None:
            self.codes.append(self.code(architecture))
        self.architectures.append(architecture)


@lru_cache(maxsize=1 << 14)
def _levels(
    graphs: tuple[tuple[Operation, ...], ...], depth: int, assignment: bool
) -> tuple[Mapping[Any, int], ...]:
    """Motifs of some graphs by names, by names and arguments, and their paths.

    Kept, as networks of a space often differ in their cells alone, and cells in what is empty.
    """
    levels: list[Mapping[Any, int]] = [
        counts
        for with_arguments in (False, True)
        for counts in motif_counts(graphs, depth, with_arguments=with_arguments)
    ]
    levels.append(path_counts(graphs))
    return tuple(unary(counts) if assignment else counts for counts in levels)


class _Counts:
    """Rows of counts of one level, as a sparse matrix that grows."""

    def __init__(self) -> None:
        self._columns: dict[Hashable, int] = {}
        self._places: list[int] = []
        self._values: list[int] = []
        self._ends: list[int] = [0]  # of the rows that are not in the matrix yet
        self._made: tuple[Any, np.ndarray] | None = None

    def add(self, counts: Mapping[Hashable, int]) -> None:
        """One more row."""
        columns = self._columns
        self._places += [columns.setdefault(motif, len(columns)) for motif in counts]
        self._values += counts.values()
        self._ends.append(len(self._places))

    def rows(self) -> tuple[Any, np.ndarray]:
        """All rows as a sparse matrix, and their Euclidean lengths, 1 for empty ones."""
        from scipy.sparse import csr_array, vstack

        if self._made is None or len(self._ends) > 1:
            values = np.array(self._values, dtype=np.float64)
            shape = len(self._ends) - 1, max(1, len(self._columns))
            matrix = csr_array((values, self._places, self._ends), shape=shape)
            lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
            lengths = np.where(lengths > 0, lengths, 1.0)
            if self._made is not None:
                known, before = self._made
                known.resize(known.shape[0], shape[1])
                matrix = vstack([known, matrix], format="csr")
                lengths = np.concatenate([before, lengths])
            self._made = matrix, lengths
            self._places, self._values, self._ends = [], [], [0]
        return self._made


class Block(NamedTuple):
    """A Gram matrix with what it is of."""

    one: np.ndarray
    two: np.ndarray
    values: Tensor

    def holds(self, one: np.ndarray, two: np.ndarray) -> bool:
        """Whether it is of these numbers."""
        return np.array_equal(one, self.one) and np.array_equal(two, self.two)
