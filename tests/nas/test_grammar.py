"""Grammars: what they derive builds, probabilities add up, edits stay inside."""

import math
from collections import Counter

import pytest
import torch
from torch import Generator

from nas import Architecture, Node
from nas.spaces import (
    Einspace,
    Grammar,
    ResNetSpace,
    TransformerSpace,
    branches,
    cell,
    copies,
    op,
    residual,
    sequence,
)
from nas.testing import SpaceContract

RESNET = ResNetSpace(
    4, in_channels=1, image_size=8, widths=(4, 8), num_stages=2, max_blocks=2, kernels=(3,)
)
TRANSFORMER = TransformerSpace(5, 3, 2, total_heads=4, widths=(4, 8), feedforward=(4, 8))
EINSPACE = Einspace((1, 8, 8), 10, widths=(4, 8), patches=(4,), max_choices=12)
SPACES = {"resnet": RESNET, "transformer": TRANSFORMER, "einspace": EINSPACE}


def generator(seed=0):
    return Generator().manual_seed(seed)


def small():
    """Chains of at most three layers of two widths, some of them residual: shapes decide."""
    return Grammar(
        (4,),
        {
            "network": sequence("body", op("linear", out_features=2)),
            "body": ["layer", (0.5, sequence("layer", "body"))],
            "layer": [
                op("linear", out_features=4),
                (2.0, op("linear", out_features=6)),
                residual(op("tanh"), op("linear", out_features=4)),
            ],
        },
        output_shape=(2,),
        max_depth=5,
    )


class TestSmall(SpaceContract):
    def make_space(self):
        return small()

    def make_input(self):
        return torch.randn(3, 4)


class TestTransformerSpace(SpaceContract):
    num_draws = 6

    def make_space(self):
        return TRANSFORMER

    def make_input(self):
        return torch.randn(2, 5, 3)


@pytest.mark.slow
class TestResNetSpace(SpaceContract):
    num_draws = 5

    def make_space(self):
        return RESNET

    def make_input(self):
        return torch.randn(2, 1, 8, 8)


@pytest.mark.slow
class TestEinspace(SpaceContract):
    num_draws = 8

    def make_space(self):
        return EINSPACE

    def make_input(self):
        return torch.randn(2, 1, 8, 8)


def run(space, architecture):
    x = torch.randn(2, *space.input_shape)
    with torch.no_grad():
        y = architecture.build()(x)
        one = architecture.build().eval()(x[:1])
    assert y.shape == (2, *space.output_shape)
    assert one.shape[1:] == y.shape[1:] == architecture.output_shape
    assert architecture.flops >= 0


def test_images_of_one_number_are_normalised():
    """As behind patches of the size of the image and one channel."""
    grammar = {"network": sequence(op("norm"), op("flatten"), op("linear", out_features=2))}
    run(space := Grammar((1, 1, 1), grammar, output_shape=(2,)), space.random(generator()))


@pytest.mark.parametrize("name", SPACES)
def test_derivations_build_and_run(name):
    for seed in range(4):
        run(SPACES[name], SPACES[name].random(generator(seed)))


@pytest.mark.slow
@pytest.mark.parametrize("name", SPACES)
def test_derivations_of_200_seeds_build_and_run(name):
    for seed in range(200):
        run(SPACES[name], SPACES[name].random(generator(seed)))


@pytest.mark.slow
def test_derivations_of_the_whole_einspace_build_and_run():
    space = Einspace((1, 8, 8), 10)
    for seed in range(200):
        run(space, space.random(generator(seed)))


def test_probabilities_of_derivations_sum_to_one():
    """Every derivation, listed; sums behind a width of 6 are not among them."""
    space = small()
    every = space.derivations(100)
    assert len(every) == len({a.derivation for a in every})
    assert math.fsum(math.exp(space.log_probability(a)) for a in every) == pytest.approx(1, 1e-12)
    assert space.derivations(len(every) - 1) is None
    for architecture in every:
        run(space, architecture)


def test_draws_have_the_probabilities_that_are_told():
    """Of the eight likeliest derivations within four standard errors."""
    space, source, num = small(), generator(3), 1000
    found = Counter(space.random(source).derivation for _ in range(num))
    every = sorted(space.derivations(100), key=space.log_probability)[-8:]
    for architecture in every:
        p = math.exp(space.log_probability(architecture))
        error = math.sqrt(p * (1 - p) / num)
        assert abs(found[architecture.derivation] / num - p) < 4 * error


def test_probability_of_a_derivation_by_hand():
    """One layer of width 6: 1 / 1.5 for one layer, 2 of 4 for the width."""
    space = small()
    one = next(a for a in space.derivations(100) if len(a.nodes) == 3 and a.num_parameters == 44)
    assert space.log_probability(one) == pytest.approx(math.log(1 / 1.5 * 2 / 4))


def test_only_options_that_can_be_completed_are_taken():
    """Behind a width of 6 the sum of 6 and 4 features has no place."""
    space = small()
    for architecture in space.derivations(100):
        widths = [dict(n.arguments).get("out_features") for n in architecture.nodes]
        for node in architecture.nodes:
            if node.operation == "sum":
                assert widths[node.inputs[0]] in (4, None)


@pytest.mark.fast_for("small", "einspace")
@pytest.mark.parametrize("name", [*SPACES, "small"])
def test_edits_stay_in_the_space_and_change_something(name):
    space = {**SPACES, "small": small()}[name]
    source = generator(1)
    changed = 0
    for _ in range(8):
        one, two = space.random(source), space.random(source)
        mutated, crossed = space.mutate(one, source), space.crossover(one, two, source)
        for architecture in (mutated, crossed):
            assert architecture in space
            assert architecture.output_shape == space.output_shape
        changed += mutated != one
    assert changed >= 5


