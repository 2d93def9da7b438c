"""Tensor programs: what a module computes, from which weights, in what order.

A value of a network is a *vector* at each of its *positions* (pixels, tokens, time steps): the
vector's width goes to infinity, the positions are finite and keep their shape. The nodes are

    Input, Function   finite: computed from the data point without any weight
    Features          a finite value as vectors at positions
    Linear            W h + b at every position, or a convolution; with the identity of W and b
    Embedding         a row of W for each token
    Nonlinear         a product of functions of jointly Gaussian vectors, unit by unit
    Combination       sum_k c_k h_k + offset: no term is itself a Combination
    BatchNormalise    the same over the batch; only in programs of whole batches
    Normalise         (h - mean) / sqrt(variance + eps) over the width
    Mix               a fixed linear map of the positions: pooling, graph aggregation
    Select            positions picked, repeated or reordered
    Join              the positions of several nodes, one after the other
    Zero              zero vectors, of padding
    Flatten           positions and width merged into one vector
    Concatenate       several vectors one after the other
    Dropout           a random mask
    Attention         values averaged over positions with weights from queries and keys

Everything that calls a layer again, in a loop or on another branch, appears as another node with
the same weight name; that is how weight tying is seen. Nodes refer to earlier ones by index and
hold no tensors of the module, so a program can be compared, copied and pickled.

A kind of node is one class. It answers all that building a program asks of it (`base`); what it
means in the infinite-width limit is registered beside the others in `priors.limits.kinds`.
"""

from priors.programs.nodes.base import (
    Array,
    Construction,
    Expansion,
    Finite,
    Hidden,
    Node,
    OneSource,
    Ref,
    SeveralSources,
    Shape,
    Span,
    is_gaussian,
)
from priors.programs.nodes.finite import Features, Function, Input
from priors.programs.nodes.positions import (
    Attention,
    Concatenate,
    Flatten,
    Join,
    Mix,
    Select,
    Zero,
)
from priors.programs.nodes.units import (
    BatchNormalise,
    Combination,
    Dropout,
    Factor,
    Nonlinear,
    Normalise,
)
from priors.programs.nodes.weights import Embedding, Linear, Weighted, Window

__all__ = [
    "Array",
    "Attention",
    "BatchNormalise",
    "Combination",
    "Concatenate",
    "Construction",
    "Dropout",
    "Embedding",
    "Expansion",
    "Factor",
    "Features",
    "Finite",
    "Flatten",
    "Function",
    "Hidden",
    "Input",
    "Join",
    "Linear",
    "Mix",
    "Node",
    "Nonlinear",
    "Normalise",
    "OneSource",
    "Ref",
    "Select",
    "SeveralSources",
    "Shape",
    "Span",
    "Weighted",
    "Window",
    "Zero",
    "is_gaussian",
]
