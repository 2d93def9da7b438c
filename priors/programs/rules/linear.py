"""Matrix products, convolutions and embeddings: the layers with weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from priors.programs.learnt import repeated
from priors.programs.nodes import Array, Embedding, Function, Ref, Window
from priors.programs.registry import reason, register_function, register_layer, unsupported
from priors.programs.tracer import Tracer
from priors.programs.values import Value

unsupported(
    "ConvTranspose",
    why="overlapping windows give positions different fan-ins; resize with interpolate, then use "
    "a convolution",
)
unsupported("Bilinear", why="a weight tensor of three indices has another limit")


@register_layer(nn.Linear)  # nn.LazyLinear is one
def _linear_layer(tracer: Tracer, layer: nn.Linear, x: Value) -> Value:
    return tracer.dense(x, layer.weight, layer.bias, width=layer.out_features)


@register_function("linear")
def _linear(tracer: Tracer, input: Value, weight: Tensor, bias: Tensor | None = None) -> Value:
    return tracer.dense(input, weight, bias)


@register_layer(nn.modules.conv._ConvTransposeNd)
def _transposed(tracer: Tracer, layer: nn.Module, *values: Any) -> Value:
    raise tracer.unsupported(f"layer {type(layer).__name__}", reason("ConvTranspose"))


@register_layer(nn.modules.conv._ConvNd)
def _conv_layer(tracer: Tracer, layer: Any, x: Value) -> Value:
    if layer.padding_mode not in ("zeros", "circular"):
        raise tracer.unsupported(
            f"padding_mode {layer.padding_mode!r}", 'it must be "zeros" or "circular"'
        )
    return _conv(
        tracer,
        x,
        layer.weight,
        layer.bias,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        circular=layer.padding_mode == "circular",
    )


@register_function("conv1d", "conv2d", "conv3d")
def _conv(
    tracer: Tracer,
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
    if dims < 1 or len(tracer.shape(input)) != dims + 1:
        raise ValueError(
            f"The {dims}-d convolution at {tracer.where} expects inputs of {dims + 1} "
            f"dimensions without the batch but gets {tracer.shape(input)}; give input_shape."
        )
    channels = weight.shape[1] * groups
    if groups > 1 and input.finite:
        raise tracer.unsupported(
            "a grouped convolution of the raw input", "groups would see different channels"
        )
    if groups > 1 and weight.shape[1] == 1:
        raise tracer.unsupported(
            "a depthwise convolution",
            "each unit sums over one channel, so it is not Gaussian at any width; with several "
            "channels per group the limit is that of an ordinary convolution",
        )
    source = tracer.features(input, 0, channels)
    strides, dilations = each(stride, dims), each(dilation, dims)
    if isinstance(padding, str):
        total = [
            d * (k - 1) if padding == "same" else 0 for d, k in zip(dilations, size, strict=True)
        ]
        pads = tuple((t // 2, t - t // 2) for t in total)
    else:
        pads = tuple((p, p) for p in each(padding, dims))
    spatial = tracer.positions(source)
    out = tuple(
        (n + a + b - d * (k - 1) - 1) // s + 1
        for n, (a, b), d, k, s in zip(spatial, pads, dilations, size, strides, strict=True)
    )
    if min(out) < 1:
        raise ValueError(f"The window {size} at {tracer.where} is larger than its input {spatial}.")
    window = Window(size, strides, pads, dilations, circular)
    index = tracer.linear(source, weight, bias, width=weight.shape[0], window=window, positions=out)
    return Value(index, weight.shape[0], 0)


def each(value: Any, dims: int) -> tuple[int, ...]:
    return (int(value),) * dims if isinstance(value, int) else tuple(int(v) for v in value)


@register_layer(nn.Embedding)
def _embedding_layer(tracer: Tracer, layer: nn.Embedding, x: Value | Tensor) -> Value:
    if layer.max_norm is not None:
        raise tracer.unsupported("Embedding with max_norm")
    return _embedding(tracer, x, layer.weight, layer.padding_idx)


@register_function("embedding")
def _embedding(
    tracer: Tracer,
    input: Value | Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
) -> Value:
    if isinstance(input, Tensor):  # the same tokens for every data point, such as positions
        shape = tuple(input.shape)
        node = Function(repeated, (Ref(None), Array.of(input)), (), shape)
        input = Value(tracer.add(node))
    if not input.finite:
        raise tracer.unsupported("an embedding of hidden units")
    sizes = tracer.shape(input)
    positions = tuple(size for size in sizes if size is not None)
    if len(positions) < len(sizes):
        raise ValueError(f"The embedding at {tracer.where} needs input_shape, for example (10,).")
    layer = tracer.parameter(weight, tracer.weights, "weight")
    tracer.fan_in[layer] = 1
    made = Embedding(input.index, layer, layer, padding_idx, positions)
    return Value(tracer.add(made), weight.shape[1], len(positions), batch=input.batch)
