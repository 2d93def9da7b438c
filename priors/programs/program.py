"""Tensor programs: what a module computes, from which weights, in what order.

A value of a network is a *vector* at each of its *positions* (pixels, tokens, time steps): the
vector's width goes to infinity, the positions are finite and keep their shape. The nodes are

    Input, Function   finite: computed from the data point without any weight
    Features          a finite value as vectors at positions
    Linear            W h + b at every position, or a convolution; with the identity of W and b
    Embedding         a row of W for each token
    Elementwise       a product of functions of jointly Gaussian vectors, unit by unit
    Combination       sum_k c_k h_k + offset: no term is itself a Combination
    BatchNormalise    the same over the batch; only in programs of whole batches
    Normalise         (h - mean) / sqrt(variance + eps) over the width
    Mix               a fixed linear map of the positions: pooling, graph aggregation
    Select            positions picked, repeated or reordered
    Join              the positions of several nodes, one after the other
    Flatten           positions and width merged into one vector
    Concatenate       several vectors one after the other
    Dropout           a random mask
    Attention         values averaged over positions with weights from queries and keys

Everything that calls a layer again, in a loop or on another branch, appears as another node with
the same weight name; that is how weight tying is seen. Nodes refer to earlier ones by index and
hold no tensors of the module, so a program can be compared, copied and pickled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy
import torch
from torch import Tensor

from priors.gaussian.activations import Activation
from priors.programs.expressions import Expression

__all__ = [
    "Array",
    "Attention",
    "BatchNormalise",
    "Combination",
    "Concatenate",
    "Dropout",
    "Elementwise",
    "Embedding",
    "Factor",
    "Features",
    "Flatten",
    "Function",
    "Input",
    "Join",
    "Linear",
    "Mix",
    "Node",
    "Normalise",
    "Program",
    "Ref",
    "Select",
    "Span",
    "Window",
    "pruned",
]

# A dimension that the module leaves open (`nn.LazyLinear`, or no `input_shape` given).
Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Array:
    """A constant array by value: hashable, and a tensor on any device."""

    data: bytes
    shape: tuple[int, ...]
    kind: str

    @staticmethod
    def of(tensor: Tensor) -> Array:
        """The array of a tensor; floating point is kept in float64."""
        values = tensor.detach().cpu()
        values = values.double() if values.is_floating_point() else values
        array = values.contiguous().numpy()
        return Array(array.tobytes(), tuple(array.shape), array.dtype.str)

    def tensor(self, like: Tensor) -> Tensor:
        """The array on the device of `like`, and in its dtype if floating point."""
        array = numpy.frombuffer(self.data, dtype=self.kind).reshape(self.shape).copy()
        result = torch.from_numpy(array).to(like.device)
        return result.to(like.dtype) if result.is_floating_point() else result


@dataclass(frozen=True)
class Ref:
    """A finite node among the arguments of a `Function`; the batch size if `index` is None."""

    index: int | None


@dataclass(frozen=True)
class Span:
    """A slice among the arguments of a `Function`, which unlike `slice` is hashable."""

    start: Any
    stop: Any
    step: Any


@dataclass(frozen=True)
class Input:
    """One data point of shape `shape`."""

    shape: Shape


@dataclass(frozen=True)
class Function:
    """A torch function of finite values and constants; the batch is the first dimension."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]
    shape: Shape


