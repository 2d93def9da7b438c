"""The registry of rules that translate layers and functions; it is below the tracer.

A rule for a layer is called with the tracer, the layer and the layer's own arguments; one for a
function with the tracer and the function's arguments. Tensors of the traced forward come as
`Value`s, and a rule returns what it makes of them, with the tracer's methods. The rules of torch
register themselves in `priors.programs.rules`; others are registered in the same way.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import nn

__all__ = [
    "UnsupportedOperationError",
    "function_rule",
    "is_torch",
    "isolated",
    "layer_rule",
    "nearest",
    "own_functions",
    "reason",
    "register_function",
    "register_layer",
    "steps_of_their_own",
    "supported",
    "takes",
    "unsupported",
]

Rule = Callable[..., Any]
AnyRule = TypeVar("AnyRule", bound=Rule)

_layers: dict[type[nn.Module], Rule] = {}
_functions: dict[str, Rule] = {}
_own_functions: dict[Callable[..., Any], Rule] = {}
_reasons: dict[str, str] = {}


class UnsupportedOperationError(NotImplementedError):
    """A module contains a layer or an operation that has no limit here."""

    def __init__(self, what: str, where: str, why: str = "") -> None:
        because = f": {why}" if why else ""
        near = nearest(what)
        likely = f" Nearest: {', '.join(near)}." if near else ""
        super().__init__(
            f"{what} at {where} is not supported{because}.{likely} All that is: "
            "priors.UnsupportedOperationError.supported()."
        )

    @staticmethod
    def supported() -> str:
        """A sentence that lists the layers and functions that are supported."""
        return supported()


def register_layer(*types: type[nn.Module], replace: bool = False) -> Callable[[AnyRule], AnyRule]:
    """Register the rule by which layers of your own become part of a tensor program.

    The rule is called as `rule(tracer, layer, *values)`, with the arguments of the forward, and
    returns the layer's result. It is made of what exists: `tracer.call(part, value)` for a layer
    or a torch function, `tracer.combine` for sums, `tracer.multiply` for products of branches,
    `tracer.activation(value, activation)` for an `Activation`. A residual block:

        @register_layer(ResidualBlock)
        def residual_block(tracer, layer, x):
            hidden = tracer.call(torch.relu, tracer.call(layer.linear, x))
            return tracer.combine([(1.0, x), (1.0, hidden)])

    and a nonlinearity whose Gaussian expectations have a closed form:

        @register_layer(ScaledErf)
        def scaled_erf(tracer, layer, x):
            return tracer.activation(x, Erf())

    Refuse with `raise tracer.unsupported("what", "why")`. The rule also holds for subclasses that
    keep the forward; one that overrides it is traced through its forward.

    Args:
        *types: Classes of layers.
        replace: Whether to replace a rule that a class already has, which is otherwise an error.

    Returns:
        A decorator that returns the rule unchanged.

    Raises:
        TypeError: a type is not a class of `torch.nn.Module`s, or the rule cannot be called.
        ValueError: there is a rule already.
    """
    if not types:
        raise TypeError("register_layer needs at least one class of layers.")
    for kind in types:
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise TypeError(
                f"register_layer takes classes of torch.nn.Module, got {kind!r}; a function is "
                "registered with register_function."
            )

    def register(rule: AnyRule) -> AnyRule:
        _check(rule)
        for kind in types:
            _enter(_layers, kind, rule, kind.__qualname__, replace)
        return rule

    return register


def register_function(
    *functions: str | Callable[..., Any], replace: bool = False
) -> Callable[[AnyRule], AnyRule]:
    """Register the rule by which functions become part of a tensor program.

    The rule is called as `rule(tracer, *args, **kwargs)` with the arguments of the call and
    returns its result:

        @register_function(smooth_step)
        def _(tracer, x):
            return tracer.activation(x, Probit())

    Args:
        *functions: A function of your own as it is; a function of torch or a method of its
            tensors by name (`"cumsum"`), which stands for all its forms.
        replace: Whether to replace a rule that a function already has, which is otherwise an error.

    Returns:
        A decorator that returns the rule unchanged.

    Raises:
        TypeError: neither a name nor a function is given, or the rule cannot be called.
        ValueError: there is a rule already.
    """
    if not functions:
        raise TypeError(
            "register_function needs at least one function, or the name of one of torch's."
        )
    for function in functions:
        if not isinstance(function, str) and not callable(function):
            raise TypeError(
                f"register_function takes functions and names of functions, got {function!r}."
            )
        if isinstance(function, type):
            raise TypeError(f"{function!r} is a class; register_layer takes classes of layers.")

    def register(rule: AnyRule) -> AnyRule:
        _check(rule)
        for function in functions:
            if isinstance(function, str):
                _enter(_functions, function, rule, function, replace)
            else:
                name = getattr(function, "__name__", repr(function))
                _enter(_own_functions, function, rule, name, replace)
        return rule

    return register


def takes(*kinds: type) -> Callable[[AnyRule], AnyRule]:
    """A decorator: the decorated rule takes arguments of these kinds of `values.Pending`."""

    def mark(rule: AnyRule) -> AnyRule:
        rule.takes = kinds  # type: ignore[attr-defined]
        return rule

    return mark


def unsupported(*names: str, why: str) -> None:
    """Give the reason why layers and functions have no limit, for error messages.

    Args:
        *names: Parts of the names of classes (`"MaxPool"`); functions are found by the same
            name in small letters, without underscores.
        why: The reason, or what to use instead.
    """
    for name in names:
        _reasons[name] = why


def _check(rule: Any) -> None:
    if not callable(rule):
        raise TypeError(f"A rule must be a function, got {type(rule).__name__}.")


def _enter(table: dict[Any, Rule], key: Any, rule: Rule, name: str, replace: bool) -> None:
    if key in table and not replace:
        raise ValueError(f"{name} already has a rule; pass replace=True to replace it.")
    table[key] = rule


# Look-ups ----------------------------------------------------------------------------------------


def layer_rule(kind: type[nn.Module]) -> Rule | None:
    """The rule of the nearest registered class among `kind` and its bases."""
    found = _registered(kind)
    return None if found is None else _layers[found]


def steps_of_their_own(kind: type[nn.Module]) -> bool:
    """Whether layers of class `kind` are one step because of a rule, not traced through."""
    found = _registered(kind)
    return found is not None and kind.forward is found.forward


def _registered(kind: type[nn.Module]) -> type[nn.Module] | None:
    return next((base for base in kind.__mro__ if base in _layers), None)


def function_rule(target: Any) -> Rule | None:
    """The rule of a function, or of a tensor's method by name."""
    if isinstance(target, str):
        return _functions.get(target)
    with contextlib.suppress(TypeError):  # what cannot be hashed is not registered
        if target in _own_functions:
            return _own_functions[target]
    return _functions.get(getattr(target, "__name__", "")) if is_torch(target) else None


