"""Pairs of nodes that can have a moment: those with a common weight, or with means."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol

import torch

from priors.programs.expressions import Apply
from priors.programs.nodes import (
    Attention,
    Combination,
    Factor,
    Features,
    Hidden,
    Nonlinear,
    Normalise,
)

__all__ = ["Relations", "dependent", "odd", "related"]


class Relations(Protocol):
    """A program, finished or not, of which it is asked."""

    @property
    def relations(self) -> dict[tuple[int, int], bool]:
        """Which pairs of nodes can have a moment, filled on demand."""

    def hidden(self, index: int) -> Hidden:
        """A node that is not finite."""

    def gaussian(self, index: int) -> bool:
        """Whether a node is Gaussian with mean 0."""


def related(program: Relations, a: int, b: int) -> bool:
    """Whether the moment of two nodes can differ from 0."""
    key = (min(a, b), max(a, b))
    if key not in program.relations:
        program.relations[key] = _find_relation(program, *key)
    return program.relations[key]


def _find_relation(program: Relations, a: int, b: int) -> bool:
    first, second = program.hidden(a), program.hidden(b)
    for node, other in ((first, second), (second, first)):
        known = node.relation(other, functools.partial(related, program))
        if known is not None:
            return known
    if not program.gaussian(a) and not program.gaussian(b):
        return True  # means
    # take the later node apart
    for index, opposite in ((b, a), (a, b)):
        sources = program.hidden(index).related_through
        if sources:
            return any(related(program, s, opposite) for s in sources)
    return False


def dependent(program: Relations, a: int, b: int) -> bool:
    """Whether two nodes have a weight in common."""
    return any(
        related(program, s, t)
        for s in _gaussian_sources(program, a)
        for t in _gaussian_sources(program, b)
    )


def _gaussian_sources(program: Relations, index: int) -> set[int]:
    """The Gaussian nodes that a node is made of."""
    node = program.hidden(index)
    if program.gaussian(index) or isinstance(node, Features):
        return {index}
    return set().union(*(_gaussian_sources(program, i) for i in node.related_through))


def odd(program: Relations, index: int) -> bool:
    """Whether a node changes its sign with its Gaussian sources, so that its mean is 0."""
    node = program.hidden(index)
    if isinstance(node, Features):
        return False
    if program.gaussian(index) or (isinstance(node, Normalise) and node.centred):
        return True
    match node:
        case Nonlinear():
            return _odd_product(node.factors)
        case Combination():
            return node.offset == 0 and all(odd(program, i) for i in node.inputs)
        case Attention():
            return odd(program, node.value)
    return bool(node.inputs) and all(odd(program, i) for i in node.inputs)


def _odd_product(factors: Sequence[Factor]) -> bool:
    if any(f.statistics for f in factors):
        return False
    generator = torch.Generator().manual_seed(0)
    values = []
    for sign in (1.0, -1.0):
        generator.manual_seed(0)
        product = torch.ones(64, dtype=torch.float64)
        for f in factors:
            x = [
                sign * 3 * torch.randn(64, generator=generator, dtype=torch.float64)
                for _ in f.sources
            ]
            product = product * (f.function(x) if isinstance(f.function, Apply) else f.function(*x))
        values.append(product)
    return torch.allclose(values[0], -values[1], rtol=1e-12, atol=1e-12)
