"""A `torch.nn.Module` as a tensor program: what is computed, from which weights, in what order.

`trace` follows the module's forward with torch.fx and keeps only what the infinite-width limit
depends on. Four kinds of node remain:

    Input          one data point, finite
    Linear         W h + b, with the identity of W and of b
    Activation     phi(sum_k c_k h_k), elementwise
    Combination    sum_k c_k h_k, flattened: no term is itself a Combination

plus `Flatten` of the data point. A node computed from the data point without any weight is
*finite*: it has a value, not a limit. Everything that calls a layer again, in a loop or on
another branch, appears as another `Linear` node with the same weight name; that is how weight
tying is seen. Nodes refer to each other by index, so a program can be copied and pickled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from priors.activations import GELU, ABReLU, Activation, Erf, Sine, Smooth

__all__ = [
    "ActivationNode",
    "Combination",
    "Flatten",
    "Input",
    "Linear",
    "Node",
    "Program",
    "UnsupportedOperationError",
    "trace",
]

# A dimension that the module leaves open (`nn.LazyLinear`, or no `input_shape` given).
Shape = tuple[int | None, ...]

SUPPORTED = (
    "nn.Linear, nn.LazyLinear, nn.Identity, nn.Flatten, nn.Dropout in eval mode, nn.ReLU, "
    "nn.LeakyReLU, nn.GELU, nn.Tanh and their functions in torch and torch.nn.functional, "
    "torch.erf, torch.sin, torch.cos, sums, differences and products with constants"
)


class UnsupportedOperationError(NotImplementedError):
    """A module contains a layer or an operation that has no limit here."""

    def __init__(self, what: str, where: str, why: str = "") -> None:
        reason = f": {why}" if why else ""
        super().__init__(f"{what} at {where} is not supported{reason}. Supported are {SUPPORTED}.")


@dataclass(frozen=True)
class Input:
    """One data point of shape `shape`."""

    shape: Shape
    finite: bool = True


@dataclass(frozen=True)
class Flatten:
    """A finite node as one row of features."""

    source: int
    shape: Shape
    finite: bool = True


@dataclass(frozen=True)
class Linear:
    """W h + b; `weight` and `bias` name the matrix and the vector, equal names meaning the same."""

    source: int
    weight: str
    bias: str | None
    shape: Shape
    finite: bool = False


@dataclass(frozen=True)
class ActivationNode:
    """An elementwise nonlinearity of one node."""

    source: int
    function: Activation
    shape: Shape
    finite: bool


@dataclass(frozen=True)
class Combination:
    """A fixed linear combination of other nodes, plus `offset` in every coordinate."""

    terms: tuple[tuple[float, int], ...]
    offset: float
    shape: Shape
    finite: bool


Node = Input | Flatten | Linear | ActivationNode | Combination


@dataclass(frozen=True)
class Program:
    """What a module computes, as nodes in order of computation.

    Attributes:
        nodes: The nodes; each refers to earlier ones by index.
        output: Index of the module's result.
        weights: Parameter name in the module of each weight of the program, by layer name.
        biases: The same for biases.
        input_shape: Shape of one data point; a dimension is None while it is open.
    """

    nodes: tuple[Node, ...]
    output: int
    weights: dict[str, str]
    biases: dict[str, str]
    input_shape: Shape

    def terms(self, index: int) -> tuple[tuple[float, int], ...]:
        """Node `index` as a linear combination of nodes that are no combinations."""
        node = self.nodes[index]
        return node.terms if isinstance(node, Combination) else ((1.0, index),)

    @property
    def num_outputs(self) -> int:
        """Width of the module's result."""
        width = self.nodes[self.output].shape[-1]
        assert width is not None
        return width

    @property
    def is_homogeneous_chain(self) -> bool:
        """Whether layers follow one another and every activation is positively homogeneous."""
        for node in self.nodes:
            if isinstance(node, Combination) and len(node.terms) != 1:
                return False
            if isinstance(node, ActivationNode) and not node.function.homogeneous:
                return False
        linear = [node.weight for node in self.nodes if isinstance(node, Linear)]
        sources = [self.terms(n.source)[0][1] for n in self.nodes if isinstance(n, Linear)]
        return len(set(linear)) == len(linear) and len(set(sources)) == len(sources)