def own_functions() -> tuple[Callable[..., Any], ...]:
    """Functions registered as they are, which tracing must not enter."""
    return tuple(_own_functions)


def is_torch(target: Any) -> bool:
    """Whether a function is known by its name: it must come from torch, math or operator."""
    module = getattr(target, "__module__", None) or ""
    return module.split(".")[0] in ("torch", "_operator", "operator", "math", "builtins", "")


def reason(name: str) -> str:
    """Why a class or function has no limit; empty if no reason is known."""
    if name in _reasons:
        return _reasons[name]
    plain = name.replace("_", "").lower()
    return next((why for part, why in _reasons.items() if part.lower() in plain), "")


def nearest(what: str) -> list[str]:
    """Up to three supported layers or functions whose names are like a word of `what`."""
    layers, functions = _names()
    plain = {name.removeprefix("nn."): name for name in (*sorted(layers), *sorted(functions))}
    words = [w for w in re.findall(r"\w+", what) if w not in _WORDS]
    words = [w for w in words if w not in plain]  # supported, but not like this
    close = {w: difflib.get_close_matches(w, plain, n=3, cutoff=0.78) for w in words}
    return [plain[name] for names in close.values() for name in names][:3]


_WORDS = frozenset("a an the of in and or with to layer operation function value values".split())


def supported() -> str:
    """A sentence that lists the layers and functions with rules."""
    layers, functions = _names()
    return (
        f"Supported are the layers {_families(layers)}; the functions and methods "
        f"{_families(functions)}; any other elementwise function as priors.Nonlinearity, and "
        "layers and functions of your own by priors.register_layer and priors.register_function."
    )


def _names() -> tuple[set[str], set[str]]:
    """Names of the layers and of the functions with rules."""
    public = [getattr(nn, name) for name in dir(nn) if not name.startswith("Lazy")]
    layers = {
        f"nn.{kind.__name__}"
        for kind in public
        if isinstance(kind, type) and issubclass(kind, nn.Module) and layer_rule(kind) is not None
    }
    layers |= {k.__name__ for k in _layers if not k.__module__.startswith("torch.")}
    functions = {name for name in _functions if not name.startswith("_") and name[-1] != "_"}
    functions |= {getattr(f, "__name__", repr(f)) for f in _own_functions}
    layers = {name for name in layers if not reason(name.removeprefix("nn."))}
    return layers, {name for name in functions if not reason(name)}


def _families(names: set[str]) -> str:
    """Names, 1d, 2d and 3d as one."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        size = name[-2:] if name[-2:] in ("1d", "2d", "3d") else ""
        found.setdefault(name.removesuffix(size), []).extend([size] if size else [])
    return ", ".join(stem + "/".join(sizes) for stem, sizes in found.items())


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Inside, registrations can be tried: they are gone afterwards."""
    tables: tuple[dict[Any, Any], ...] = (_layers, _functions, _own_functions, _reasons)
    before = [dict(table) for table in tables]
    try:
        yield
    finally:
        for table, kept in zip(tables, before, strict=True):
            table.clear()
            table.update(kept)
