"""Parameters of the module as operands: class tokens, positions, gains.

A parameter that is added or joined to activations has no unit axis of its own: which of its
dimensions is the width shows when it meets a hidden value. Until then its reshaping and slicing is
carried out on the numbers of its entries. There it becomes an embedding whose tokens are the
positions. Entries are independent, so a vector of entries must serve as the units of one position,
in one order, wherever it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from priors.programs.nodes import Array, Combination, Concatenate, Embedding, Function, Join, Ref
from priors.programs.values import BATCH, Value, name_of, parts_of, replaced

if TYPE_CHECKING:
    from priors.programs.builder import Builder

__all__ = [
    "Entries",
    "Learnt",
    "as_matrix",
    "as_units",
    "gain",
    "held",
    "learnt",
    "operands",
    "rearranged",
    "repeated",
]


@dataclass(frozen=True, eq=False)
class Learnt:
    """Scaled entries of parameters: sum_k scale_k entries_k, broadcast to one shape.

    Attributes:
        terms: Scale and numbers of the entries (see `Entries`), each of the tensor's shape. A
            dimension that was expanded to the batch has `BATCH` equal rows.
    """

    terms: tuple[tuple[float, Tensor], ...]

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensor."""
        return self.terms[0][1].shape

    def scaled(self, by: float) -> Learnt:
        """Times a number."""
        return Learnt(tuple((by * scale, entries) for scale, entries in self.terms))

    def plus(self, other: Learnt) -> Learnt:
        """The sum of two."""
        shape = torch.broadcast_shapes(self.shape, other.shape)
        return Learnt(tuple((c, e.expand(shape)) for c, e in (*self.terms, *other.terms)))


class Entries:
    """Numbers of all entries of the parameters that serve as operands, and the unit of each."""

    def __init__(self) -> None:
        self.parameters: list[nn.Parameter] = []
        self._starts = torch.zeros(1, dtype=torch.long, device="cpu")
        self._token = self._unit = torch.zeros(0, dtype=torch.long, device="cpu")

    def numbers(self, parameter: nn.Parameter) -> Tensor:
        """The number of each of its entries, in its shape."""
        found = [k for k, known in enumerate(self.parameters) if known is parameter]
        if not found:
            found = [len(self.parameters)]
            self.parameters.append(parameter)
            end = self._starts[-1:] + parameter.numel()
            self._starts = torch.cat([self._starts, end])
            unset = torch.full((parameter.numel(),), -1, device="cpu")
            self._token, self._unit = (torch.cat([t, unset]) for t in (self._token, self._unit))
        first = int(self._starts[found[0]])
        return torch.arange(first, first + parameter.numel()).reshape(parameter.shape)

    def owners(self, entries: Tensor) -> Tensor:
        """Which parameter each entry belongs to."""
        return torch.searchsorted(self._starts, entries.contiguous(), right=True) - 1

    def placed(self, vectors: Tensor) -> bool:
        """Note that rows `[k, width]` are units 0, 1, .. of a vector; False if that conflicts."""
        tokens = vectors[:, :1].expand_as(vectors)
        units = torch.arange(vectors.shape[1]).expand_as(vectors)
        for known, new in ((self._token, tokens), (self._unit, units)):
            before = known[vectors]
            if bool(((before >= 0) & (before != new)).any()):
                return False
            known[vectors.flatten()] = new.flatten()
            if bool((known[vectors] != new).any()):
                return False
        return True


def learnt(builder: Builder, parameter: nn.Parameter | Learnt) -> Learnt:
    """A parameter as an operand."""
    if isinstance(parameter, Learnt):
        return parameter
    if nn.parameter.is_lazy(parameter):
        raise builder.unsupported("a lazy parameter as an operand", "give it a shape")
    return Learnt(((1.0, builder.entries.numbers(parameter)),))


def rearranged(
    builder: Builder, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
) -> Any:
    """Reshaping, slicing and joining of parameters alone."""

    def call(pick: Callable[[Learnt], Tensor]) -> Any:
        given = _mapped((args, kwargs), lambda p: pick(learnt(builder, p)))
        arguments, keywords = replaced(given, lambda v: v, lambda: BATCH)
        try:
            return function(*arguments, **keywords)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"{name_of(function)} at {builder.where} failed: {error}") from error

    parts = [learnt(builder, p) for p in parts_of((args, kwargs), (nn.Parameter, Learnt))]
    if len(parts) == 1:
        results = [call(_term(k)) for k in range(len(parts[0].terms))]
        scales = [scale for scale, _ in parts[0].terms]
    elif all(len(p.terms) == 1 and p.terms[0][0] == 1.0 for p in parts):
        results, scales = [call(_term(0))], [1.0]
    else:
        raise builder.unsupported(
            f"{name_of(function)} of sums or multiples of parameters",
            "join the parameters themselves",
        )
    if isinstance(results[0], tuple | list):
        return tuple(
            Learnt(tuple(zip(scales, parts, strict=True))) for parts in zip(*results, strict=True)
        )
    return Learnt(tuple(zip(scales, results, strict=True)))


