"""Maximising an acquisition function over graphs and hyperparameters together.

Gradients do not reach the graph, so the search is by generations: a pool of random candidates, of
mutations of the best observed ones and of crossings between them is scored in one batch; then a few
of its best climb, alternating a step to graphs nearby with a step over perturbed hyperparameters
whose size shrinks, until nothing moves. Without hyperparameters the random candidates are all
of a `Pool`. Only values of the acquisition function are used, in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from nas.architectures import Architecture
from nas.encoding.candidates import Candidate, Encoder
from priors.randomness import RandomSource

__all__ = ["maximise"]

SCALES = (0.2, 0.1, 0.05, 0.02)  # of the hyperparameter steps while climbing, unit coordinates
NUM_RANDOM = 256
NUM_MUTATIONS = 64
NUM_CROSSOVERS = 32
NUM_CLIMBERS = 6
NUM_STEPS = 24  # perturbed hyperparameters and graph neighbours of each climber in each round


def maximise(
    acquisition: Callable[[Tensor], Tensor],
    encoder: Encoder,
    *,
    pool: Sequence[Architecture],
    is_whole: bool = False,
    elites: Sequence[Candidate],
    seen: Collection[Candidate],
    generator: Generator,
) -> Candidate:
    """The best unseen candidate found.

    Args:
        acquisition: `[b, 1, d]` to `[b]`, larger is better; NaN is never chosen.
        encoder: Gives the points, and with them the space and the hyperparameters.
        pool: Architectures to look at, see `Pool`; at least one.
        is_whole: Whether the pool is all of the space.
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

    random = _from_pool(encoder, pool, is_whole, generator)
    candidates = list(random)
    if not is_whole or encoder.cube.distributions:
        candidates += [
            _mutation(encoder, elites[index % len(elites)], generator)
            for index in range(NUM_MUTATIONS if elites else 0)
        ]
        candidates += [
            _crossing(encoder, elites, generator)
            for _ in range(NUM_CROSSOVERS if len(elites) > 1 else 0)
        ]
    climbers = rank(candidates)[:NUM_CLIMBERS]
    if not climbers:
        return random[0]  # everything within reach has been seen
    nearby: dict[Architecture, list[Architecture]] = {}

    def graph_steps(candidate: Candidate, scale: float) -> list[Candidate]:
        graph = candidate.architecture
        if graph not in nearby:
            nearby[graph] = encoder.space.steps(graph, NUM_STEPS, generator)
        return [_candidate(encoder, near, candidate.values, generator) for near in nearby[graph]]

    def hyperparameter_steps(candidate: Candidate, scale: float) -> list[Candidate]:
        graph, values = candidate.architecture, candidate.values
        return [
            _candidate(encoder, graph, encoder.cube.perturb(values, scale, generator), generator)
            for _ in range(NUM_STEPS if values else 0)
        ]

    for scale in SCALES:
        before = climbers
        for step in (graph_steps, hyperparameter_steps):
            families = [step(climber, scale) for _, climber in climbers]
            scored = {c: value for value, c in rank([c for family in families for c in family])}
            climbers = [
                max([(scored[c], c) for c in family if c in scored] + [climber], key=_value)
                for climber, family in zip(climbers, families, strict=True)
            ]
        if climbers == before and not encoder.cube.distributions:
            break
    return max(climbers, key=_value)[1]


def _from_pool(
    encoder: Encoder, pool: Sequence[Architecture], is_whole: bool, generator: Generator
) -> list[Candidate]:
    """Candidates of the architectures of a pool, with random hyperparameters."""
    if not encoder.cube.distributions:
        return [Candidate(graph) for graph in pool]
    if not is_whole:
        chosen = RandomSource(generator).integers(len(pool), NUM_RANDOM).tolist()
        pool = [pool[index] for index in chosen]
    return [_candidate(encoder, graph, encoder.cube.random(generator), generator) for graph in pool]


def _candidate(
    encoder: Encoder, graph: Architecture, values: dict[str, Any], generator: Generator
) -> Candidate:
    """With the hyperparameters that exist for it; those that others lacked are drawn."""
    return Candidate.of(graph, encoder.cube.chosen(graph, values, generator))


def _value(pair: tuple[float, Candidate]) -> float:
    return pair[0]


def _mutation(encoder: Encoder, parent: Candidate, generator: Generator) -> Candidate:
    """One or two edits of the graph, none in a quarter of the cases, and moved values."""
    graph = parent.architecture
    draws = RandomSource(generator)
    for _ in range((0, 1, 1, 2)[int(draws.integers(4))]):
        graph = encoder.space.mutate(graph, generator)
    scale = SCALES[int(draws.integers(len(SCALES)))]
    values = encoder.cube.perturb(parent.values, scale, generator)
    return _candidate(encoder, graph, values, generator)


def _crossing(encoder: Encoder, parents: Sequence[Candidate], generator: Generator) -> Candidate:
    """A graph of two parents, with the values of one of them."""
    one, two = RandomSource(generator).permutations(len(parents)).tolist()[:2]
    graph = encoder.space.crossover(parents[one].architecture, parents[two].architecture, generator)
    return _candidate(encoder, graph, parents[one].values, generator)