def trace(module: nn.Module, input_shape: Sequence[int] | None = None) -> Program:
    """Trace a module into a `Program`.

    Args:
        module: Any module whose forward takes one tensor and torch.fx can trace. Its widths and
            the values of its weights do not matter.
        input_shape: Shape of one data point without batch dimensions; None means a row of
            features whose number is that of the first layer, or open.

    Raises:
        UnsupportedOperationError: a layer or operation has no limit here; names it, its place
            and what is supported.
        ValueError: the forward cannot be traced, or widths do not fit together.
        TypeError: `module` is no module.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(module).__name__}.")
    try:
        graph = fx.Tracer().trace(module)
    except (fx.proxy.TraceError, TypeError) as error:
        raise ValueError(
            f"torch.fx cannot trace the forward of {type(module).__name__}: {error}. It must not "
            "branch or loop on tensor values or on the batch size."
        ) from error
    return _Tracer(module, input_shape).run(graph)


class _Tracer:
    """Translates an fx graph node by node."""

    def __init__(self, module: nn.Module, input_shape: Sequence[int] | None) -> None:
        self.module = module
        self.nodes: list[Node] = []
        self.weights: dict[str, str] = {}
        self.biases: dict[str, str] = {}
        # Identity of a weight is the identity of its Parameter, whatever path leads to it.
        self.names = {
            id(p): name
            for name, p in reversed(list(module.named_parameters(remove_duplicate=False)))
        }
        if input_shape is not None and any(int(s) < 1 for s in input_shape):
            raise ValueError(f"input_shape must have positive sizes, got {tuple(input_shape)}.")
        self.input_shape: Shape = (None,) if input_shape is None else tuple(map(int, input_shape))

    def run(self, graph: fx.Graph) -> Program:
        values: dict[fx.Node, Any] = {}
        output: int | None = None
        for node in graph.nodes:
            args = fx.node.map_arg(node.args, lambda n: values[n])
            kwargs = fx.node.map_arg(node.kwargs, lambda n: values[n])
            if node.op == "placeholder":
                if self.nodes:
                    raise UnsupportedOperationError(
                        f"a second input {node.target!r}", "forward", "one input is expected"
                    )
                values[node] = _Value(self._add(Input(self.input_shape)))
            elif node.op == "get_attr":
                values[node] = _attribute(self.module, str(node.target))
            elif node.op == "call_module":
                layer = self.module.get_submodule(str(node.target))
                values[node] = self._layer(layer, str(node.target), *args)
            elif node.op == "output":
                output = self._output(args[0])
            else:
                values[node] = self._operation(node, args, kwargs)
        assert output is not None
        self._check_tying()
        shape = self.nodes[0].shape
        return Program(tuple(self.nodes), output, self.weights, self.biases, shape)

    # Layers and operations ---------------------------------------------------------------------

    def _layer(self, layer: nn.Module, name: str, x: Any, *rest: Any) -> _Value:
        where = f"module {name!r}"
        if rest or not isinstance(x, _Value):
            raise UnsupportedOperationError(type(layer).__name__, where, "one input is expected")
        match layer:
            case nn.Linear():  # nn.LazyLinear is one
                return self._linear(x, layer.weight, layer.bias, layer.out_features, where)
            case nn.Identity():
                return x
            case nn.Flatten():
                return self._flatten(x, layer.start_dim, layer.end_dim, where)
            case nn.Dropout():
                return self._dropout(x, layer.p, layer.training, where)
            case nn.ReLU():
                return self._activation(x, ABReLU(), where)
            case nn.LeakyReLU():
                return self._activation(x, ABReLU(negative=layer.negative_slope), where)
            case nn.GELU():
                return self._activation(x, _gelu(layer.approximate), where)
            case nn.Tanh():
                return self._activation(x, Smooth(torch.tanh), where)
        raise UnsupportedOperationError(f"layer {type(layer).__name__}", where)

    def _operation(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Value:
        target = node.target if isinstance(node.target, str) else _name(node.target)
        where = f"operation {node.name!r} of forward"
        rule = _OPERATIONS.get(target)
        if rule is None or (node.op == "call_function" and not _ours(node.target)):
            raise UnsupportedOperationError(f"operation {target}", where)
        try:
            return rule(self, where, *args, **kwargs)
        except TypeError as error:  # arguments that the rule does not know
            raise UnsupportedOperationError(f"operation {target}", where, str(error)) from error

    def _linear(
        self, x: _Value, weight: Tensor, bias: Tensor | None, width: int, where: str
    ) -> _Value:
        node = self.nodes[x.index]
        lazy = nn.parameter.is_lazy(weight)
        fan_in = None if lazy else weight.shape[1]
        if len(node.shape) != 1:
            raise UnsupportedOperationError(
                f"a linear layer on inputs of shape {node.shape}",
                where,
                "positions are not tracked; flatten first",
            )
        if node.shape[0] is not None and fan_in is not None and node.shape[0] != fan_in:
            raise ValueError(
                f"The linear layer at {where} expects {fan_in} features, it gets {node.shape[0]}."
            )
        if node.shape[0] is None and node.finite and fan_in is not None:
            self.nodes[0] = Input((fan_in,))  # elementwise operations keep the width
        if isinstance(node, Combination) and node.offset:
            raise UnsupportedOperationError(
                "a constant added to the input of a linear layer", where, "use a bias"
            )
        return _Value(
            self._add(
                Linear(
                    x.index,
                    self._parameter(weight, self.weights, where, "weight"),
                    None if bias is None else self._parameter(bias, self.biases, where, "bias"),
                    (width,),
                )
            )
        )

    def _parameter(self, value: Tensor, names: dict[str, str], where: str, kind: str) -> str:
        name = self.names.get(id(value))
        if name is None:
            raise UnsupportedOperationError(
                f"a {kind} that is no parameter of the module", where, "it must be an nn.Parameter"
            )
        layer = name.removesuffix(f".{kind}")
        names[layer] = name
        return layer

    def _flatten(self, x: _Value, start: int, end: int, where: str) -> _Value:
        node = self.nodes[x.index]
        if len(node.shape) == 1:
            return x
        if start != 1 or end not in (-1, len(node.shape)):
            raise UnsupportedOperationError(
                f"Flatten of dimensions {start} to {end}", where, "only whole points are flattened"
            )
        width = math.prod(s for s in node.shape if s is not None)
        return _Value(self._add(Flatten(x.index, (width,))))

    def _dropout(self, x: _Value, p: float, training: bool, where: str) -> _Value:
        if training and p > 0:
            raise UnsupportedOperationError(
                "Dropout in training mode", where, "call module.eval() first"
            )
        return x

    def _activation(self, x: _Value, function: Activation, where: str) -> _Value:
        node = self.nodes[x.index]
        source, offset = x.index, 0.0
        if not node.finite:
            terms = node.terms if isinstance(node, Combination) else ((1.0, x.index),)
            if not all(isinstance(self.nodes[i], Linear) for _, i in terms):
                raise UnsupportedOperationError(
                    "a nonlinearity whose input is itself the output of a nonlinearity",
                    where,
                    "its input is not Gaussian in the limit; put a Linear layer between them",
                )
            offset = node.offset if isinstance(node, Combination) else 0.0
        try:
            shifted = function.shifted(offset)
        except NotImplementedError as error:
            raise UnsupportedOperationError(type(function).__name__, where, str(error)) from error
        if offset:
            source = self._add(Combination(node.terms, 0.0, node.shape, False))  # type: ignore[union-attr]
        return _Value(self._add(ActivationNode(source, shifted, node.shape, node.finite)))

    def _combine(
        self, where: str, parts: Sequence[tuple[float, _Value]], offset: float = 0.0
    ) -> _Value:
        coefficients: dict[int, float] = {}
        nodes = [self.nodes[v.index] for _, v in parts]
        for (scale, value), node in zip(parts, nodes, strict=True):
            own = node.terms if isinstance(node, Combination) else ((1.0, value.index),)
            offset += scale * node.offset if isinstance(node, Combination) else 0.0
            for coefficient, index in own:
                coefficients[index] = coefficients.get(index, 0.0) + scale * coefficient
        shape = nodes[0].shape
        for node in nodes[1:]:
            known = [(a, b) for a, b in zip(shape, node.shape, strict=False) if a and b]
            if len(shape) != len(node.shape) or any(a != b for a, b in known):
                raise ValueError(
                    f"The sum at {where} adds shapes {shape} and {node.shape}; they must agree."
                )
            shape = tuple(a or b for a, b in zip(shape, node.shape, strict=True))
        if len({node.finite for node in nodes}) == 2:
            raise UnsupportedOperationError(
                "a sum of the raw input and hidden units",
                where,
                "the input keeps its finite width while hidden widths grow; pass it through a "
                "Linear layer first",
            )
        terms = tuple((c, i) for i, c in coefficients.items() if c != 0.0)
        return _Value(self._add(Combination(terms, offset, shape, nodes[0].finite)))

    # The whole ---------------------------------------------------------------------------------

    def _add(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def _output(self, value: Any) -> int:
        if not isinstance(value, _Value):
            raise UnsupportedOperationError(
                "an output that is no single tensor", "the end of forward"
            )
        node = self.nodes[value.index]
        terms = node.terms if isinstance(node, Combination) else ((1.0, value.index),)
        offset = node.offset if isinstance(node, Combination) else 0.0
        if node.finite or offset or not all(isinstance(self.nodes[i], Linear) for _, i in terms):
            raise UnsupportedOperationError(
                "an output that is no linear readout",
                "the end of forward",
                "the last operation must be a Linear layer, or a sum of them",
            )
        return value.index

    def _check_tying(self) -> None:
        """A matrix that meets the raw input has a finite fan-in, so it must meet nothing else."""
        fed: dict[str, set[bool]] = {}
        for node in self.nodes:
            if isinstance(node, Linear):
                fed.setdefault(node.weight, set()).add(self.nodes[node.source].finite)
        for weight, kinds in fed.items():
            if len(kinds) == 2:
                raise UnsupportedOperationError(
                    "a weight applied both to the raw input and to hidden units",
                    f"module {weight!r}",
                    "its width cannot be finite and infinite",
                )


@dataclass(frozen=True)
class _Value:
    """A node during tracing."""

    index: int


def _attribute(module: nn.Module, target: str) -> Any:
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    return value


def _name(target: Any) -> str:
    return getattr(target, "__name__", str(target))


def _ours(target: Any) -> bool:
    """Functions are known by name; the name must come from torch or operator."""
    module = getattr(target, "__module__", None) or ""
    return module.split(".")[0] in ("torch", "_operator", "operator", "")


def _gelu(approximate: str) -> Activation:
    return GELU() if approximate == "none" else Smooth(_tanh_gelu)


def _tanh_gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _elementwise(function: Activation) -> Callable[..., _Value]:
    def rule(tracer: _Tracer, where: str, x: _Value, inplace: bool = False) -> _Value:
        return tracer._activation(x, function, where)

    return rule


def _leaky_relu(
    tracer: _Tracer, where: str, x: _Value, negative_slope: float = 0.01, inplace: bool = False
) -> _Value:
    return tracer._activation(x, ABReLU(negative=negative_slope), where)


def _gelu_function(tracer: _Tracer, where: str, x: _Value, approximate: str = "none") -> _Value:
    return tracer._activation(x, _gelu(approximate), where)


def _linear_function(
    tracer: _Tracer, where: str, x: _Value, weight: Tensor, bias: Tensor | None = None
) -> _Value:
    return tracer._linear(x, weight, bias, weight.shape[0], where)


def _dropout_function(
    tracer: _Tracer,
    where: str,
    x: _Value,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> _Value:
    return tracer._dropout(x, p, training, where)


def _flatten_function(
    tracer: _Tracer, where: str, x: _Value, start_dim: int = 0, end_dim: int = -1
) -> _Value:
    return tracer._flatten(x, start_dim, end_dim, where)


def _constant(value: Any, where: str) -> float:
    if isinstance(value, nn.Parameter):
        raise UnsupportedOperationError(
            "arithmetic with a parameter", where, "only constants may scale or shift units"
        )
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    if isinstance(value, int | float):
        return float(value)
    raise UnsupportedOperationError(
        f"arithmetic with {type(value).__name__}", where, "only scalar constants are"
    )


def _add(tracer: _Tracer, where: str, a: Any, b: Any, *, alpha: float = 1.0) -> _Value:
    parts, offset = [], 0.0
    for scale, value in ((1.0, a), (alpha, b)):
        if isinstance(value, _Value):
            parts.append((scale, value))
        else:
            offset += scale * _constant(value, where)
    return tracer._combine(where, parts, offset)


def _sub(tracer: _Tracer, where: str, a: Any, b: Any, *, alpha: float = 1.0) -> _Value:
    return _add(tracer, where, a, b, alpha=-alpha)


def _mul(tracer: _Tracer, where: str, a: Any, b: Any) -> _Value:
    if isinstance(a, _Value) and isinstance(b, _Value):
        raise UnsupportedOperationError("a product of two branches", where)
    value, scale = (a, b) if isinstance(a, _Value) else (b, a)
    return tracer._combine(where, [(_constant(scale, where), value)])


def _div(tracer: _Tracer, where: str, a: Any, b: Any) -> _Value:
    if isinstance(b, _Value):
        raise UnsupportedOperationError("division by a branch", where)
    return tracer._combine(where, [(1.0 / _constant(b, where), a)])


def _neg(tracer: _Tracer, where: str, a: _Value) -> _Value:
    return tracer._combine(where, [(-1.0, a)])


# By the name of the function or of the tensor's method.
_OPERATIONS: dict[str, Callable[..., _Value]] = {
    "linear": _linear_function,
    "flatten": _flatten_function,
    "dropout": _dropout_function,
    "relu": _elementwise(ABReLU()),
    "relu_": _elementwise(ABReLU()),
    "leaky_relu": _leaky_relu,
    "gelu": _gelu_function,
    "erf": _elementwise(Erf()),
    "special_erf": _elementwise(Erf()),
    "tanh": _elementwise(Smooth(torch.tanh)),
    "sin": _elementwise(Sine()),
    "cos": _elementwise(Sine(math.pi / 2)),
    **dict.fromkeys(("add", "iadd", "__add__", "add_"), _add),
    **dict.fromkeys(("sub", "isub", "subtract", "sub_"), _sub),
    **dict.fromkeys(("mul", "imul", "multiply", "mul_"), _mul),
    **dict.fromkeys(("div", "truediv", "itruediv", "divide", "true_divide", "div_"), _div),
    **dict.fromkeys(("neg", "negative"), _neg),
}