@dataclass(frozen=True)
class Features:
    """A finite value as vectors along dimension `axis` (counted without the batch)."""

    source: int
    axis: int
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """The window of a convolution: per spatial dimension."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    circular: bool


@dataclass(frozen=True)
class Linear:
    """W h + b. Equal `weight` (or `bias`) means the same matrix; `layer` names its variance.

    `source` None is the zero vector: what remains is the bias. `fan_in` is the module's own.
    """

    source: int | None
    weight: str
    layer: str
    bias: str | None
    bias_layer: str | None
    fan_in: int | None
    window: Window | None
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Embedding:
    """The row of W that belongs to a token, 0 for the padding token; `source` is finite."""

    source: int
    weight: str
    layer: str
    padding: int | None
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Factor:
    """A function of jointly Gaussian vectors, unit by unit.

    An `Activation` has one source. An `Expression` may also use statistics, numbers that differ
    between data points: ("mean" or "scale", index of a `Normalise` node).
    """

    function: Activation | Expression
    sources: tuple[int, ...]
    statistics: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Elementwise:
    """A product of factors that have no source in common."""

    factors: tuple[Factor, ...]
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Combination:
    """A fixed linear combination of other nodes, plus `offset` in every coordinate."""

    terms: tuple[tuple[float, int], ...]
    offset: float
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Normalise:
    """(h - mean) / sqrt(variance + eps); `centred` False is RMSNorm.

    The statistics are over the width and, with `pooled`, over the last `pooled` positions' axes.
    """

    source: int
    centred: bool
    eps: float
    pooled: int
    positions: tuple[int, ...]


@dataclass(frozen=True)
class BatchNormalise:
    """(h - mean) / sqrt(variance + eps), over the batch and all positions."""

    source: int
    eps: float
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Mix:
    """A matrix for each axis of the source's positions (None: identity).

    `flat` instead is one matrix over all positions in a row.
    """

    source: int
    matrices: tuple[Array | None, ...]
    flat: Array | None
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Select:
    """Position k of the result is position `picks[k]` of the source (both flattened)."""

    source: int
    picks: Array
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Join:
    """The flattened positions of several nodes in a row."""

    sources: tuple[int, ...]
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Flatten:
    """The vectors of `members[k]` (positions of the source) in a row, as one vector."""

    source: int
    members: Array
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Concatenate:
    """Vectors in a row; `sizes` are their widths in the module, whose ratios stay."""

    sources: tuple[int, ...]
    sizes: tuple[int, ...]
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Dropout:
    """Units kept with probability `keep`, then divided by it.

    `whole` drops a unit at all positions at once. `call` tells masks apart.
    """

    source: int
    keep: float
    whole: bool
    call: int
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Attention:
    """sum_b A_ab value_b, A = softmax(logits) or the logits, over the last axis of positions.

    Logits are `scale` <query_a, key_b> / width if `mean_field`, else / sqrt(width), plus `mask`
    `[queries, keys]`. `uniform` replaces the logits by 0.
    """

    value: int
    query: int
    key: int
    scale: float
    mean_field: bool
    softmax: bool
    mask: Array | None
    uniform: bool
    positions: tuple[int, ...]


Node = (
    Input
    | Function
    | Features
    | Linear
    | Embedding
    | Elementwise
    | Combination
    | Normalise
    | BatchNormalise
    | Mix
    | Select
    | Join
    | Flatten
    | Concatenate
    | Dropout
    | Attention
)


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
    relations: dict[tuple[int, int], bool] = field(default_factory=dict, compare=False, repr=False)

    def terms(self, index: int) -> tuple[tuple[float, int], ...]:
        """Node `index` as a linear combination of nodes that are no combinations."""
        node = self.nodes[index]
        return node.terms if isinstance(node, Combination) else ((1.0, index),)

    def finite(self, index: int) -> bool:
        """Whether a node is computed from the data point without any weight."""
        return isinstance(self.nodes[index], Input | Function)

    def positions(self, index: int) -> int | None:
        """Number of positions of a node; None if it is a single vector."""
        shape = self.nodes[index].positions  # type: ignore[union-attr]
        return math.prod(shape) if shape else None

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
                if isinstance(node, Elementwise):
                    plain = len(node.factors) == 1
                    if plain and isinstance(node.factors[0].function, Activation):
                        found.append((index, target))
                elif not isinstance(node, Linear | Embedding | Features):
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
        return any(isinstance(n, Mix | Attention) for n in self.nodes)

    @property
    def has_random_heads(self) -> bool:
        """Whether attention weights differ between heads in the limit."""
        return any(isinstance(n, Attention) and not n.mean_field for n in self.nodes)

    def sources(self, index: int) -> tuple[int, ...]:
        """The nodes that a node is computed from."""
        match self.nodes[index]:
            case Input():
                return ()
            case Function() as node:
                return tuple(r.index for r in _refs(node.arguments) if r.index is not None) + tuple(
                    r.index for _, v in node.keywords for r in _refs((v,)) if r.index is not None
                )
            case Elementwise() as node:
                own = tuple(s for f in node.factors for s in f.sources)
                return own + tuple(i for f in node.factors for _, i in f.statistics)
            case Combination() as node:
                return tuple(i for _, i in node.terms)
            case Join() | Concatenate() as node:
                return node.sources
            case Attention() as node:
                return (node.value, node.query, node.key)
            case Linear() as node:
                return () if node.source is None else (node.source,)
            case node:
                return (node.source,)

    def gaussian(self, index: int) -> bool:
        """Whether a node's units are Gaussian with mean 0 in the limit."""
        match self.nodes[index]:
            case Linear() | Embedding():
                return True
            case Combination() as node:
                return node.offset == 0 and all(self.gaussian(i) for _, i in node.terms)
            case Normalise() | Mix() | Select() as node:
                return self.gaussian(node.source)
            case Join() as node:
                return all(self.gaussian(i) for i in node.sources)
            case Attention() as node:
                return node.mean_field and self.gaussian(node.value)
        return False

    @property
    def is_homogeneous_chain(self) -> bool:
        """Whether layers follow one another and every activation is positively homogeneous."""
        linear = [node for node in self.nodes if isinstance(node, Linear | Embedding)]
        if len({node.weight for node in linear}) < len(linear):
            return False
        for node in self.nodes:
            if isinstance(node, Normalise | Attention | Join | Concatenate):
                return False
            if isinstance(node, Combination) and (len(node.terms) != 1 or node.offset):
                return False
            if isinstance(node, Elementwise) and not (
                len(node.factors) == 1
                and isinstance(node.factors[0].function, Activation)
                and node.factors[0].function.homogeneous
            ):
                return False
        return all(n <= 1 or self.finite(i) for i, n in enumerate(self.consumers))


