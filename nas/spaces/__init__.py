"""Search spaces: sets of architectures that a sampler can draw from, walk through and encode."""

from nas.spaces.cell import CellSpace
from nas.spaces.einspace import Einspace
from nas.spaces.expressions import branches, cell, copies, op, residual, routing, sequence
from nas.spaces.grammar import Grammar
from nas.spaces.mlp import MLPSpace
from nas.spaces.resnet import ResNetSpace
from nas.spaces.space import FlatSpace, Space
from nas.spaces.transformer import TransformerSpace

__all__ = [
    "CellSpace",
    "Einspace",
    "FlatSpace",
    "Grammar",
    "MLPSpace",
    "ResNetSpace",
    "Space",
    "TransformerSpace",
    "branches",
    "cell",
    "copies",
    "op",
    "residual",
    "routing",
    "sequence",
]
