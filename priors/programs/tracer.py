"""From a `torch.nn.Module` to a tensor program, by way of torch.fx.

`trace` follows the forward and keeps what the infinite-width limit depends on. Values that come
from the data point alone stay torch functions. A hidden value knows which of its dimensions is
the width (`layout`). What each layer and function becomes is asked of the `registry`; sums,
products and nonlinear functions of branches are reduced to Gaussian vectors in `branches`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from priors.gaussian.activations import Activation, Numerical
from priors.gaussian.quadrature import detect_kinks
from priors.programs import branches, layout
from priors.programs.builder import Builder
from priors.programs.learnt import Learnt, gain, held
from priors.programs.memory import INPLACE_OPERATORS, Memory, is_traced, overwriting
from priors.programs.nodes import Embedding, Features, Input, Join, Linear, Ref
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
from priors.programs.values import Pending, Scaled, Value, name_of, parts_of, values_in

__all__ = ["Nonlinearity", "Tracer", "trace"]

# Functions that make constants of a given size.
_FACTORIES = frozenset("zeros ones full arange eye linspace".split())

_MISSING = object()  # no value was given for an input


class Nonlinearity(nn.Module):
    """An elementwise nonlinearity as a layer: any function, or an `Activation`.

    Args:
        function: Elementwise on tensors; its Gaussian expectations are found by quadrature.
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
            function = Numerical(function, tuple(float(k) for k in found))
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
        TypeError: `module` is not a module.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(module).__name__}.")
    _check_hooks(module)
    graph = _graph_of(module)
    with torch.device("cpu"):  # constants are kept there, whatever the default device is
        return Tracer(module, input_shape, whole_batch=whole_batch).run(graph)


class _Proxy(fx.Proxy):
    """A proxy that does not pass `h += g` off as `h = h + g`."""

    def __len__(self) -> int:
        raise fx.proxy.TraceError("len(x) asks for the batch size; use x.shape[0]")

    def __float__(self) -> float:
        raise fx.proxy.TraceError(
            "float(x) needs a value, which a trace does not have; sizes are numbers already "
            "and need no conversion"
        )

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