def pruned(program: Program) -> Program:
    """The program without nodes that its output does not depend on."""
    needed = {program.output}
    for index in range(program.output, -1, -1):
        if index in needed:
            needed.update(program.sources(index))
    places = {old: new for new, old in enumerate(sorted(needed | {0}))}
    nodes = tuple(_renumbered(program.nodes[i], places) for i in places)
    return replace(program, nodes=nodes, output=places[program.output], relations={})


def _renumbered(node: Node, places: dict[int, int]) -> Node:
    def new(item: Any) -> Any:
        match item:
            case Ref(index=int(index)):
                return Ref(places[index])
            case Span():
                return Span(new(item.start), new(item.stop), new(item.step))
            case tuple():
                return tuple(new(part) for part in item)
        return item

    match node:
        case Input():
            return node
        case Function():
            return replace(node, arguments=new(node.arguments), keywords=new(node.keywords))
        case Elementwise():
            factors = tuple(
                replace(
                    f,
                    sources=tuple(places[s] for s in f.sources),
                    statistics=tuple((kind, places[s]) for kind, s in f.statistics),
                )
                for f in node.factors
            )
            return replace(node, factors=factors)
        case Combination():
            return replace(node, terms=tuple((c, places[i]) for c, i in node.terms))
        case Join() | Concatenate():
            return replace(node, sources=tuple(places[i] for i in node.sources))
        case Attention():
            return replace(
                node, value=places[node.value], query=places[node.query], key=places[node.key]
            )
        case Linear():
            return node if node.source is None else replace(node, source=places[node.source])
    return replace(node, source=places[node.source])


def _refs(values: Any) -> list[Ref]:
    if isinstance(values, Ref):
        return [values]
    if isinstance(values, tuple | list):
        return [r for v in values for r in _refs(v)]
    return []
