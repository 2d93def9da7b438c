"""Tensor programs: what a module computes, from which weights, in what order.

A value of a network is a *vector* at each of its *positions* (pixels, tokens, time steps): the
vector's width goes to infinity, the positions are finite and keep their shape. The nodes are

    Input, Function   finite: computed from the data point without any weight
    Features          a finite value as vectors at positions
    Linear            W h + b at every position, or a convolution; with the identity of W and b
    Embedding         a row of W for each token
    Nonlinear         a product of functions of jointly Gaussian vectors, unit by unit
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
    "Nonlinear",
    "Embedding",
    "Factor",
    "Features",
    "Finite",
    "Flatten",
    "Function",
    "Hidden",
    "Input",
    "Join",
    "Linear",
    "Mix",
    "Node",
    "Normalise",
    "OneSource",
    "Ref",
    "Select",
    "Shape",
    "Span",
    "Window",
    "is_gaussian",
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


class Finite:
    """A node computed from the data point alone; `shape` is without the batch."""

    shape: Shape

    @property
    def inputs(self) -> tuple[int, ...]:
        """The nodes that it is computed from."""
        raise NotImplementedError

    def renumbered(self, places: Mapping[int, int]) -> Any:
        """The node where its inputs have moved to `places`."""
        raise NotImplementedError

    def is_gaussian(self, gaussian: Callable[[int], bool]) -> bool:
        """Whether its units are Gaussian with mean 0, given that question for its inputs."""
        return False


class Hidden:
    """A node with a vector of infinite width at each of its `positions`."""

    positions: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        """The nodes that it is computed from."""
        raise NotImplementedError

    def renumbered(self, places: Mapping[int, int]) -> Any:
        """The node where its inputs have moved to `places`."""
        raise NotImplementedError

    def is_gaussian(self, gaussian: Callable[[int], bool]) -> bool:
        """Whether its units are Gaussian with mean 0, given that question for its inputs."""
        return False

    @property
    def num_positions(self) -> int | None:
        """Number of positions; None of a single vector."""
        return math.prod(self.positions) if self.positions else None


Node = Finite | Hidden


@dataclass(frozen=True)
class OneSource(Hidden):
    """A hidden node computed from one other."""

    source: int

    @property
    def inputs(self) -> tuple[int, ...]:
        return (self.source,)

    def renumbered(self, places: Mapping[int, int]) -> Any:
        return replace(self, source=places[self.source])


@dataclass(frozen=True)
class Input(Finite):
    """One data point of shape `shape`."""

    shape: Shape

    @property
    def inputs(self) -> tuple[int, ...]:
        return ()

    def renumbered(self, places: Mapping[int, int]) -> Any:
        return self


@dataclass(frozen=True)
class Function(Finite):
    """A torch function of finite values and constants; the batch is the first dimension."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]
    shape: Shape

    @property
    def inputs(self) -> tuple[int, ...]:
        given = (*self.arguments, *(value for _, value in self.keywords))
        return tuple(r.index for r in _refs(given) if r.index is not None)

    def renumbered(self, places: Mapping[int, int]) -> Any:
        def new(item: Any) -> Any:
            match item:
                case Ref(index=int(index)):
                    return Ref(places[index])
                case Span():
                    return Span(new(item.start), new(item.stop), new(item.step))
                case tuple():
                    return tuple(new(part) for part in item)
            return item

        return replace(self, arguments=new(self.arguments), keywords=new(self.keywords))


@dataclass(frozen=True)
class Features(OneSource):
    """A finite value as vectors along dimension `axis` (counted without the batch)."""

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
class Linear(Hidden):
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

    @property
    def inputs(self) -> tuple[int, ...]:
        return () if self.source is None else (self.source,)

    def renumbered(self, places: Mapping[int, int]) -> Any:
        return self if self.source is None else replace(self, source=places[self.source])

    def is_gaussian(self, gaussian: Callable[[int], bool]) -> bool:
        return True


