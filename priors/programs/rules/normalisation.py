"""Normalisations and dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from priors.programs.nodes import BatchNormalise, Dropout, Normalise
from priors.programs.registry import reason, register_function, register_layer, takes, unsupported
from priors.programs.tracer import Tracer
from priors.programs.values import Pending, Scaled, Value, Width

unsupported(
    "BatchNorm",
    why="it depends on the whole batch, so there is no kernel of single inputs; "
    "priors.batch_kernel gives the kernel within one batch",
)
unsupported("SyncBatchNorm", why="it depends on the whole batch")
unsupported(
    "InstanceNorm", why="its statistics are over positions alone, which stay finite and random"
)


@register_layer(nn.LayerNorm, nn.RMSNorm)
def _layer_norm_layer(tracer: Tracer, layer: Any, x: Value) -> Value:
    tracer.constant(layer.weight, 1.0)
    tracer.constant(getattr(layer, "bias", None), 0.0)
    centred = isinstance(layer, nn.LayerNorm)
    return _normalise(tracer, x, layer.normalized_shape, layer.eps, centred)


def _layer_norm(centred: bool) -> Callable[..., Value]:
    def rule(
        tracer: Tracer,
        input: Value,
        normalized_shape: Any,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float | None = 1e-5 if centred else None,
    ) -> Value:
        tracer.constant(weight, 1.0)
        tracer.constant(bias, 0.0)
        return _normalise(tracer, input, normalized_shape, eps, centred)

    return rule


def _normalise(tracer: Tracer, x: Value, shape: Any, eps: float | None, centred: bool) -> Value:
    # torch's RMSNorm without eps uses that of the dtype; single precision's is taken here
    eps = torch.finfo(torch.float32).eps if eps is None else float(eps)
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if x.finite:
        function = F.layer_norm if centred else F.rms_norm
        return tracer.finite_call(function, x, shape, eps=eps)
    whole = tracer.shape(x)
    if whole[len(whole) - len(shape) :] != shape:
        raise ValueError(
            f"normalized_shape {shape} at {tracer.where} does not fit the value {whole}."
        )
    first = len(whole) - len(shape)
    if x.batch > first:
        tracer.check_batch(x)
    # over the units of a head the statistics are those over all units
    of_heads = bool(x.heads) and shape != whole[-1:]
    if x.axis is None or x.axis < first or of_heads:
        raise tracer.unsupported(
            "a normalisation that is not over the width", f"the value is {whole}"
        )
    pooled = len(shape) - 1
    return _normalised(tracer, x, pooled, eps, centred)


@register_layer(nn.GroupNorm)
def _group_norm_layer(tracer: Tracer, layer: nn.GroupNorm, x: Value) -> Value:
    tracer.constant(layer.weight, 1.0)
    tracer.constant(layer.bias, 0.0)
    if x.finite or x.axis != 0 or x.batch:
        raise tracer.unsupported("GroupNorm", "channels must come first")
    if layer.num_groups == layer.num_channels:
        raise tracer.unsupported("GroupNorm", reason("InstanceNorm"))
    return _normalised(tracer, x, len(tracer.positions(x)), layer.eps, True)


@register_function("normalize")
def _unit_norm(
    tracer: Tracer, input: Value, p: float = 2.0, dim: int = 1, eps: float = 1e-12
) -> Any:
    """h / |h|: the size of h is sqrt(width) times its root mean square."""
    if input.finite:
        return tracer.finite_call(F.normalize, input, p, dim, eps)
    place = None if input.axis is None else input.axis + (input.axis >= input.batch)
    if p != 2 or dim % (len(tracer.shape(input)) + 1) != place:
        raise tracer.unsupported("normalize", "the 2-norm over the width is supported")
    size = Width(input.width // input.num_heads)
    by = 1 / size**0.5
    return Scaled(_normalised(tracer, input, 0, _TINY, False), float(by), by.exponent)


# Added to the mean square, so that 0 stays 0.
_TINY = 1e-30


def _normalised(tracer: Tracer, x: Value, pooled: int, eps: float, centred: bool) -> Value:
    positions = tracer.positions(x)
    return tracer.like(x, tracer.add(Normalise(x.index, centred, eps, pooled, positions)))


@register_layer(nn.modules.batchnorm._BatchNorm)
def _batch_norm_layer(tracer: Tracer, layer: Any, x: Value) -> Value:
    if not tracer.whole_batch:
        raise tracer.unsupported(f"layer {type(layer).__name__}", reason("BatchNorm"))
    if not layer.training or x.finite or x.heads:
        raise tracer.unsupported(
            f"layer {type(layer).__name__}",
            "in training mode and of hidden units it has a limit; call train()",
        )
    tracer.check_batch(x)
    tracer.constant(layer.weight, 1.0)
    tracer.constant(layer.bias, 0.0)
    if not tracer.gaussian(x.index):
        raise tracer.unsupported(
            f"layer {type(layer).__name__}", "its input must be that of a linear layer"
        )
    return tracer.like(x, tracer.add(BatchNormalise(x.index, layer.eps, tracer.positions(x))))


def _dropout_layer(whole: bool) -> Callable[..., Value]:
    @takes(Pending)
    def rule(tracer: Tracer, layer: Any, x: Value) -> Value:
        return _dropout(tracer, x, layer.p, layer.training, whole)

    return rule


def _dropout_function(whole: bool) -> Callable[..., Value]:
    @takes(Pending)
    def rule(
        tracer: Tracer,
        input: Value,
        p: float = 0.5,
        training: bool = True,
    ) -> Value:
        return _dropout(tracer, input, p, training, whole)

    return rule


def _dropout(tracer: Tracer, x: Any, p: float, training: bool, whole: bool) -> Value:
    if not training or p == 0:
        return x
    if isinstance(x, Pending):
        what, why = x.refusal("dropout in training mode")
        raise tracer.unsupported(what, f"{why}; call eval()")
    if x.finite:
        raise tracer.unsupported("Dropout of the raw input in training mode", "its width is finite")
    if p >= 1:
        raise ValueError(f"Dropout at {tracer.where} drops everything: p = {p}.")
    node = Dropout(x.index, 1 - p, whole, tracer.next_call(), tracer.positions(x))
    return tracer.like(x, tracer.add(node))


register_function("layer_norm")(_layer_norm(True))
register_function("rms_norm")(_layer_norm(False))
register_layer(nn.Dropout)(_dropout_layer(False))
register_layer(nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)(_dropout_layer(True))
register_function("dropout")(_dropout_function(False))
register_function("dropout1d", "dropout2d", "dropout3d")(_dropout_function(True))
