"""The right-hand sides of grammar rules: how parts of a network are put together.

A part takes wires, each a node with its shape, and gives wires. Between parts there is one wire;
behind branches there are several, which the operation that joins them reads all at once.

A string is a symbol of the grammar, to be derived by one of its rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nas.architectures.architecture import Architecture, Node, Value

__all__ = [
    "Apply",
    "Branches",
    "Copies",
    "Expression",
    "Sequence",
    "branches",
    "cell",
    "copies",
    "op",
    "residual",
    "routing",
    "sequence",
    "symbols_of",
]


@dataclass(frozen=True)
class Apply:
    """One operation, on all wires.

    Attributes:
        node: The operation, its arguments and body; its inputs are not set yet.
    """

    node: Node


@dataclass(frozen=True)
class Sequence:
    """Parts one behind the other; without parts, the identity."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True)
class Copies:
    """One derivation of a part for several branches, each with weights of its own."""

    part: Expression
    count: int


@dataclass(frozen=True)
class Branches:
    """Parts beside each other.

    Attributes:
        parts: What each branch does.
        join: Reads the outputs of all branches.
        split: None gives the whole input to every branch; a dimension (1 is the first behind the
            batch) cuts it there into as many equal pieces as there are branches.
    """

    parts: tuple[Expression, ...]
    join: Expression
    split: int | None = None


Expression = str | Apply | Sequence | Branches | Copies


def op(name: str, **arguments: Value) -> Apply:
    """An operation of the vocabulary with its arguments, such as `op("linear", out_features=8)`."""
    return Apply(Node(name, (), tuple(sorted(arguments.items()))))


def cell(body: Architecture, count: int = 1) -> Apply:
    """A graph of your own, `count` copies of it in a row; its first node is `Node.of("input")`."""
    return Apply(Node.of("repeat", body=body, count=count))


def sequence(*parts: Expression) -> Sequence:
    """Parts one behind the other; without parts, the identity."""
    return Sequence(parts)


def routing(before: Expression, part: Expression, after: Expression) -> Sequence:
    """A part in another layout: `before` rearranges what it gets, `after` what it gives."""
    return Sequence((before, part, after))


def branches(
    *parts: Expression, join: Expression | None = None, split: int | None = None
) -> Branches:
    """Parts beside each other, summed unless `join` says otherwise; see `Branches`.

    Raises:
        ValueError: no part.
    """
    if not parts:
        raise ValueError("branches() needs at least one part.")
    return Branches(parts, op("sum") if join is None else join, split)


def copies(part: Expression, count: int) -> Copies:
    """`count` branches that are derived alike, to be used inside `branches`.

    Raises:
        ValueError: fewer than one.
    """
    if count < 1:
        raise ValueError(f"copies() needs a count of at least 1, got {count}.")
    return Copies(part, count)


def residual(*parts: Expression) -> Branches:
    """The input plus what the parts, one behind the other, make of it."""
    return branches(sequence(), sequence(*parts))


def symbols_of(part: Expression) -> Iterator[str]:
    """The symbols in a part, from left to right."""
    match part:
        case str():
            yield part
        case Apply():
            return
        case Sequence(parts):
            for inner in parts:
                yield from symbols_of(inner)
        case Copies(inner, _):
            yield from symbols_of(inner)
        case Branches(parts, join, _):
            for inner in (*parts, join):
                yield from symbols_of(inner)
        case _:
            raise TypeError(
                f"A part of a grammar is a symbol's name, op(...), sequence(...), branches(...) or "
                f"copies(...), got {part!r}."
            )
