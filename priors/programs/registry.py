"""The rules of tracing: what each layer and function of torch becomes in a program.

Layers and functions are known by name. A rule gets the tracer, the place for error messages and
the call's own arguments, whose tensors are `Value`s.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from priors.gaussian.activations import ABReLU, Polynomial, RectifiedPower
from priors.programs.program import (
    Array,
    BatchNormalise,
    Dropout,
    Elementwise,
    Embedding,
    Function,
    Mix,
    Normalise,
    Ref,
    UnsupportedOperationError,
    Window,
)
from priors.programs.rules import attention, elementwise, recurrent
from priors.programs.tracer import Nonlinearity, Tracer, Value

__all__ = ["attribute", "call_function", "call_module"]

_REFUSED = {
    "ConvTranspose": "overlapping windows give positions different fan-ins; resize with "
    "interpolate, then use a convolution",
    "MaxPool": "the maximum of correlated Gaussians has no closed form here; use average pooling",
    "BatchNorm": "it depends on the whole batch, so there is no kernel of single inputs; "
    "priors.batch_kernel gives the kernel within one batch",
    "SyncBatchNorm": "it depends on the whole batch",
    "InstanceNorm": "its statistics are over positions alone, which stay finite and random",
    "PReLU": "its slope is learnt; use nn.LeakyReLU",
    "RReLU": "its slope is random; use nn.LeakyReLU",
    "Softmax": "over the width its denominator and units are coupled; for attention use "
    "scaled_dot_product_attention or softmax of a product of queries and keys",
    "Bilinear": "a weight tensor of three indices has another limit",
    "GLU": "use nn.functional.glu or chunk and a product",
}


def attribute(module: nn.Module, target: str) -> Any:
    """A tensor or constant of the module that forward refers to."""
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    return value


def call_module(tracer: Tracer, layer: nn.Module, where: str, *args: Any, **kwargs: Any) -> Any:
    """What a layer makes of its arguments."""
    for kind, rule in _LAYERS.items():
        if isinstance(layer, kind):
            return _apply(rule, type(layer).__name__, tracer, layer, where, *args, **kwargs)
    activation = elementwise.of_module(layer)
    if activation is not None and len(args) == 1:
        return tracer.activation(args[0], activation, where)
    state = [*layer.parameters(), *layer.buffers()]
    if args and all(isinstance(a, Value) and a.finite for a in args) and not state:
        return tracer.finite_call(where, layer, *args, **kwargs)
    name = type(layer).__name__
    why = next((r for k, r in _REFUSED.items() if k in name), "")
    raise UnsupportedOperationError(f"layer {name}", where, why)


def call_function(
    tracer: Tracer, target: Any, where: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """What a function, or a tensor's method (by name), makes of its arguments."""
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    if not isinstance(target, str) and not _is_torch(target):
        raise UnsupportedOperationError(f"operation {name}", where)
    if name == "getitem" and not isinstance(args[0], Value):
        return args[0][args[1]]
    if name == "getattr" and not isinstance(args[0], Value):
        return getattr(*args)
    rule = _FUNCTIONS.get(name)
    if rule is not None:
        return _apply(rule, name, tracer, where, *args, **kwargs)
    builder = elementwise.FUNCTIONS.get(name)
    if builder is not None and args and isinstance(args[0], Value):
        rest = {k: v for k, v in kwargs.items() if k != "inplace"}
        return tracer.activation(args[0], _apply(builder, name, *args[1:], **rest), where)
    function = getattr(torch.Tensor, target) if isinstance(target, str) else target
    if name in _STRUCTURAL:
        return tracer.structural(where, function, args, kwargs)
    values = [a for a in (*args, *kwargs.values()) if isinstance(a, Value)]
    if not values and not any(isinstance(a, Ref | nn.Parameter) for a in args):
        return function(*args, **kwargs)  # a constant, such as torch.arange(10)
    if values and all(v.finite for v in values):
        return tracer.finite_call(where, function, *args, **kwargs)
    if name in elementwise.ELEMENTWISE:
        return tracer.elementwise(where, function, args, kwargs)
    plain = name.replace("_", "").lower()
    why = next((r for k, r in _REFUSED.items() if k.lower() in plain), "")
    raise UnsupportedOperationError(f"operation {name}", where, why)


