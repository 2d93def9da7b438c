"""Attention as a tensor program, in the limit of infinitely many heads.

Queries and keys enter by the product of two vectors of infinite width. Scaled by 1 / width it is
a number for each pair of positions, the moment of the two (Hron et al. 2020, 2006.10540, with tied
queries and keys); where they have neither a weight in common nor means, it vanishes and attention
averages uniformly. Scaled by 1 / sqrt(width), as torch does by default, it is Gaussian over the
heads; with a weight in common or means it would grow with the width. With a fixed number of heads
the limit is not Gaussian (2506.00846): here the number of heads goes to infinity.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from priors.programs.nodes import Array, Attention
from priors.programs.registry import register_function, register_layer, takes, unsupported
from priors.programs.relations import dependent, odd
from priors.programs.tracer import Tracer
from priors.programs.values import Pending, Scaled, Value, Width

__all__ = ["Logits", "Weights", "batch_back", "batch_to_front", "product"]


unsupported(
    "Softmax",
    why="over the width its denominator and units are coupled; for attention use "
    "scaled_dot_product_attention or softmax of a product of queries and keys",
)


@dataclass(frozen=True)
class Logits(Pending):
    """Products of queries and keys during tracing, times `scale`, plus `mask`.

    `exponent` is the power of the width in the scale, as far as it was made of sizes.
    """

    query: Value
    key: Value
    scale: float = 1.0
    mask: Tensor | None = None
    exponent: float = 0.0

    def refusal(self, name: str) -> tuple[str, str]:
        return (
            f"{name} of a product of hidden values",
            "as logits of attention it may be scaled, masked, normalised by softmax and multiplied "
            "with values",
        )

    def scaled(self, by: float, exponent: float = 0.0) -> Logits:
        """The logits times a number."""
        mask = None if self.mask is None else self.mask * float(by)
        scale = self.scale * float(by)
        return dataclasses.replace(self, scale=scale, mask=mask, exponent=self.exponent + exponent)

    def masked(self, tracer: Tracer, mask: Any, scale: float = 1.0) -> Logits:
        """The logits plus a constant mask."""
        if not isinstance(mask, Tensor) or isinstance(mask, nn.Parameter):
            raise tracer.unsupported("a mask that is not a constant tensor")
        mask = scale * mask
        return dataclasses.replace(self, mask=mask if self.mask is None else self.mask + mask)


@dataclass(frozen=True)
class Weights(Pending):
    """Attention weights during tracing: the softmax of logits, or the logits."""

    logits: Logits
    softmax: bool

    def refusal(self, name: str) -> tuple[str, str]:
        return f"{name} of attention weights", "they may only be multiplied with values"

    def apply(self, tracer: Tracer, value: Any) -> Value:
        """The weighted average of the values."""
        if not isinstance(value, Value) or value.finite:
            raise tracer.unsupported("attention over the raw input")
        return _attention(tracer, self, value)


def product(tracer: Tracer, a: Value | Scaled, b: Value | Scaled) -> Any:
    """`a @ b` of hidden values: queries times transposed keys."""
    scale, exponent = 1.0, 0.0
    for x in (a, b):
        if isinstance(x, Scaled):
            scale, exponent = scale * x.scale, exponent + x.exponent
    a, b = (x.value if isinstance(x, Scaled) else x for x in (a, b))
    rank = len(tracer.shape(a))
    of_heads = [x.width // x.num_heads for x in (a, b)] if not (a.finite or b.finite) else [0, 1]
    if a.axis != rank - 1 or b.axis != rank - 2 or of_heads[0] != of_heads[1]:
        raise tracer.unsupported(
            "a product of hidden values",
            "only queries [.., n, width] times keys [.., width, m] are supported",
        )
    return Logits(a, b, scale, exponent=exponent)


@register_function("softmax")
@takes(Logits)
def softmax(tracer: Tracer, input: Any, dim: int | None = None, **unused: Any) -> Any:
    """Softmax of attention logits over the keys."""
    if not isinstance(input, Logits):
        raise tracer.unsupported("softmax", "it is supported only for attention logits")
    if dim not in (-1, len(tracer.shape(input.query))):
        raise tracer.unsupported("softmax of logits", "it must be over the keys")
    return Weights(input, True)


@register_function("masked_fill")
@takes(Logits)
def masked_fill(tracer: Tracer, input: Any, mask: Any, value: float) -> Any:
    """Attention logits with constants at constant places; units that are filled."""
    if not isinstance(input, Logits):
        return tracer.call(torch.where, mask, value, input)
    if value > torch.finfo(torch.float32).min / 2 or not isinstance(mask, Tensor):
        raise tracer.unsupported(
            "masked_fill of attention logits", "the mask must be constant, and the value -inf"
        )
    filled = torch.zeros(mask.shape).masked_fill(mask, -math.inf)
    return input.masked(tracer, filled)


@register_function("scaled_dot_product_attention")
@takes(Scaled)
def scaled_dot_product_attention(
    tracer: Tracer,
    query: Value | Scaled,
    key: Value | Scaled,
    value: Value,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    """softmax(scale query key^T + mask) value."""
    if dropout_p:
        raise tracer.unsupported("dropout of attention weights", "call eval() first")
    if isinstance(value, Scaled):
        raise tracer.unsupported(*value.refusal("attention"))
    own = [x.value if isinstance(x, Scaled) else x for x in (query, key)]
    if any(v.finite for v in (*own, value)):
        raise tracer.unsupported("attention over the raw input")
    rank = len(tracer.shape(own[1])) + 1
    if enable_gqa:  # several heads of queries for each of the keys and values
        times = [own[0].num_heads // x.num_heads for x in (own[1], value)]
        repeat = torch.repeat_interleave
        key = key if times[0] == 1 else tracer.call(repeat, key, times[0], rank - 3)
        value = value if times[1] == 1 else tracer.call(repeat, value, times[1], rank - 3)
        own[1] = key.value if isinstance(key, Scaled) else key
    logits = product(tracer, query, tracer.call(torch.transpose, key, rank - 2, rank - 1))
    size = Width(own[0].width // own[0].num_heads)
    by = 1 / size**0.5 if scale is None else scale
    logits = logits.scaled(by, getattr(by, "exponent", 0.0))
    logits = dataclasses.replace(logits, mask=_mask(attn_mask, is_causal, tracer, *own))
    return Weights(logits, True).apply(tracer, value)


def _mask(
    mask: Tensor | None, is_causal: bool, tracer: Tracer, query: Value, key: Value
) -> Tensor | None:
    if is_causal:
        (rows,), (columns,) = tracer.positions(query), tracer.positions(key)
        mask = torch.ones(rows, columns).tril() > 0
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
    return mask


def _attention(tracer: Tracer, weights: Weights, value: Value) -> Value:
    logits = weights.logits
    query, key = logits.query, logits.key
    for x in (query, key, value):
        tracer.check_batch(x)
    lead = tracer.positions(query)[:-1]
    query, key, tokens = (_one_axis(tracer, v) for v in (query, key, value))
    shapes = [tracer.positions(v) for v in (query, key, tokens)]
    if shapes[1] != shapes[2]:
        raise tracer.unsupported(
            "attention whose keys and values have different positions", f"they are {shapes}"
        )
    if value.axis != len(tracer.shape(value)) - 1:
        raise tracer.unsupported("attention whose width is not the last dimension")
    scale, mean_field = _scale(tracer, logits)
    mask = logits.mask
    if mask is not None:
        mask = torch.broadcast_to(
            mask.reshape(mask.shape[-2:]).double(), (shapes[0][0], shapes[1][0])
        )
    tied = dependent(tracer, query.index, key.index)
    centred = odd(tracer, query.index) or odd(tracer, key.index)
    if mean_field and not tied and centred:
        warnings.warn(
            f"The attention at {tracer.where} scales by 1/width with untied queries and keys: in "
            "the limit all its logits are 0 and it averages uniformly. Tie the two matrices, or "
            "scale by 1/sqrt(width).",
            stacklevel=2,
        )
    if not mean_field and tied:
        raise tracer.unsupported(
            "attention with tied queries and keys scaled by 1/sqrt(width)",
            "its logits grow with the width; scale by 1/width",
        )
    if not mean_field and not centred:
        raise tracer.unsupported(
            "attention whose queries and keys both have a mean, scaled by 1/sqrt(width)",
            "its logits grow with the width; scale by 1/width",
        )
    node = Attention(
        tokens.index,
        query.index,
        key.index,
        scale,
        mean_field,
        weights.softmax,
        None if mask is None else Array.of(mask),
        shapes[0],
    )
    index = tracer.add(node)
    if lead:  # heads have an axis of their own
        picks = torch.arange(shapes[0][0]).expand(*lead, shapes[0][0])
        index = tracer.select(index, picks)
    # heads that share their values differ by their weights
    size = value.width // value.num_heads
    return Value(index, size * query.num_heads, value.axis, query.heads)


def _one_axis(tracer: Tracer, x: Value) -> Value:
    """A value without the axes of positions before the last, which heads share."""
    places = tracer.positions(x)
    if not places:
        raise tracer.unsupported("attention without an axis of positions")
    *lead, tokens = places
    rows = torch.arange(math.prod(places)).reshape(-1, tokens)
    found = {tracer.select(x.index, row) for row in rows}
    if len(found) > 1:
        raise tracer.unsupported(
            "attention over one of several axes of positions", f"the axes are {places}"
        )
    return dataclasses.replace(x, index=found.pop()) if lead else x


def _scale(tracer: Tracer, logits: Logits) -> tuple[float, bool]:
    """c of a scale c/width or c/sqrt(width), and whether it is the former."""
    size = logits.query.width // logits.query.num_heads
    inside = _coefficient(tracer, logits.query) * _coefficient(tracer, logits.key)
    powers = (-0.5, -1.0)
    if inside == 1.0 and logits.exponent in powers:  # the scale was written with sizes
        return logits.scale * size**-logits.exponent, logits.exponent == -1.0
    for total in (logits.scale * inside, logits.scale):
        for power in powers:
            if math.isclose(abs(total), size**power, rel_tol=1e-5):
                return logits.scale * size**-power, power == -1.0
    if logits.exponent in powers:
        return logits.scale * size**-logits.exponent, logits.exponent == -1.0
    raise tracer.unsupported(
        f"attention whose logits are scaled by {logits.scale:.4g} at width {size}",
        "how this depends on the width is not known; write c / k.size(-1) or "
        "c / math.sqrt(k.size(-1)) in the forward",
    )


def _coefficient(tracer: Tracer, value: Value) -> float:
    """The factor of a value that is a multiple of another."""
    terms = tracer.terms(value.index)
    return terms[0][0] if len(terms) == 1 and not tracer.offset(value.index) else 1.0


@register_layer(nn.MultiheadAttention)
def multihead_attention(
    tracer: Tracer,
    layer: nn.MultiheadAttention,
    query: Value,
    key: Value,
    value: Value,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Value, None]:
    """`nn.MultiheadAttention` with the batch first; its weights are not returned."""
    query, key, value = (batch_to_front(tracer, layer, x) for x in (query, key, value))
    if key_padding_mask is not None or layer.bias_k is not None or layer.add_zero_attn:
        raise tracer.unsupported("key_padding_mask, add_bias_kv or add_zero_attn")
    if layer.dropout and layer.training:
        raise tracer.unsupported("dropout of attention weights", "call eval() first")
    size = layer.embed_dim
    parts = []
    for part, x in enumerate((query, key, value)):
        rows = (part * size, (part + 1) * size)
        bias = layer.in_proj_bias
        if layer.in_proj_weight is not None:
            parts.append(tracer.dense(x, layer.in_proj_weight, bias, rows=rows))
        elif bias is None:
            weight = getattr(layer, f"{'qkv'[part]}_proj_weight")
            parts.append(tracer.dense(x, weight, None))
        else:
            raise tracer.unsupported("MultiheadAttention with kdim and bias")
    q, k, v = parts
    is_causal = is_causal and attn_mask is None
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = ~attn_mask  # here True means masked, in the function it means kept
    mask = _mask(attn_mask, is_causal, tracer, q, k)
    logits = Logits(q, k, 1 / math.sqrt(size), mask)
    mixed = _attention(tracer, Weights(logits, True), v)
    out = layer.out_proj
    return batch_back(tracer, layer, tracer.dense(mixed, out.weight, out.bias)), None


def batch_to_front(tracer: Tracer, layer: Any, x: Value) -> Value:
    """What a layer with `batch_first` False gets as `[time, batch, ..]`, with the batch first."""
    if layer.batch_first:
        return x
    if x.batch != 1:
        raise tracer.unsupported(
            f"{type(layer).__name__} with batch_first=False of a value whose batch comes first",
            "it would mix the points of the batch; set batch_first=True, or transpose before it "
            "and after it",
        )
    moved: Value = tracer.structural(torch.transpose, (x, 0, 1), {})
    return moved


def batch_back(tracer: Tracer, layer: Any, x: Value) -> Value:
    """The result of such a layer, as it gives it."""
    if layer.batch_first:
        return x
    moved: Value = tracer.structural(torch.transpose, (x, 0, 1), {})
    return moved


@register_layer(nn.TransformerEncoderLayer)
def encoder_layer(
    tracer: Tracer,
    layer: nn.TransformerEncoderLayer,
    src: Value,
    src_mask: Tensor | None = None,
    src_key_padding_mask: Any = None,
    is_causal: bool = False,
) -> Value:
    """`nn.TransformerEncoderLayer`, normalised before or after its two blocks."""

    def attend(x: Value) -> Value:
        out, _ = multihead_attention(
            tracer,
            layer.self_attn,
            x,
            x,
            x,
            src_key_padding_mask,
            attn_mask=src_mask,
            is_causal=is_causal,
        )
        return _layer(layer.dropout1, out)

    def transform(x: Value) -> Value:
        hidden = _layer(layer.linear1, x)
        hidden = tracer.call(layer.activation, hidden)
        return _layer(layer.dropout2, _layer(layer.linear2, _layer(layer.dropout, hidden)))

    def _layer(part: nn.Module, x: Value) -> Value:
        result = tracer.call(part, x)
        assert isinstance(result, Value)
        return result

    def plus(x: Value, y: Value) -> Value:
        return tracer.combine([(1.0, x), (1.0, y)])

    if layer.norm_first:
        x = plus(src, attend(_layer(layer.norm1, src)))
        return plus(x, transform(_layer(layer.norm2, x)))
    x = _layer(layer.norm1, plus(src, attend(src)))
    return _layer(layer.norm2, plus(x, transform(x)))


@register_layer(nn.TransformerEncoder)
def encoder(
    tracer: Tracer,
    layer: nn.TransformerEncoder,
    src: Value,
    mask: Tensor | None = None,
    src_key_padding_mask: Any = None,
    is_causal: bool | None = None,
) -> Value:
    """`nn.TransformerEncoder`: its layers one after the other."""
    x = src
    for part in layer.layers:
        x = encoder_layer(tracer, part, x, mask, src_key_padding_mask, bool(is_causal))
    if layer.norm is not None:
        x = tracer.call(layer.norm, x)
    return x


@register_layer(nn.TransformerDecoderLayer)
def decoder_layer(
    tracer: Tracer,
    layer: nn.TransformerDecoderLayer,
    tgt: Value,
    memory: Value,
    tgt_mask: Tensor | None = None,
    memory_mask: Tensor | None = None,
    tgt_key_padding_mask: Any = None,
    memory_key_padding_mask: Any = None,
    tgt_is_causal: bool = False,
    memory_is_causal: bool = False,
) -> Value:
    """`nn.TransformerDecoderLayer`: attention to itself, to the memory, and two layers."""

    def among(x: Value) -> Value:
        options: dict[str, Any] = {"attn_mask": tgt_mask, "is_causal": tgt_is_causal}
        padding = tgt_key_padding_mask
        out, _ = multihead_attention(tracer, layer.self_attn, x, x, x, padding, **options)
        return _called(tracer, layer.dropout1, out)

    def to_memory(x: Value) -> Value:
        options: dict[str, Any] = {"attn_mask": memory_mask, "is_causal": memory_is_causal}
        padding = memory_key_padding_mask
        attend = layer.multihead_attn
        out, _ = multihead_attention(tracer, attend, x, memory, memory, padding, **options)
        return _called(tracer, layer.dropout2, out)

    def transform(x: Value) -> Value:
        hidden = tracer.call(layer.activation, _called(tracer, layer.linear1, x))
        hidden = _called(tracer, layer.linear2, _called(tracer, layer.dropout, hidden))
        return _called(tracer, layer.dropout3, hidden)

    x = tgt
    blocks = ((among, layer.norm1), (to_memory, layer.norm2), (transform, layer.norm3))
    for block, norm in blocks:
        if layer.norm_first:
            x = tracer.combine([(1.0, x), (1.0, block(_called(tracer, norm, x)))])
        else:
            x = _called(tracer, norm, tracer.combine([(1.0, x), (1.0, block(x))]))
    return x


def _called(tracer: Tracer, part: nn.Module, x: Value) -> Value:
    result = tracer.call(part, x)
    assert isinstance(result, Value)
    return result


@register_layer(nn.TransformerDecoder)
def decoder(
    tracer: Tracer,
    layer: nn.TransformerDecoder,
    tgt: Value,
    memory: Value,
    tgt_mask: Tensor | None = None,
    memory_mask: Tensor | None = None,
    tgt_key_padding_mask: Any = None,
    memory_key_padding_mask: Any = None,
    tgt_is_causal: bool | None = None,
    memory_is_causal: bool = False,
) -> Value:
    """`nn.TransformerDecoder`: its layers one after the other."""
    x = tgt
    for part in layer.layers:
        x = decoder_layer(
            tracer,
            part,
            x,
            memory,
            tgt_mask,
            memory_mask,
            tgt_key_padding_mask,
            memory_key_padding_mask,
            bool(tgt_is_causal),
            memory_is_causal,
        )
    return x if layer.norm is None else _called(tracer, layer.norm, x)
