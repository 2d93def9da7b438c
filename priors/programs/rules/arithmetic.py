"""Sums and products of branches, powers, and operations that change nothing."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from priors.gaussian.activations import ABReLU, Polynomial, RectifiedPower
from priors.programs.learnt import Learnt, gain, held, learnt
from priors.programs.nodes import Array, Mix, Nonlinear
from priors.programs.registry import register_function, register_layer, takes
from priors.programs.rules.attention import Logits, Weights
from priors.programs.tracer import Tracer
from priors.programs.values import Power, Scaled, Value, width_exponent


def _constant(tracer: Tracer, value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    if isinstance(value, int | float):
        return float(value)
    raise tracer.unsupported(
        f"arithmetic with {type(value).__name__}", "only scalar constants are supported"
    )


def _is_number(value: Any) -> bool:
    """Whether an operand is one number for all units and positions."""
    if isinstance(value, int | float):
        return True
    return isinstance(value, Tensor) and not _is_parameter(value) and value.numel() == 1


def _is_parameter(value: Any) -> bool:
    return isinstance(value, nn.Parameter | Learnt)


def _is_hidden(value: Any) -> bool:
    return isinstance(value, Value) and not value.finite


@register_function("add", "__add__")
@takes(Scaled, Logits)
def _add(tracer: Tracer, input: Any, other: Any, *, alpha: float = 1.0) -> Any:
    if isinstance(input, Logits) or isinstance(other, Logits):
        logits, mask = (input, other) if isinstance(input, Logits) else (other, input)
        return logits.masked(tracer, mask, alpha)
    parts = [(1.0, input), (alpha, other)]
    if not any(_is_hidden(value) for _, value in parts):
        return _add_outside(tracer, parts)
    for _, value in parts:
        if isinstance(value, Scaled):
            raise tracer.unsupported(*value.refusal("a sum"))
        tracer.check_number(value)
    offset = sum(scale * _constant(tracer, v) for scale, v in parts if _is_number(v))
    # a parameter that is one number for all units is held at its value, as gains are
    wide = all(v.width > 1 for _, v in parts if _is_hidden(v))
    single = [(c, v) for c, v in parts if _is_parameter(v) and math.prod(v.shape) == 1 and wide]
    offset += sum(scale * float(held(tracer, v, "a shift")) for scale, v in single)
    taken = [id(v) for _, v in single]
    return tracer.combine(
        [(c, v) for c, v in parts if not _is_number(v) and id(v) not in taken], offset
    )


def _add_outside(tracer: Tracer, parts: list[tuple[float, Any]]) -> Any:
    """A sum of the raw input, of parameters or of constants."""
    values = [value for _, value in parts]
    alpha = parts[1][0]
    options = {} if alpha == 1.0 else {"alpha": alpha}
    if all(_is_parameter(v) for v in values):
        one, two = (learnt(tracer, v) for v in values)
        return one.plus(two.scaled(alpha))
    if any(_is_parameter(v) for v in values):
        if any(isinstance(v, Value) for v in values):
            raise tracer.unsupported(
                "a parameter added to the raw input",
                "neither is wide, so the sum does not average out; apply a linear layer first",
            )
        values = [_held_shift(tracer, v) if _is_parameter(v) else v for v in values]
    return tracer.without_rule(torch.add, tuple(values), options)


def _held_shift(tracer: Tracer, value: Any) -> Tensor:
    """A gain in a sum with constants, as in 1 + gain."""
    entries = learnt(tracer, value).terms[0][1]
    whole = tracer.entries.parameters[int(tracer.entries.owners(entries).flatten()[0])]
    if bool((whole != whole.flatten()[0]).any()):
        raise tracer.unsupported(
            "arithmetic with parameters",
            "their scale is set by weight_var or bias_var; use the parameter unmodified",
        )
    return held(tracer, value, "a sum with a constant")


@register_function("sub", "subtract")
@takes(Scaled, Logits)
def _sub(tracer: Tracer, input: Any, other: Any, *, alpha: float = 1.0) -> Any:
    return _add(tracer, input, other, alpha=-alpha)


@register_function("mul", "multiply")
@takes(Scaled, Logits, Weights)
def _mul(tracer: Tracer, input: Any, other: Any) -> Any:
    if isinstance(input, Logits) or isinstance(other, Logits):
        logits, by = (input, other) if isinstance(input, Logits) else (other, input)
        by = _gain(tracer, by) if _is_parameter(by) else by
        return logits.scaled(_constant(tracer, by), getattr(by, "exponent", 0.0))
    if isinstance(input, Scaled) or isinstance(other, Scaled):
        value, by = (input, other) if isinstance(input, Scaled) else (other, input)
        return _scaled(tracer, value, by)
    values = [v for v in (input, other) if isinstance(v, Value)]
    if any(_is_parameter(v) for v in (input, other)):
        return _mul_parameter(tracer, input, other)
    if all(v.finite for v in values):
        return tracer.without_rule(torch.mul, (input, other), {})
    if len(values) == 2:
        if any(v.finite for v in values):
            raise tracer.unsupported(
                "a product of hidden units and the raw input",
                "each unit would have a factor of its own; apply a linear layer to the input",
            )
        return tracer.multiply(input, other)
    value, scale = (input, other) if isinstance(input, Value) else (other, input)
    if isinstance(scale, Tensor) and scale.numel() > 1:
        if bool((scale != scale.flatten()[0]).any()):
            return _weighted(tracer, value, scale)
        scale = scale.flatten()[0]
    return _scaled(tracer, Scaled(value, 1.0, 0.0), scale)


def _mul_parameter(tracer: Tracer, input: Any, other: Any) -> Any:
    """A product with a parameter: a multiple of it, or a gain, held at its value."""
    if _is_parameter(input) and _is_parameter(other):
        raise tracer.unsupported("a product of parameters", "their entries are independent")
    parameter, by = (input, other) if _is_parameter(input) else (other, input)
    if _is_number(by):
        if getattr(by, "exponent", 0.0):
            raise tracer.unsupported(
                "a parameter scaled by a function of the width",
                "its scale is set by weight_var; use it unmodified",
            )
        return learnt(tracer, parameter).scaled(_constant(tracer, by))
    if not isinstance(by, Value):
        raise tracer.unsupported(
            "a parameter times an array of constants", "apply it to hidden units"
        )
    if not by.finite:
        return _mul(tracer, by, _gain(tracer, parameter))
    return tracer.finite_call(torch.mul, by, held(tracer, parameter, "a product"))


def _gain(tracer: Tracer, parameter: Any) -> Power:
    """The number that a gain is held at, which does not depend on the width."""
    what = "a product"
    return Power(float(gain(tracer, held(tracer, parameter, what), what).flatten()[0]), 0.0)


def _scaled(tracer: Tracer, x: Scaled, by: Any) -> Any:
    """A hidden value times a number, which may go like a power of its width."""
    if not _is_number(by) and x.exponent:
        raise tracer.unsupported(*x.refusal("a product"))
    exponent = x.exponent + width_exponent(x.value, by)
    scale = x.scale * _constant(tracer, by)
    if exponent:
        return Scaled(x.value, scale, exponent)
    return tracer.combine([(scale, x.value)])


def _weighted(tracer: Tracer, value: Value, weights: Tensor) -> Value:
    """A constant factor for each position, such as a mask."""
    tracer.check_batch(value)
    whole = tracer.shape(value)
    full = weights.detach()
    if full.dim() > len(whole):
        full = full.squeeze(0)
    full = full.reshape((1,) * (len(whole) - full.dim()) + tuple(full.shape))
    if value.axis is None or value.heads or full.shape[value.axis] != 1:
        raise tracer.unsupported(
            "a constant factor for each unit", "it may differ only between positions"
        )
    flat = full.squeeze(value.axis).expand(tracer.positions(value)).flatten().double()
    node = Mix(value.index, (), Array.of(torch.diag(flat)), tracer.positions(value))
    return tracer.like(value, tracer.add(node))


@register_function("div", "truediv", "divide", "true_divide")
@takes(Scaled, Logits, Weights)
def _div(tracer: Tracer, input: Any, other: Any) -> Any:
    if _is_parameter(other):
        return _mul(tracer, input, 1.0 / _gain(tracer, other))
    if isinstance(input, Logits):
        return input.scaled(1.0 / _constant(tracer, other), -getattr(other, "exponent", 0.0))
    if isinstance(other, Value | Scaled):
        if isinstance(other, Value) and not _is_hidden(input) and other.finite:
            return tracer.without_rule(torch.div, (input, other), {})
        if isinstance(other, Scaled):
            raise tracer.unsupported(*other.refusal("a quotient"))
        return tracer.elementwise(torch.div, (input, other), {})
    if isinstance(input, Value) and input.finite:
        return tracer.finite_call(torch.div, input, other)
    if isinstance(input, Value | Scaled) or _is_parameter(input):
        return _mul(tracer, input, 1.0 / other)
    return tracer.without_rule(torch.div, (input, other), {})


@register_function("neg", "negative")
@takes(Scaled, Logits)
def _neg(tracer: Tracer, input: Value) -> Value:
    return _mul(tracer, input, -1.0)


@register_function("pow")
def _pow(tracer: Tracer, input: Any, exponent: Any) -> Any:
    if not _is_hidden(input) and not _is_hidden(exponent):
        return tracer.without_rule(torch.pow, (input, exponent), {})
    if not isinstance(input, Value) or not isinstance(exponent, int | float):
        return tracer.elementwise(torch.pow, (input, exponent), {})
    whole = float(exponent).is_integer() and 0 < exponent <= 16
    node = tracer.nodes[input.index]
    if whole and isinstance(node, Nonlinear) and node.factors[0].function == ABReLU():
        if len(node.factors) == 1:
            (source,) = node.factors[0].sources
            gaussian = tracer.like(input, source)
            return tracer.activation(gaussian, RectifiedPower(int(exponent)))
    if whole:
        return tracer.activation(input, Polynomial((0.0,) * int(exponent) + (1.0,)))
    return tracer.elementwise(torch.pow, (input, exponent), {})


@register_function("square")
def _square(tracer: Tracer, input: Value) -> Value:
    return _pow(tracer, input, 2)


@register_function("glu")
def _glu(tracer: Tracer, input: Value, dim: int = -1) -> Value:
    a, b = tracer.structural(torch.chunk, (input, 2, dim), {})
    return tracer.multiply(a, tracer.call(torch.sigmoid, b))


@register_layer(nn.GLU)
def _glu_layer(tracer: Tracer, layer: nn.GLU, x: Value) -> Value:
    return _glu(tracer, x, layer.dim)


@register_layer(nn.Identity)
@takes(Scaled, Logits, Weights)
def _identity_layer(tracer: Tracer, layer: Any, x: Value) -> Value:
    return x


@register_function("contiguous", "clone", "to", "float", "double", "type_as")
@takes(Scaled, Logits, Weights)
def _same(tracer: Tracer, input: Value, *args: Any, **kwargs: Any) -> Value:
    return input


@register_function("detach")
@takes(Scaled)
def _detach(tracer: Tracer, input: Any) -> Any:
    tracer.stop_gradients("detach", input)
    return input
