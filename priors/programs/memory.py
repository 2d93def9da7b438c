"""Shared memory in a traced forward, and the effect of overwriting a tensor on its views.

`relu_`, `h += g` and `nn.ReLU(inplace=True)` write to a tensor that other names and views may
still refer to. Each value has a place: a storage and the path of views that leads to it. Before a
value is used again it is brought up to date: views are taken anew of what was written. Where only
a part was overwritten, or where torch may have copied, a later use is refused.
"""

from __future__ import annotations

import dataclasses
import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from priors.programs.builder import Builder
from priors.programs.nodes import Ref
from priors.programs.values import BATCH, Value, name_of, replaced

__all__ = ["INPLACE_OPERATORS", "Memory", "Overwriting", "is_traced", "overwriting"]

INPLACE_OPERATORS = (
    *("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow"),
    *("iand", "ior", "ixor", "ilshift", "irshift"),
)

# Functions that return a view of their first argument, and those that sometimes return a copy.
_VIEWS = frozenset(
    """view view_as unflatten permute transpose t adjoint movedim moveaxis swapaxes swapdims
    squeeze unsqueeze getitem select narrow chunk split unbind tensor_split hsplit vsplit expand
    expand_as broadcast_to diagonal unfold detach Unflatten""".split()
)
_SOMETIMES_VIEWS = frozenset(
    "reshape reshape_as flatten ravel contiguous to float double type_as Flatten".split()
)
_COPIES = frozenset(["clone"])

# What no expression of the old value replaces, and what depends on more than single entries.
_WITHOUT_COUNTERPART = frozenset(
    """bernoulli_ normal_ uniform_ random_ exponential_ cauchy_ geometric_ log_normal_ copy_ fill_
    zero_ set_ requires_grad_ detach_ resize_ resize_as_ squeeze_ unsqueeze_ transpose_ t_ swapaxes_
    swapdims_ as_strided_""".split()
)
_OF_WHOLE_TENSORS = frozenset(
    """cumsum cumprod logcumsumexp tril triu renorm fill_diagonal dropout dropout1d dropout2d
    dropout3d Dropout Dropout1d Dropout2d Dropout3d""".split()
)


@dataclass(frozen=True)
class Overwriting:
    """A call that writes its result over its first argument.

    Attributes:
        name: What it is called.
        pure: What gives the same result as a new tensor; None if nothing does.
    """

    name: str
    pure: nn.Module | Callable[..., Any] | str | None


