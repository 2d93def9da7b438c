"""Maximising an acquisition function over graphs and hyperparameters together.

Gradients do not reach the graph, so the search is by generations: a pool of random candidates, of
mutations of the best observed ones and of crossings between them is scored in one batch; then a few
of its best climb, alternating a step to graphs nearby with a step over perturbed hyperparameters
whose size shrinks. A small space is in the pool as a whole. Only values of the acquisition function
are used, in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Generator, Tensor

from nas.encoding.candidates import Candidate, Encoder
from priors.randomness import RandomSource

__all__ = ["maximise"]

SCALES = (0.2, 0.1, 0.05, 0.02)  # of the hyperparameter steps while climbing, unit coordinates
NUM_RANDOM = 256
NUM_MUTATIONS = 256
NUM_CROSSOVERS = 64
NUM_MEMBERS = 1024  # up to which all architectures of a space are in the pool
NUM_CLIMBERS = 6
NUM_STEPS = 24  # perturbed hyperparameters and graph neighbours of each climber in each round


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

    every = encoder.space.members(NUM_MEMBERS)
    if every is None:
        pool = [_random(encoder, generator) for _ in range(NUM_RANDOM)]
    else:
        pool = [Candidate.of(graph, encoder.cube.random(generator)) for graph in every]
    pool += [
        _mutation(encoder, elites[index % len(elites)], generator)
        for index in range(NUM_MUTATIONS if elites else 0)
    ]
    pool += [
        _crossing(encoder, elites, generator)
        for _ in range(NUM_CROSSOVERS if len(elites) > 1 else 0)
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
    for _ in range((0, 1, 1, 2)[int(draws.integers(4))]):
        graph = encoder.space.mutate(graph, generator)
    scale = SCALES[int(draws.integers(len(SCALES)))]
    return Candidate.of(graph, encoder.cube.perturb(parent.values, scale, generator))


def _crossing(encoder: Encoder, parents: Sequence[Candidate], generator: Generator) -> Candidate:
    """A graph of two parents, with the values of one of them."""
    one, two = RandomSource(generator).permutations(len(parents)).tolist()[:2]
    graph = encoder.space.crossover(parents[one].architecture, parents[two].architecture, generator)
    return Candidate(graph, parents[one].hyperparameters)


def _graph_steps(
    encoder: Encoder, candidate: Candidate, scale: float, generator: Generator
) -> list[Candidate]:
    near = encoder.space.steps(candidate.architecture, NUM_STEPS, generator)
    return [Candidate(graph, candidate.hyperparameters) for graph in near]


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
