"""Search spaces: sets of architectures that a sampler can draw from, walk through and encode."""

from nas.spaces.cell import CellSpace
from nas.spaces.mlp import MLPSpace
from nas.spaces.space import FlatSpace, Space

__all__ = ["CellSpace", "FlatSpace", "MLPSpace", "Space"]