def _term(k: int) -> Callable[[Learnt], Tensor]:
    return lambda parameter: parameter.terms[k][1]


def held(builder: Builder, parameter: nn.Parameter | Learnt, what: str) -> Tensor:
    """A gain at the value that it is held at, a constant: neither random nor trained.

    Raises:
        UnsupportedOperationError: its entries differ.
    """
    whole = learnt(builder, parameter)
    total = torch.zeros(whole.shape, dtype=torch.float64, device="cpu")
    for scale, entries in whole.terms:
        owners = builder.entries.owners(entries).unique().tolist()
        values = {float(v) for k in owners for v in builder.entries.parameters[k].detach().unique()}
        if len(owners) != 1 or len(values) != 1:
            raise builder.unsupported(
                f"{what} of a parameter with unequal entries",
                "a gain is held at its value, which must be the same for all units",
            )
        (value,) = values
        builder.constant(builder.entries.parameters[owners[0]], value)
        total = total + scale * value
    return total


def gain(builder: Builder, value: Tensor, what: str) -> Tensor:
    """What was made of a parameter held at its value, as a factor of units.

    Raises:
        UnsupportedOperationError: it is 0, as some gains are before training.
    """
    if not bool(((value != 0) & value.isfinite()).all()):
        raise builder.unsupported(
            f"{what} of a parameter whose value makes it {float(value.flatten()[0]):g}",
            "a gain is held at its value, so its branch would vanish; set it to the intended "
            "value, for example with nn.init.ones_",
        )
    return value


def as_matrix(builder: Builder, weight: Tensor | Learnt) -> tuple[Tensor, bool]:
    """The parameter that a matrix is, and whether it is transposed.

    Raises:
        UnsupportedOperationError: it was scaled or sliced.
    """
    if not isinstance(weight, Learnt):
        return weight, False
    (scale, entries), *others = weight.terms
    owner = builder.entries.parameters[int(builder.entries.owners(entries).flatten()[0])]
    whole = builder.entries.numbers(owner)
    if scale == 1.0 and not others and whole.dim() == 2:
        for transposed, numbers in ((False, whole), (True, whole.T)):
            if torch.equal(numbers, entries):
                return owner, transposed
    raise builder.unsupported(
        "a weight that was modified",
        "its scale is set by weight_var or bias_var; use the parameter unmodified",
    )


def operands(
    builder: Builder, like: Value, values: Sequence[Any], joined: int | None = None
) -> list[Value]:
    """Operands as hidden values with the layout of `like`.

    Parameters become learnt vectors; the raw input and constants become vectors that are the same
    in every network.

    Args:
        builder: The program.
        like: A hidden value.
        values: Hidden and finite values, parameters and constant tensors.
        joined: Dimension (counted with the batch) along which they are joined; None if they
            broadcast.
    """
    return [_as_hidden(builder, like, value, joined) for value in values]


def _as_hidden(builder: Builder, like: Value, value: Any, joined: int | None) -> Value:
    if isinstance(value, Value) and not value.finite:
        return value
    if like.axis is None or like.heads or like.batch or like.copies > 1:
        raise builder.unsupported(
            "hidden units together with a parameter, a constant or the raw input",
            "the units must be in one dimension, and the batch first",
        )
    if isinstance(value, nn.Parameter | Learnt):
        whole = learnt(builder, value)
        parts = [(c, as_units(builder, like, entries, joined)) for c, entries in whole.terms]
        if len(parts) == 1 and parts[0][0] == 1.0:
            return parts[0][1]
        terms = tuple((c, part.index) for c, part in parts)
        positions = builder.positions(parts[0][1])
        return builder.like(parts[0][1], builder.add(Combination(terms, 0.0, positions)))
    return _constant(builder, like, value, joined)


