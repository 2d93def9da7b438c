"""A tensor program as a whole: nodes in order of computation, and questions about them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

from priors.programs.nodes import (
    Attention,
    Features,
    Finite,
    Hidden,
    Linear,
    Node,
    Nonlinear,
    Shape,
    Weighted,
    is_gaussian,
)

__all__ = ["Program", "pruned"]


@dataclass(frozen=True)
class Program:
    """What a module computes, as nodes in order of computation.

    Attributes:
        nodes: The nodes; each refers to earlier ones by index.
        output: Index of the module's result.
        num_outputs: Width of the module's result.
        weights: Parameter name in the module of each weight of the program, by layer name.
        biases: The same for biases.
        constants: Parameters that stay at a fixed value (gains 1 and shifts 0 of normalisation).
        fan_in: Number of inputs of a unit of each weight's layer; None while it is open.
        input_shape: Shape of one data point; a dimension is None while it is open.
        frozen: Parameters with `requires_grad` False, which have no part in the tangent kernel.
        gradient_stop: What stops gradients inside (`detach`, `no_grad`) and where, or None.
        relations: Which pairs of nodes can have a moment, filled as it is asked for.
    """

    nodes: tuple[Node, ...]
    output: int
    num_outputs: int
    weights: dict[str, str]
    biases: dict[str, str]
    constants: dict[str, float]
    fan_in: dict[str, int | None]
    input_shape: Shape
    frozen: frozenset[str] = frozenset()
    gradient_stop: tuple[str, str] | None = None
    relations: dict[tuple[int, int], bool] = field(default_factory=dict, compare=False, repr=False)

    def terms(self, index: int) -> tuple[tuple[float, int], ...]:
        """Node `index` as a linear combination of nodes that are not combinations themselves."""
        return self.hidden(index).sum(index)[0]

    def finite(self, index: int) -> bool:
        """Whether a node is computed from the data point without any weight."""
        return isinstance(self.nodes[index], Finite)

    def hidden(self, index: int) -> Hidden:
        """A node that is not finite."""
        node = self.nodes[index]
        assert isinstance(node, Hidden)
        return node

    def positions(self, index: int) -> int | None:
        """Number of positions of a node; None if it is a single vector, or finite."""
        return self._positions[index]

    @cached_property
    def _positions(self) -> tuple[int | None, ...]:
        return tuple(n.num_positions if isinstance(n, Hidden) else None for n in self.nodes)

    def from_input(self, index: int) -> bool:
        """Whether a node holds raw features, as vectors at positions."""
        return isinstance(self.nodes[index], Features)

    def edges(self) -> list[tuple[int, Linear]]:
        """Plain nonlinearities and the layers they feed, directly or through linear maps."""
        found = []
        for target in self.nodes:
            if not isinstance(target, Linear) or target.source is None:
                continue
            waiting = [target.source]
            while waiting:
                index = waiting.pop()
                node = self.nodes[index]
                if isinstance(node, Nonlinear):
                    if node.activation is not None:
                        found.append((index, target))
                elif not isinstance(node, Weighted | Features):
                    waiting += self.sources(index)
        return found

    @cached_property
    def consumers(self) -> tuple[int, ...]:
        """How often each node is used by others."""
        count = [0] * len(self.nodes)
        for index in range(len(self.nodes)):
            for source in self.sources(index):
                count[source] += 1
        return tuple(count)

    @property
    def mixes(self) -> bool:
        """Whether different positions meet: pooling or attention."""
        return any(isinstance(n, Hidden) and n.mixes for n in self.nodes)

    @property
    def has_random_heads(self) -> bool:
        """Whether attention weights differ between heads in the limit."""
        return any(isinstance(n, Attention) and not n.mean_field for n in self.nodes)

    def sources(self, index: int) -> tuple[int, ...]:
        """The nodes that a node is computed from."""
        return self.nodes[index].inputs

    def gaussian(self, index: int) -> bool:
        """Whether a node's units are Gaussian with mean 0 in the limit."""
        return is_gaussian(self.nodes, index)

    @property
    def is_homogeneous_chain(self) -> bool:
        """Whether layers follow one another and every activation is positively homogeneous."""
        weights = [node.weight for node in self.nodes if isinstance(node, Weighted)]
        if len(set(weights)) < len(weights):
            return False
        if not all(isinstance(n, Finite) or n.homogeneous for n in self.nodes):
            return False
        return all(n <= 1 or self.finite(i) for i, n in enumerate(self.consumers))


def pruned(program: Program) -> Program:
    """The program without nodes that its output does not depend on."""
    needed = {program.output}
    for index in range(program.output, -1, -1):
        if index in needed:
            needed.update(program.sources(index))
    places = {old: new for new, old in enumerate(sorted(needed | {0}))}
    nodes = tuple(program.nodes[i].renumbered(places) for i in places)
    return replace(program, nodes=nodes, output=places[program.output], relations={})