def test_what_stands_beside_a_mutated_subtree_is_kept():
    space = Grammar(
        (4,),
        {
            "network": sequence(*["layer"] * 6, op("linear", out_features=2)),
            "layer": [op("linear", out_features=4), op("relu"), op("tanh")],
        },
    )
    one = space.random(generator(0))
    for seed in range(10):
        other = space.mutate(one, generator(seed))
        differing = [a != b for a, b in zip(one.derivation, other.derivation, strict=True)]
        assert sum(differing) == 1


def test_crossover_takes_a_subtree_of_the_other():
    space = Grammar(
        (4,),
        {
            "network": sequence("left", "right"),
            "left": [sequence("layer", "layer", "layer")],
            "right": [sequence("layer", "layer", "layer")],
            "layer": [op("relu"), op("tanh")],
        },
    )
    relu, tanh = space.from_options([0, 0, 0, 0, 0, 0, 0, 0, 0]), None
    tanh = space.from_options([0, 0, 1, 1, 1, 0, 1, 1, 1])
    counts = set()
    for seed in range(30):
        child = space.crossover(relu, tanh, generator(seed))
        counts.add(child.operation_counts().get("tanh", 0))
    assert counts == {1, 3}


def test_a_derivation_survives_json_and_pickle_of_its_space():
    import pickle

    space = small()
    one = space.random(generator(0))
    again = Architecture.from_json(one.to_json())
    assert again.derivation == one.derivation
    assert again in pickle.loads(pickle.dumps(space))
    assert Architecture(one.nodes) not in space  # does not say how it is derived
    wrong = Architecture(one.nodes, (1, 1, 1))
    assert wrong not in space


def test_copies_are_derived_alike_with_weights_of_their_own():
    layer = [op("linear", out_features=3), op("linear", out_features=5)]
    join = op("concatenate", dim=1)
    space = Grammar((8,), {"network": branches(copies("layer", 4), join=join), "layer": layer})
    assert len(space.derivations(10)) == 2
    first = space.from_options([0, 0])
    assert first.output_shape == (12,)
    assert first.num_parameters == 4 * (8 * 3 + 3)
    split = Grammar(
        (8,), {"network": branches(copies("layer", 4), join=join, split=1), "layer": layer}
    )
    x = torch.randn(2, 8)
    network = split.from_options([0, 1]).build()
    linear = [layer for layer in network.layers if isinstance(layer, torch.nn.Linear)]
    expected = torch.cat([f(x[:, 2 * i : 2 * i + 2]) for i, f in enumerate(linear)], 1)
    torch.testing.assert_close(network(x), expected)


def test_nested_copies_are_bounded():
    rules = {
        "network": "part",
        "part": [op("relu"), (9.0, branches(copies("part", 4)))],
    }
    space = Grammar((3,), rules, max_copies=16)
    sizes = [space.random(generator(s)).operation_counts().get("relu", 0) for s in range(20)]
    assert max(sizes) == 16


def test_cells_of_ones_own():
    body = Architecture(
        (Node.of("input"), Node.of("linear", 0, out_features=4), Node.of("sum", 0, 1))
    )
    space = Grammar((4,), {"network": [cell(body, count) for count in (1, 2)]})
    counts = {a.num_parameters for a in space.derivations(5)}
    assert counts == {20, 40}


def test_transformers_have_their_total_of_heads():
    for seed in range(6):
        nodes = TRANSFORMER.random(generator(seed)).nodes
        heads = [dict(n.arguments)["heads"] for n in nodes if n.operation == "attention"]
        assert sum(heads) == 4
        assert len(set(heads)) == 1


def test_attention_against_torch():
    ours = Architecture((Architecture.input((5, 8)), Node.of("attention", 0, heads=2))).build()
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    attention = ours.layers[0]
    with torch.no_grad():
        theirs.in_proj_weight.copy_(attention.incoming.weight)
        theirs.in_proj_bias.copy_(attention.incoming.bias)
        theirs.out_proj.load_state_dict(attention.outgoing.state_dict())
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0])


def test_patches_and_back():
    """Patches of one pixel are a sequence of the pixels; those of 3 make a convolution."""
    nodes = [Architecture.input((2, 4, 4)), Node.of("to_patches", 0, kernel=1, stride=1)]
    image = Architecture((*nodes, Node.of("to_image", 1))).build()
    x = torch.randn(3, 2, 4, 4)
    torch.testing.assert_close(image(x), x)
    nodes[1] = Node.of("to_patches", 0, kernel=3, stride=1)
    linear = Node.of("pointwise", 1, out_features=5)
    network = Architecture((*nodes, linear, Node.of("to_image", 2))).build()
    weight, bias = network.layers[1].weight, network.layers[1].bias
    expected = torch.nn.functional.conv2d(x, weight.view(5, 2, 3, 3), bias, padding=1)
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({}, "at least one rule"),
        ({"network": "layer"}, "names 'layer', for which there is no rule"),
        ({"network": op("convolve")}, "unknown operation 'convolve'"),
        ({"network": [(0.0, op("relu"))]}, "weight of 'network' must be positive"),
        ({"network": []}, "has no option"),
        ({"network": sequence("network", op("relu"))}, "never end"),
        ({"network": op("attention", heads=2)}, "No network can be derived"),
    ],
)
def test_impossible_grammars(rules, message):
    with pytest.raises(ValueError, match=message):
        Grammar((4,), rules)


def test_options_that_are_no_derivation():
    with pytest.raises(ValueError, match="is not a derivation"):
        small().from_options([0, 7])
    with pytest.raises(ValueError, match="carries no derivation"):
        small().log_probability(Architecture((Architecture.input((4,)), Node.of("relu", 0))))