def _constant(builder: Builder, like: Value, value: Value | Tensor, joined: int | None) -> Value:
    """The raw input or a constant tensor as vectors that are the same in every network."""
    assert like.axis is not None
    whole = builder.shape(like)
    if isinstance(value, Tensor):
        shape = (1,) * (len(whole) + 1 - value.dim()) + tuple(value.shape)
        if len(shape) > len(whole) + 1 or shape[0] != 1:
            raise builder.unsupported(
                f"a constant of shape {tuple(value.shape)} with hidden units of shape {whole}",
                "it must be the same for every point of the batch",
            )
        constant = value.detach().reshape(shape[1:])
        node = Function(repeated, (Ref(None), Array.of(constant)), (), shape[1:])
        value = Value(builder.add(node))
    builder.check_batch(value)
    sizes = builder.shape(value)
    if len(sizes) != len(whole) or None in sizes:
        raise builder.unsupported(
            f"hidden units of shape {whole} with the raw input, of shape {sizes}",
            "both must have the same number of dimensions; give input_shape",
        )
    own = sizes[like.axis]
    along = joined == like.axis + 1
    if own != like.width and not along and (own != 1 or joined is not None):
        raise ValueError(
            f"Shapes at {builder.where} do not fit together: hidden units {whole}, raw {sizes}."
        )
    index = builder.features(value, like.axis, None)
    return Value(index, own if along and own is not None else like.width, like.axis)


def as_units(builder: Builder, like: Value, entries: Tensor, joined: int | None) -> Value:
    """Entries of parameters as a hidden value with the layout of `like`."""
    assert like.axis is not None
    rank = len(builder.shape(like)) + 1
    if entries.dim() > rank:
        raise builder.unsupported(
            "a parameter of more dimensions than the hidden units", f"{tuple(entries.shape)}"
        )
    entries = entries.reshape((1,) * (rank - entries.dim()) + tuple(entries.shape))
    if entries.shape[0] not in (1, BATCH) or bool((entries != entries[:1]).any()):
        raise builder.unsupported(
            "a parameter whose entries differ between points of the batch",
            "its first dimension must be 1, or expanded to the batch",
        )
    vectors = entries[0].movedim(like.axis, -1)
    width = vectors.shape[-1]
    if width != like.width and joined != like.axis + 1:
        raise builder.unsupported(
            "a parameter shared by units",
            f"one random number for all units does not average out; its shape must end like "
            f"{builder.shape(like)}",
        )
    return Value(_embedded(builder, vectors), width, like.axis)


def _embedded(builder: Builder, vectors: Tensor) -> int:
    """Vectors of entries `[*positions, width]` as a node."""
    positions, width = tuple(vectors.shape[:-1]), vectors.shape[-1]
    owners = builder.entries.owners(vectors)
    changes = (owners[..., 1:] != owners[..., :-1]).reshape(-1, width - 1).any(0)
    cuts = [0, *(changes.nonzero().flatten() + 1).tolist(), width]
    if len(cuts) > 2:
        sizes = [end - start for start, end in zip(cuts, cuts[1:], strict=False)]
        sources = [_embedded(builder, part) for part in vectors.split(sizes, -1)]
        return builder.add(Concatenate(tuple(sources), tuple(sizes), positions))
    flat, owner = vectors.reshape(-1, width), owners[..., 0].flatten()
    if not builder.entries.placed(flat):
        raise builder.unsupported(
            "a parameter whose entries serve as different units",
            "use a separate parameter for each use",
        )
    sources, order = [], []
    for k in dict.fromkeys(owner.tolist()):
        own = (owner == k).nonzero().flatten()
        order.append(own)
        tokens = flat[own, 0]
        shape = positions if len(own) == len(flat) else (len(own),)
        sources.append(_tokens(builder, builder.entries.parameters[k], tokens.reshape(shape)))
    if len(sources) == 1:
        return sources[0]
    index = builder.add(Join(tuple(sources), (len(flat),)))
    return builder.select(index, torch.cat(order).argsort().reshape(positions))


def _tokens(builder: Builder, parameter: nn.Parameter, tokens: Tensor) -> int:
    """An embedding with the same tokens for every data point."""
    layer = builder.parameter(parameter, builder.weights, "weight")
    builder.fan_in[layer] = 1
    shape = tuple(tokens.shape)
    source = builder.add(Function(repeated, (Ref(None), Array.of(tokens)), (), shape))
    return builder.add(Embedding(source, layer, layer, None, shape))


def repeated(batch: int, constant: Tensor) -> Tensor:
    """The same for every point of a batch."""
    return constant.expand(batch, *constant.shape)


def _mapped(item: Any, change: Callable[[Any], Any]) -> Any:
    """Nested arguments with their parameters changed."""
    if isinstance(item, nn.Parameter | Learnt):
        return change(item)
    if isinstance(item, tuple | list):
        return type(item)(_mapped(part, change) for part in item)
    if isinstance(item, dict):
        return {key: _mapped(part, change) for key, part in item.items()}
    return item
