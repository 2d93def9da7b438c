"""The picture of an architecture: every run a box, every connection an arrow, none over a box."""

from itertools import combinations

import pytest
from matplotlib.patches import FancyArrowPatch

from nas import Architecture, Node, plot_architecture, spaces
from nas.architectures.drawing import _Layout
from nas.architectures.outline import outlines

MLP = spaces.MLPSpace(4, 2, widths=(8, 16))
CELL = "|nor_conv_3x3~0|+|skip_connect~0|none~1|+|avg_pool_3x3~0|nor_conv_1x1~1|skip_connect~2|"
ARCHITECTURES = {
    "chain": MLP.network([8, 16], "relu"),
    "residual": MLP.network([8, 16, 16, 8], "relu", residual=True, layer_norm=True),
    "cell": spaces.CellSpace().from_string(CELL),
    "only an input": Architecture((Architecture.input((3,)),)),
    "a long chain": Architecture(
        (Architecture.input((3,)), *(Node.of("relu", k) for k in range(20)))
    ),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_operations_and_connections_are_drawn(name):
    figure = plot_architecture(ARCHITECTURES[name])
    layouts = [_Layout.of(outline) for outline in outlines(ARCHITECTURES[name])]
    for ax, layout in zip(figure.axes, layouts, strict=True):
        shown = [text.get_text() for text in ax.texts]
        assert shown == ["\n".join(lines) for lines in layout.texts]
        arrows = [patch for patch in ax.patches if isinstance(patch, FancyArrowPatch)]
        assert len(arrows) == sum(len(run.sources) for run in layout.runs)
        left, right = ax.get_xlim()
        assert right - left >= layout.width


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_nothing_overlaps(name):
    for layout in map(_Layout.of, outlines(ARCHITECTURES[name])):
        boxes = set(zip(layout.columns, layout.lanes, strict=True))
        assert len(boxes) == len(layout.runs)
        skipping = [
            {(column, lane) for column in range(layout.columns[s] + 1, layout.columns[t])}
            for s, t, lane in layout.routes
        ]
        assert all(not boxes & places for places in skipping)
        assert all(not a & b for a, b in combinations(skipping, 2))
        assert all(layout.columns[s] < layout.columns[t] for s, t, _ in layout.routes)


def test_a_cell_is_drawn_once_with_arguments_under_their_operation():
    network, cell = plot_architecture(ARCHITECTURES["cell"]).axes
    assert (network.get_title("left"), cell.get_title("left")) == ("network", "cell")
    assert "stem\n16" in [text.get_text() for text in network.texts]
    assert [text.get_text() for text in network.texts].count("5 x cell") == 3
