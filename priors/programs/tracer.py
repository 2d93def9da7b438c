"""From a `torch.nn.Module` to a tensor program, by way of torch.fx.

`trace` follows the forward and keeps what the infinite-width limit depends on. Values that come
from the data point alone stay torch functions. A hidden value knows which of its dimensions is
the width; reshaping, slicing and stacking are understood by carrying out the same torch call on
a tensor of numbered entries and reading off where each position and unit went. What each layer
and function becomes is asked of the `registry`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from priors.gaussian.activations import ABReLU, Activation
from priors.gaussian.activations import Elementwise as ElementwiseActivation
from priors.gaussian.quadrature import detect_kinks
from priors.programs.expressions import Apply, OneVariable, Statistic, Variable, substitute
from priors.programs.nodes import (
    Array,
    Attention,
    BatchNormalise,
    Combination,
    Concatenate,
    Embedding,
    Factor,
    Features,
    Finite,
    Flatten,
    Function,
    Hidden,
    Input,
    Join,
    Linear,
    Mix,
    Node,
    Nonlinear,
    Normalise,
    Ref,
    Select,
    Span,
    Window,
    is_gaussian,
)
from priors.programs.program import Program, pruned
from priors.programs.registry import (
    UnsupportedOperationError,
    function_rule,
    is_torch,
    layer_rule,
    own_functions,
    reason,
    steps_of_their_own,
)

__all__ = ["Nonlinearity", "Tracer", "Value", "trace"]

# Batch size of the numbered tensors: entries of the second must follow those of the first.
_BATCH = 2


class Nonlinearity(nn.Module):
    """An elementwise nonlinearity as a layer: any function, or an `Activation`.

    Args:
        function: Nonlinear on tensors; its Gaussian expectations are found by quadrature.
        kinks: Where the function is not smooth; None looks for them.
    """

    def __init__(
        self,
        function: Activation | Callable[[Tensor], Tensor],
        kinks: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(function, Activation):
            found = detect_kinks(function) if kinks is None else kinks
            function = ElementwiseActivation(function, tuple(float(k) for k in found))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """The function of `x`, elementwise."""
        return self.function(x)


def trace(
    module: nn.Module, input_shape: Sequence[int] | None = None, *, whole_batch: bool = False
) -> Program:
    """Trace a module into a `Program`.

    Args:
        module: Any module whose forward takes one tensor, batch first, and that torch.fx can
            trace. Its widths and the values of its weights do not matter.
        input_shape: Shape of one data point without batch dimensions; None means a row of
            features whose number is that of the first layer, or open.
        whole_batch: Accept batch normalisation, for `priors.batch_kernel`.

    Raises:
        UnsupportedOperationError: a layer or operation has no limit here; names it, its place
            and what is supported.
        ValueError: the forward cannot be traced, or shapes do not fit together.
        TypeError: `module` is no module.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(module).__name__}.")
    try:
        graph = _Leaves().trace(module)
    except (fx.proxy.TraceError, TypeError) as error:
        raise ValueError(
            f"torch.fx cannot trace the forward of {type(module).__name__}: {error}. It must not "
            "branch or loop on tensor values or on the batch size."
        ) from error
    with torch.device("cpu"):  # constants are kept there, whatever the default device is
        return Tracer(module, input_shape, whole_batch=whole_batch).run(graph)


