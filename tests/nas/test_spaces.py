"""The spaces: their contracts, what encodings tell apart, and the NAS-Bench-201 notation."""

import pytest
import torch
from torch import Generator

from nas.spaces import CellSpace, Einspace, MLPSpace, ResNetSpace, TransformerSpace
from nas.testing import SpaceContract

CELL = (
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+"
    "|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
)
ALL_3X3 = CELL.replace("skip_connect", "nor_conv_3x3")


class TestMLPSpace(SpaceContract):
    def make_space(self):
        return MLPSpace(5, 3, layer_norm=(False, True))

    def make_input(self):
        return torch.randn(4, 5)


class TestHourglassSpace(SpaceContract):
    def make_space(self):
        return MLPSpace(5, 3, hourglass=(False, True))

    def make_input(self):
        return torch.randn(4, 5)


class TestCellSpace(SpaceContract):
    def make_space(self):
        return CellSpace(3, in_channels=1, image_size=8, channels=4, num_cells=1)

    def make_input(self):
        return torch.randn(4, 1, 8, 8)


def mlp(space, **changes):
    values = {
        "depth": 2, "width_1": 32, "width_2": 64, "width_3": 128, "width_4": 16,
        "activation": "relu", "residual": False, "layer_norm": False, **changes,
    }  # fmt: skip
    return space.from_parameters(values)


def test_choices_about_absent_layers_do_not_count():
    space = MLPSpace(8, 2)
    assert mlp(space, width_3=16) == mlp(space, width_3=256)
    assert mlp(space, depth=1, residual=True) == mlp(space, depth=1, residual=False)


@pytest.mark.parametrize(
    "change",
    [{"depth": 3}, {"width_1": 64}, {"width_2": 16}, {"activation": "tanh"}, {"residual": True}],
)
def test_choices_that_matter_change_architecture_and_encoding(change):
    space = MLPSpace(8, 2)
    plain, changed = mlp(space), mlp(space, **change)
    assert plain != changed
    assert not torch.equal(space.encode(plain), space.encode(changed))


def test_all_members_of_a_small_space_encode_differently():
    """2 + 4 networks of one or two layers, times 2 activations and residual for two layers."""
    space = MLPSpace(4, 2, depth=(1, 2), widths=(8, 16), activations=("relu", "tanh"))
    generator = Generator().manual_seed(0)
    members = {space.random(generator) for _ in range(500)}
    assert len(members) == 2 * 2 + 4 * 2 * 2
    assert len({tuple(space.encode(member).tolist()) for member in members}) == len(members)


def test_mlp_layers_in_order():
    network = MLPSpace(5, 3).network([32, 16], "silu", residual=True, layer_norm=True)
    operations = [node.operation for node in network.nodes]
    block = ["linear", "layer_norm", "silu"]
    assert operations == ["input", *block, *block, "projection", "sum", "linear"]
    assert network.depth == 3
    parameters = (5 * 32 + 32) + 64 + (32 * 16 + 16) + 32 + 32 * 16 + (16 * 3 + 3)
    assert network.num_parameters == parameters


def test_hourglass_layers_in_order():
    space = MLPSpace(5, 3, hourglass=True)
    network = space.network([32, 16], "silu", residual=True, hourglass=True)
    operations = [node.operation for node in network.nodes]
    block = ["linear", "silu", "linear", "silu"]
    assert operations == ["input", *block, *block, "projection", "sum", "linear"]
    waists = (5 * 8 + 8) + (8 * 32 + 32) + (32 * 4 + 4) + (4 * 16 + 16)
    assert network.num_parameters == waists + 32 * 16 + (16 * 3 + 3)
    assert "hourglass" not in MLPSpace(5, 3).parameters()


def test_an_hourglass_that_is_also_a_plain_network_has_one_reading():
    space = MLPSpace(4, 2, widths=(8, 32), hourglass=(False, True))
    plain, hourglass = space.network([8, 32], "relu"), space.network([32], "relu", hourglass=True)
    assert plain == hourglass
    assert space.to_parameters(plain) == space.to_parameters(hourglass)
    only = MLPSpace(4, 2, depth=(1, 1), widths=(8, 32), hourglass=(False, True))
    assert only.to_parameters(hourglass)["hourglass"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": (0, 2)}, "depth"),
        ({"depth": (3, 2)}, "depth"),
        ({"widths": ()}, "widths"),
        ({"activations": ("swish",)}, "activations"),
        ({"residual": ()}, "residual"),
    ],
)
def test_impossible_mlp_spaces(options, message):
    with pytest.raises(ValueError, match=message):
        MLPSpace(4, 2, **options)


