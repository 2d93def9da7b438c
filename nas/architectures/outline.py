"""An architecture in outline: runs of operations and how they are joined, as people read it.

A run is a chain of nodes each of which only the next one reads. A network without branches is one
run, a residual one has a run for every block, and a cell that is repeated is described once. The
text of an architecture and its picture are both made from this.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nas.architectures.architecture import Architecture, Node

__all__ = ["Outline", "Run", "outlines"]


@dataclass(frozen=True)
class Run:
    """Operations in a row.

    Attributes:
        sources: Numbers of the earlier runs whose outputs the first operation reads.
        operations: In order, with their arguments; a sum of several sources is "+".
    """

    sources: tuple[int, ...]
    operations: tuple[str, ...]


@dataclass(frozen=True)
class Outline:
    """The runs of one graph.

    Attributes:
        title: "network", or the name of the cell that it is.
        runs: In topological order; the first begins with the input.
    """

    title: str
    runs: tuple[Run, ...]

    def lines(self) -> list[str]:
        """A line for each run, named a, b, ... unless there is only one."""
        if len(self.runs) == 1:
            return [" -> ".join(self.runs[0].operations)]
        lines = []
        for number, run in enumerate(self.runs):
            first, *rest = run.operations
            names = [_letters(source) for source in run.sources]
            if first == "+":
                parts = [" + ".join(names)]
            elif len(names) > 1:
                parts = [f"{first} of {', '.join(names)}"]
            else:
                parts = [*names, first]
            lines.append(f"{_letters(number)} = {' -> '.join([*parts, *rest])}")
        return lines


def outlines(architecture: Architecture) -> list[Outline]:
    """That of a network first, then those of its cells, each once however often it is repeated."""
    cells: dict[Architecture, str] = {}
    _collect(architecture, cells)
    if len(cells) == 1:
        cells = dict.fromkeys(cells, "cell")
    graphs = chain([("network", architecture)], ((name, cell) for cell, name in cells.items()))
    return [Outline(title, tuple(_runs(graph, cells))) for title, graph in graphs]


def _collect(architecture: Architecture, cells: dict[Architecture, str]) -> None:
    for node in architecture.nodes:
        if node.body is not None and node.body not in cells:
            cells[node.body] = f"cell {_letters(len(cells)).upper()}"
            _collect(node.body, cells)


def _runs(graph: Architecture, cells: dict[Architecture, str]) -> list[Run]:
    # a sum of one term is that term
    itself = list(range(len(graph.nodes)))
    for index, node in enumerate(graph.nodes):
        if node.operation == "sum" and len(node.inputs) == 1:
            itself[index] = itself[node.inputs[0]]
    readers = [0] * len(itself)
    for index, node in enumerate(graph.nodes):
        if itself[index] == index:
            for source in node.inputs:
                readers[itself[source]] += 1
    operations: list[list[str]] = []
    sources: list[tuple[int, ...]] = []
    run_of: dict[int, int] = {}
    for index, node in enumerate(graph.nodes):
        if itself[index] != index:
            continue
        before = [itself[source] for source in node.inputs]
        if len(before) == 1 and readers[before[0]] == 1:
            run_of[index] = run_of[before[0]]
            operations[run_of[index]].append(_label(node, cells))
            continue
        run_of[index] = len(operations)
        operations.append([_label(node, cells)])
        sources.append(tuple(run_of[source] for source in before))
    return [Run(s, tuple(o)) for s, o in zip(sources, operations, strict=True)]


def _label(node: Node, cells: dict[Architecture, str]) -> str:
    arguments = dict(node.arguments)
    if node.body is not None:
        return f"{arguments['count']} x {cells[node.body]}"
    if node.operation == "sum":
        return "+"
    if not arguments:
        return node.operation
    values = [str(value) for value in arguments.values()]
    if len(values) > 1:
        values = [f"{name}={value}" for name, value in arguments.items()]
    return f"{node.operation}({', '.join(values)})"


def _letters(number: int) -> str:
    """a, ..., z, aa, ab, ..."""
    letters = ""
    while number >= 0:
        number, place = divmod(number, 26)
        letters = chr(ord("a") + place) + letters
        number -= 1
    return letters