@dataclass(frozen=True)
class Embedding(OneSource):
    """The row of W that belongs to a token, 0 for the padding token; `source` is finite."""

    weight: str
    layer: str
    padding: int | None
    positions: tuple[int, ...]

    def is_gaussian(self, gaussian: Callable[[int], bool]) -> bool:
        return True


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
class Nonlinear(Hidden):
    """A product of factors that have no source in common."""

    factors: tuple[Factor, ...]
    positions: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        vectors = tuple(s for f in self.factors for s in f.sources)
        return vectors + tuple(i for f in self.factors for _, i in f.statistics)

    def renumbered(self, places: Mapping[int, int]) -> Any:
        factors = tuple(
            replace(
                f,
                sources=tuple(places[s] for s in f.sources),
                statistics=tuple((kind, places[s]) for kind, s in f.statistics),
            )
            for f in self.factors
        )
        return replace(self, factors=factors)

    @property
    def activation(self) -> Activation | None:
        """The function, if it is one `Activation` of one Gaussian."""
        function = self.factors[0].function
        return function if len(self.factors) == 1 and isinstance(function, Activation) else None


@dataclass(frozen=True)
class Combination(Hidden):
    """A fixed linear combination of other nodes, plus `offset` in every coordinate."""

    terms: tuple[tuple[float, int], ...]
    offset: float
    positions: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        return tuple(i for _, i in self.terms)

    def renumbered(self, places: Mapping[int, int]) -> Any:
        return replace(self, terms=tuple((c, places[i]) for c, i in self.terms))

    def is_gaussian(self, gaussian: Callable[[int], bool]) -> bool:
        return self.offset == 0 and all(gaussian(i) for _, i in self.terms)


@dataclass(frozen=True)
class Normalise(OneSource):
    """(h - mean) / sqrt(variance + eps); `centred` False is RMSNorm.

    The statistics are over the width and, with `pooled`, over the last `pooled` positions' axes.
    """

    centred: bool
    eps: float
    pooled: int
    positions: tuple[int, ...]

    def is_gaussian(self, gaussian: Callable[[int], bool]) -> bool:
        return gaussian(self.source)


@dataclass(frozen=True)
class BatchNormalise(OneSource):
    """(h - mean) / sqrt(variance + eps), over the batch and all positions."""

    eps: float
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Mix(OneSource):
    """A matrix for each axis of the source's positions (None: identity).

    `flat` instead is one matrix over all positions in a row.
    """

    matrices: tuple[Array | None, ...]
    flat: Array | None
    positions: tuple[int, ...]

    def is_gaussian(self, gaussian: Callable[[int], bool]) -> bool:
        return gaussian(self.source)


@dataclass(frozen=True)
class Select(OneSource):
    """Position k of the result is position `picks[k]` of the source (both flattened)."""

    picks: Array
    positions: tuple[int, ...]

    def is_gaussian(self, gaussian: Callable[[int], bool]) -> bool:
        return gaussian(self.source)


@dataclass(frozen=True)
class Join(Hidden):
    """The flattened positions of several nodes in a row."""

    sources: tuple[int, ...]
    positions: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        return self.sources

    def renumbered(self, places: Mapping[int, int]) -> Any:
        return replace(self, sources=tuple(places[i] for i in self.sources))

    def is_gaussian(self, gaussian: Callable[[int], bool]) -> bool:
        return all(gaussian(i) for i in self.sources)


@dataclass(frozen=True)
class Flatten(OneSource):
    """The vectors of `members[k]` (positions of the source) in a row, as one vector."""

    members: Array
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Concatenate(Hidden):
    """Vectors in a row; `sizes` are their widths in the module, whose ratios stay."""

    sources: tuple[int, ...]
    sizes: tuple[int, ...]
    positions: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        return self.sources

    def renumbered(self, places: Mapping[int, int]) -> Any:
        return replace(self, sources=tuple(places[i] for i in self.sources))


@dataclass(frozen=True)
class Dropout(OneSource):
    """Units kept with probability `keep`, then divided by it.

    `whole` drops a unit at all positions at once. `call` tells masks apart.
    """

    keep: float
    whole: bool
    call: int
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Attention(Hidden):
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

    @property
    def inputs(self) -> tuple[int, ...]:
        return (self.value, self.query, self.key)

    def renumbered(self, places: Mapping[int, int]) -> Any:
        return replace(
            self, value=places[self.value], query=places[self.query], key=places[self.key]
        )

    def is_gaussian(self, gaussian: Callable[[int], bool]) -> bool:
        return self.mean_field and gaussian(self.value)


def is_gaussian(nodes: Sequence[Node], index: int) -> bool:
    """Whether a node's units are Gaussian with mean 0 in the limit."""
    return nodes[index].is_gaussian(lambda i: is_gaussian(nodes, i))


def _refs(values: Any) -> list[Ref]:
    if isinstance(values, Ref):
        return [values]
    if isinstance(values, tuple | list):
        return [r for v in values for r in _refs(v)]
    return []
