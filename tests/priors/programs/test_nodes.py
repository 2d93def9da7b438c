"""Each kind of node: what it is computed from, and how it is renumbered."""

import dataclasses

import pytest
import torch

from priors.gaussian.activations import ABReLU
from priors.programs import nodes
from priors.programs.nodes import Array, Factor, Ref, Span, is_gaussian

ROW = Array.of(torch.arange(2))
KINDS = [
    (nodes.Input((3,)), ()),
    (nodes.Function(torch.add, (Ref(1), (Ref(2), Ref(None))), (("out", Ref(3)),), (3,)), (1, 2, 3)),
    (nodes.Features(1, 0, ()), (1,)),
    (nodes.Linear(1, "w", "w", None, None, 3, None, ()), (1,)),
    (nodes.Linear(None, "w", "w", "b", "b", 3, None, ()), ()),
    (nodes.Embedding(1, "w", "w", None, (2,)), (1,)),
    (nodes.Nonlinear((Factor(ABReLU(), (1,), (("mean", 2),)),), ()), (1, 2)),
    (nodes.Combination(((1.0, 1), (2.0, 3)), 0.5, ()), (1, 3)),
    (nodes.Normalise(1, True, 1e-5, 0, ()), (1,)),
    (nodes.BatchNormalise(1, 1e-5, ()), (1,)),
    (nodes.Mix(1, (), ROW, (2,)), (1,)),
    (nodes.Select(1, ROW, (2,)), (1,)),
    (nodes.Join((1, 2), (2,)), (1, 2)),
    (nodes.Zero((2,)), ()),
    (nodes.Flatten(1, ROW, ()), (1,)),
    (nodes.Concatenate((1, 2), (3, 4), ()), (1, 2)),
    (nodes.Dropout(1, 0.5, False, 1, ()), (1,)),
    (nodes.Attention(1, 2, 3, 1.0, True, True, None, (2,)), (1, 2, 3)),
]


@pytest.mark.parametrize(("node", "inputs"), KINDS, ids=lambda case: type(case).__name__)
def test_inputs_follow_renumbering(node, inputs):
    assert node.inputs == inputs
    places = {1: 11, 2: 12, 3: 13}
    moved = node.renumbered(places)
    assert moved.inputs == tuple(places[i] for i in inputs)
    assert moved.renumbered({new: old for old, new in places.items()}) == node
    kept = {f.name for f in dataclasses.fields(node)} & {"positions", "shape", "weight", "sizes"}
    assert all(getattr(moved, name) == getattr(node, name) for name in kept)


def test_slices_among_arguments_are_renumbered():
    node = nodes.Function(torch.select, (Ref(1), Span(Ref(2), None, 1)), (), (3,))
    assert node.renumbered({1: 4, 2: 5}).arguments == (Ref(4), Span(Ref(5), None, 1))


def test_gaussian_nodes():
    linear = nodes.Linear(None, "w", "w", "b", "b", 3, None, ())
    relu = nodes.Nonlinear((Factor(ABReLU(), (0,)),), ())
    program = [
        linear,
        relu,
        nodes.Combination(((2.0, 0),), 0.0, ()),
        nodes.Combination(((2.0, 0),), 1.0, ()),
        nodes.Combination(((2.0, 0), (1.0, 1)), 0.0, ()),
        nodes.Join((0, 2), (2,)),
        nodes.Join((0, 1), (2,)),
        nodes.Dropout(0, 0.5, False, 1, ()),
        nodes.Normalise(0, True, 1e-5, 0, ()),
    ]
    found = [is_gaussian(program, i) for i in range(len(program))]
    assert found == [True, False, True, False, False, True, False, False, True]