def test_missing_and_foreign_parameters():
    space = MLPSpace(4, 2)
    with pytest.raises(ValueError, match="'width_1' must be one of"):
        mlp(space, width_1=17)
    with pytest.raises(ValueError, match="'depth'.*missing"):
        space.from_parameters({})
    with pytest.raises(ValueError, match="not a multilayer perceptron of this space"):
        space.to_parameters(MLPSpace(5, 2).network([16], "relu"))


def test_cell_strings_round_trip():
    space = CellSpace()
    generator = Generator().manual_seed(0)
    for _ in range(30):
        architecture = space.random(generator)
        text = space.to_string(architecture)
        assert space.from_string(text) == architecture
    assert space.to_string(space.from_string(CELL)) == CELL


def test_cell_string_puts_operations_on_their_edges():
    space = CellSpace()
    text = "|none~0|+|skip_connect~0|nor_conv_1x1~1|+|nor_conv_3x3~0|avg_pool_3x3~1|none~2|"
    assert space.to_parameters(space.from_string(text)) == {
        "edge_0_1": "none",
        "edge_0_2": "skip_connect",
        "edge_1_2": "nor_conv_1x1",
        "edge_0_3": "nor_conv_3x3",
        "edge_1_3": "avg_pool_3x3",
        "edge_2_3": "none",
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "|none~0|",
        CELL.replace("~2", "~1"),
        CELL + "+|none~0|",
        "none~0+none~0+none~0",
    ],
)
def test_malformed_cell_strings(text):
    with pytest.raises(ValueError, match=r"A cell has the form \|op~0\|\+"):
        CellSpace().from_string(text)


def test_unknown_cell_operation():
    with pytest.raises(ValueError, match="must be one of.*got 'conv_5x5'"):
        CellSpace().from_string(CELL.replace("skip_connect", "conv_5x5"))


def test_sizes_of_nas_bench_201():
    """1.531546 M parameters and 220.11969 M multiplications for the cell of all 3x3 convolutions
    are the benchmark's own figures for CIFAR-10 (Dong & Yang 2020, largest entry)."""
    architecture = CellSpace().from_string(ALL_3X3)
    assert architecture.num_parameters == 1_531_546
    assert architecture.flops / 2 == pytest.approx(220.11969e6, rel=1e-6)
    removed = 5 * sum(9 * c * c + 2 * c for c in (16, 32, 64))
    assert CellSpace().from_string(CELL).num_parameters == 1_531_546 - removed


def test_cells_that_differ_in_dead_edges_encode_alike():
    """With edge 2 -> 3 absent nothing that enters node 2 is used."""
    space = CellSpace()
    form = "|skip_connect~0|+|{}~0|{}~1|+|nor_conv_3x3~0|skip_connect~1|none~2|"
    first = space.from_string(form.format("nor_conv_3x3", "none"))
    second = space.from_string(form.format("none", "avg_pool_3x3"))
    assert first != second
    assert torch.equal(space.encode(first), space.encode(second))
    live = space.from_string(
        form.replace("none~2", "skip_connect~2").format("none", "avg_pool_3x3")
    )
    assert not torch.equal(space.encode(first), space.encode(live))


def test_a_cell_without_a_path_is_encoded_as_nothing():
    space = CellSpace()
    unreached = "|none~0|+|none~0|nor_conv_3x3~1|+|none~0|nor_conv_3x3~1|nor_conv_3x3~2|"
    nothing = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
    codes = [space.encode(space.from_string(text)) for text in (unreached, nothing)]
    assert torch.equal(codes[0], codes[1])


def test_impossible_cell_space():
    with pytest.raises(ValueError, match="divisible by 4"):
        CellSpace(image_size=30)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (lambda: MLPSpace("a", 10), "in_features must be a whole number"),
        (lambda: MLPSpace(64.5, 10), "in_features must be a whole number"),
        (lambda: MLPSpace(64, 10, depth=3), "depth must be a sequence"),
        (lambda: MLPSpace(64, 10, widths=[1.5]), "widths must be a sequence of one or more whole"),
        (lambda: MLPSpace(64, 10, activations="relu"), "activations must be a sequence"),
        (lambda: CellSpace(2.5), "num_classes must be a whole number"),
        (lambda: CellSpace(image_size=6), "divisible by 4"),
        (lambda: ResNetSpace(kernels=(2, 3)), "kernels must be odd"),
        (lambda: ResNetSpace(widths=(0,)), "widths must be a sequence"),
        (lambda: TransformerSpace(4, 4, 4, widths=16), "widths must be a sequence"),
        (lambda: Einspace((9, 4), 0), "out_features must be a whole number"),
        (lambda: Einspace((3, 8, 8), 4, widths=(0,)), "widths must be a sequence"),
        (lambda: Einspace(64, 10), "input_shape must be a sequence"),
    ],
)
def test_impossible_choices(space, message):
    with pytest.raises(ValueError, match=message):
        space()
