"""Nodes computed from the data point alone, and their values as vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from priors.programs.nodes.base import Finite, Node, OneSource, Ref, Shape, Span

__all__ = ["Features", "Function", "Input"]


@dataclass(frozen=True)
class Input(Finite):
    """One data point of shape `shape`."""

    shape: Shape

    @property
    def inputs(self) -> tuple[int, ...]:
        return ()

    def with_inputs(self, inputs: Sequence[int]) -> Self:
        return self


@dataclass(frozen=True)
class Function(Finite):
    """A torch function of finite values and constants; the batch is the first dimension."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]
    shape: Shape

    @property
    def inputs(self) -> tuple[int, ...]:
        return tuple(_indices((self.arguments, self.keywords)))

    def with_inputs(self, inputs: Sequence[int]) -> Self:
        fresh = iter(inputs)
        return replace(
            self,
            arguments=_with_indices(self.arguments, fresh),
            keywords=_with_indices(self.keywords, fresh),
        )


def _indices(item: Any) -> Iterator[int]:
    """The nodes among arguments."""
    match item:
        case Ref(index=int(index)):
            yield index
        case Span():
            yield from _indices((item.start, item.stop, item.step))
        case tuple():
            for part in item:
                yield from _indices(part)


def _with_indices(item: Any, fresh: Iterator[int]) -> Any:
    """Arguments with other nodes, in the order of `_indices`."""
    match item:
        case Ref(index=int()):
            return Ref(next(fresh), item.batch)
        case Span():
            return Span(*(_with_indices(p, fresh) for p in (item.start, item.stop, item.step)))
        case tuple():
            return tuple(_with_indices(part, fresh) for part in item)
    return item


@dataclass(frozen=True)
class Features(OneSource):
    """A finite value as vectors along dimension `axis` (counted without the batch)."""

    axis: int
    positions: tuple[int, ...]

    @property
    def homogeneous(self) -> bool:
        return True

    @property
    def related_through(self) -> tuple[int, ...]:
        return ()

    def relation(self, other: Node, related: Callable[[int, int], bool]) -> bool | None:
        return True if isinstance(other, Features) else None
