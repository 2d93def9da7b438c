"""Sums and products of branches, powers, and what changes nothing."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from priors.gaussian.activations import ABReLU, Polynomial, RectifiedPower
from priors.programs.nodes import Array, Embedding, Function, Mix, Nonlinear, Ref
from priors.programs.registry import register_function, register_layer
from priors.programs.rules.attention import Logits
from priors.programs.tracer import Tracer
from priors.programs.values import Value


def _constant(tracer: Tracer, value: Any) -> float:
    if isinstance(value, nn.Parameter):
        raise tracer.unsupported(
            "arithmetic with a parameter", "only constants may scale or shift units"
        )
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    if isinstance(value, int | float):
        return float(value)
    raise tracer.unsupported(f"arithmetic with {type(value).__name__}", "only scalar constants are")


def _finite_only(tracer: Tracer, *values: Any) -> bool:
    """Whether no value is hidden; parameters and their multiples are never operands."""
    own = [v for v in values if isinstance(v, Value)]
    if not own and any(isinstance(v, nn.Parameter) for v in values):
        raise tracer.unsupported(
            "arithmetic with parameters",
            "their scale is weight_var or bias_var; use the parameter as it is",
        )
    return all(v.finite for v in own)


@register_function("add", "__add__")
def _add(tracer: Tracer, input: Any, other: Any, *, alpha: float = 1.0) -> Any:
    if isinstance(input, Logits) or isinstance(other, Logits):
        logits, mask = (input, other) if isinstance(input, Logits) else (other, input)
        return logits.masked(tracer, mask, alpha)
    if not isinstance(input, Value) and not isinstance(other, Value):
        _finite_only(tracer, input, other)
    if isinstance(input, nn.Parameter) and input.numel() > 1:
        input = _learnt(tracer, input, other)
    if isinstance(other, nn.Parameter) and other.numel() > 1:
        other = _learnt(tracer, other, input)
    if _finite_only(tracer, input, other):
        scaled = {} if alpha == 1.0 else {"alpha": alpha}
        return tracer.without_rule(torch.add, (input, other), scaled)
    parts, offset = [], 0.0
    for scale, value in ((1.0, input), (alpha, other)):
        if isinstance(value, Value):
            parts.append((scale, value))
        else:
            offset += scale * _constant(tracer, value)
    return tracer.combine(parts, offset)


def _learnt(tracer: Tracer, parameter: nn.Parameter, value: Any) -> Value:
    """A learnt vector for each position (a position encoding): an embedding of the position."""
    if not isinstance(value, Value) or value.finite or value.axis is None:
        raise tracer.unsupported("arithmetic with a parameter")
    shape = tuple(parameter.shape)
    whole = tracer.shape(value)
    shape = (
        (1,) * (len(whole) - len(shape)) + shape
        if len(shape) < len(whole)
        else shape[-len(whole) :]
    )
    if parameter.numel() != math.prod(shape) or shape[value.axis] != value.width:
        raise tracer.unsupported("arithmetic with a parameter", f"its shape must end like {whole}")
    positions = shape[: value.axis] + shape[value.axis + 1 :]
    tokens = tracer.add(Function(_numbered, (Ref(None), positions), (), positions))
    layer = tracer.parameter(parameter, tracer.weights, "weight")
    tracer.fan_in[layer] = 1
    node = Embedding(tokens, layer, layer, None, positions)
    return Value(tracer.add(node), value.width, value.axis)


def _numbered(batch: int, positions: tuple[int, ...]) -> Tensor:
    count = torch.arange(math.prod(positions), device="cpu")
    return count.reshape(1, *positions).expand(batch, *positions)


@register_function("sub", "subtract")
def _sub(tracer: Tracer, input: Any, other: Any, *, alpha: float = 1.0) -> Any:
    return _add(tracer, input, other, alpha=-alpha)


@register_function("mul", "multiply")
def _mul(tracer: Tracer, input: Any, other: Any) -> Any:
    if isinstance(input, Logits) or isinstance(other, Logits):
        logits, by = (input, other) if isinstance(input, Logits) else (other, input)
        return logits.scaled(_constant(tracer, by), getattr(by, "exponent", 0.0))
    if isinstance(input, Value) and isinstance(other, Value):
        if _finite_only(tracer, input, other):
            return tracer.finite_call(torch.mul, input, other)
        if not (input.finite or other.finite):
            return tracer.multiply(input, other)
        raise tracer.unsupported("a product of hidden units and the raw input")
    if _finite_only(tracer, input, other):
        return tracer.without_rule(torch.mul, (input, other), {})
    value, scale = (input, other) if isinstance(input, Value) else (other, input)
    if value.finite:
        return tracer.finite_call(torch.mul, value, scale)
    if isinstance(scale, Tensor) and not isinstance(scale, nn.Parameter) and scale.numel() > 1:
        return _weighted(tracer, value, scale)
    return tracer.combine([(_constant(tracer, scale), value)])


def _weighted(tracer: Tracer, value: Value, weights: Tensor) -> Value:
    """A constant factor for each position, such as a mask."""
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
def _div(tracer: Tracer, input: Any, other: Any) -> Any:
    if isinstance(input, Logits):
        return input.scaled(1.0 / _constant(tracer, other), -getattr(other, "exponent", 0.0))
    if _finite_only(tracer, input, other):
        return tracer.without_rule(torch.div, (input, other), {})
    if isinstance(other, Value):
        return tracer.elementwise(torch.div, (input, other), {})
    if isinstance(other, Tensor) and other.numel() > 1:
        return _mul(tracer, input, 1.0 / other)
    return tracer.combine([(1.0 / _constant(tracer, other), input)])


@register_function("neg", "negative")
def _neg(tracer: Tracer, input: Value) -> Value:
    return _mul(tracer, input, -1.0)


@register_function("pow")
def _pow(tracer: Tracer, input: Any, exponent: Any) -> Any:
    if _finite_only(tracer, input, exponent):
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
def _identity_layer(tracer: Tracer, layer: Any, x: Value) -> Value:
    return x


@register_function("contiguous", "clone", "to", "float", "double", "type_as")
def _same(tracer: Tracer, input: Value, *args: Any, **kwargs: Any) -> Value:
    return input


@register_function("detach")
def _detach(tracer: Tracer, input: Any) -> Any:
    tracer.stop_gradients("detach", input)
    return input