def _apply(rule: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
    try:
        return rule(*args, **kwargs)
    except TypeError as error:  # arguments that the rule does not know
        where = next((a for a in args if isinstance(a, str)), "forward")
        raise UnsupportedOperationError(name, where, str(error)) from error


def _is_torch(target: Any) -> bool:
    """Functions are known by name; the name must come from torch, math or operator."""
    module = getattr(target, "__module__", None) or ""
    return module.split(".")[0] in ("torch", "_operator", "operator", "builtins", "")


# Linear layers -----------------------------------------------------------------------------------


def _linear_layer(tracer: Tracer, layer: nn.Linear, where: str, x: Value) -> Value:
    return tracer.dense(x, layer.weight, layer.bias, where, width=layer.out_features)


def _linear(
    tracer: Tracer, where: str, input: Value, weight: Tensor, bias: Tensor | None = None
) -> Value:
    return tracer.dense(input, weight, bias, where)


def _conv_layer(tracer: Tracer, layer: Any, where: str, x: Value) -> Value:
    if layer.padding_mode not in ("zeros", "circular"):
        raise UnsupportedOperationError(
            f"padding_mode {layer.padding_mode!r}", where, 'it must be "zeros" or "circular"'
        )
    return _conv(
        tracer,
        where,
        x,
        layer.weight,
        layer.bias,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        circular=layer.padding_mode == "circular",
    )


def _conv(
    tracer: Tracer,
    where: str,
    input: Value,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    circular: bool = False,
) -> Value:
    size = tuple(weight.shape[2:])
    dims = len(size)
    if len(tracer.shape(input)) != dims + 1:
        raise ValueError(
            f"The {dims}-d convolution at {where} expects inputs of {dims + 1} dimensions without "
            f"the batch, it gets {tracer.shape(input)}; give input_shape."
        )
    channels = weight.shape[1] * groups
    if groups > 1 and input.finite:
        raise UnsupportedOperationError(
            "a grouped convolution of the raw input", where, "groups would see different channels"
        )
    if groups > 1 and weight.shape[1] == 1:
        raise UnsupportedOperationError(
            "a depthwise convolution",
            where,
            "each unit sums over one channel, so it is not Gaussian at any width; with several "
            "channels per group the limit is that of an ordinary convolution",
        )
    source = tracer.features(input, 0, channels, where)
    strides, dilations = _each(stride, dims), _each(dilation, dims)
    if isinstance(padding, str):
        total = [
            d * (k - 1) if padding == "same" else 0 for d, k in zip(dilations, size, strict=True)
        ]
        pads = tuple((t // 2, t - t // 2) for t in total)
    else:
        pads = tuple((p, p) for p in _each(padding, dims))
    spatial = tracer.positions(source)
    out = tuple(
        (n + a + b - d * (k - 1) - 1) // s + 1
        for n, (a, b), d, k, s in zip(spatial, pads, dilations, size, strides, strict=True)
    )
    if min(out) < 1:
        raise ValueError(f"The window {size} at {where} is larger than its input {spatial}.")
    window = Window(size, strides, pads, dilations, circular)
    index = tracer.linear(
        source, weight, bias, where, width=weight.shape[0], window=window, positions=out
    )
    return Value(index, weight.shape[0], 0)


def _each(value: Any, dims: int) -> tuple[int, ...]:
    return (int(value),) * dims if isinstance(value, int) else tuple(int(v) for v in value)


def _repeated(batch: int, tokens: Tensor) -> Tensor:
    return tokens.expand(batch, *tokens.shape)


def _embedding_layer(tracer: Tracer, layer: nn.Embedding, where: str, x: Value | Tensor) -> Value:
    if layer.max_norm is not None:
        raise UnsupportedOperationError("Embedding with max_norm", where)
    return _embedding(tracer, where, x, layer.weight, layer.padding_idx)


def _embedding(
    tracer: Tracer,
    where: str,
    input: Value | Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
) -> Value:
    if isinstance(input, Tensor):  # the same tokens for every data point, such as positions
        shape = tuple(input.shape)
        node = Function(_repeated, (Ref(None), Array.of(input)), (), shape)
        input = Value(tracer.add(node))
    if not input.finite:
        raise UnsupportedOperationError("an embedding of hidden units", where)
    positions = tracer.shape(input)
    if None in positions:
        raise ValueError(f"The embedding at {where} needs input_shape, for example (10,).")
    layer = tracer.parameter(weight, tracer.weights, where, "weight")
    tracer.fan_in[layer] = 1
    made = Embedding(input.index, layer, layer, padding_idx, positions)  # type: ignore[arg-type]
    return Value(tracer.add(made), weight.shape[1], len(positions))


# Positions ---------------------------------------------------------------------------------------


def _pool(dims: int) -> Callable[..., Value]:
    def rule(
        tracer: Tracer,
        where: str,
        input: Value,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Value:
        size = _each(kernel_size, dims)
        strides = size if stride is None or stride == () else _each(stride, dims)
        pads = _each(padding, dims)
        if ceil_mode:
            raise UnsupportedOperationError("ceil_mode", where)

        def matrix(axis: int, n: int) -> Tensor:
            # one row of the identity per position: pooling it is the pooling matrix
            rows = F.avg_pool1d(
                torch.eye(n, dtype=torch.float64)[:, None],
                size[axis],
                strides[axis],
                pads[axis],
                False,
                count_include_pad,
            )[:, 0].T
            return rows * (size[axis] if divisor_override else 1)

        scale = 1.0 / divisor_override if divisor_override else 1.0
        return _spatial(tracer, where, input, dims, matrix, scale)

    return rule


def _adaptive_pool(dims: int) -> Callable[..., Value]:
    def rule(tracer: Tracer, where: str, input: Value, output_size: Any) -> Value:
        sizes = (output_size,) * dims if not isinstance(output_size, tuple | list) else output_size

        def matrix(axis: int, n: int) -> Tensor:
            target = n if sizes[axis] is None else int(sizes[axis])
            return F.adaptive_avg_pool1d(torch.eye(n, dtype=torch.float64)[:, None], target)[:, 0].T

        return _spatial(tracer, where, input, dims, matrix)

    return rule


def _interpolate(
    tracer: Tracer,
    where: str,
    input: Value,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
) -> Value:
    dims = len(tracer.shape(input)) - 1
    line = {"bilinear": "linear", "trilinear": "linear"}.get(mode, mode)
    if line not in ("nearest", "nearest-exact", "linear", "area"):
        raise UnsupportedOperationError(f"interpolation mode {mode!r}", where)

    def matrix(axis: int, n: int) -> Tensor:
        def pick(v: Any) -> Any:
            return v if v is None or not isinstance(v, tuple | list) else v[axis]

        eye = torch.eye(n, dtype=torch.float64)[:, None]
        return F.interpolate(
            eye, pick(size), pick(scale_factor), mode=line, align_corners=align_corners
        )[:, 0].T

    return _spatial(tracer, where, input, dims, matrix)


def _spatial(
    tracer: Tracer,
    where: str,
    x: Value,
    dims: int,
    matrix: Callable[[int, int], Tensor],
    scale: float = 1.0,
) -> Value:
    """A linear map along each of the last `dims` dimensions, as images have them."""
    if x.finite:
        raise UnsupportedOperationError("pooling of the raw input", where, "pool beforehand")
    if x.axis != 0 or x.heads or len(tracer.positions(x)) != dims:
        raise UnsupportedOperationError(
            f"a {dims}-d pooling of a value of shape {tracer.shape(x)}", where
        )
    matrices = [matrix(axis, n) for axis, n in enumerate(tracer.positions(x))]
    return _mixed(tracer, x, [matrices[0] * scale, *matrices[1:]])


def _mixed(tracer: Tracer, x: Value, matrices: list[Tensor | None]) -> Value:
    positions = tuple(
        n if m is None else m.shape[0] for m, n in zip(matrices, tracer.positions(x), strict=True)
    )
    arrays = tuple(None if m is None else Array.of(m) for m in matrices)
    return tracer.like(x, tracer.add(Mix(x.index, arrays, None, positions)))


def _reduce(mean: bool) -> Callable[..., Value]:
    def rule(
        tracer: Tracer, where: str, input: Value, dim: Any = None, keepdim: bool = False
    ) -> Value:
        function = torch.mean if mean else torch.sum
        if input.finite:
            return tracer.finite_call(where, function, input, dim, keepdim)
        rank = len(tracer.shape(input)) + 1
        dims = {d % rank - 1 for d in ((dim,) if isinstance(dim, int) else dim or range(rank))}
        if -1 in dims or input.axis in dims or input.heads:
            raise UnsupportedOperationError(
                "a mean or sum over the batch or the width",
                where,
                "over positions it is pooling; over units a linear layer does it",
            )
        axes = [d - (input.axis is not None and d > input.axis) for d in dims]
        matrices: list[Tensor | None] = [None] * len(tracer.positions(input))
        for axis in axes:
            n = tracer.positions(input)[axis]
            matrices[axis] = torch.full((1, n), 1.0 / n if mean else 1.0, dtype=torch.float64)
        pooled = _mixed(tracer, input, matrices)
        if keepdim:
            return pooled
        picked = tracer.positions(pooled)
        kept = [s for axis, s in enumerate(picked) if axis not in axes]
        index = tracer.select(pooled.index, torch.arange(math.prod(picked)).reshape(kept))
        axis_left = None
        if input.axis is not None:
            axis_left = input.axis - sum(d < input.axis for d in dims)
        return Value(index, input.width, axis_left)

    return rule


def _matmul(tracer: Tracer, where: str, a: Any, b: Any) -> Any:
    if isinstance(a, attention.Logits):  # attention without softmax
        a = attention.Weights(a, softmax=False)
    if isinstance(a, attention.Weights):
        return a.apply(tracer, where, b)
    if isinstance(a, Value) and isinstance(b, Value):
        if a.finite and b.finite:
            return tracer.finite_call(where, torch.matmul, a, b)
        return attention.product(tracer, where, a, b)
    left = isinstance(b, Value)
    value, constant = (b, a) if left else (a, b)
    if isinstance(constant, nn.Parameter):
        if not left and constant.dim() == 2:
            raise UnsupportedOperationError(
                "matmul with a parameter", where, "use nn.Linear or nn.functional.linear"
            )
        raise UnsupportedOperationError("a learnt map of positions", where)
    if not isinstance(constant, Tensor) or constant.dim() != 2:
        raise UnsupportedOperationError("matmul", where, "one side must be a constant matrix")
    if value.finite:
        args = (constant, value) if left else (value, constant)
        return tracer.finite_call(where, torch.matmul, *args)
    rank = len(tracer.shape(value))
    dim = rank - 2 if left else rank - 1
    if dim < 0 or dim == value.axis or value.heads:
        raise UnsupportedOperationError(
            "a constant matrix applied to the width", where, "it acts on positions"
        )
    matrices: list[Tensor | None] = [None] * len(tracer.positions(value))
    axis = dim - (value.axis is not None and dim > value.axis)
    matrices[axis] = constant if left else constant.T
    return _mixed(tracer, value, matrices)


def _size(tracer: Tracer, where: str, input: Value, dim: int | None = None) -> Any:
    sizes = (Ref(None), *tracer.shape(input))
    if None in sizes:
        raise ValueError(f"The shape of the input is not known at {where}; give input_shape.")
    return sizes if dim is None else sizes[dim]


def _getattr(tracer: Tracer, where: str, value: Value, name: str) -> Any:
    match name:
        case "shape":
            return _size(tracer, where, value)
        case "mT" | "T":
            return tracer.structural(where, torch.transpose, (value, -2, -1), {})
        case "device" | "dtype":
            return None
    raise UnsupportedOperationError(f"attribute {name}", where)


def _same(tracer: Tracer, where: str, input: Value, *args: Any, **kwargs: Any) -> Value:
    return input


# Normalisation and dropout -----------------------------------------------------------------------


def _layer_norm_layer(tracer: Tracer, layer: Any, where: str, x: Value) -> Value:
    tracer.constant(layer.weight, 1.0, where)
    tracer.constant(getattr(layer, "bias", None), 0.0, where)
    centred = isinstance(layer, nn.LayerNorm)
    return _normalise(tracer, where, x, layer.normalized_shape, layer.eps, centred)


def _layer_norm(centred: bool) -> Callable[..., Value]:
    def rule(
        tracer: Tracer,
        where: str,
        input: Value,
        normalized_shape: Any,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float | None = 1e-5 if centred else None,
    ) -> Value:
        tracer.constant(weight, 1.0, where)
        tracer.constant(bias, 0.0, where)
        return _normalise(tracer, where, input, normalized_shape, eps, centred)

    return rule


def _normalise(
    tracer: Tracer, where: str, x: Value, shape: Any, eps: float | None, centred: bool
) -> Value:
    # torch's RMSNorm without eps uses that of the dtype; single precision's is taken here
    eps = torch.finfo(torch.float32).eps if eps is None else float(eps)
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if x.finite:
        function = F.layer_norm if centred else F.rms_norm
        return tracer.finite_call(where, function, x, shape, eps=eps)
    whole = tracer.shape(x)
    if whole[len(whole) - len(shape) :] != shape:
        raise ValueError(f"normalized_shape {shape} at {where} does not fit the value {whole}.")
    first = len(whole) - len(shape)
    if x.axis is None or x.axis < first or x.heads:
        raise UnsupportedOperationError(
            "a normalisation that is not over the width", where, f"the value is {whole}"
        )
    pooled = len(shape) - 1
    return _normalised(tracer, where, x, pooled, eps, centred)


def _group_norm_layer(tracer: Tracer, layer: nn.GroupNorm, where: str, x: Value) -> Value:
    tracer.constant(layer.weight, 1.0, where)
    tracer.constant(layer.bias, 0.0, where)
    if x.finite or x.axis != 0:
        raise UnsupportedOperationError("GroupNorm", where, "channels must come first")
    if layer.num_groups == layer.num_channels:
        raise UnsupportedOperationError("GroupNorm", where, _REFUSED["InstanceNorm"])
    return _normalised(tracer, where, x, len(tracer.positions(x)), layer.eps, True)


def _normalised(
    tracer: Tracer, where: str, x: Value, pooled: int, eps: float, centred: bool
) -> Value:
    positions = tracer.positions(x)
    return tracer.like(x, tracer.add(Normalise(x.index, centred, eps, pooled, positions)))


def _batch_norm_layer(tracer: Tracer, layer: Any, where: str, x: Value) -> Value:
    if not tracer.whole_batch:
        raise UnsupportedOperationError(
            f"layer {type(layer).__name__}", where, _REFUSED["BatchNorm"]
        )
    if not layer.training or x.finite or x.heads:
        raise UnsupportedOperationError(
            f"layer {type(layer).__name__}",
            where,
            "in training mode and of hidden units it has a limit; call train()",
        )
    tracer.check_batch(x, where)
    tracer.constant(layer.weight, 1.0, where)
    tracer.constant(layer.bias, 0.0, where)
    if not tracer.gaussian(x.index):
        raise UnsupportedOperationError(
            f"layer {type(layer).__name__}", where, "its input must be that of a linear layer"
        )
    return tracer.like(x, tracer.add(BatchNormalise(x.index, layer.eps, tracer.positions(x))))


def _dropout_layer(whole: bool) -> Callable[..., Value]:
    def rule(tracer: Tracer, layer: Any, where: str, x: Value) -> Value:
        return _dropout(tracer, where, x, layer.p, layer.training, whole)

    return rule


def _dropout_function(whole: bool) -> Callable[..., Value]:
    def rule(
        tracer: Tracer,
        where: str,
        input: Value,
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
    ) -> Value:
        return _dropout(tracer, where, input, p, training, whole)

    return rule


def _dropout(tracer: Tracer, where: str, x: Value, p: float, training: bool, whole: bool) -> Value:
    if not training or p == 0:
        return x
    if x.finite:
        raise UnsupportedOperationError(
            "Dropout of the raw input in training mode", where, "its width is finite"
        )
    if p >= 1:
        raise ValueError(f"Dropout at {where} drops everything: p = {p}.")
    node = Dropout(x.index, 1 - p, whole, tracer.next_call(), tracer.positions(x))
    return tracer.like(x, tracer.add(node))


# Arithmetic --------------------------------------------------------------------------------------


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


def _finite_only(*values: Any) -> bool:
    own = [v for v in values if isinstance(v, Value)]
    return all(v.finite for v in own)


def _add(tracer: Tracer, where: str, input: Any, other: Any, *, alpha: float = 1.0) -> Any:
    if isinstance(input, attention.Logits) or isinstance(other, attention.Logits):
        logits, mask = (input, other) if isinstance(input, attention.Logits) else (other, input)
        return logits.masked(where, mask, alpha)
    if isinstance(input, nn.Parameter) and input.numel() > 1:
        input = _learnt(tracer, where, input, other)
    if isinstance(other, nn.Parameter) and other.numel() > 1:
        other = _learnt(tracer, where, other, input)
    if _finite_only(input, other):
        return tracer.finite_call(where, functools.partial(torch.add, alpha=alpha), input, other)
    parts, offset = [], 0.0
    for scale, value in ((1.0, input), (alpha, other)):
        if isinstance(value, Value):
            parts.append((scale, value))
        else:
            offset += scale * _constant(value, where)
    return tracer.combine(where, parts, offset)


def _learnt(tracer: Tracer, where: str, parameter: nn.Parameter, value: Any) -> Value:
    """A learnt vector for each position (a position encoding): an embedding of the position."""
    if not isinstance(value, Value) or value.finite or value.axis is None:
        raise UnsupportedOperationError("arithmetic with a parameter", where)
    shape = tuple(parameter.shape)
    whole = tracer.shape(value)
    shape = (
        (1,) * (len(whole) - len(shape)) + shape
        if len(shape) < len(whole)
        else shape[-len(whole) :]
    )
    if parameter.numel() != math.prod(shape) or shape[value.axis] != value.width:
        raise UnsupportedOperationError(
            "arithmetic with a parameter", where, f"its shape must end like {whole}"
        )
    positions = shape[: value.axis] + shape[value.axis + 1 :]
    tokens = tracer.add(Function(_numbered, (Ref(None), positions), (), positions))
    layer = tracer.parameter(parameter, tracer.weights, where, "weight")
    tracer.fan_in[layer] = 1
    node = Embedding(tokens, layer, layer, None, positions)
    return Value(tracer.add(node), value.width, value.axis)


def _numbered(batch: int, positions: tuple[int, ...]) -> Tensor:
    count = torch.arange(math.prod(positions), device="cpu")
    return count.reshape(1, *positions).expand(batch, *positions)


def _sub(tracer: Tracer, where: str, input: Any, other: Any, *, alpha: float = 1.0) -> Any:
    return _add(tracer, where, input, other, alpha=-alpha)


def _mul(tracer: Tracer, where: str, input: Any, other: Any) -> Any:
    if isinstance(input, attention.Logits) or isinstance(other, attention.Logits):
        logits, by = (input, other) if isinstance(input, attention.Logits) else (other, input)
        return logits.scaled(_constant(by, where))
    if isinstance(input, Value) and isinstance(other, Value):
        if _finite_only(input, other):
            return tracer.finite_call(where, torch.mul, input, other)
        if not (input.finite or other.finite):
            return tracer.multiply(where, input, other)
        raise UnsupportedOperationError("a product of hidden units and the raw input", where)
    value, scale = (input, other) if isinstance(input, Value) else (other, input)
    if value.finite:
        return tracer.finite_call(where, torch.mul, value, scale)
    if isinstance(scale, Tensor) and not isinstance(scale, nn.Parameter) and scale.numel() > 1:
        return _weighted(tracer, where, value, scale)
    return tracer.combine(where, [(_constant(scale, where), value)])


def _weighted(tracer: Tracer, where: str, value: Value, weights: Tensor) -> Value:
    """A constant factor for each position, such as a mask."""
    whole = tracer.shape(value)
    full = weights.detach()
    if full.dim() > len(whole):
        full = full.squeeze(0)
    full = full.reshape((1,) * (len(whole) - full.dim()) + tuple(full.shape))
    if value.axis is None or value.heads or full.shape[value.axis] != 1:
        raise UnsupportedOperationError(
            "a constant factor for each unit", where, "it may differ only between positions"
        )
    flat = full.squeeze(value.axis).expand(tracer.positions(value)).flatten().double()
    node = Mix(value.index, (), Array.of(torch.diag(flat)), tracer.positions(value))
    return tracer.like(value, tracer.add(node))


def _div(tracer: Tracer, where: str, input: Any, other: Any) -> Any:
    if isinstance(input, attention.Logits):
        return input.scaled(1.0 / _constant(other, where))
    if _finite_only(input, other):
        return tracer.finite_call(where, torch.div, input, other)
    if isinstance(other, Value):
        return tracer.elementwise(where, torch.div, (input, other), {})
    if isinstance(other, Tensor) and other.numel() > 1:
        return _mul(tracer, where, input, 1.0 / other)
    return tracer.combine(where, [(1.0 / _constant(other, where), input)])


def _neg(tracer: Tracer, where: str, input: Value) -> Value:
    return _mul(tracer, where, input, -1.0)


def _pow(tracer: Tracer, where: str, input: Any, exponent: Any) -> Any:
    if _finite_only(input):
        return tracer.finite_call(where, torch.pow, input, exponent)
    if not isinstance(input, Value) or not isinstance(exponent, int | float):
        return tracer.elementwise(where, torch.pow, (input, exponent), {})
    whole = float(exponent).is_integer() and 0 < exponent <= 16
    node = tracer.nodes[input.index]
    if whole and isinstance(node, Elementwise) and node.factors[0].function == ABReLU():
        if len(node.factors) == 1:
            (source,) = node.factors[0].sources
            gaussian = tracer.like(input, source)
            return tracer.activation(gaussian, RectifiedPower(int(exponent)), where)
    if whole:
        return tracer.activation(input, Polynomial((0.0,) * int(exponent) + (1.0,)), where)
    return tracer.elementwise(where, torch.pow, (input, exponent), {})


def _square(tracer: Tracer, where: str, input: Value) -> Value:
    return _pow(tracer, where, input, 2)


def _glu(tracer: Tracer, where: str, input: Value, dim: int = -1) -> Value:
    a, b = tracer.structural(where, torch.chunk, (input, 2, dim), {})
    gate = elementwise.FUNCTIONS["sigmoid"]()
    return tracer.multiply(where, a, tracer.activation(b, gate, where))


_STRUCTURAL = frozenset(
    """view reshape flatten unflatten permute transpose movedim moveaxis swapaxes swapdims squeeze
    unsqueeze getitem select narrow index_select chunk split unbind flip roll expand repeat tile
    repeat_interleave stack cat concat concatenate hstack vstack""".split()
)

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "linear": _linear,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv),
    "embedding": _embedding,
    **{f"avg_pool{d}d": _pool(d) for d in (1, 2, 3)},
    **{f"adaptive_avg_pool{d}d": _adaptive_pool(d) for d in (1, 2, 3)},
    "interpolate": _interpolate,
    "mean": _reduce(True),
    "sum": _reduce(False),
    **dict.fromkeys(("matmul", "bmm", "mm"), _matmul),
    "size": _size,
    "getattr": _getattr,
    **dict.fromkeys(("contiguous", "clone", "detach", "to", "float", "double", "type_as"), _same),
    "layer_norm": _layer_norm(True),
    "rms_norm": _layer_norm(False),
    "dropout": _dropout_function(False),
    **dict.fromkeys(("dropout1d", "dropout2d", "dropout3d"), _dropout_function(True)),
    "scaled_dot_product_attention": attention.scaled_dot_product_attention,
    "softmax": attention.softmax,
    "masked_fill": attention.masked_fill,
    **dict.fromkeys(("add", "iadd", "__add__", "add_"), _add),
    **dict.fromkeys(("sub", "isub", "subtract", "sub_"), _sub),
    **dict.fromkeys(("mul", "imul", "multiply", "mul_"), _mul),
    **dict.fromkeys(("div", "truediv", "itruediv", "divide", "true_divide", "div_"), _div),
    **dict.fromkeys(("neg", "negative"), _neg),
    "pow": _pow,
    "square": _square,
    "glu": _glu,
}


def _flatten_layer(tracer: Tracer, layer: nn.Flatten, where: str, x: Value) -> Any:
    if x.finite and tracer.shape(x) == (None,):
        return x
    return tracer.structural(where, torch.flatten, (x, layer.start_dim, layer.end_dim), {})


def _identity_layer(tracer: Tracer, layer: Any, where: str, x: Value) -> Value:
    return x


def _unflatten_layer(tracer: Tracer, layer: Any, where: str, x: Value) -> Any:
    return tracer.structural(where, torch.unflatten, (x, layer.dim, layer.unflattened_size), {})


def _pool_layer(dims: int) -> Callable[..., Value]:
    def rule(tracer: Tracer, layer: Any, where: str, x: Value) -> Value:
        rest = (getattr(layer, "divisor_override", None),)
        return _pool(dims)(
            tracer,
            where,
            x,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.ceil_mode,
            layer.count_include_pad,
            *rest,
        )

    return rule


def _adaptive_pool_layer(dims: int) -> Callable[..., Value]:
    def rule(tracer: Tracer, layer: Any, where: str, x: Value) -> Value:
        return _adaptive_pool(dims)(tracer, where, x, layer.output_size)

    return rule


def _upsample_layer(tracer: Tracer, layer: Any, where: str, x: Value) -> Value:
    return _interpolate(
        tracer, where, x, layer.size, layer.scale_factor, layer.mode, layer.align_corners
    )


def _nonlinearity_layer(tracer: Tracer, layer: Nonlinearity, where: str, x: Value) -> Value:
    return tracer.activation(x, layer.function, where)


def _glu_layer(tracer: Tracer, layer: nn.GLU, where: str, x: Value) -> Value:
    return _glu(tracer, where, x, layer.dim)


_LAYERS: dict[type[nn.Module], Callable[..., Any]] = {
    nn.Linear: _linear_layer,  # nn.LazyLinear is one
    nn.modules.conv._ConvTransposeNd: lambda tracer, layer, where, *a: _refuse(layer, where),
    nn.modules.conv._ConvNd: _conv_layer,
    nn.Embedding: _embedding_layer,
    nn.Identity: _identity_layer,
    nn.Flatten: _flatten_layer,
    nn.Unflatten: _unflatten_layer,
    **{getattr(nn, f"AvgPool{d}d"): _pool_layer(d) for d in (1, 2, 3)},
    **{getattr(nn, f"AdaptiveAvgPool{d}d"): _adaptive_pool_layer(d) for d in (1, 2, 3)},
    nn.Upsample: _upsample_layer,
    nn.LayerNorm: _layer_norm_layer,
    nn.RMSNorm: _layer_norm_layer,
    nn.GroupNorm: _group_norm_layer,
    nn.modules.batchnorm._BatchNorm: _batch_norm_layer,
    nn.Dropout: _dropout_layer(False),
    **{getattr(nn, f"Dropout{d}d"): _dropout_layer(True) for d in (1, 2, 3)},
    nn.RNNCellBase: recurrent.cell,
    nn.RNNBase: recurrent.network,
    nn.MultiheadAttention: attention.multihead_attention,
    nn.TransformerEncoderLayer: attention.encoder_layer,
    nn.TransformerEncoder: attention.encoder,
    nn.GLU: _glu_layer,
    Nonlinearity: _nonlinearity_layer,
}


def _refuse(layer: nn.Module, where: str) -> Any:
    raise UnsupportedOperationError(
        f"layer {type(layer).__name__}", where, _REFUSED["ConvTranspose"]
    )
