"""The axis of the width in a value, and the effect of reshaping on positions and units.

Reshaping, slicing and stacking are understood by carrying out the same torch call on a tensor of
numbered entries (entry = position * width + unit) and reading off where each of them went.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from priors.programs.builder import Builder
from priors.programs.learnt import Learnt, operands, rearranged
from priors.programs.nodes import Array, Concatenate, Flatten, Join, Ref
from priors.programs.values import BATCH, Value, name_of, parts_of, replaced, values_in

__all__ = ["aligned", "structural"]


_JOINS = frozenset("cat concat concatenate stack hstack vstack".split())


def aligned(builder: Builder, items: Sequence[Any]) -> list[Value]:
    """Operands as hidden values with equal layouts, singleton positions expanded.

    At least one is hidden; others may be the raw input, parameters and constants.
    """
    like = next(v for v in items if isinstance(v, Value) and not v.finite)
    values = operands(builder, like, items)
    first = values[0]
    if len(values) > 1 and any(v.copies > 1 for v in values):
        raise builder.unsupported(
            "an operation on several values, one of which has repeated units",
            "repeated units are supported only as keys and values of attention, and in linear "
            "layers",
        )
    if len({v.batch for v in values}) > 1:
        raise builder.unsupported("values with the batch in different dimensions", "permute first")
    if len({v.width for v in values}) > 1 and any(v.width == 1 for v in values):
        raise builder.unsupported(
            "a single unit shared by all units of another layer, such as a scalar gate",
            "one unit stays random at infinite width; give the gate as many units as it gates",
        )
    if any((v.width, v.axis, v.heads) != (first.width, first.axis, first.heads) for v in values):
        raise builder.unsupported(
            "hidden values whose widths are not the same dimension",
            f"their shapes are {[builder.shape(v) for v in values]}",
        )
    shapes = [builder.positions(v) for v in values]
    if len({len(s) for s in shapes}) > 1:
        raise builder.unsupported(
            "hidden values with different numbers of dimensions", f"they are {shapes}"
        )
    try:
        common = tuple(torch.broadcast_shapes(*shapes))
    except RuntimeError as error:
        raise ValueError(f"Shapes at {builder.where} do not broadcast: {shapes}.") from error
    result = []
    for value, shape in zip(values, shapes, strict=True):
        if shape != common:
            picks = torch.arange(math.prod(shape)).reshape(shape).expand(common)
            value = builder.like(value, builder.select(value.index, picks))
        result.append(value)
    return result


def structural(
    builder: Builder, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
) -> Any:
    """Reshaping, slicing, stacking: carried out on numbered entries and read off."""
    values = list(values_in((args, kwargs)))
    learnt = next(parts_of((args, kwargs), (nn.Parameter, Learnt)), None)
    if learnt is not None and not values:
        return rearranged(builder, function, args, kwargs)
    if all(v.finite for v in values):
        if learnt is not None:
            raise builder.unsupported(
                "a parameter joined to the raw input",
                "neither is wide, so the sum does not average out; apply a linear layer first",
            )
        if not values and next(parts_of((args, kwargs), Ref), None) is None:
            return function(*args, **kwargs)  # a constant
        return builder.finite_call(function, *args, **kwargs)
    if name_of(function) in _JOINS:
        args, kwargs = _joinable(builder, function, args, kwargs)
        values = list(values_in((args, kwargs)))
    elif any(v.finite for v in values) or learnt is not None:
        raise builder.unsupported(
            f"{name_of(function)} of hidden units with the raw input or a parameter"
        )
    if name_of(function) in ("cat", "concat", "concatenate"):
        joined = _concatenate(builder, values, args, kwargs)
        if joined is not None:
            return joined
    width = values[0].width
    if any(v.width != width for v in values):
        raise builder.unsupported(f"{name_of(function)} of vectors of different widths")
    total = sum(math.prod(builder.positions(v)) for v in values) * width
    start, numbered = 0, []
    for value in values:
        numbered.append(_numbers(builder, value, start, total))
        start += math.prod(builder.positions(value)) * width
    fresh = iter(numbered)
    arguments, keywords = replaced((args, kwargs), lambda v: next(fresh), lambda: BATCH)
    try:
        result = function(*arguments, **keywords)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{name_of(function)} at {builder.where} failed: {error}") from error
    if isinstance(result, tuple | list):
        return tuple(_read(builder, values, r, total) for r in result)
    return _read(builder, values, result, total)


def _joinable(
    builder: Builder, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a function that joins tensors, all of these as hidden values."""
    given = inspect.signature(lambda tensors, dim=0: None).bind(*args, **kwargs).arguments
    items = list(given["tensors"])
    like = next(v for v in items if isinstance(v, Value) and not v.finite)
    rank = len(builder.shape(like)) + 1
    dim = {"hstack": 1, "vstack": 0}.get(name_of(function), given.get("dim", 0))
    joined = dim % rank if "cat" in name_of(function) else 0
    hidden = operands(builder, like, items, joined)
    rest = () if "stack" in name_of(function)[1:] else (dim,)
    return (hidden, *rest), {}