def overwriting(part: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Overwriting | None:
    """Whether a layer that is one step, a function or a method (by name) writes in place."""
    if isinstance(part, nn.Module):
        if not getattr(part, "inplace", False):
            return None
        pure = nn.Module.__new__(type(part))
        pure.__dict__.update(part.__dict__, inplace=False)
        return Overwriting(f"{type(part).__name__}(inplace=True)", pure)
    name = part if isinstance(part, str) else name_of(part)
    if _asks_for_it(part, args, kwargs):
        return Overwriting(f"{name}(inplace=True)", part)
    plain = name.strip("_") if name.startswith("__") else name
    if plain in INPLACE_OPERATORS:
        counterpart = {"iand": "and_", "ior": "or_"}.get(plain, plain[1:])
        return Overwriting(plain, getattr(operator, counterpart))
    if name.startswith("_") or not name.endswith("_") or part in (operator.and_, operator.or_):
        return None
    if name in _WITHOUT_COUNTERPART:
        return Overwriting(name, None)
    if isinstance(part, str):
        return Overwriting(name, name[:-1] if hasattr(Tensor, name[:-1]) else None)
    found = (getattr(place, name[:-1], None) for place in (F, torch, Tensor))
    return Overwriting(name, next((f for f in found if f is not None), None))


def _asks_for_it(part: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if "inplace" in kwargs:
        return bool(kwargs["inplace"])
    if isinstance(part, str) or not inspect.isfunction(part) or len(args) < 2:
        return False
    try:
        return bool(inspect.signature(part).bind(*args, **kwargs).arguments.get("inplace"))
    except TypeError:
        return False


def is_traced(item: Any) -> bool:
    """Whether an argument stands for a tensor: a value, or logits of attention."""
    return dataclasses.is_dataclass(item) and not isinstance(item, Ref | type)


@dataclass(eq=False)
class _Step:
    """A view taken of another value."""

    part: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    item: tuple[int, ...]  # which of the results, where there are several
    certain: bool

    def of(self, call: Callable[..., Any], source: Any) -> Any:
        """The view of another source."""
        result = call(self.part, source, *self.args, **self.kwargs)
        for index in self.item:
            result = result[index]
        return result

    def numbered(self, entries: Tensor) -> Tensor:
        """The view of a tensor."""
        args, kwargs = replaced((self.args, self.kwargs), lambda v: v, lambda: BATCH)
        function = getattr(Tensor, self.part) if isinstance(self.part, str) else self.part
        return self.of(lambda _, x, *a, **k: function(x, *args, **kwargs), entries)


_Path = tuple[_Step, ...]


@dataclass(frozen=True)
class _Write:
    path: _Path
    result: Any
    name: str
    where: str


@dataclass
class _Storage:
    base: Any
    writes: list[_Write] = field(default_factory=list)


@dataclass
class _Place:
    value: Any  # kept alive, so that its identity stays its own
    storage: _Storage
    path: _Path
    seen: int  # writes that it includes


class Memory:
    """The places of all values of a traced forward.

    Args:
        builder: For shapes and error messages.
        call: What a layer, function or method makes of its arguments, as new tensors.
    """

    def __init__(self, builder: Builder, call: Callable[..., Any]) -> None:
        self._builder, self._call = builder, call
        self._places: dict[int, _Place] = {}

    def current(self, item: Any) -> Any:
        """Arguments, nested or not, as they are after all that was overwritten.

        Raises:
            UnsupportedOperationError: a part of a value was overwritten, or what may share its
                memory.
        """
        if type(item) in (tuple, list):
            parts = [self.current(part) for part in item]
            same = all(a is b for a, b in zip(parts, item, strict=True))
            return item if same else type(item)(parts)
        if type(item) is dict:
            return {key: self.current(part) for key, part in item.items()}
        place = self._places.get(id(item))
        if place is None or place.seen == len(place.storage.writes):
            return item
        return self._refreshed(place)

    def _refreshed(self, place: _Place) -> Any:
        value = place.value
        for write in place.storage.writes[place.seen :]:
            common = 0
            for one, two in zip(place.path, write.path, strict=False):
                if one is not two:
                    break
                common += 1
            ahead, behind = place.path[common:], write.path[common:]
            known = all(step.certain for step in (*ahead, *behind))
            if known and not behind:
                value = write.result
                for step in ahead:
                    value = step.of(self._call, value)
            elif not known or self._overlap(place.storage.base, place.path, write.path):
                why = (
                    "whether the two share memory depends on the layout of the tensors"
                    if not known
                    else "only a part of it, or a view, was overwritten"
                )
                raise self._builder.unsupported(
                    f"the later use of a tensor that {write.name} at {write.where} overwrites",
                    f"{why}; write it out of place, for example h = torch.relu(h)",
                )
        self._enter(value, place.storage, place.path)
        return value

    def _enter(self, value: Any, storage: _Storage, path: _Path) -> None:
        self._places[id(value)] = _Place(value, storage, path, len(storage.writes))

    def _place(self, value: Any) -> _Place:
        if id(value) not in self._places:
            self._enter(value, _Storage(value), ())
        return self._places[id(value)]

    def follow(self, part: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        """Note that the result of a call may be a view; the result, as an object of its own."""
        name = type(part).__name__ if isinstance(part, nn.Module) else part
        name = name if isinstance(name, str) else name_of(name)
        if not args or not is_traced(args[0]):
            return result
        if name == "getattr" and args[1] in ("T", "mT"):
            part, args, name = torch.transpose, (args[0], -2, -1), "transpose"
        certain = name in _VIEWS and not (name == "getitem" and not _basic(args[1]))
        if result is args[0] and name in _SOMETIMES_VIEWS | _COPIES:
            result = dataclasses.replace(result)
        if result is args[0] or not (certain or name in _SOMETIMES_VIEWS):
            return result
        place = self._place(args[0])
        for item, value in _items(result):
            step = _Step(part, args[1:], kwargs, item, certain)
            self._enter(value, place.storage, (*place.path, step))
        return result

    def overwrite(
        self, call: Overwriting, args: tuple[Any, ...], kwargs: dict[str, Any], where: str
    ) -> Any:
        """Write the result of a call over its first argument.

        Raises:
            UnsupportedOperationError: it has no counterpart that makes a new tensor.
            ValueError: the result has another shape.
        """
        target, *rest = args
        if call.pure is None:
            raise self._builder.unsupported(
                f"{call.name} in place",
                "only operations with an out-of-place counterpart are supported",
            )
        result = self._call(call.pure, target, *rest, **kwargs)
        if result is target:
            return result
        if isinstance(result, Value) and isinstance(target, Value):
            shapes = self._builder.shape(result), self._builder.shape(target)
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"{call.name} at {where} would change the shape of what it overwrites from "
                    f"{shapes[1]} to {shapes[0]}."
                )
        place = self._place(target)
        storage, path = place.storage, place.path
        write = _Write(path, result, call.name, where)
        if path and self._through_to_base(call, rest, kwargs, storage.base, path):
            base = self._call(call.pure, self.current(storage.base), *rest, **kwargs)
            storage.writes.append(dataclasses.replace(write, path=(), result=base))
            self._enter(base, storage, ())
        else:
            storage.writes.append(write)
        self._enter(result, storage, path)
        return result

    def _through_to_base(
        self, call: Overwriting, rest: list[Any], kwargs: dict[str, Any], base: Any, path: _Path
    ) -> bool:
        """Whether the call acts entry by entry on a view of the whole of the storage."""
        pure = call.pure
        name = type(pure).__name__ if isinstance(pure, nn.Module) else name_of(pure)
        name = pure if isinstance(pure, str) else name
        plain = all(
            isinstance(a, int | float | str | bool | None) for a in (*rest, *kwargs.values())
        )
        if not plain or name in _OF_WHOLE_TENSORS or not all(s.certain for s in path):
            return False
        entries = self._entries(base, path)
        whole = self._entries(base, ())
        return entries is not None and whole is not None and len(entries) == len(whole)

    def _overlap(self, base: Any, one: _Path, two: _Path) -> bool:
        first, second = self._entries(base, one), self._entries(base, two)
        return first is None or second is None or bool(torch.isin(first, second).any())

    def _entries(self, base: Any, path: _Path) -> Tensor | None:
        """Numbers of the storage's entries that a view has; None if its shape is open."""
        if not isinstance(base, Value):
            return None
        shape = self._builder.shape(base)
        sizes = [size for size in shape if size is not None]
        if len(sizes) < len(shape):
            return None
        total = torch.Size([BATCH, *sizes]).numel()
        entries = torch.arange(total).reshape(BATCH, *sizes).movedim(0, base.batch)
        for step in path:
            entries = step.numbered(entries)
        return entries.unique()


def _items(result: Any, item: tuple[int, ...] = ()) -> list[tuple[tuple[int, ...], Any]]:
    """The values of nested results, with where they are."""
    if isinstance(result, tuple | list):
        return [found for k, part in enumerate(result) for found in _items(part, (*item, k))]
    return [(item, result)] if is_traced(result) else []


def _basic(index: Any) -> bool:
    """Whether an index gives a view: numbers and slices, no tensors or lists."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(p is None or p is Ellipsis or isinstance(p, int | slice) for p in parts)
