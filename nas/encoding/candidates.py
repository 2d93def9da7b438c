"""Candidates, and candidates as rows of numbers that a surrogate reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nas.architectures import Architecture
from nas.encoding.hyperparameters import HyperparameterCube
from nas.kernels import ArchitectureTable
from nas.kernels.motifs import MotifStore
from nas.kernels.paths import paths_of
from nas.spaces import Space

__all__ = ["Candidate", "Encoder", "PathEncoder", "TableEncoder", "VectorEncoder"]


@dataclass(frozen=True)
class Candidate:
    """A graph and its hyperparameters.

    Attributes:
        architecture: The graph.
        hyperparameters: Sorted name and value pairs.
        study: 0 for the study that asks, 1 and so on for earlier ones that warm it.
        below: How many levels of fidelity below the full one it is trained.
    """

    architecture: Architecture
    hyperparameters: tuple[tuple[str, Any], ...] = ()
    study: int = 0
    below: int = 0

    @classmethod
    def of(cls, architecture: Architecture, hyperparameters: dict[str, Any]) -> Candidate:
        """A candidate from a plain dictionary."""
        return cls(architecture, tuple(sorted(hyperparameters.items())))

    @property
    def values(self) -> dict[str, Any]:
        """The hyperparameters by name."""
        return dict(self.hyperparameters)


class Encoder(ABC):
    """Candidates as rows: architecture first, then hyperparameters in the unit cube.

    Where there are fidelities, the next column is how many levels a candidate is below the full
    one; where there are earlier studies, the last column is the number of the study. Made for one
    proposal.

    Args:
        space: Of the architectures.
        cube: Encodes the hyperparameters.

    Attributes:
        num_earlier: Earlier studies.
        shares: Levels of fidelity in units of the full one, which is first; empty where there are
            none. The sampler sets it for a surrogate that reads them.
    """

    num_earlier = 0
    shares: tuple[float, ...] = ()

    def __init__(self, space: Space, cube: HyperparameterCube) -> None:
        self.space = space
        self.cube = cube
        self._codes: dict[Architecture, Tensor] = {}

    @abstractmethod
    def encode(self, architecture: Architecture) -> Tensor:
        """The architecture's part of the row, `[d]` in float64."""

    def codes(self, architectures: Sequence[Architecture]) -> Tensor:
        """`encode` of each, `[n, d]`."""
        for graph in architectures:
            if graph not in self._codes:
                self._codes[graph] = self.encode(graph)
        return torch.stack([self._codes[graph] for graph in architectures])

    def __call__(self, candidates: Sequence[Candidate]) -> Tensor:
        """`[n, d]` in float64."""
        codes = self.codes([candidate.architecture for candidate in candidates])
        rows = [
            self.cube.row(candidate.values)
            + [float(candidate.below)] * bool(self.shares)
            + [float(candidate.study)] * bool(self.num_earlier)
            for candidate in candidates
        ]
        if not rows[0]:
            return codes
        return torch.cat([codes, torch.tensor(rows, dtype=torch.float64, device="cpu")], dim=-1)


class VectorEncoder(Encoder):
    """Points of one unit cube, as the space encodes its architectures."""

    def encode(self, architecture: Architecture) -> Tensor:
        """The space's code."""
        return self.space.encode(architecture)


class TableEncoder(Encoder):
    """The number of the architecture in a table, for kernels that look it up.

    Args:
        space: Of the architectures.
        cube: Encodes the hyperparameters.
        observed: The training rows.
        traits: Further descriptors, see `ArchitectureTable`.
        store: Features that are known already, likewise.
    """

    def __init__(
        self,
        space: Space,
        cube: HyperparameterCube,
        observed: Sequence[Candidate],
        *,
        traits: Callable[[Architecture], Sequence[float]] | None = None,
        store: MotifStore | None = None,
    ) -> None:
        super().__init__(space, cube)
        first = (candidate.architecture for candidate in observed)
        self.table = ArchitectureTable(first, traits=traits, store=store)
        self.num_earlier = max(candidate.study for candidate in observed)

    def encode(self, architecture: Architecture) -> Tensor:
        """The number, `[1]`."""
        return self.codes([architecture])[0]

    def codes(self, architectures: Sequence[Architecture]) -> Tensor:
        """The numbers, `[n, 1]`."""
        numbers = self.table.numbers(architectures)
        return torch.tensor(numbers, dtype=torch.float64, device="cpu")[:, None]


class PathEncoder(Encoder):
    """Which paths of operations lead through an architecture, beside the space's code.

    A column for each path that some training row has and another has not (White et al. 2021,
    1910.11858, section 3.1, whose encoding has all paths that are possible).

    Args:
        space: Of the architectures.
        cube: Encodes the hyperparameters.
        observed: The training rows.
    """

    def __init__(
        self, space: Space, cube: HyperparameterCube, observed: Sequence[Candidate]
    ) -> None:
        super().__init__(space, cube)
        found = [paths_of(candidate.architecture) for candidate in observed]
        common = frozenset.intersection(*found)
        self.paths = sorted({path for each in found for path in each if path not in common})

    def encode(self, architecture: Architecture) -> Tensor:
        """Ones where a path is there, then the code."""
        found = paths_of(architecture)
        row = [float(path in found) for path in self.paths]
        paths = torch.tensor(row, dtype=torch.float64, device="cpu")
        return torch.cat([paths, self.space.encode(architecture)])