class _Leaves(fx.Tracer):
    """Layers of torch and what has a rule of its own are one step each."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=own_functions())

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return steps_of_their_own(type(m)) or super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True)
class Value:
    """A node during tracing, with what its torch tensor looks like.

    Attributes:
        index: The node.
        width: Number of units in the module; 0 for a finite value.
        axis: The width's dimension, counted without the batch; None if it was squeezed away.
        heads: Dimensions and sizes that the width is split into, as of heads, besides `axis`,
            in the order of their strides; empty if it is in one piece.
        batch: The batch's dimension; only reshaping may move it, and has to bring it back.
    """

    index: int
    width: int = 0
    axis: int | None = None
    heads: tuple[tuple[int, int], ...] = ()
    batch: int = 0

    @property
    def finite(self) -> bool:
        """Whether the value comes from the data point alone."""
        return self.width == 0

    @property
    def num_heads(self) -> int:
        """Number of pieces that the width is split into."""
        return math.prod(size for _, size in self.heads)


class Tracer:
    """Translates an fx graph node by node; the rules call its public methods.

    Attributes:
        where: Place of the call being translated, for error messages.
        function: The function being translated, for rules that hold for several.
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
        self._known: dict[Node, int] = {}
        self._calls = 0
        self.where = "forward"
        self.function: Callable[..., Any] = operator.pos
        # Identity of a weight is the identity of its Parameter, whatever path leads to it.
        self.names = {
            id(p): name
            for name, p in reversed(list(module.named_parameters(remove_duplicate=False)))
        }
        if input_shape is not None and any(int(s) < 1 for s in input_shape):
            raise ValueError(f"input_shape must have positive sizes, got {tuple(input_shape)}.")
        self.input_shape = (None,) if input_shape is None else tuple(map(int, input_shape))

    def run(self, graph: fx.Graph) -> Program:
        """The program of a graph."""
        start = Value(self.add(Input(self.input_shape)))
        return self._finish(self._follow(graph, self.module, (start,), {}, outermost=True))

    def _follow(
        self,
        graph: fx.Graph,
        module: nn.Module,
        inputs: tuple[Any, ...],
        options: dict[str, Any],
        *,
        outermost: bool = False,
    ) -> Any:
        """The result of a module's graph."""
        values: dict[fx.Node, Any] = {}
        given = iter(inputs)
        result: Any = None
        for node in graph.nodes:
            args = fx.node.map_arg(node.args, lambda n: values[n])
            kwargs = fx.node.map_arg(node.kwargs, lambda n: values[n])
            if node.op == "placeholder":
                default = node.args[0] if node.args else _MISSING
                value = options.get(str(node.target), next(given, default))
                if value is _MISSING:
                    raise self.unsupported(
                        f"a second input {node.target!r}", "one input is expected"
                    )
                values[node] = value
            elif node.op == "get_attr":
                values[node] = operator.attrgetter(str(node.target))(module)
            elif node.op == "output":
                result = args[0]
            else:
                layer = node.op == "call_module"
                if outermost:
                    self.where = (
                        f"module {node.target!r}"
                        if layer
                        else f"operation {node.name!r} of forward"
                    )
                part = module.get_submodule(str(node.target)) if layer else node.target
                values[node] = self.call(part, *args, **kwargs)
        return result

    def call(self, part: nn.Module | Callable[..., Any] | str, *args: Any, **kwargs: Any) -> Any:
        """What a layer, a function or a tensor's method (by name) makes of its arguments.

        Raises:
            UnsupportedOperationError: there is no rule for it, or not for these arguments.
            TypeError: its rule returned nothing.
        """
        if isinstance(part, nn.Module):
            return self._call_layer(part, args, kwargs)
        return self._call_function(part, args, kwargs)

    def _call_layer(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = type(layer).__name__
        tracer = _Leaves()
        if not tracer.is_leaf_module(layer, ""):
            return self._follow(tracer.trace(layer), layer, args, kwargs)
        rule = layer_rule(type(layer))
        if rule is not None:
            return self._apply(rule, name, layer, *args, **kwargs)
        state = [*layer.parameters(), *layer.buffers()]
        if args and all(isinstance(a, Value) and a.finite for a in args) and not state:
            return self.finite_call(layer, *args, **kwargs)
        raise self.unsupported(f"layer {name}", reason(name))

    def _call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target in (operator.getitem, getattr) and not isinstance(args[0], Value):
            return target(*args)
        function = getattr(Tensor, target) if isinstance(target, str) else target
        rule = function_rule(target)
        if rule is None:
            if not isinstance(target, str) and not is_torch(target):
                raise self.unsupported(f"operation {_name(target)}")
            return self.without_rule(function, args, kwargs)
        with self._translating(function):
            name = target if isinstance(target, str) else _name(target)
            return self._apply(rule, name, *args, **kwargs)

    def without_rule(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A torch function of constants or finite values, which needs no rule."""
        given = [*args, *kwargs.values()]
        values = [a for a in given if isinstance(a, Value)]
        if not values and not any(isinstance(a, Ref | nn.Parameter) for a in given):
            return function(*args, **kwargs)  # a constant, such as torch.arange(10)
        if values and all(v.finite for v in values):
            return self.finite_call(function, *args, **kwargs)
        raise self.unsupported(f"operation {_name(function)}", reason(_name(function)))

    @contextlib.contextmanager
    def _translating(self, function: Callable[..., Any]) -> Iterator[None]:
        before, self.function = self.function, function
        try:
            yield
        finally:
            self.function = before

    def _apply(self, rule: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
        try:
            result = rule(self, *args, **kwargs)
        except TypeError as error:  # arguments that the rule does not know
            raise self.unsupported(name, str(error)) from error
        if result is None and name != "getattr":
            raise TypeError(
                f"The rule of {name} returned nothing; it must return what {name} makes of its "
                "arguments."
            )
        return result

    def unsupported(self, what: str, why: str = "") -> UnsupportedOperationError:
        """The error that refuses what is being translated."""
        return UnsupportedOperationError(what, self.where, why)

    # Nodes -------------------------------------------------------------------------------------

    def add(self, node: Node) -> int:
        """The index of a node; an equal one is the same."""
        if node not in self._known:
            self._known[node] = len(self.nodes)
            self.nodes.append(node)
        return self._known[node]

    def positions(self, value: Value | int) -> tuple[int, ...]:
        """Shape of the positions of a hidden value."""
        index = value if isinstance(value, int) else value.index
        node = self.nodes[index]
        assert isinstance(node, Hidden)
        return node.positions

    def shape(self, value: Value) -> tuple[int | None, ...]:
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
        inputs = [v for v in _values((args, kwargs)) if v.finite]
        if any(None in self.shape(v) for v in inputs):
            if isinstance(function, Activation) or _keeps_shape(function, args):
                shape: Any = self.shape(inputs[0])
                return self._function(function, args, kwargs, shape)
            raise ValueError(
                f"{self.where} needs the shape of one input; give input_shape, for example "
                "InfiniteNetwork(module, input_shape=(3, 8, 8))."
            )
        stand_in = _map(
            (args, kwargs),
            lambda v: torch.empty(_BATCH, *self.shape(v), device="meta"),  # type: ignore[arg-type]
            lambda: _BATCH,
        )
        try:
            result = function(*stand_in[0], **stand_in[1])
        except Exception as error:
            raise self.unsupported(_name(function), str(error)) from error
        if isinstance(result, tuple | list):
            whole = self._function(function, args, kwargs, ())
            parts = [
                self._function(_item, (whole, k), {}, tuple(part.shape[1:]))
                for k, part in enumerate(result)
            ]
            return tuple(parts)
        if result.dim() < 1 or result.shape[0] != _BATCH:
            raise self.unsupported(_name(function), "the first dimension must stay the batch")
        return self._function(function, args, kwargs, tuple(result.shape[1:]))

    def _function(
        self, function: Callable[..., Any], args: Any, kwargs: dict[str, Any], shape: Any
    ) -> Value:
        arguments, keywords = _map((args, kwargs), lambda v: Ref(v.index), lambda: Ref(None))
        return Value(
            self.add(
                Function(function, _frozen(arguments), _frozen(tuple(keywords.items())), shape)
            )
        )

    def features(self, value: Value, axis: int, fan_in: int | None) -> int:
        """A finite value as vectors along `axis`; hidden values as they are, if that fits."""
        self.check_batch(value)
        if not value.finite:
            if value.axis != axis % len(self.shape(value)) or value.heads:
                raise self.unsupported(
                    "a layer along a dimension that is not the width", "transpose first"
                )
            if fan_in is not None and fan_in != value.width:
                raise ValueError(
                    f"The layer at {self.where} expects {fan_in} features, it gets {value.width}."
                )
            return value.index
        shape = self.shape(value)
        if shape == (None,) and fan_in is not None:
            self._fix_input((fan_in,))
            shape = (fan_in,)
        axis = axis % len(shape)
        if fan_in is not None and shape[axis] != fan_in:
            raise ValueError(
                f"The layer at {self.where} expects {fan_in} features, it gets {shape[axis]}."
            )
        positions = shape[:axis] + shape[axis + 1 :]
        return self.add(Features(value.index, axis, positions))  # type: ignore[arg-type]

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
    ) -> int:
        """A matrix product as a node; `rows` of the matrix, all if None."""
        layer = self.parameter(weight, self.weights, "weight")
        lazy = nn.parameter.is_lazy(weight)
        self.fan_in[layer] = None if lazy else math.prod(weight.shape[1:])
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
        weight: Tensor,
        bias: Tensor | None,
        *,
        width: int | None = None,
        rows: tuple[int, int] | None = None,
    ) -> Value:
        """W x + b along the last dimension; `width` is that of a lazy layer."""
        lazy = nn.parameter.is_lazy(weight)
        source = self.features(x, -1, None if lazy else weight.shape[1])
        whole = weight.shape[0] if width is None else width
        positions = self.positions(source)
        index = self.linear(source, weight, bias, width=whole, rows=rows, positions=positions)
        return Value(index, whole if rows is None else rows[1] - rows[0], len(positions))

    def parameter(self, value: Any, names: dict[str, str], kind: str) -> str:
        """Name of the layer that a parameter belongs to; registers it."""
        name = self.names.get(id(value))
        if name is None:
            raise self.unsupported(
                f"a {kind} that is no parameter of the module", "it must be an nn.Parameter"
            )
        layer = name.removesuffix(f".{kind}")
        names[layer] = name
        return layer

    def constant(self, parameter: Tensor | None, value: float) -> None:
        """Keep a parameter at a value: it is neither random nor trained."""
        if parameter is not None:
            self.parameter(parameter, {}, "parameter")
            self.constants[self.names[id(parameter)]] = value

    def next_call(self) -> int:
        """A number that tells this call from others."""
        self._calls += 1
        return self._calls

    # Values ------------------------------------------------------------------------------------

    def terms(self, index: int) -> tuple[tuple[float, int], ...]:
        """A node as a linear combination of nodes that are no combinations."""
        node = self.nodes[index]
        return node.terms if isinstance(node, Combination) else ((1.0, index),)

    def offset(self, index: int) -> float:
        """The constant part of a node."""
        node = self.nodes[index]
        return node.offset if isinstance(node, Combination) else 0.0

    def like(self, value: Value, index: int) -> Value:
        """Another node with the same layout."""
        return dataclasses.replace(value, index=index)

    def combine(self, parts: Sequence[tuple[float, Value]], offset: float = 0.0) -> Value:
        """sum_k c_k value_k + offset."""
        values = self.aligned([v for _, v in parts])
        scales = [c for c, _ in parts]
        index = self._combination(
            [(c, v.index) for c, v in zip(scales, values, strict=True)], offset
        )
        return self.like(values[0], index)

    def _combination(self, parts: Sequence[tuple[float, int]], offset: float) -> int:
        layout = {self._partition(i) for _, i in parts}
        if len(layout) == 1 and next(iter(layout)) is not None:
            return self._distribute(
                [i for _, i in parts],
                lambda indices: self._combination(
                    [(c, i) for (c, _), i in zip(parts, indices, strict=True)], offset
                ),
            )
        coefficients: dict[int, float] = {}
        for scale, index in parts:
            offset += scale * self.offset(index)
            for coefficient, term in self.terms(index):
                coefficients[term] = coefficients.get(term, 0.0) + scale * coefficient
        terms = tuple((c, i) for i, c in coefficients.items() if c != 0.0)
        if not offset and len(terms) == 1 and terms[0][0] == 1.0:
            return terms[0][1]
        return self.add(Combination(terms, offset, self.positions(parts[0][1])))

    def activation(self, x: Value, function: Activation) -> Value:
        """A nonlinearity of one value."""
        if x.finite:
            return self.finite_call(function, x)
        return self.like(x, self._activation(x.index, function))

    def _activation(self, index: int, function: Activation) -> int:
        node = self.nodes[index]
        if isinstance(node, Join | Concatenate | Flatten) and not self.gaussian(index):
            return self._distribute([index], lambda i: self._activation(i[0], function))
        if isinstance(node, Flatten):
            return self._distribute([index], lambda i: self._activation(i[0], function))
        positions = self.positions(index)
        if self.gaussian(index) or isinstance(node, BatchNormalise):
            return self.add(Nonlinear((Factor(function, (index,)),), positions))
        offset = self.offset(index)
        if isinstance(node, Combination) and all(self.gaussian(i) for _, i in node.terms):
            source = self._combination(node.terms, 0.0)
            factor = Factor(function.shifted(offset), (source,))
            return self.add(Nonlinear((factor,), positions))
        return self._expression([index], lambda parts: Apply(function, (parts[0],)))

    def elementwise(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Value:
        """A torch function of several values, unit by unit, as an expression."""
        inputs = [a for a in _values((args, kwargs))]
        if any(v.finite for v in inputs):
            raise self.unsupported(f"{_name(function)} of hidden units and the raw input", _FINITE)
        values = self.aligned(inputs)

        def build(parts: Sequence[Any]) -> Apply:
            fresh = iter(parts)
            arguments, keywords = _map((args, kwargs), lambda v: next(fresh), lambda: None)
            return Apply(function, tuple(arguments), tuple(keywords.items()))

        return self.like(values[0], self._expression([v.index for v in values], build))

    def multiply(self, a: Value, b: Value) -> Value:
        """The product of two branches, unit by unit."""
        values = self.aligned([a, b])
        return self.like(values[0], self._multiply(values[0].index, values[1].index))

    def _multiply(self, a: int, b: int) -> int:
        if self._partition(a) is not None and self._partition(a) == self._partition(b):
            return self._distribute([a, b], lambda i: self._multiply(*i))
        scale = 1.0
        factors: list[tuple[Factor, ...]] = []
        for index in (a, b):
            terms = self.terms(index)
            if self.gaussian(index):
                factors.append((Factor(ABReLU(1.0, 1.0), (index,)),))
            elif len(terms) == 1 and not self.offset(index):
                node = self.nodes[terms[0][1]]
                if isinstance(node, Nonlinear):
                    scale *= terms[0][0]
                    factors.append(node.factors)
        used = [{s for f in fs for s in f.sources} for fs in factors]
        if len(factors) == 2 and not used[0] & used[1]:
            node = Nonlinear((*factors[0], *factors[1]), self.positions(a))
            return self._combination([(scale, self.add(node))], 0.0)
        return self._expression([a, b], lambda parts: Apply(torch.mul, tuple(parts)))

    def _expression(self, indices: Sequence[int], build: Callable[[Sequence[Any]], Apply]) -> int:
        """An elementwise function of nodes over the Gaussian vectors underneath."""
        if any(isinstance(self.nodes[i], Join | Concatenate | Flatten) for i in indices):
            partitions = {self._partition(i) for i in indices}
            if len(partitions) == 1:
                return self._distribute(indices, lambda i: self._expression(i, build))
        sources: list[int] = []
        statistics: list[tuple[str, int]] = []
        done: dict[int, Any] = {}

        def slot(items: list[Any], item: Any) -> int:
            if item not in items:
                items.append(item)
            return items.index(item)

        def expand(index: int) -> Any:
            if index not in done:
                done[index] = _expand(index)
            return done[index]

        def _expand(index: int) -> Any:
            node = self.nodes[index]
            if self.gaussian(index) and not isinstance(node, Combination):
                return Variable(slot(sources, index))
            match node:
                case Nonlinear():
                    factors = []
                    for f in node.factors:
                        variables = [Variable(slot(sources, s)) for s in f.sources]
                        own = [Statistic(slot(statistics, s)) for s in f.statistics]
                        factors.append(
                            substitute(f.function, variables, own)
                            if isinstance(f.function, Apply)
                            else Apply(f.function, (variables[0],))
                        )
                    result = factors[0]
                    for factor in factors[1:]:
                        result = Apply(torch.mul, (result, factor))
                    return result
                case Combination():
                    parts = [
                        expand(i) if c == 1.0 else Apply(torch.mul, (expand(i), c))
                        for c, i in node.terms
                    ]
                    if node.offset:
                        parts.append(node.offset)
                    result = parts[0]
                    for part in parts[1:]:
                        result = Apply(torch.add, (result, part))
                    return result
                case Normalise():
                    scale = Statistic(slot(statistics, ("scale", index)))
                    inner = expand(node.source)
                    if node.centred:
                        mean = Statistic(slot(statistics, ("mean", index)))
                        inner = Apply(torch.sub, (inner, mean))
                    return Apply(torch.mul, (inner, scale))
            raise self.unsupported(
                "a nonlinearity whose input is not Gaussian in the limit",
                f"its input is the result of {type(node).__name__} of nonlinear units; put a "
                "linear layer or a convolution between them",
            )

        expression = build([expand(i) for i in indices])
        positions = self.positions(indices[0])
        if len(sources) == 1 and not statistics:
            function = OneVariable(expression)
            one = ElementwiseActivation(function, detect_kinks(function))
            return self.add(Nonlinear((Factor(one, (sources[0],)),), positions))
        factor = Factor(expression, tuple(sources), tuple(statistics))
        return self.add(Nonlinear((factor,), positions))

    def _partition(self, index: int) -> Any:
        """What two nodes made of parts must share to be combined part by part."""
        match self.nodes[index]:
            case Join() as node:
                return ("join", tuple(self.positions(i) for i in node.sources), node.positions)
            case Concatenate() as node:
                return ("concatenate", node.sizes)
            case Flatten() as node:
                return ("flatten", node.members, self.positions(node.source))
        return None

    def _distribute(self, indices: Sequence[int], rule: Callable[[Sequence[int]], int]) -> int:
        first = self.nodes[indices[0]]
        parts = zip(*(self.nodes[i].inputs for i in indices), strict=True)
        results = tuple(rule(list(part)) for part in parts)
        if isinstance(first, Flatten):
            return self.add(dataclasses.replace(first, source=results[0]))
        assert isinstance(first, Join | Concatenate)
        return self.add(dataclasses.replace(first, sources=results))

    def aligned(self, values: Sequence[Value]) -> list[Value]:
        """Hidden values with equal layouts, singleton positions expanded."""
        if any(v.finite for v in values):
            if all(v.finite for v in values):
                return list(values)
            raise self.unsupported("hidden units combined with the raw input", _FINITE)
        for value in values:
            self.check_batch(value)
        first = values[0]
        if any(
            (v.width, v.axis, v.heads) != (first.width, first.axis, first.heads) for v in values
        ):
            raise self.unsupported(
                "hidden values whose widths are not the same dimension",
                f"their shapes are {[self.shape(v) for v in values]}",
            )
        shapes = [self.positions(v) for v in values]
        if len({len(s) for s in shapes}) > 1:
            raise self.unsupported(
                "hidden values with different numbers of dimensions", f"they are {shapes}"
            )
        try:
            common = tuple(torch.broadcast_shapes(*shapes))
        except RuntimeError as error:
            raise ValueError(f"Shapes at {self.where} do not broadcast: {shapes}.") from error
        result = []
        for value, shape in zip(values, shapes, strict=True):
            if shape != common:
                picks = torch.arange(math.prod(shape)).reshape(shape).expand(common)
                value = self.like(value, self.select(value.index, picks))
            result.append(value)
        return result

    def check_batch(self, value: Value) -> None:
        """Refuse a value whose batch is not its first dimension."""
        if value.batch:
            raise self.unsupported(
                "a value whose first dimension is not the batch", "permute it back first"
            )

    # Positions ---------------------------------------------------------------------------------

    def select(self, index: int, picks: Tensor) -> int:
        """Positions `picks` (numbers of flattened positions, in the new shape) of a node."""
        node, positions = self.nodes[index], tuple(picks.shape)
        if positions == self.positions(index) and bool(
            (picks.flatten() == torch.arange(picks.numel())).all()
        ):
            return index
        match node:
            case Select():
                return self.select(node.source, _integers(node.picks)[picks])
            case Nonlinear():
                factors = tuple(
                    Factor(
                        f.function,
                        tuple(self.select(s, picks) for s in f.sources),
                        tuple((kind, self.select(s, picks)) for kind, s in f.statistics),
                    )
                    for f in node.factors
                )
                if all(
                    isinstance(self.nodes[i], Normalise) for f in factors for _, i in f.statistics
                ):
                    return self.add(Nonlinear(factors, positions))
            case Combination():
                terms = tuple((c, self.select(i, picks)) for c, i in node.terms)
                return self.add(Combination(terms, node.offset, positions))
            case Normalise() if not node.pooled:
                source = self.select(node.source, picks)
                return self.add(dataclasses.replace(node, source=source, positions=positions))
            case Linear() if node.window is None and not self._from_input(node):
                assert node.source is not None
                source = self.select(node.source, picks)
                return self.add(dataclasses.replace(node, source=source, positions=positions))
            case Join():
                start = 0
                for source in node.sources:
                    size = math.prod(self.positions(source))
                    if bool(((picks >= start) & (picks < start + size)).all()):
                        return self.select(source, picks - start)
                    start += size
        return self.add(Select(index, Array.of(picks), positions))

    def _from_input(self, node: Linear) -> bool:
        return node.source is None or isinstance(self.nodes[node.source], Features)

    def structural(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Reshaping, slicing, stacking: carried out on numbered entries and read off."""
        values = list(_values((args, kwargs)))
        if all(v.finite for v in values):
            return self.finite_call(function, *args, **kwargs)
        if any(v.finite for v in values):
            raise self.unsupported("hidden units joined with the raw input", _FINITE)
        if _name(function) in ("cat", "concat", "concatenate"):
            joined = self._concatenate(values, args, kwargs)
            if joined is not None:
                return joined
        width = values[0].width
        if any(v.width != width for v in values):
            raise self.unsupported(f"{_name(function)} of vectors of different widths")
        total = sum(math.prod(self.positions(v)) for v in values) * width
        start, numbered = 0, []
        for value in values:
            numbered.append(self._numbers(value, start, total))
            start += math.prod(self.positions(value)) * width
        fresh = iter(numbered)
        arguments, keywords = _map((args, kwargs), lambda v: next(fresh), lambda: _BATCH)
        try:
            result = function(*arguments, **keywords)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"{_name(function)} at {self.where} failed: {error}") from error
        if isinstance(result, tuple | list):
            return tuple(self._read(values, r, total) for r in result)
        return self._read(values, result, total)

    def _numbers(self, value: Value, start: int, total: int) -> Tensor:
        """Entry = start + position * width + unit (+ total for the second of the batch)."""
        positions = self.positions(value)
        size = math.prod(positions) * value.width
        entries = torch.arange(start, start + size).reshape(*positions, value.width)
        if value.axis is None:
            entries = entries.squeeze(-1)
        else:
            dims = [d for d, _ in value.heads] + [value.axis]
            pieces = [n for _, n in value.heads] + [value.width // value.num_heads]
            entries = entries.unflatten(-1, pieces)
            places = iter(range(len(positions)))
            order = [
                len(positions) + dims.index(d) if d in dims else next(places)
                for d in range(entries.dim())
            ]
            entries = entries.permute(order)
        return torch.stack([entries + b * total for b in range(_BATCH)], value.batch)

    def _read(self, values: Sequence[Value], result: Tensor, total: int) -> Value:
        width = values[0].width
        batch_axes = [a for a in range(result.dim()) if _varies(result // total, a)]
        if len(batch_axes) != 1 or result.shape[batch_axes[0]] != _BATCH:
            raise self.unsupported("an operation that mixes the batch with other dimensions")
        (batch,) = batch_axes
        entries = result.select(batch, 0)
        if bool((result.select(batch, 1) - entries != total).any()):
            raise self.unsupported("an operation that reorders the batch")
        place, unit = entries // width, entries % width
        index = self._joined(values)
        if width == 1:
            return self._read_single(values, index, place, batch)
        unit_axes = [a for a in range(entries.dim()) if _varies(unit, a)]
        place_axes = [a for a in range(entries.dim()) if _varies(place, a)]
        mixed = [a for a in unit_axes if a in place_axes]
        if unit_axes and not mixed:
            # the axes in the order of their strides, outermost first
            strides = [
                int(unit.select(a, 1).flatten()[0] - unit.select(a, 0).flatten()[0])
                for a in unit_axes
            ]
            ordered = [a for _, a in sorted(zip(strides, unit_axes, strict=True), reverse=True)]
            pieces = [entries.shape[a] for a in ordered]
            rank = len(ordered)
            table = unit.movedim(ordered, tuple(range(rank))).reshape(*pieces, -1)[..., 0]
            first, last = int(table.flatten()[0]), int(table.flatten()[-1]) + 1
            if torch.equal(table.flatten(), torch.arange(first, last)):
                for a in sorted(unit_axes, reverse=True):
                    place = place.select(a, 0)
                index = self.select(index, place)
                if (first, last) != (0, width):
                    index = self.restrict(index, first, last)
                heads = tuple(zip(ordered[:-1], pieces[:-1], strict=True))
                return Value(index, last - first, ordered[-1], heads, batch)
            if len(unit_axes) == 1:
                raise self.unsupported("units in another order")
        if len(unit_axes) == 1 and mixed:
            (axis,) = unit_axes
            rows, units = place.movedim(axis, -1), unit.movedim(axis, -1)
            members = rows[units == 0].reshape(*rows.shape[:-1], -1)
            if members.shape[-1] * width == rows.shape[-1] and torch.equal(
                rows.sort(-1).values, members.repeat_interleave(width, -1).sort(-1).values
            ):
                positions = tuple(members.shape[:-1])
                flat = Flatten(index, Array.of(members), positions)
                return Value(self.add(flat), rows.shape[-1], axis, (), batch)
        raise self.unsupported(
            "a reshaping that mixes width and positions",
            f"the result is {tuple(entries.shape)}",
        )

    def _read_single(self, values: Sequence[Value], index: int, place: Tensor, batch: int) -> Value:
        """A width of one unit: its dimension is the same, or was squeezed away."""
        axis = values[0].axis
        if axis is not None and place.dim() > axis and place.shape[axis] == 1:
            return Value(self.select(index, place.select(axis, 0)), 1, axis, (), batch)
        return Value(self.select(index, place), 1, None, (), batch)

    def _joined(self, values: Sequence[Value]) -> int:
        if len(values) == 1:
            return values[0].index
        sources = tuple(v.index for v in values)
        size = sum(math.prod(self.positions(i)) for i in sources)
        return self.add(Join(sources, (size,)))

    def _concatenate(
        self, values: Sequence[Value], args: tuple[Any, ...], kwargs: Any
    ) -> Value | None:
        """Concatenation along the width; None if it is along positions."""
        dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        rank = len(self.shape(values[0])) + 1
        first = values[0]
        if first.axis is None or dim % rank != first.axis + 1:
            return None
        if any((v.axis, v.heads) != (first.axis, ()) for v in values) or (
            len({self.positions(v) for v in values}) > 1
        ):
            raise self.unsupported("a concatenation of unlike values")
        sources: list[int] = []
        sizes: list[int] = []
        for value in values:
            node = self.nodes[value.index]
            if isinstance(node, Concatenate):
                sources += node.sources
                sizes += node.sizes
            else:
                sources.append(value.index)
                sizes.append(value.width)
        node = Concatenate(tuple(sources), tuple(sizes), self.positions(first))
        return Value(self.add(node), sum(sizes), first.axis)

    def restrict(self, index: int, first: int, last: int) -> int:
        """Units first..last-1 of a node: other rows of the matrix that made it."""
        node = self.nodes[index]
        again = lambda i: self.restrict(i, first, last)  # noqa: E731
        match node:
            case Linear() | Embedding():
                suffix = f"[{first}:{last}]"
                if node.weight != node.layer:
                    raise self.unsupported("a slice of a slice of units")
                changes: dict[str, Any] = {"weight": node.weight + suffix}
                if isinstance(node, Linear) and node.bias is not None:
                    changes["bias"] = node.bias + suffix
                return self.add(dataclasses.replace(node, **changes))
            case Nonlinear() if not any(f.statistics for f in node.factors):
                factors = tuple(
                    dataclasses.replace(f, sources=tuple(again(s) for s in f.sources))
                    for f in node.factors
                )
                return self.add(Nonlinear(factors, node.positions))
            case Combination():
                terms = tuple((c, again(i)) for c, i in node.terms)
                return self.add(Combination(terms, node.offset, node.positions))
            case Normalise() | Mix() | Select():
                return self.add(dataclasses.replace(node, source=again(node.source)))
            case Join():
                return self.add(Join(tuple(again(i) for i in node.sources), node.positions))
            case Attention():
                return self.add(dataclasses.replace(node, value=again(node.value)))
            case Concatenate():
                start = 0
                for source, size in zip(node.sources, node.sizes, strict=True):
                    if (start, start + size) == (first, last):
                        return source
                    if start <= first and last <= start + size:
                        return self.restrict(source, first - start, last - start)
                    start += size
        raise self.unsupported(f"a slice of units of {type(node).__name__}")

    # The whole ---------------------------------------------------------------------------------

    def _program(self, output: int, num_outputs: int = 0) -> Program:
        return Program(
            tuple(self.nodes),
            output,
            num_outputs,
            self.weights,
            self.biases,
            self.constants,
            self.fan_in,
            self.input_shape,
        )

    def _finish(self, result: Any) -> Program:
        self.where = "the end of forward"
        if not isinstance(result, Value):
            raise self.unsupported("an output that is no single tensor")
        if result.finite or self.positions(result) not in ((), (1,)):
            raise self.unsupported(
                "an output that is no vector of units",
                "pool, select or flatten positions before the readout",
            )
        node = self.nodes[result.index]
        if isinstance(node, Join) and len(node.sources) == 1:
            result = self.like(result, node.sources[0])
        program = pruned(self._program(result.index, result.width))
        if not program.gaussian(program.output):
            raise self.unsupported(
                "an output that is no linear readout",
                "the last operation must be a Linear layer, or a sum of them",
            )
        _check_tying(program)
        return program


_MISSING = object()  # no value was given for an input
_FINITE = "its width is finite; apply a Linear layer to the input first"


def _item(values: Any, index: int) -> Any:
    return values[index]


def _keeps_shape(function: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Nonlinear functions of one value and numbers, for inputs whose width is open."""
    return _name(function) in _ELEMENTWISE_NAMES and sum(1 for _ in _values(args)) >= 1


_ELEMENTWISE_NAMES = {"add", "sub", "mul", "truediv", "div", "neg", "pow", "exp", "sin", "cos"}


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _varies(tensor: Tensor, axis: int) -> bool:
    return bool((tensor != tensor.narrow(axis, 0, 1)).any())


def _integers(array: Array) -> Tensor:
    return array.tensor(torch.empty(0, device="cpu")).flatten()


def _values(item: Any) -> Any:
    """The values in nested arguments, in order."""
    if isinstance(item, Value):
        yield item
    elif isinstance(item, tuple | list):
        for part in item:
            yield from _values(part)
    elif isinstance(item, dict):
        for part in item.values():
            yield from _values(part)


def _map(item: Any, value: Callable[[Value], Any], batch: Callable[[], Any]) -> Any:
    """Nested arguments with their values and batch sizes replaced."""
    if isinstance(item, Value):
        return value(item)
    if isinstance(item, Ref):
        return batch()
    if isinstance(item, tuple | list):
        return type(item)(_map(part, value, batch) for part in item)
    if isinstance(item, dict):
        return {key: _map(part, value, batch) for key, part in item.items()}
    if isinstance(item, slice):
        return slice(*(_map(p, value, batch) for p in (item.start, item.stop, item.step)))
    return item


def _frozen(item: Any) -> Any:
    """Arguments as they can be compared: lists as tuples, tensors as arrays."""
    if isinstance(item, tuple | list):
        return tuple(_frozen(part) for part in item)
    if isinstance(item, Tensor):
        return Array.of(item)
    if isinstance(item, slice):
        return Span(item.start, item.stop, item.step)
    return item


def _check_tying(program: Program) -> None:
    """A matrix that meets the raw input has a finite fan-in, so it must meet nothing else.

    Rows of one matrix used by several nodes must be the same or have none in common, and
    the windows of one convolution must be the same.
    """
    fed: dict[str, set[bool]] = {}
    windows: dict[str, set[Window | None]] = {}
    rows: dict[str, set[tuple[int, int]]] = {}
    for node in program.nodes:
        if not isinstance(node, Linear) or node.source is None:
            continue
        fed.setdefault(node.layer, set()).add(isinstance(program.nodes[node.source], Features))
        windows.setdefault(node.layer, set()).add(node.window)
        span = node.weight.removeprefix(node.layer).strip("[]") or "0:0"
        first, last = span.split(":")
        rows.setdefault(node.layer, set()).add((int(first), int(last)))
    for layer, kinds in fed.items():
        where = f"module {layer!r}"
        if len(kinds) == 2:
            raise UnsupportedOperationError(
                "a weight applied both to the raw input and to hidden units",
                where,
                "its width cannot be finite and infinite",
            )
        if len(windows[layer]) > 1:
            raise UnsupportedOperationError("one weight with different windows", where)
        spans = sorted(rows[layer])
        if len(spans) > 1 and any(
            a[1] > b[0] or a == (0, 0) for a, b in zip(spans, spans[1:], strict=False)
        ):
            raise UnsupportedOperationError("overlapping slices of units", where)
