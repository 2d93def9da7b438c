"""Maximising an acquisition function over graphs and hyperparameters together.

Gradients do not reach the graph, so the search is by generations: a pool of random candidates and
of mutations of the best observed ones is scored in one batch; then a few of its best climb,
alternating a step over the graph's neighbours with a step over perturbed hyperparameters whose
size shrinks. Only values of the acquisition function are used, in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from nas.architectures.architecture import Architecture
from nas.encoding.hyperparameters import HyperparameterCube
from nas.spaces import Space
from priors.randomness import RandomSource

__all__ = ["Candidate", "Encoder", "maximise"]

SCALES = (0.2, 0.1, 0.05, 0.02)  # of the hyperparameter steps while climbing, unit coordinates
NUM_RANDOM = 256
NUM_MUTATIONS = 256
NUM_CLIMBERS = 6
NUM_STEPS = 24  # perturbed hyperparameters and graph neighbours of each climber in each round


@dataclass(frozen=True)
class Candidate:
    """A graph and its hyperparameters.

    Attributes:
        architecture: The graph.
        hyperparameters: Sorted name and value pairs.
    """

    architecture: Architecture
    hyperparameters: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, architecture: Architecture, hyperparameters: dict[str, Any]) -> Candidate:
        """A candidate from a plain dictionary."""
        return cls(architecture, tuple(sorted(hyperparameters.items())))

    @property
    def values(self) -> dict[str, Any]:
        """The hyperparameters by name."""
        return dict(self.hyperparameters)


class Encoder:
    """Candidates as points of one unit cube: architecture first, then hyperparameters.

    It remembers the codes and neighbours of the graphs it has met: make one for each proposal.

    Args:
        space: Encodes the architectures.
        cube: Encodes the hyperparameters.
    """

    def __init__(self, space: Space, cube: HyperparameterCube) -> None:
        self.space = space
        self.cube = cube
        self._codes: dict[Architecture, Tensor] = {}
        self._neighbours: dict[Architecture, list[Architecture]] = {}

    def __call__(self, candidates: Sequence[Candidate]) -> Tensor:
        """`[n, d]` in float64."""
        rows = []
        for candidate in candidates:
            graph = candidate.architecture
            if graph not in self._codes:
                self._codes[graph] = self.space.encode(graph)
            rows.append(torch.cat([self._codes[graph], self.cube.encode(candidate.values)]))
        return torch.stack(rows)

    def neighbours(self, architecture: Architecture) -> list[Architecture]:
        """The neighbours of an architecture in the space."""
        if architecture not in self._neighbours:
            self._neighbours[architecture] = self.space.neighbours(architecture)
        return self._neighbours[architecture]


def maximise(
    acquisition: Callable[[Tensor], Tensor],
    encoder: Encoder,
    *,
    elites: Sequence[Candidate],
    seen: Collection[Candidate],
    generator: Generator,
) -> Candidate:
    """The best unseen candidate found.

    Args:
        acquisition: `[b, 1, d]` to `[b]`, larger is better; NaN is never chosen.
        encoder: Gives the points, and with them the space and the hyperparameters.
        elites: Observed candidates worth mutating, best first.
        seen: What must not be proposed again while anything else is there.
        generator: Source of randomness.
    """
    taken = set(seen)

    def rank(candidates: Sequence[Candidate]) -> list[tuple[float, Candidate]]:
        fresh = [c for c in dict.fromkeys(candidates) if c not in taken]
        if not fresh:
            return []
        with torch.no_grad():
            values = acquisition(encoder(fresh)[:, None, :]).nan_to_num(nan=-torch.inf)
        # sorted() is stable, so equal values keep the order of the pool.
        pairs = zip(values.tolist(), fresh, strict=True)
        return sorted(pairs, key=lambda pair: -pair[0])

    pool = [_random(encoder, generator) for _ in range(NUM_RANDOM)]
    pool += [
        _mutation(encoder, elites[index % len(elites)], generator)
        for index in range(NUM_MUTATIONS if elites else 0)
    ]
    climbers = rank(pool)[:NUM_CLIMBERS]
    if not climbers:
        return pool[0]  # everything within reach has been seen
    for scale in SCALES:
        for step in (_graph_steps, _hyperparameter_steps):
            families = [step(encoder, climber, scale, generator) for _, climber in climbers]
            scored = {c: value for value, c in rank([c for family in families for c in family])}
            climbers = [
                max([(scored[c], c) for c in family if c in scored] + [climber], key=_value)
                for climber, family in zip(climbers, families, strict=True)
            ]
    return max(climbers, key=_value)[1]


def _value(pair: tuple[float, Candidate]) -> float:
    return pair[0]


def _random(encoder: Encoder, generator: Generator) -> Candidate:
    return Candidate.of(encoder.space.random(generator), encoder.cube.random(generator))


def _mutation(encoder: Encoder, parent: Candidate, generator: Generator) -> Candidate:
    """One or two edits of the graph, none in a quarter of the cases, and moved values."""
    graph = parent.architecture
    draws = RandomSource(generator)
    edits = (0, 1, 1, 2)[int(draws.integers(4))]
    for _ in range(edits):
        neighbours = encoder.neighbours(graph)
        if neighbours:
            graph = neighbours[int(draws.integers(len(neighbours)))]
    scale = SCALES[int(draws.integers(len(SCALES)))]
    return Candidate.of(graph, encoder.cube.perturb(parent.values, scale, generator))


def _graph_steps(
    encoder: Encoder, candidate: Candidate, scale: float, generator: Generator
) -> list[Candidate]:
    neighbours = encoder.neighbours(candidate.architecture)
    order = torch.randperm(len(neighbours), generator=generator, device=generator.device)
    chosen = order[:NUM_STEPS].tolist()
    return [Candidate(neighbours[index], candidate.hyperparameters) for index in chosen]


def _hyperparameter_steps(
    encoder: Encoder, candidate: Candidate, scale: float, generator: Generator
) -> list[Candidate]:
    if not encoder.cube.distributions:
        return []
    values = candidate.values
    return [
        Candidate.of(candidate.architecture, encoder.cube.perturb(values, scale, generator))
        for _ in range(NUM_STEPS)
    ]