def _augmented(function: Callable[..., Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    def record(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


for _name in INPLACE_OPERATORS:
    setattr(_Proxy, f"__{_name}__", _augmented(getattr(operator, _name)))


class _Leaves(fx.Tracer):
    """Layers of torch and what has a rule of its own are one step each."""

    proxy_buffer_attributes = True  # so that a size may slice them

    def __init__(self) -> None:
        super().__init__(autowrap_functions=own_functions())

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["no_grad"] = not torch.is_grad_enabled()
        return node

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return steps_of_their_own(type(m)) or super().is_leaf_module(m, module_qualified_name)


def _check_hooks(module: nn.Module) -> None:
    """Tracing does not run the hooks of layers, so what they change would go unseen."""
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    for name, layer in module.named_modules():
        for kind in kinds:
            for hook in getattr(layer, kind).values():
                called = getattr(hook, "__name__", type(hook).__name__)
                if called != "_infer_parameters":  # of lazy layers
                    why = "write what it does in the forward, and remove it"
                    if called in ("WeightNorm", "SpectralNorm"):
                        why = "it makes weights whose entries are not independent; remove it"
                    raise UnsupportedOperationError(f"a hook ({called})", f"module {name!r}", why)


def _graph_of(module: nn.Module) -> fx.Graph:
    try:
        with torch.enable_grad():  # so that a forward's own no_grad is seen
            return _Leaves().trace(module)
    except (fx.proxy.TraceError, TypeError, NameError) as error:
        raise ValueError(
            f"torch.fx cannot trace the forward of {type(module).__name__}: {error}. It must not "
            "branch or loop on tensor values or on the batch size."
        ) from error


class Tracer(Builder):
    """Follows an fx graph and asks the rules, which call the public methods.

    Attributes:
        function: The function being translated, for rules that hold for several.
    """

    function: Callable[..., Any] = operator.pos  # until there is one

    def __init__(
        self,
        module: nn.Module,
        input_shape: Sequence[int] | None,
        *,
        whole_batch: bool = False,
    ) -> None:
        super().__init__(module, input_shape, whole_batch=whole_batch)
        self.memory = Memory(self, self._result)
        self.tensors = {id(t) for t in (*module.parameters(), *module.buffers())}

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
            args = fx.node.map_arg(node.args, lambda n: self.memory.current(values[n]))
            kwargs = fx.node.map_arg(node.kwargs, lambda n: self.memory.current(values[n]))
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
                if node.meta["no_grad"]:
                    self.stop_gradients("torch.no_grad()", values[node])
        return result

    def call(self, part: nn.Module | Callable[..., Any] | str, *args: Any, **kwargs: Any) -> Any:
        """What a layer, a function or a tensor's method (by name) makes of its arguments.

        Raises:
            UnsupportedOperationError: there is no rule for it, or not for these arguments.
            TypeError: its rule returned nothing.
        """
        if is_traced(kwargs.get("out")):
            raise self.unsupported("out=", "use the result of the call")
        kwargs.pop("out", None)
        args, kwargs = self.memory.current(args), self.memory.current(kwargs)
        one_step = not isinstance(part, nn.Module) or _Leaves().is_leaf_module(part, "")
        overwrites = overwriting(part, args, kwargs) if one_step else None
        if overwrites is not None and (args or kwargs):
            if not args:
                args = (kwargs.pop("input"),)
            if is_traced(args[0]):
                return self.memory.overwrite(overwrites, args, kwargs, self.where)
            if id(args[0]) in self.tensors or any(values_in((args, kwargs))):
                raise self.unsupported(
                    f"{overwrites.name} on a constant", "the forward must not change the module"
                )
        result = self._result(part, *args, **kwargs)
        return self.memory.follow(part, args, kwargs, result) if one_step else result

    def _result(self, part: Any, *args: Any, **kwargs: Any) -> Any:
        """What a layer, a function or a method makes of its arguments, as a new tensor."""
        kwargs.pop("inplace", None)
        if isinstance(part, nn.Module):
            return self._call_layer(part, args, kwargs)
        return self._call_function(part, args, kwargs)

    def _call_layer(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = type(layer).__name__
        if not _Leaves().is_leaf_module(layer, ""):
            return self._follow(_graph_of(layer), layer, args, kwargs)
        rule = layer_rule(type(layer))
        if rule is not None:
            return self._apply(rule, name, layer, *args, **kwargs)
        state = [*layer.parameters(), *layer.buffers()]
        if args and all(isinstance(a, Value) and a.finite for a in args) and not state:
            return self.finite_call(layer, *args, **kwargs)
        raise self.unsupported(f"layer {name}", reason(name))

    def _call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is getattr and isinstance(args[0], nn.Parameter | Learnt):
            return self._attribute(*args)
        if target in (operator.getitem, getattr) and not isinstance(
            args[0], Value | Pending | nn.Parameter | Learnt
        ):
            try:
                return target(*args)
            except (AttributeError, IndexError, KeyError, TypeError) as error:
                raise self.unsupported(f"operation {name_of(target)}", str(error)) from error
        function = _method(target, args) if isinstance(target, str) else target
        rule = function_rule(target)
        given = [*args, *kwargs.values()]
        if is_torch(function) and all(isinstance(a, int | float) for a in given):
            if function is math.sqrt:
                return args[0] ** 0.5  # which keeps the power of a width
            return function(*args, **kwargs)  # arithmetic with sizes
        traced = (Value, Pending, Tensor, Learnt)
        sized = any(isinstance(a, Ref) for a in given)
        if sized and name_of(function) in _FACTORIES:
            return self.finite_call(function, *args, **kwargs)
        if sized and next(parts_of(given, traced), None) is None:
            raise self.unsupported("arithmetic with the batch size", "give sizes as numbers or -1")
        if rule is None:
            if not isinstance(target, str) and not is_torch(target):
                raise self.unsupported(
                    f"operation {name_of(target)}", "give it a rule with priors.register_function"
                )
            return self.without_rule(function, args, kwargs)
        with self._translating(function):
            name = target if isinstance(target, str) else name_of(target)
            return self._apply(rule, name, *args, **kwargs)

    def _attribute(self, parameter: Any, name: str) -> Any:
        """An attribute of a parameter: its shape, or its transpose."""
        if name in ("T", "mT"):
            return self.structural(torch.transpose, (parameter, -2, -1), {})
        if name in ("shape", "ndim", "device", "dtype"):
            return getattr(parameter, name, None)
        raise self.unsupported(f"{name} of a parameter", "use the parameter unmodified")

    def check_number(self, value: Any) -> None:
        """Refuse a number that depends on the width where units need a constant."""
        if getattr(value, "exponent", 0.0):
            raise self.unsupported(
                f"hidden units with a number proportional to width**{value.exponent:g}",
                "it has no limit; use a constant",
            )

    def without_rule(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A torch function of constants or finite values, which needs no rule."""
        given = [*args, *kwargs.values()]
        values = [a for a in given if isinstance(a, Value)]
        if next(parts_of(given, (nn.Parameter, Learnt)), None) is not None:
            what = name_of(function)
            args, kwargs = self._held((args, kwargs), what)
            if not values:
                return gain(self, function(*args, **kwargs), what)
        if not values and not any(isinstance(a, Ref | Pending) for a in given):
            return function(*args, **kwargs)  # a constant, such as torch.arange(10)
        if values and all(v.finite for v in values):
            return self.finite_call(function, *args, **kwargs)
        pending = next(parts_of((args, kwargs), Pending), None)
        if pending is not None:
            raise self.unsupported(*pending.refusal(name_of(function)))
        raise self.unsupported(f"operation {name_of(function)}", reason(name_of(function)))

    def _held(self, item: Any, what: str) -> Any:
        """Arguments with parameters at the values that gains are held at."""
        if isinstance(item, nn.Parameter | Learnt):
            return held(self, item, what)
        if isinstance(item, tuple | list):
            return type(item)(self._held(part, what) for part in item)
        if isinstance(item, dict):
            return {key: self._held(part, what) for key, part in item.items()}
        return item

    @contextlib.contextmanager
    def _translating(self, function: Callable[..., Any]) -> Iterator[None]:
        before, self.function = self.function, function
        try:
            yield
        finally:
            self.function = before

    def _apply(self, rule: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
        pending = next(parts_of((args, kwargs), Pending), None)
        if pending is not None and not isinstance(pending, getattr(rule, "takes", ())):
            raise self.unsupported(*pending.refusal(name))
        try:
            result = rule(self, *args, **kwargs)
        except (TypeError, AttributeError) as error:  # arguments that the rule does not know
            raise self.unsupported(name, str(error)) from error
        if result is None and name != "getattr":
            raise TypeError(
                f"The rule of {name} returned None; it must return the result of {name} for its "
                "arguments."
            )
        return result

    # For the rules -----------------------------------------------------------------------------

    def combine(self, parts: Sequence[tuple[float, Any]], offset: float = 0.0) -> Value:
        """sum_k c_k value_k + offset of hidden values, raw input, parameters and constants."""
        return branches.combine(self, parts, offset)

    def multiply(self, a: Value, b: Value) -> Value:
        """The product of two branches, unit by unit."""
        return branches.multiply(self, a, b)

    def activation(self, x: Value, function: Activation) -> Value:
        """A nonlinearity of one value."""
        return branches.activation(self, x, function)

    def elementwise(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Value:
        """A torch function of several values, unit by unit, as an expression."""
        return branches.elementwise(self, function, args, kwargs)

    def structural(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Reshaping, slicing, stacking."""
        if args and isinstance(args[0], Scaled):
            found = self.structural(function, (args[0].value, *args[1:]), kwargs)
            if isinstance(found, Value):
                return dataclasses.replace(args[0], value=found)
            return tuple(dataclasses.replace(args[0], value=part) for part in found)
        return layout.structural(self, function, args, kwargs)

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
            frozenset(n for n, p in self.module.named_parameters() if not p.requires_grad),
            self.gradient_stop,
        )

    def _finish(self, result: Any) -> Program:
        self.where = "the end of forward"
        if not isinstance(result, Value):
            raise self.unsupported("an output that is not a single tensor")
        self.check_batch(result)
        if result.finite or self.positions(result) not in ((), (1,)):
            raise self.unsupported(
                "an output that is not a vector of units",
                "pool, select or flatten positions before the readout",
            )
        node = self.nodes[result.index]
        if isinstance(node, Join) and len(node.sources) == 1:
            result = self.like(result, node.sources[0])
        program = pruned(self._program(result.index, result.width))
        if not program.gaussian(program.output):
            raise self.unsupported(
                "an output that is not a linear readout",
                "the last operation must be a Linear layer, or a sum of them",
            )
        _check_tying(program)
        return program


def _method(name: str, args: tuple[Any, ...]) -> Callable[..., Any]:
    """A method by name: of a tensor, unless it is called on a number."""
    kind = type(args[0]) if args and isinstance(args[0], int | float) else Tensor
    return getattr(kind, name, getattr(Tensor, name))


def _check_tying(program: Program) -> None:
    """A matrix that meets the raw input has a finite fan-in, so it must meet nothing else.

    Rows of one matrix used by several nodes must be the same or have none in common.
    """
    fed: dict[str, set[bool]] = {}
    rows: dict[str, set[tuple[int, int]]] = {}
    for node in program.nodes:
        if not isinstance(node, Linear) or node.source is None:
            continue
        fed.setdefault(node.layer, set()).add(isinstance(program.nodes[node.source], Features))
        span = node.weight.removeprefix(node.layer).strip("[]") or "0:0"
        first, last = span.split(":")
        rows.setdefault(node.layer, set()).add((int(first), int(last)))
    for node in program.nodes:
        if isinstance(node, Embedding) and node.layer in fed:
            raise UnsupportedOperationError(
                "a weight that is both a matrix and the units of tokens or positions",
                f"module {node.layer!r}",
                "as units its entries have variance weight_var, in a matrix weight_var / fan_in",
            )
    for name in program.constants:
        if name in {*program.weights.values(), *program.biases.values()}:
            raise UnsupportedOperationError(
                "a parameter that is both a gain and a weight",
                f"parameter {name!r}",
                "a gain is held at its value, a weight is random",
            )
    for layer, kinds in fed.items():
        where = f"module {layer!r}"
        if len(kinds) == 2:
            raise UnsupportedOperationError(
                "a weight applied both to the raw input and to hidden units",
                where,
                "its width cannot be finite and infinite",
            )
        spans = sorted(rows[layer])
        if len(spans) > 1 and any(
            a[1] > b[0] or a == (0, 0) for a, b in zip(spans, spans[1:], strict=False)
        ):
            raise UnsupportedOperationError("overlapping slices of units", where)
