"""The elementwise nonlinearities of torch: layers, functions, and functions of several values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from priors.gaussian.activations import (
    ELU,
    GELU,
    ABReLU,
    Activation,
    Erf,
    Exp,
    Numerical,
    Probit,
    Sign,
    Sine,
    logistic,
)
from priors.programs.registry import register_function, register_layer, unsupported
from priors.programs.tracer import Nonlinearity, Tracer
from priors.programs.values import Value

unsupported("PReLU", why="its slope is learnt; use nn.LeakyReLU")
unsupported("RReLU", why="its slope is random; use nn.LeakyReLU")

_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805


@dataclass(frozen=True)
class _With:
    """A function with some keywords given; equal to its like, so that both share tables."""

    function: Callable[..., Tensor]
    keywords: tuple[tuple[str, Any], ...]

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x, **dict(self.keywords))


def _with(function: Callable[..., Tensor], **keywords: Any) -> _With:
    return _With(function, tuple(keywords.items()))


def _gelu(approximate: str = "none") -> Activation:
    if approximate == "none":
        return GELU()
    return Numerical(_with(F.gelu, approximate="tanh"), ())


def _smooth(function: Callable[[Tensor], Tensor]) -> Callable[[], Activation]:
    return lambda: Numerical(function, ())


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> Activation:
    # Above beta x = threshold torch takes x for log(1 + e^x), which at its default jumps by 2e-9:
    # enough to spoil tables of the curvature. At 40 the two are one number.
    if threshold < 20:
        return Numerical(_with(F.softplus, beta=beta, threshold=threshold), (threshold / beta,))
    return logistic.softplus(_with(F.softplus, beta=beta, threshold=max(threshold, 40.0)), beta)


def _hard_sigmoid(x: Tensor) -> Tensor:
    # `F.hardsigmoid` has no second derivative, which the slope of a kernel needs
    return (x / 6 + 0.5).clamp(0, 1)


def _hardtanh(min_val: float = -1.0, max_val: float = 1.0) -> Activation:
    function = _with(torch.clamp, min=min_val, max=max_val)
    return Numerical(function, (float(min_val), float(max_val)))


def _clamp(min: float | None = None, max: float | None = None) -> Activation:
    kinks = tuple(float(k) for k in (min, max) if k is not None)
    return Numerical(_with(torch.clamp, min=min, max=max), kinks)


def _hardshrink(lambd: float = 0.5) -> Activation:
    return Numerical(_with(F.hardshrink, lambd=lambd), (-lambd, lambd))


def _softshrink(lambd: float = 0.5) -> Activation:
    return Numerical(_with(F.softshrink, lambd=lambd), (-lambd, lambd))


def _celu(alpha: float = 1.0) -> Activation:
    if alpha <= 0:  # grows exponentially below zero
        return Numerical(_with(F.celu, alpha=alpha), (0.0,))
    return ELU(alpha, rate=1 / alpha)


def _mish(x: Tensor) -> Tensor:
    # torch's own has a second derivative of NaN from x = 710 on
    return x * torch.tanh(F.softplus(x))


# By the name of the function or of the tensor's method; arguments after the input.
_FUNCTIONS: dict[str, Callable[..., Activation]] = {
    "relu": ABReLU,
    "leaky_relu": lambda negative_slope=0.01: ABReLU(negative_slope),
    **dict.fromkeys(("abs", "absolute", "__abs__"), lambda: ABReLU(-1.0, 1.0)),
    "elu": lambda alpha=1.0: ELU(alpha),
    "selu": lambda: ELU(_SELU_ALPHA, _SELU_SCALE),
    "celu": _celu,
    "gelu": _gelu,
    **dict.fromkeys(("erf", "special_erf"), Erf),
    **dict.fromkeys(("ndtr", "special_ndtr"), Probit),
    "sin": Sine,
    "cos": lambda: Sine(math.pi / 2),
    "sign": Sign,
    "exp": lambda: Exp(1.0),
    "tanh": logistic.tanh,
    **dict.fromkeys(("sigmoid", "expit", "special_expit"), logistic.sigmoid),
    "silu": logistic.silu,
    "mish": _smooth(_mish),
    "softplus": _softplus,
    **dict.fromkeys(("logsigmoid", "log_sigmoid"), logistic.log_sigmoid),
    "softsign": lambda: Numerical(F.softsign, (0.0,)),
    "tanhshrink": logistic.tanhshrink,
    "hardtanh": _hardtanh,
    "relu6": lambda: _hardtanh(0.0, 6.0),
    "hardsigmoid": lambda: Numerical(_hard_sigmoid, (-3.0, 3.0)),
    "hardswish": lambda: Numerical(F.hardswish, (-3.0, 3.0)),
    "hardshrink": _hardshrink,
    "softshrink": _softshrink,
    **dict.fromkeys(("clamp", "clip"), _clamp),
    "clamp_min": lambda min: _clamp(min=min),
    "clamp_max": lambda max: _clamp(max=max),
    "atan": _smooth(torch.atan),
    "sinh": _smooth(torch.sinh),
    "cosh": _smooth(torch.cosh),
    "expm1": _smooth(torch.expm1),
}

_MODULES: dict[type[nn.Module], Callable[[Any], Activation]] = {
    nn.ReLU: lambda m: ABReLU(),
    nn.LeakyReLU: lambda m: ABReLU(m.negative_slope),
    nn.ELU: lambda m: ELU(m.alpha),
    nn.SELU: lambda m: ELU(_SELU_ALPHA, _SELU_SCALE),
    nn.CELU: lambda m: _celu(m.alpha),
    nn.GELU: lambda m: _gelu(m.approximate),
    nn.Tanh: lambda m: _FUNCTIONS["tanh"](),
    nn.Sigmoid: lambda m: _FUNCTIONS["sigmoid"](),
    nn.SiLU: lambda m: _FUNCTIONS["silu"](),
    nn.Mish: lambda m: _FUNCTIONS["mish"](),
    nn.Softplus: lambda m: _softplus(m.beta, m.threshold),
    nn.LogSigmoid: lambda m: _FUNCTIONS["logsigmoid"](),
    nn.Softsign: lambda m: _FUNCTIONS["softsign"](),
    nn.Tanhshrink: lambda m: _FUNCTIONS["tanhshrink"](),
    nn.ReLU6: lambda m: _hardtanh(0.0, 6.0),
    nn.Hardtanh: lambda m: _hardtanh(m.min_val, m.max_val),
    nn.Hardsigmoid: lambda m: _FUNCTIONS["hardsigmoid"](),
    nn.Hardswish: lambda m: _FUNCTIONS["hardswish"](),
    nn.Hardshrink: lambda m: _hardshrink(m.lambd),
    nn.Softshrink: lambda m: _softshrink(m.lambd),
}


@register_layer(Nonlinearity)
def _nonlinearity(tracer: Tracer, layer: Nonlinearity, x: Value) -> Value:
    return tracer.activation(x, layer.function)


@register_function(
    *"""where gt lt ge le eq ne maximum minimum reciprocal rsqrt sqrt log log1p rdiv
    __rtruediv__ rsub addcmul lerp heaviside logaddexp greater less greater_equal less_equal
    not_equal and_ or_ xor invert logical_and logical_or logical_xor logical_not""".split()
)
def _of_several(tracer: Tracer, *args: Any, **kwargs: Any) -> Any:
    """Functions that an expression may contain besides the nonlinearities of one value."""
    for value in (*args, *kwargs.values()):
        tracer.check_number(value)
    if any(isinstance(a, Value) and not a.finite for a in (*args, *kwargs.values())):
        return tracer.elementwise(tracer.function, args, kwargs)
    return tracer.without_rule(tracer.function, args, kwargs)


_LARGEST = (
    "the largest of units of one layer is not an elementwise function; for maxout, split the layer "
    "and use torch.maximum(self.a(x), self.b(x)); over positions, use average pooling"
)
unsupported("amax", "amin", "argmax", "argmin", "topk", "sort", why=_LARGEST)


@register_function("max", "min")
def _largest(tracer: Tracer, input: Any, *args: Any, **kwargs: Any) -> Any:
    """torch.max of two values; of one it does not act unit by unit."""
    two = bool(args) and isinstance(args[0], Value | Tensor | nn.Parameter)
    if not two and isinstance(input, Value) and not input.finite:
        raise tracer.unsupported("max or min of one value", _LARGEST)
    return _of_several(tracer, input, *args, **kwargs)


def _like(number: float) -> Callable[..., Any]:
    """A tensor of one number, as large as another."""

    def rule(tracer: Tracer, input: Any, fill_value: float = number, **options: Any) -> Any:
        if isinstance(input, Value) and not input.finite:
            return torch.tensor(fill_value, device="cpu")
        return tracer.without_rule(torch.full_like, (input, fill_value), {})

    return rule


def activation_of(module: nn.Module) -> Activation:
    """The nonlinearity that a module applies to each unit.

    Args:
        module: An activation of torch, such as `nn.ReLU()`, or a `Nonlinearity`.

    Raises:
        TypeError: another module.
    """
    if isinstance(module, Nonlinearity):
        return module.function
    build = _MODULES.get(type(module))
    if build is None:
        raise TypeError(
            f"{type(module).__name__} is not an elementwise nonlinearity that has expectations "
            "here; wrap the function as priors.Nonlinearity(f)."
        )
    return build(module)


def _function_rule(build: Callable[..., Activation]) -> Callable[..., Any]:
    def rule(tracer: Tracer, input: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(input, Value):
            return tracer.without_rule(tracer.function, (input, *args), kwargs)
        return tracer.activation(input, build(*args, **kwargs))

    return rule


def _layer_rule(build: Callable[[Any], Activation]) -> Callable[..., Any]:
    def rule(tracer: Tracer, layer: nn.Module, x: Value) -> Value:
        return tracer.activation(x, build(layer))

    return rule


for _name, _build in _FUNCTIONS.items():
    register_function(_name)(_function_rule(_build))
for _name, _number in (("zeros_like", 0.0), ("ones_like", 1.0), ("full_like", 0.0)):
    register_function(_name)(_like(_number))
for _kind, _build in _MODULES.items():
    register_layer(_kind)(_layer_rule(_build))
