"""A log density and its gradient at all chains, as samplers ask for them: often.

The graph of operations is captured at the first call (`graphs`), and blocks of leapfrog steps can
be compiled to one program each, so that hardly any Python runs between gradients.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bayes.inference.graphs import Graph, captured, compiled
from bayes.inference.log_density import LogDensity, value_and_gradient

__all__ = ["Evaluation"]

# Leapfrog steps in one compiled program.
_BLOCK = 8


class Evaluation:
    """Log densities and gradients of positions `[chains, d]`.

    Args:
        density: The density.
        compile: Whether blocks of steps are compiled.
    """

    def __init__(self, density: LogDensity, *, compile: bool) -> None:
        self.density = density
        self.compile = compile
        self._graphs: dict[torch.Size, Callable[..., Any]] = {}
        self._blocks: dict[int, Callable[..., Any]] = {}

    def __call__(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Log densities `[chains]` and their gradients `[chains, d]`."""
        try:
            value, gradient = self._graph(position)(position)
        except torch.linalg.LinAlgError:  # of some chains, which the plain form tells apart
            value, gradient = self._plain(position)
        return value, gradient

    def steps(
        self, position: Tensor, momentum: Tensor, size: Tensor, number: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Steps of position and momentum: x += size p, then p += size times the gradient at x.

        Args:
            position: `[chains, d]`.
            momentum: `[chains, d]`.
            size: Broadcasts with them.
            number: Of steps, at least 1.

        Returns:
            Position, momentum, log density and gradient at the end.
        """
        if self.compile and not isinstance(self._graph(position), Graph):
            self.compile = False  # what it does depends on values
        while number > 0:
            block = _BLOCK if self.compile and number >= _BLOCK else 1
            position, momentum, value, gradient = self._step(block, position, momentum, size)
            number -= block
        return position, momentum, value, gradient

    def _step(
        self, number: int, position: Tensor, momentum: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self.compile:
            program = self._blocks.get(number)
            if program is None:
                program = self._blocks[number] = compiled(self._block(number, position))
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of the compiler, at its first call
                    found: tuple[Tensor, Tensor, Tensor, Tensor] = program(position, momentum, size)
                return found
            except torch.linalg.LinAlgError:
                pass
        for _ in range(number):
            position = position + size * momentum
            value, gradient = self(position)
            momentum = momentum + size * gradient
        return position, momentum, value, gradient

    def _block(self, number: int, position: Tensor) -> Callable[..., Any]:
        graph = self._graph(position)
        # what a compiler can look into
        function = graph.module if isinstance(graph, Graph) else graph

        def block(
            position: Tensor, momentum: Tensor, size: Tensor
        ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            for _ in range(number):
                position = position + size * momentum
                value, gradient = function(position)
                momentum = momentum + size * gradient
            return position, momentum, value, gradient

        return block

    def _graph(self, position: Tensor) -> Callable[..., Any]:
        found = self._graphs.get(position.shape)
        if found is None:
            # of generic values: a density may have an infinite gradient where chains start
            found = self._graphs[position.shape] = captured(self._plain, position)
        return found

    def _plain(self, position: Tensor) -> tuple[Tensor, Tensor]:
        return value_and_gradient(self.density.function, position)
