"""Functions of tensors as flat graphs of operations, without the Python that made them.

A density of Pyro or of a module runs effect handlers, batching rules and differentiation anew at
every call, which costs far more than its arithmetic. Here a function is run once on an example and
its operations are kept: they are run again without all that. What depends on no input is computed
once. A function whose course depends on values has no such graph and stays as it is.
"""

from __future__ import annotations

import operator
import os
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from bayes.compat import ComparesNow, one_fake_mode

__all__ = ["Graph", "captured", "compiled", "has_compiler"]

_aten = torch.ops.aten
# Operations that hand on their first argument, in graphs that nobody differentiates.
_PASSING = {_aten.detach.default, _aten.alias.default, _aten.lift_fresh_copy.default}
_RESHAPING = {_aten.expand.default, _aten.view.default, _aten._unsafe_view.default}
# Of its shape alone.
_FILLING = {
    _aten.ones_like.default,
    _aten.zeros_like.default,
    _aten.full_like.default,
    _aten.new_zeros.default,
    _aten.new_ones.default,
    _aten.new_full.default,
    _aten.new_empty.default,
}


class Graph:
    """A flat graph of operations.

    Called, it runs them one after another, operations and constants bound beforehand: looking them
    up, as the code of `module` does at every call, costs as much again as small tensors do.

    Args:
        module: The graph, from which a compiler makes programs.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self._function = _straight(module)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self._function(*inputs)


def captured(
    function: Callable[..., tuple[Tensor, ...]], *example: Tensor
) -> Callable[..., tuple[Tensor, ...]]:
    """The operations of a function for inputs of the example's shapes.

    Args:
        function: Of tensors, to a tuple of tensors that need no gradient; no random numbers.
        *example: Inputs, distinct from each other and of generic values.

    Returns:
        A graph that computes the same, or the function itself if it has none: where what it does
        depends on the values of its inputs.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with one_fake_mode():
                with ComparesNow():
                    graph = make_fx(lambda *inputs: function(*inputs))(*example)
                if any(_writes(node) for node in graph.graph.nodes):
                    graph = make_fx(torch.func.functionalize(graph))(*example)
            other = [
                value + 0.1 * value.abs().cos() if value.is_floating_point() else value
                for value in example
            ]
            _simplify(graph)
            straight = Graph(graph)
            expected, found = function(*other), straight(*other)
        except Exception:  # whatever tracing stumbles over, the function itself is right
            return function
    same = all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-6, equal_nan=True)
        for a, b in zip(expected, found, strict=True)
    )
    return straight if same else function


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as one fused program, made at its first call; takes seconds."""
    plain = function.module if isinstance(function, Graph) else function
    return torch.compile(plain, dynamic=False)


def has_compiler(device: torch.device) -> bool:
    """Whether `compiled` can work: on a CPU it needs a C++ compiler."""
    if device.type != "cpu":
        return True
    named = os.environ.get("CXX")
    return any(shutil.which(name) for name in ([named] if named else ["g++", "clang++", "cl"]))


def _simplify(graph: fx.GraphModule) -> None:
    """Leave out what does nothing, and compute once what depends on no input."""
    for node in list(graph.graph.nodes):
        source = _source(node) if node.op == "call_function" else None
        if source is not None:
            node.replace_all_uses_with(source)
    graph.graph.eliminate_dead_code()
    _fold(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _writes(node: fx.Node) -> bool:
    """Whether it changes a tensor in place, so that values are not those of their nodes."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _source(node: Any) -> Any:
    """The node whose value this one hands on, if it does nothing else."""
    first = node.args[0] if node.args else None
    if not isinstance(first, fx.Node):
        return None
    same = _shape(node) is not None and _shape(node) == _shape(first)
    if node.target in _PASSING or (node.target in _RESHAPING and same):
        return first
    if node.target is _aten.pow.Tensor_Scalar and node.args[1] == 1:
        return first
    if node.target is _aten.add.Tensor and node.args[1] == 0 and same:
        return first
    # a sum over the one member of a dimension that was put in for it
    if node.target is _aten.sum.dim_IntList and first.target is _aten.unsqueeze.default:
        inner: Any = first.args[0]
        at: Any = first.args[1]
        number = len(_shape(first))
        over = [dim % number for dim in node.args[1] or ()]
        if _shape(node) == _shape(inner) and over == [at % number]:
            return inner
    return None


def _straight(module: Any) -> Callable[..., tuple[Tensor, ...]]:
    """The operations of a graph as a function, all that they need among its globals."""
    bound: dict[str, Any] = {}
    lines: list[str] = []

    def constant(value: Any) -> str:
        bound[f"c{len(bound)}"] = value
        return f"c{len(bound) - 1}"

    def told(value: Any) -> str:
        if isinstance(value, fx.Node):
            return names[value]
        if isinstance(value, (list, tuple)):
            inner = "".join(f"{told(v)}, " for v in value)
            return f"[{inner}]" if isinstance(value, list) else f"({inner})"
        return constant(value)

    names: dict[fx.Node, str] = {}
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    last_use = {source: node for node in module.graph.nodes for source in node.all_input_nodes}
    for node in module.graph.nodes:
        names[node] = f"v{len(names)}"
        if node.op == "get_attr":
            names[node] = constant(operator.attrgetter(node.target)(module))
        elif node.op == "call_function":
            # below the operation's own call, which is Python
            call = constant(getattr(node.target, "_op", node.target))
            words = [told(v) for v in node.args]
            words += [f"{name}={told(v)}" for name, v in node.kwargs.items()]
            lines.append(f"{names[node]} = {call}({', '.join(words)})")
        elif node.op == "output":
            lines.append(f"return {told(tuple(node.args[0]))}")
        if node.op != "call_function":
            continue
        read = [n for n in node.all_input_nodes if last_use[n] is node and n.op != "get_attr"]
        if read:
            lines.append(f"del {', '.join(names[n] for n in read)}")
    head = ", ".join(names[node] for node in inputs)
    exec("\n    ".join([f"def function({head}):", *lines]), bound)
    function: Callable[..., tuple[Tensor, ...]] = bound["function"]
    return function


def _fold(graph: fx.GraphModule) -> None:
    """Replace what depends on no input by its value."""
    values: dict[fx.Node, Any] = {}
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            values[node] = operator.attrgetter(node.target)(graph)
        elif node.op != "call_function":
            continue
        elif node.target in _FILLING:
            like = torch.empty(
                _shape(node.args[0]), dtype=node.meta["val"].dtype, device=node.meta["val"].device
            )
            values[node] = node.target(like, *node.args[1:], **node.kwargs)
        elif all(source in values for source in node.all_input_nodes):
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
    for number, (node, value) in enumerate(values.items()):
        leaves = any(user not in values for user in node.users)
        if node.op != "get_attr" and isinstance(value, Tensor) and leaves:
            graph.register_buffer(f"_folded{number}", value)
            with graph.graph.inserting_before(node):
                node.replace_all_uses_with(graph.graph.get_attr(f"_folded{number}"))


def _shape(node: Any) -> Any:
    """Shape of a node's value; constants' is not known, and several values have none."""
    return getattr(node.meta.get("val"), "shape", None)
