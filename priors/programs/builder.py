"""A program under construction: its nodes, its parameters and the layers that hold them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from priors.gaussian.activations import Activation
from priors.programs.learnt import Entries, Learnt, as_matrix
from priors.programs.nodes import (
    Array,
    Features,
    Finite,
    Function,
    Hidden,
    Input,
    Linear,
    Node,
    Ref,
    Select,
    Shape,
    Window,
    is_gaussian,
)
from priors.programs.registry import UnsupportedOperationError
from priors.programs.values import BATCH, Value, frozen, name_of, replaced, values_in

__all__ = ["NEEDS_A_LAYER", "Builder"]

NEEDS_A_LAYER = "its width is finite; apply a Linear layer to the input first"


class Builder:
    """Nodes in order of computation, with the parameters that they use.

    Attributes:
        where: Place of the call being translated, for error messages.
        input_shape: Shape of one data point; open dimensions are None.
        weights: Parameter name of each weight by layer name.
        biases: The same for biases.
        constants: Parameters that stay at a fixed value.
        fan_in: Number of inputs of a unit of each weight's layer; None while it is open.
        gradient_stop: What stops gradients, and where; None if nothing does.
        relations: Which pairs of nodes can have a moment, filled as it is asked for.
        entries: The parameters that are operands, and what their entries are used for.
        transposed: Whether the matrix of a layer is used as its transpose.
    """

    def __init__(
        self,
        module: nn.Module,
        input_shape: Sequence[int] | None,
        *,
        whole_batch: bool = False,
    ) -> None:
        self.module = module
        self.whole_batch = whole_batch
        self.nodes: list[Node] = []
        self.weights: dict[str, str] = {}
        self.biases: dict[str, str] = {}
        self.constants: dict[str, float] = {}
        self.fan_in: dict[str, int | None] = {}
        self.gradient_stop: tuple[str, str] | None = None
        self.relations: dict[tuple[int, int], bool] = {}
        self.entries = Entries()
        self.transposed: dict[str, bool] = {}
        self._known: dict[Node, int] = {}
        self._calls = 0
        self.where = "forward"
        # Identity of a weight is the identity of its Parameter, whatever path leads to it.
        self.names = {
            id(p): name
            for name, p in reversed(list(module.named_parameters(remove_duplicate=False)))
        }
        if input_shape is not None and any(int(s) < 1 for s in input_shape):
            raise ValueError(f"input_shape must have positive sizes, got {tuple(input_shape)}.")
        self.input_shape = (None,) if input_shape is None else tuple(map(int, input_shape))

    def add(self, node: Node) -> int:
        """The index of a node; an equal one is the same."""
        if node not in self._known:
            self._known[node] = len(self.nodes)
            self.nodes.append(node)
        return self._known[node]

    def positions(self, value: Value | int) -> tuple[int, ...]:
        """Shape of the positions of a hidden value."""
        return self.hidden(value if isinstance(value, int) else value.index).positions

    def hidden(self, index: int) -> Hidden:
        """A node that is not finite."""
        node = self.nodes[index]
        assert isinstance(node, Hidden)
        return node

    def shape(self, value: Value) -> Shape:
        """Shape of the value's tensor without the batch."""
        node = self.nodes[value.index]
        if isinstance(node, Finite):
            return node.shape
        if value.axis is None:
            return self.positions(value)
        units = dict((*value.heads, (value.axis, value.width // value.num_heads)))
        places = iter(self.positions(value))
        rank = len(self.positions(value)) + len(units)
        return tuple(units[d] if d in units else next(places) for d in range(rank))

    def gaussian(self, index: int) -> bool:
        """Whether a node is Gaussian with mean 0."""
        return is_gaussian(self.nodes, index)

    def finite_call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A torch function of finite values, as a node; a tuple of nodes if it gives several."""
        inputs = [v for v in values_in((args, kwargs)) if v.finite]
        if any(None in self.shape(v) for v in inputs):
            if isinstance(function, Activation) or _keeps_shape(function, args):
                shape: Any = self.shape(inputs[0])
                return self._function(function, args, kwargs, shape)
            raise ValueError(
                f"{self.where} needs the shape of one input; give input_shape: (64,) for rows of "
                "64 columns, (3, 8, 8) for images of 3 channels."
            )
        result, again = (self._stand_in(function, args, kwargs, n) for n in (BATCH, BATCH + 1))
        several = isinstance(result, tuple | list)
        shapes = [
            _without_batch(*pair)
            for pair in zip(*((r if several else (r,)) for r in (result, again)), strict=True)
        ]
        if None in shapes:
            raise self.unsupported(name_of(function), "the first dimension must stay the batch")
        known = [shape for shape in shapes if shape is not None]
        self._check_points_stay_apart(function, args, kwargs, [batch for batch, _ in known])
        if several:
            whole = self._function(function, args, kwargs, ())
            return tuple(
                dataclasses.replace(
                    self._function(_Item(batch), (whole, k), {}, shape), batch=batch
                )
                for k, (batch, shape) in enumerate(known)
            )
        ((batch, shape),) = known
        made = function if batch == 0 else _BatchFirst(function, batch)
        return dataclasses.replace(self._function(made, args, kwargs, shape), batch=batch)

    def _stand_in(
        self, function: Callable[..., Any], args: Any, kwargs: dict[str, Any], batch: int
    ) -> Any:
        """What a function makes of a batch of that size, without numbers."""

        def empty(value: Value) -> Tensor:
            sizes = _known(self.shape(value))
            return torch.empty(batch, *sizes, device="meta").movedim(0, value.batch)

        given, named = replaced((args, kwargs), empty, lambda: batch)
        try:
            try:
                return function(*given, **named)
            except RuntimeError:  # of constants on another device than the stand-ins
                moved = [a.to("meta") if isinstance(a, Tensor) else a for a in given]
                return function(*moved, **named)
        except Exception as error:
            raise self.unsupported(name_of(function), str(error)) from error

    def _check_points_stay_apart(
        self,
        function: Callable[..., Any],
        args: Any,
        kwargs: dict[str, Any],
        batches: Sequence[int],
    ) -> None:
        """Tried on random points: another first one must not change the second one's result."""
        generator = torch.Generator().manual_seed(0)
        points: dict[int, Tensor] = {}

        def point(value: Value) -> Tensor:
            if value.index not in points:
                shape = BATCH, *_known(self.shape(value))
                points[value.index] = torch.randn(shape, generator=generator)
            return points[value.index].clone().movedim(0, value.batch)

        results = []
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for _ in range(2):
                given, named = replaced((args, kwargs), point, lambda: BATCH)
                try:
                    found = function(*given, **named)
                except Exception:  # not a function of arbitrary numbers, such as tokens
                    return
                results.append(found if isinstance(found, tuple | list) else (found,))
                for x in points.values():
                    x[0] = torch.randn(x.shape[1:], generator=generator)
        for one, two, batch in zip(*results, batches, strict=True):
            first, second = (found.select(batch, 1).double() for found in (one, two))
            if not torch.allclose(first, second, equal_nan=True):
                raise self.unsupported(
                    name_of(function), "it mixes the points of a batch, or is random"
                )

    def _function(
        self, function: Callable[..., Any], args: Any, kwargs: dict[str, Any], shape: Any
    ) -> Value:
        arguments, keywords = replaced(
            (args, kwargs), lambda v: Ref(v.index, v.batch), lambda: Ref(None)
        )
        return Value(
            self.add(Function(function, frozen(arguments), frozen(tuple(keywords.items())), shape))
        )

    def features(self, value: Value, axis: int, fan_in: int | None) -> int:
        """A finite value as vectors along `axis`; hidden values as they are, if that fits."""
        if value.batch and (axis >= 0 or value.batch == len(self.shape(value))):
            self.check_batch(value)
        if not value.finite:
            if value.axis != axis % len(self.shape(value)) or value.heads:
                raise self.unsupported(
                    "a layer along a dimension that is not the width",
                    "transpose first; a learnt map of positions has no limit, because their "
                    "number stays finite",
                )
            if fan_in is not None and fan_in != value.width:
                raise ValueError(
                    f"The layer at {self.where} expects {fan_in} features but gets {value.width}."
                )
            return value.index
        shape = self.shape(value)
        if shape == (None,) and fan_in is not None:
            self._fix_input((fan_in,))
            shape = (fan_in,)
        axis = axis % len(shape)
        if fan_in is not None and shape[axis] != fan_in:
            raise ValueError(
                f"The layer at {self.where} expects {fan_in} features but gets {shape[axis]}."
            )
        positions = shape[:axis] + shape[axis + 1 :]
        return self.add(Features(value.index, axis, _known(positions)))

    def _fix_input(self, shape: tuple[int, ...]) -> None:
        """Nonlinear functions keep the shape, so all finite nodes have that of the input."""
        for index, node in enumerate(self.nodes):
            if isinstance(node, Input | Function):
                self.nodes[index] = dataclasses.replace(node, shape=shape)
        self._known = {node: index for index, node in enumerate(self.nodes)}
        self.input_shape = shape

    def linear(
        self,
        source: int | None,
        weight: Tensor,
        bias: Tensor | None,
        *,
        width: int,
        rows: tuple[int, int] | None = None,
        window: Window | None = None,
        positions: tuple[int, ...] = (),
        transposed: bool = False,
    ) -> int:
        """A matrix product as a node; `rows` of the matrix, all if None."""
        layer = self.parameter(weight, self.weights, "weight")
        if self.transposed.setdefault(layer, transposed) != transposed:
            raise self.unsupported(
                "a matrix together with its transpose",
                "the result of each depends on the input of the other, so that neither it nor "
                "its gradient is Gaussian by itself; use two separate matrices",
            )
        lazy = nn.parameter.is_lazy(weight)
        inputs = slice(0, 1) if transposed else slice(1, None)
        self.fan_in[layer] = None if lazy else math.prod(weight.shape[inputs])
        bias_layer = None if bias is None else self.parameter(bias, self.biases, "bias")
        suffix = "" if rows is None or rows == (0, width) else f"[{rows[0]}:{rows[1]}]"
        return self.add(
            Linear(
                source,
                layer + suffix,
                layer,
                None if bias_layer is None else bias_layer + suffix,
                bias_layer,
                self.fan_in[layer],
                window,
                positions,
            )
        )

    def dense(
        self,
        x: Value,
        weight: Tensor | Learnt,
        bias: Tensor | None,
        *,
        width: int | None = None,
        rows: tuple[int, int] | None = None,
        transposed: bool = False,
    ) -> Value:
        """W x + b along the last dimension, or W^T x + b; `width` is that of a lazy layer."""
        weight, turned = as_matrix(self, weight)
        transposed = transposed != turned
        lazy = nn.parameter.is_lazy(weight)
        source = self.features(x, -1, None if lazy else weight.shape[0 if transposed else 1])
        whole = weight.shape[1 if transposed else 0] if width is None else width
        positions = self.positions(source)
        index = self.linear(
            source, weight, bias, width=whole, rows=rows, positions=positions, transposed=transposed
        )
        units = whole if rows is None else rows[1] - rows[0]
        return Value(index, units, len(positions), batch=x.batch)

    def parameter(self, value: Any, names: dict[str, str], kind: str) -> str:
        """Name of the layer that a parameter belongs to; registers it."""
        name = self.names.get(id(value))
        if isinstance(value, Learnt):
            raise self.unsupported(
                f"a {kind} that was modified",
                "its scale is set by weight_var or bias_var; use the parameter unmodified",
            )
        if name is None:
            raise self.unsupported(
                f"a {kind} that is not a parameter of the module",
                "it must be an nn.Parameter; parametrisations (weight_norm, spectral_norm) "
                "make weights whose entries are not independent: remove them with "
                "torch.nn.utils.parametrize.remove_parametrizations",
            )
        layer = name.removesuffix(f".{kind}")
        names[layer] = name
        return layer

    def constant(self, parameter: Tensor | None, value: float) -> None:
        """Keep a parameter at a value: it is neither random nor trained."""
        if parameter is not None:
            self.parameter(parameter, {}, "parameter")
            self.constants[self.names[id(parameter)]] = value

    def stop_gradients(self, what: str, result: Any) -> None:
        """Note that no gradient flows back through hidden values or parameters."""
        hidden = any(not v.finite for v in values_in(result))
        if (hidden or isinstance(result, nn.Parameter)) and self.gradient_stop is None:
            self.gradient_stop = what, self.where

    def next_call(self) -> int:
        """A number that distinguishes this call from others."""
        self._calls += 1
        return self._calls

    def terms(self, index: int) -> tuple[tuple[float, int], ...]:
        """A node as a linear combination of nodes that are not combinations themselves."""
        return self.hidden(index).sum(index)[0]

    def offset(self, index: int) -> float:
        """The constant part of a node."""
        return self.hidden(index).sum(index)[1]

    def select(self, index: int, picks: Tensor) -> int:
        """Positions `picks` (numbers of flattened positions, in the new shape) of a node."""
        positions = tuple(picks.shape)
        if positions == self.positions(index) and bool(
            (picks.flatten() == torch.arange(picks.numel())).all()
        ):
            return index
        found = self.hidden(index).selected(picks, self)
        return self.add(Select(index, Array.of(picks), positions)) if found is None else found

    def restrict(self, index: int, first: int, last: int) -> int:
        """Units first..last-1 of a node: other rows of the matrix that made it."""
        return self.hidden(index).restricted(index, first, last, self)

    def like(self, value: Value, index: int) -> Value:
        """Another node with the same layout."""
        return dataclasses.replace(value, index=index)

    def check_batch(self, value: Value) -> None:
        """Refuse a value whose batch is not its first dimension."""
        if value.batch:
            raise self.unsupported(
                "a value whose first dimension is not the batch", "permute it back first"
            )

    def unsupported(self, what: str, why: str = "") -> UnsupportedOperationError:
        """The error that refuses what is being translated."""
        return UnsupportedOperationError(what, self.where, why)


def _known(shape: Shape) -> tuple[int, ...]:
    """A shape of which nothing is open."""
    assert None not in shape
    return tuple(size for size in shape if size is not None)


def _without_batch(one: Tensor, two: Tensor) -> tuple[int, tuple[int, ...]] | None:
    """The dimension whose size is the batch's, and the other sizes, from batches of two sizes."""
    pairs = list(zip(one.shape, two.shape, strict=True)) if one.dim() == two.dim() else []
    changed = [d for d, (a, b) in enumerate(pairs) if a != b]
    if len(changed) != 1 or pairs[changed[0]] != (BATCH, BATCH + 1):
        return None
    (batch,) = changed
    return batch, tuple(size for d, size in enumerate(one.shape) if d != batch)


@dataclass(frozen=True)
class _Item:
    """One of several results, with the batch moved to the front."""

    batch: int

    def __call__(self, values: Any, index: int) -> Any:
        return values[index].movedim(self.batch, 0)


@dataclass(frozen=True)
class _BatchFirst:
    """A function with the batch of its result moved to the front."""

    function: Callable[..., Any]
    batch: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs).movedim(self.batch, 0)


def _keeps_shape(function: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Nonlinear functions of one value and numbers, for inputs whose width is open."""
    return name_of(function) in _ELEMENTWISE_NAMES and sum(1 for _ in values_in(args)) >= 1


_ELEMENTWISE_NAMES = {"add", "sub", "mul", "truediv", "div", "neg", "pow", "exp", "sin", "cos"}
