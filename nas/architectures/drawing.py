"""An architecture as a picture: its operations from left to right, its cells under it.

Boxes are the runs of `nas.architectures.outline`. The longest path lies on one line; what runs
beside it, boxes and connections that skip boxes alike, has lanes below and above, chosen so that
nothing overlaps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nas.architectures.outline import Outline, Run, outlines
from priors.figures import BLACK, BLUE, GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nas.architectures.architecture import Architecture

__all__ = ["plot_architecture"]

_LETTER, _LINE, _GAP = 0.075, 0.17, 0.35  # inches
_SPREAD = 12  # operations of one run that have a box each


def plot_architecture(architecture: Architecture) -> Figure:
    """Draw a network and each of its cells.

    Args:
        architecture: The network.

    Returns:
        A figure outside pyplot with one panel for the network and one for every cell, with
        `savefig` and, in notebooks, a picture of itself.
    """
    from matplotlib.figure import Figure

    layouts = [_Layout.of(outline) for outline in outlines(architecture)]
    heights = [layout.height + 0.35 for layout in layouts]
    width = max(layout.width for layout in layouts)
    figure = Figure(figsize=(width + 0.2, sum(heights) + 0.1), layout="constrained")
    panels = figure.subplots(len(layouts), 1, squeeze=False, height_ratios=heights)
    for ax, layout in zip(panels[:, 0], layouts, strict=True):
        layout.draw(ax, width)
        if len(layouts) > 1:
            ax.set_title(layout.title, loc="left", fontsize=9, color=BLACK)
    return figure


@dataclass(frozen=True)
class _Layout:
    """Where the boxes of a graph are: columns by depth, lanes beside the longest path.

    Attributes:
        title: Of the graph.
        runs: The boxes.
        columns: Column of each box, from 0.
        lanes: Lane of each box; 0 is the longest path.
        routes: Source, target and lane of each connection.
    """

    title: str
    runs: tuple[Run, ...]
    columns: tuple[int, ...]
    lanes: tuple[int, ...]
    routes: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, outline: Outline) -> _Layout:
        runs = outline.runs
        if len(runs) == 1 and len(runs[0].operations) <= _SPREAD:
            operations = runs[0].operations
            runs = tuple(Run((k - 1,) if k else (), (o,)) for k, o in enumerate(operations))
        columns: list[int] = []
        for run in runs:
            columns.append(1 + max((columns[source] for source in run.sources), default=-1))
        trunk = {len(runs) - 1}
        last = len(runs) - 1
        while columns[last]:
            before = [s for s in runs[last].sources if columns[s] == columns[last] - 1]
            last = max(before, key=lambda source: len(runs[source].operations))
            trunk.add(last)
        taken: dict[int, set[int]] = {}  # columns by lane

        def free_lane(some: range) -> int:
            lane = next(lane for lane in _beside() if not taken.get(lane, set()) & {*some})
            taken.setdefault(lane, set()).update(some)
            return lane

        lanes, routes = [0] * len(runs), []
        for number, run in enumerate(runs):
            if number not in trunk:
                lanes[number] = free_lane(range(columns[number], columns[number] + 1))
            for source in run.sources:
                passed = range(columns[source] + 1, columns[number])
                lane = free_lane(passed) if len(passed) else lanes[number]
                routes.append((source, number, lane))
        return cls(outline.title, runs, tuple(columns), tuple(lanes), tuple(routes))

    @property
    def texts(self) -> list[list[str]]:
        """Lines of each box; an operation that is alone has its arguments under its name."""
        return [
            [part for o in run.operations for part in _parts(o, len(run.operations))]
            for run in self.runs
        ]

    @property
    def box(self) -> tuple[float, float]:
        """Width and height of the largest box, in inches."""
        longest = max(len(line) for lines in self.texts for line in lines)
        most = max(map(len, self.texts))
        return max(0.5, _LETTER * longest + 0.15), _LINE * most + 0.12

    @property
    def width(self) -> float:
        """In inches."""
        return (max(self.columns) + 1) * (self.box[0] + _GAP) - _GAP

    @property
    def height(self) -> float:
        """In inches."""
        lanes = {lane for *_, lane in self.routes} | {*self.lanes}
        return (max(lanes) - min(lanes)) * self._lane_height + self.box[1]

    @property
    def _lane_height(self) -> float:
        return self.box[1] + 0.15

    def draw(self, ax: Axes, width: float) -> None:
        """Draw on axes as wide as `width`, in inches."""
        from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
        from matplotlib.path import Path

        wide, _ = self.box
        step = wide + _GAP
        places = [
            (column * step, lane * self._lane_height)
            for column, lane in zip(self.columns, self.lanes, strict=True)
        ]
        lanes = {lane for *_, lane in self.routes} | {*self.lanes}
        margin = self.box[1] / 2 + 0.02
        ax.set(
            xlim=(-wide / 2 - 0.05, width - wide / 2 + 0.05),
            ylim=(min(lanes) * self._lane_height - margin, max(lanes) * self._lane_height + margin),
            aspect="equal",
        )
        ax.set_axis_off()
        for source, target, lane in self.routes:
            start, end = places[source], places[target]
            points = [(start[0] + wide / 2, start[1])]
            if self.columns[target] > self.columns[source] + 1:
                y = lane * self._lane_height
                points += [(start[0] + step - wide / 2, y), (end[0] - step + wide / 2, y)]
            points.append((end[0] - wide / 2, end[1]))
            vertices, codes = [points[0]], [Path.MOVETO]
            for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
                bend = (x1 - x0) / 2
                vertices += [(x0 + bend, y0), (x1 - bend, y1), (x1, y1)]
                codes += [Path.CURVE4] * 3
            ax.add_patch(
                FancyArrowPatch(
                    path=Path(vertices, codes), arrowstyle="-|>", mutation_scale=8,
                    color=GREY, linewidth=1.1, shrinkA=0, shrinkB=0,
                )
            )  # fmt: skip
        for (x, y), lines in zip(places, self.texts, strict=True):
            high = _LINE * len(lines) + 0.1
            ax.add_patch(
                FancyBboxPatch(
                    (x - wide / 2 + 0.03, y - high / 2 + 0.03), wide - 0.06, high - 0.06,
                    boxstyle="round,pad=0.03", facecolor="white", edgecolor=BLUE, linewidth=1.1,
                )
            )  # fmt: skip
            ax.text(x, y, "\n".join(lines), ha="center", va="center", fontsize=8, color=BLACK)


def _parts(operation: str, together: int) -> list[str]:
    name, _, arguments = operation.removesuffix(")").partition("(")
    if not arguments:
        return [name]
    return [f"{name} {arguments}"] if together > 1 else [name, *arguments.split(", ")]


def _beside() -> Iterator[int]:
    """Lanes off the longest path: -1, 1, -2, 2, ..."""
    lane = 0
    while True:
        lane += 1
        yield from (-lane, lane)