def _originals(builder: Builder, value: Value) -> Tensor:
    """For each position of a value the first that it is a copy of, in the positions' shape.

    Copies are looked for where heads stand beside an axis that may have been expanded.
    """
    positions = builder.positions(value)
    places = torch.arange(math.prod(positions))
    if value.heads and len(positions) > 1:
        first: dict[int, int] = {}
        found = [builder.select(value.index, place) for place in places]
        places = torch.tensor([first.setdefault(f, k) for k, f in enumerate(found)])
    return places.reshape(positions)


def _numbers(builder: Builder, value: Value, start: int, total: int) -> Tensor:
    """Entry = start + position * width + unit (+ total for the second of the batch)."""
    positions = builder.positions(value)
    entries = start + _originals(builder, value)[..., None] * value.width
    entries = entries + torch.arange(value.width)
    if value.axis is None:
        entries = entries.squeeze(-1)
    else:
        dims = [d for d, _ in value.heads] + [value.axis]
        pieces = [n for _, n in value.heads] + [value.width // value.num_heads]
        entries = entries.unflatten(-1, pieces)
        places = iter(range(len(positions)))
        order = [
            len(positions) + dims.index(d) if d in dims else next(places)
            for d in range(entries.dim())
        ]
        entries = entries.permute(order)
    return torch.stack([entries + b * total for b in range(BATCH)], value.batch)


def _read(builder: Builder, values: Sequence[Value], result: Tensor, total: int) -> Value:
    width = values[0].width
    batch_axes = [a for a in range(result.dim()) if _varies(result // total, a)]
    if len(batch_axes) != 1 or result.shape[batch_axes[0]] != BATCH:
        raise builder.unsupported("an operation that mixes the batch with other dimensions")
    (batch,) = batch_axes
    entries = result.select(batch, 0)
    if bool((result.select(batch, 1) - entries != total).any()):
        raise builder.unsupported("an operation that reorders the batch")
    place, unit = entries // width, entries % width
    index = _joined(builder, values)
    if width == 1:
        return _read_single(builder, values, index, place, batch)
    unit_axes = [a for a in range(entries.dim()) if _varies(unit, a)]
    place_axes = [a for a in range(entries.dim()) if _varies(place, a)]
    mixed = [a for a in unit_axes if a in place_axes]
    if unit_axes and not mixed:
        # the axes in the order of their strides, outermost first
        reach = [
            int(unit.select(a, -1).flatten()[0] - unit.select(a, 0).flatten()[0]) for a in unit_axes
        ]
        ordered = [a for _, a in sorted(zip(reach, unit_axes, strict=True), reverse=True)]
        pieces = [entries.shape[a] for a in ordered]
        rank = len(ordered)
        table = unit.movedim(ordered, tuple(range(rank))).reshape(*pieces, -1)[..., 0]
        table, copies = _without_copies(table)
        first, last = int(table.flatten()[0]), int(table.flatten()[-1]) + 1
        if first < last and torch.equal(table.flatten(), torch.arange(first, last)):
            for a in sorted(unit_axes, reverse=True):
                place = place.select(a, 0)
            index = builder.select(index, place)
            copies *= values[0].copies
            if (first, last) != (0, width):
                if values[0].copies > 1:
                    raise builder.unsupported("a slice of repeated units")
                index = builder.restrict(index, first, last)
            heads = tuple(zip(ordered[:-1], pieces[:-1], strict=True))
            return Value(index, math.prod(pieces), ordered[-1], heads, batch, copies)
        if len(unit_axes) == 1:
            raise builder.unsupported("an operation that reorders units")
    if len(unit_axes) == 1 and mixed:
        (axis,) = unit_axes
        rows, units = place.movedim(axis, -1), unit.movedim(axis, -1)
        members = rows[units == 0].reshape(*rows.shape[:-1], -1)
        if members.shape[-1] * width == rows.shape[-1] and torch.equal(
            rows.sort(-1).values, members.repeat_interleave(width, -1).sort(-1).values
        ):
            positions = tuple(members.shape[:-1])
            flat = Flatten(index, Array.of(members), positions)
            return Value(builder.add(flat), rows.shape[-1], axis, (), batch)
    raise builder.unsupported(
        "a reshaping that mixes width and positions",
        f"the result is {tuple(entries.shape)}",
    )


def _without_copies(table: Tensor) -> tuple[Tensor, int]:
    """Units `[heads, ..]` without repeated heads, and how often each is there."""
    heads = len(table)
    distinct = len(table.unique(dim=0)) if table.dim() > 1 else heads
    if distinct == heads or heads % distinct:
        return table, 1
    copies = heads // distinct
    for parts, dim in (
        (table.unflatten(0, (distinct, copies)), 1),
        (table.unflatten(0, (copies, distinct)), 0),
    ):
        one = parts.select(dim, 0)
        if torch.equal(parts, one.unsqueeze(dim).expand_as(parts)):
            return one, copies
    return table, 1


def _read_single(
    builder: Builder, values: Sequence[Value], index: int, place: Tensor, batch: int
) -> Value:
    """A width of one unit: its dimension is the same, or was squeezed away."""
    axis = values[0].axis
    if axis is not None and place.dim() > axis and place.shape[axis] == 1:
        return Value(builder.select(index, place.select(axis, 0)), 1, axis, (), batch)
    return Value(builder.select(index, place), 1, None, (), batch)


def _joined(builder: Builder, values: Sequence[Value]) -> int:
    if len(values) == 1:
        return values[0].index
    sources = tuple(v.index for v in values)
    size = sum(math.prod(builder.positions(i)) for i in sources)
    return builder.add(Join(sources, (size,)))


def _concatenate(
    builder: Builder, values: Sequence[Value], args: tuple[Any, ...], kwargs: Any
) -> Value | None:
    """Concatenation along the width; None if it is along positions."""
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    rank = len(builder.shape(values[0])) + 1
    first = values[0]
    if first.axis is None or dim % rank != first.axis + (first.axis >= first.batch):
        return None
    if any((v.axis, v.heads, v.batch) != (first.axis, (), first.batch) for v in values) or (
        len({builder.positions(v) for v in values}) > 1
    ):
        raise builder.unsupported("a concatenation of values of different kinds")
    sources: list[int] = []
    sizes: list[int] = []
    for value in values:
        node = builder.nodes[value.index]
        if isinstance(node, Concatenate):
            sources += node.sources
            sizes += node.sizes
        else:
            sources.append(value.index)
            sizes.append(value.width)
    node = Concatenate(tuple(sources), tuple(sizes), builder.positions(first))
    return Value(builder.add(node), sum(sizes), first.axis, batch=first.batch)


def _varies(tensor: Tensor, axis: int) -> bool:
    return bool((tensor != tensor.narrow(axis, 0, 1)).any())
