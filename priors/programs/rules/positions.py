"""Operations on positions: reshaping and slicing, pooling, resizing, graph aggregation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from priors.programs.learnt import Learnt
from priors.programs.nodes import Array, Join, Mix, Ref, Zero
from priors.programs.registry import register_function, register_layer, takes, unsupported
from priors.programs.rules.attention import Logits, Weights, product
from priors.programs.rules.linear import each
from priors.programs.tracer import Tracer
from priors.programs.values import Pending, Scaled, Value, Width

LEARNT_MAP = (
    "the number of positions stays finite, so that the result of a random map of them does not "
    "average out, as that of units does; pool, attend, or convolve along them"
)
unsupported(
    "MaxPool",
    why="the maximum of correlated Gaussians has no closed form here; use average pooling",
)


@register_function(
    *"""view reshape flatten unflatten permute transpose t adjoint movedim moveaxis swapaxes
    swapdims squeeze unsqueeze getitem select narrow index_select chunk split unbind flip roll
    expand repeat tile repeat_interleave stack cat concat concatenate hstack vstack""".split()
)
@takes(Scaled)
def _structural(tracer: Tracer, *args: Any, **kwargs: Any) -> Any:
    return tracer.structural(tracer.function, args, kwargs)


@register_layer(nn.Flatten)
@takes(Scaled)
def _flatten_layer(tracer: Tracer, layer: nn.Flatten, x: Value) -> Any:
    if isinstance(x, Value) and x.finite and tracer.shape(x) == (None,):
        return x
    return tracer.structural(torch.flatten, (x, layer.start_dim, layer.end_dim), {})


@register_layer(nn.Unflatten)
@takes(Scaled)
def _unflatten_layer(tracer: Tracer, layer: Any, x: Value) -> Any:
    return tracer.structural(torch.unflatten, (x, layer.dim, layer.unflattened_size), {})


@register_function("pad")
def _pad(
    tracer: Tracer,
    input: Value,
    pad: Sequence[int],
    mode: str = "constant",
    value: float | None = None,
) -> Value:
    """Padding of positions: with zero vectors, or with positions that are there."""
    if not isinstance(input, Value) or input.finite:
        return tracer.without_rule(F.pad, (input, list(pad), mode, value), {})
    if value:
        raise tracer.unsupported("padding with a constant", "0 is supported")
    rank = len(tracer.shape(input))
    widths = {d % (rank + 1) for d, _ in input.heads} | {input.axis}
    padded = {rank - 1 - k // 2 for k, size in enumerate(pad) if size}
    if padded & widths or min(padded, default=0) < 0 or input.batch:
        raise tracer.unsupported("padding of the width or of the batch", "positions may be padded")
    if mode != "constant":
        return tracer.structural(_padded_by_copies, (input, tuple(pad), mode), {})
    # zero vectors stand before the positions, and are picked where torch would put a 0
    units = Value(tracer.add(Zero((1,))), input.width, 1)
    places = tracer.positions(input)
    lengths = [size for k in range(rank) if k not in widths for size in [k]]
    amounts = [(0, 0)] * len(places)
    for k in range(len(pad) // 2):
        dim = rank - 1 - k
        if dim in lengths:
            amounts[lengths.index(dim)] = pad[2 * k], pad[2 * k + 1]
    flat = [size for pair in reversed(amounts) for size in pair]
    numbers = torch.arange(1, math.prod(places) + 1).reshape(places)
    picks = F.pad(numbers, flat, value=0)
    index = tracer.add(Join((units.index, input.index), (1 + math.prod(places),)))
    return tracer.like(input, tracer.select(index, picks))


def _padded_by_copies(x: Tensor, pad: tuple[int, ...], mode: str) -> Tensor:
    """Padding by positions that are there, of numbers of entries."""
    return F.pad(x.double(), pad, mode=mode).long()


def _pad_layer(mode: str) -> Callable[..., Value]:
    def rule(tracer: Tracer, layer: Any, x: Value) -> Value:
        return _pad(tracer, x, layer.padding, mode, getattr(layer, "value", None))

    return rule


def _pool_layer(dims: int) -> Callable[..., Value]:
    def rule(tracer: Tracer, layer: Any, x: Value) -> Value:
        rest = (getattr(layer, "divisor_override", None),)
        return _pool(dims)(
            tracer,
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
    def rule(tracer: Tracer, layer: Any, x: Value) -> Value:
        return _adaptive_pool(dims)(tracer, x, layer.output_size)

    return rule


@register_layer(nn.Upsample)
def _upsample_layer(tracer: Tracer, layer: Any, x: Value) -> Value:
    return _interpolate(tracer, x, layer.size, layer.scale_factor, layer.mode, layer.align_corners)


def _pool(dims: int) -> Callable[..., Value]:
    def rule(
        tracer: Tracer,
        input: Value,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Value:
        if input.finite:
            options: list[Any] = [padding, ceil_mode, count_include_pad]
            options += [] if dims == 1 else [divisor_override]
            return tracer.finite_call(
                getattr(F, f"avg_pool{dims}d"), input, kernel_size, stride, *options
            )
        size = each(kernel_size, dims)
        strides = size if stride is None or stride == () else each(stride, dims)
        pads = each(padding, dims)
        if ceil_mode:
            raise tracer.unsupported("ceil_mode")

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
        return _spatial(tracer, input, dims, matrix, scale)

    return rule


def _adaptive_pool(dims: int) -> Callable[..., Value]:
    def rule(tracer: Tracer, input: Value, output_size: Any) -> Value:
        if input.finite:
            return tracer.finite_call(getattr(F, f"adaptive_avg_pool{dims}d"), input, output_size)
        sizes = (output_size,) * dims if not isinstance(output_size, tuple | list) else output_size

        def matrix(axis: int, n: int) -> Tensor:
            target = n if sizes[axis] is None else int(sizes[axis])
            return F.adaptive_avg_pool1d(torch.eye(n, dtype=torch.float64)[:, None], target)[:, 0].T

        return _spatial(tracer, input, dims, matrix)

    return rule


@register_function("interpolate")
def _interpolate(
    tracer: Tracer,
    input: Value,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
) -> Value:
    if input.finite:
        options = {"mode": mode, "align_corners": align_corners}
        return tracer.finite_call(F.interpolate, input, size, scale_factor, **options)
    dims = len(tracer.shape(input)) - 1
    line = {"bilinear": "linear", "trilinear": "linear"}.get(mode, mode)
    if line not in ("nearest", "nearest-exact", "linear", "area"):
        raise tracer.unsupported(f"interpolation mode {mode!r}")

    def matrix(axis: int, n: int) -> Tensor:
        def pick(v: Any) -> Any:
            return v if v is None or not isinstance(v, tuple | list) else v[axis]

        eye = torch.eye(n, dtype=torch.float64)[:, None]
        return F.interpolate(
            eye, pick(size), pick(scale_factor), mode=line, align_corners=align_corners
        )[:, 0].T

    return _spatial(tracer, input, dims, matrix)


def _spatial(
    tracer: Tracer,
    x: Value,
    dims: int,
    matrix: Callable[[int, int], Tensor],
    scale: float = 1.0,
) -> Value:
    """A linear map along each of the last `dims` dimensions, as images have them."""
    tracer.check_batch(x)
    if x.axis != 0 or x.heads or len(tracer.positions(x)) != dims:
        raise tracer.unsupported(f"a {dims}-d pooling of a value of shape {tracer.shape(x)}")
    matrices = [matrix(axis, n) for axis, n in enumerate(tracer.positions(x))]
    return _mixed(tracer, x, [matrices[0] * scale, *matrices[1:]])


def _mixed(tracer: Tracer, x: Value, matrices: list[Tensor | None]) -> Value:
    positions = tuple(
        n if m is None else m.shape[0] for m, n in zip(matrices, tracer.positions(x), strict=True)
    )
    arrays = tuple(None if m is None else Array.of(m) for m in matrices)
    return tracer.like(x, tracer.add(Mix(x.index, arrays, None, positions)))


def _reduce(mean: bool) -> Callable[..., Value]:
    def rule(tracer: Tracer, input: Value, dim: Any = None, keepdim: bool = False) -> Value:
        function = torch.mean if mean else torch.sum
        if not isinstance(input, Value):
            return tracer.without_rule(function, (input, dim, keepdim), {})
        if input.finite:
            return tracer.finite_call(function, input, dim, keepdim)
        rank, batch = len(tracer.shape(input)) + 1, input.batch
        whole = {d % rank for d in ((dim,) if isinstance(dim, int) else dim or range(rank))}
        dims = {d - (d > batch) for d in whole if d != batch}
        if batch in whole or input.axis in dims or input.heads:
            raise tracer.unsupported(
                "a mean or sum over the batch or the width",
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
        batch -= sum(d < batch for d in whole)
        picked = tracer.positions(pooled)
        kept = [s for axis, s in enumerate(picked) if axis not in axes]
        index = tracer.select(pooled.index, torch.arange(math.prod(picked)).reshape(kept))
        axis_left = None
        if input.axis is not None:
            axis_left = input.axis - sum(d < input.axis for d in dims)
        return Value(index, input.width, axis_left, batch=batch)

    return rule


@register_function("matmul", "bmm", "mm")
@takes(Scaled, Logits, Weights)
def _matmul(tracer: Tracer, a: Any, b: Any) -> Any:
    if isinstance(a, Logits):  # attention without softmax
        a = Weights(a, softmax=False)
    if isinstance(a, Weights):
        return a.apply(tracer, b)
    if isinstance(a, Value) and isinstance(b, Value) and a.finite and b.finite:
        return tracer.finite_call(torch.matmul, a, b)
    if isinstance(a, Value | Scaled) and isinstance(b, Value | Scaled):
        return product(tracer, a, b)
    for x in (a, b):
        if isinstance(x, Pending):
            raise tracer.unsupported(*x.refusal("matmul"))
    left = isinstance(b, Value)
    value, constant = (b, a) if left else (a, b)
    if isinstance(constant, nn.Parameter | Learnt):
        if not left and len(constant.shape) == 2:
            return tracer.dense(value, constant, None, transposed=True)
        raise tracer.unsupported("a learnt map of positions", LEARNT_MAP)
    if not isinstance(constant, Tensor) or constant.dim() != 2:
        raise tracer.unsupported("matmul", "one side must be a constant matrix")
    if value.finite:
        args = (constant, value) if left else (value, constant)
        return tracer.finite_call(torch.matmul, *args)
    tracer.check_batch(value)
    rank = len(tracer.shape(value))
    dim = rank - 2 if left else rank - 1
    if dim < 0 or dim == value.axis or value.heads:
        raise tracer.unsupported("a constant matrix applied to the width", "it acts on positions")
    matrices: list[Tensor | None] = [None] * len(tracer.positions(value))
    axis = dim - (value.axis is not None and dim > value.axis)
    matrices[axis] = constant if left else constant.T
    return _mixed(tracer, value, matrices)


@register_function("einsum")
@takes(Scaled, Logits, Weights)
def _einsum(tracer: Tracer, equation: str, *operands: Any) -> Any:
    """Sums of products of two operands over one index, as the matrix products that they are."""
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = tuple(operands[0])
    if not any(isinstance(x, Value | Pending) for x in operands) or all(
        isinstance(x, Value) and x.finite for x in operands
    ):
        return tracer.without_rule(torch.einsum, (equation, *operands), {})
    left, _, out = equation.replace(" ", "").partition("->")
    letters = left.split(",")
    if len(letters) != 2 or len(operands) != 2 or "." in equation or not out:
        raise tracer.unsupported(
            f"einsum {equation!r}", "only two operands with explicit indices are supported"
        )
    summed = [c for c in letters[0] if c in letters[1] and c not in out]
    kept = [[c for c in own if c not in summed] for own in letters]
    if len(summed) != 1 or any(len(set(own)) < len(own) for own in letters):
        raise tracer.unsupported(f"einsum {equation!r}", "it must sum over one index")
    # [.., rows, summed] @ [.., summed, columns], or a matrix on the right
    lead = [c for c in kept[0] if c in kept[1]]
    rows = [c for c in kept[0] if c not in lead]
    columns = [c for c in kept[1] if c not in lead]
    matrix = isinstance(operands[1], nn.Parameter | Learnt) and not lead
    if len(columns) != 1 or (len(rows) != 1 and not matrix):
        raise tracer.unsupported(f"einsum {equation!r}", "write it as matrix products")
    one = _permuted(tracer, operands[0], letters[0], [*lead, *rows, *summed])
    two = _permuted(tracer, operands[1], letters[1], [*lead, *summed, *columns])
    result = _matmul(tracer, one, two)
    return _permuted(tracer, result, [*lead, *rows, *columns], list(out))


def _permuted(tracer: Tracer, x: Any, now: Sequence[str], wanted: list[str]) -> Any:
    """An operand with its indices in another order."""
    order = [list(now).index(c) for c in wanted]
    if order == list(range(len(order))):
        return x
    if isinstance(x, Logits | Weights):
        raise tracer.unsupported("einsum", "queries must come before keys, and heads before both")
    if isinstance(x, Tensor) and not isinstance(x, nn.Parameter):
        return x.permute(order)
    return tracer.structural(torch.permute, (x, order), {})


@register_function("numel", "nelement")
def _numel(tracer: Tracer, input: Value) -> Any:
    raise tracer.unsupported("numel", "it counts the batch; multiply the other sizes")


@register_function("size")
@takes(Scaled)
def _size(tracer: Tracer, input: Value | Scaled | Tensor, dim: int | None = None) -> Any:
    if isinstance(input, Scaled):
        input = input.value
    if not isinstance(input, Value):
        return input.shape if dim is None else input.shape[dim]
    sizes: tuple[Any, ...] = tracer.shape(input)
    sizes = (*sizes[: input.batch], Ref(None), *sizes[input.batch :])
    if None in sizes:
        raise ValueError(
            f"The shape of the input is not known at {tracer.where}; give input_shape."
        )
    if not input.finite and input.axis is not None:
        place = input.axis + (input.axis >= input.batch)
        size = sizes[place]
        assert isinstance(size, int)
        sizes = (*sizes[:place], Width(size), *sizes[place + 1 :])
    return sizes if dim is None else sizes[dim]


@register_function("dim", "ndimension")
@takes(Scaled)
def _dim(tracer: Tracer, input: Value | Scaled | Tensor) -> int:
    if isinstance(input, Scaled):
        input = input.value
    if not isinstance(input, Value):
        return input.dim()
    return len(tracer.shape(input)) + 1


@register_function("getattr")
@takes(Scaled)
def _getattr(tracer: Tracer, value: Value, name: str) -> Any:
    match name:
        case "shape":
            return _size(tracer, value)
        case "ndim":
            return _dim(tracer, value)
        case "mT" | "T":
            return tracer.structural(torch.transpose, (value, -2, -1), {})
        case "device" | "dtype":
            return None
    raise tracer.unsupported(f"attribute {name}")


for _d in (1, 2, 3):
    register_layer(getattr(nn, f"AvgPool{_d}d"))(_pool_layer(_d))
    register_layer(getattr(nn, f"AdaptiveAvgPool{_d}d"))(_adaptive_pool_layer(_d))
    for _kind, _mode in (
        ("Zero", "constant"),
        ("Constant", "constant"),
        ("Reflection", "reflect"),
        ("Replication", "replicate"),
        ("Circular", "circular"),
    ):
        register_layer(getattr(nn, f"{_kind}Pad{_d}d"))(_pad_layer(_mode))
    register_function(f"avg_pool{_d}d")(_pool(_d))
    register_function(f"adaptive_avg_pool{_d}d")(_adaptive_pool(_d))
register_function("mean")(_reduce(True))
register_function("sum")(_reduce(False))
