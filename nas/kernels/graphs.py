"""Kernels between architectures, by their number in a table.

The number is a coordinate of X like any other, so every BoTorch acquisition function works on
graphs.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from gpytorch.kernels import Kernel
from gpytorch.priors import LogNormalPrior
from torch import Tensor

from nas.kernels.learnt import learn_positive, learn_weights
from nas.kernels.table import ArchitectureTable

__all__ = ["CodeKernel", "DescriptorKernel", "LinearKernel", "WeisfeilerLehmanKernel"]

AT_ONCE = 1 << 16  # entries


class LookupKernel(Kernel):
    """A kernel of the column of numbers of a table."""

    has_lengthscale = False

    def __init__(self, table: ArchitectureTable, **options: Any) -> None:
        super().__init__(**options)
        self.table = table

    @property
    def is_stationary(self) -> bool:
        """Differences of numbers mean nothing."""
        return False

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Kernel between `x1` `[..., n1, 1]` and `x2` `[..., n2, 1]`: `[..., n1, n2]`."""
        one, two = x1[..., 0].round().long(), x2[..., 0].round().long()
        if diag:
            one, two = torch.broadcast_tensors(one, two)
            return self._pairs(one.flatten(), two.flatten(), x1).unflatten(0, one.shape)
        if one.dim() == two.dim() == 1:
            return self._block(one, two, x1)
        # Batches share most numbers: each pair of different ones is computed once, unless there
        # are more of them than entries.
        rows, places = one.unique(return_inverse=True)
        columns, others = two.unique(return_inverse=True)
        first, second = torch.broadcast_tensors(one[..., :, None], two[..., None, :])
        if first.numel() < len(rows) * len(columns):
            return self._pairs(first.flatten(), second.flatten(), x1).unflatten(0, first.shape)
        return self._block(rows, columns, x1)[places[..., :, None], others[..., None, :]]

    def _block(self, one: Tensor, two: Tensor, like: Tensor) -> Tensor:
        """The kernel between numbers `[n1]` and `[n2]`, `[n1, n2]` as `like`."""
        raise NotImplementedError

    def _pairs(self, one: Tensor, two: Tensor, like: Tensor) -> Tensor:
        """The kernel of pairs of numbers `[n]`, `[n]` as `like`."""
        raise NotImplementedError


class WeisfeilerLehmanKernel(LookupKernel):
    """exp(-(1 - k) / l), k the average of the levels of a table by learnt weights.

    k counts motifs that two graphs share, normalised to 1 on the diagonal: exp of it has products
    of motifs too, as an RBF kernel on the counts has, and tends to 1 + (k - 1) / l for large l.
    The weights are a softmax, so depth is learnt with them: a level without use gets little weight.

    Args:
        table: Of the architectures whose numbers X holds.
        linear: k itself, without the exponential.
        active_dims: Which column holds the number.
    """

    def __init__(
        self, table: ArchitectureTable, *, linear: bool = False, active_dims: Any = None
    ) -> None:
        super().__init__(table, active_dims=active_dims)
        self.linear = linear
        learn_weights(self, len(table.levels))
        if not linear:
            learn_positive(self, "length", LogNormalPrior(-1.0, 1.0), start=0.3)

    @property
    def weights(self) -> Tensor:
        """Of the levels, `[levels]`, with sum 1."""
        return self.raw_weights.softmax(-1)

    @property
    def length(self) -> Tensor:
        """Distance 1 - k over which functions change, `[1]`."""
        return self.raw_length_constraint.transform(self.raw_length)

    def _block(self, one: Tensor, two: Tensor, like: Tensor) -> Tensor:
        return self._of_levels(self.table.gram(one, two).to(like))

    def _pairs(self, one: Tensor, two: Tensor, like: Tensor) -> Tensor:
        return self._of_levels(self.table.pairs(one, two).to(like))

    def _of_levels(self, levels: Tensor) -> Tensor:
        value = torch.tensordot(self.weights.to(levels), levels, 1)
        return value if self.linear else ((value - 1) / self.length.to(levels)).exp()


class DescriptorKernel(LookupKernel):
    """A weighted sum of Matern-5/2 kernels, one for each descriptor.

    Descriptors are log parameters, log FLOPs, depth and log counts of operations, see
    `ArchitectureTable.descriptors`.

    Args:
        table: Of the architectures whose numbers X holds.
        active_dims: Which column holds the number.
    """

    def __init__(self, table: ArchitectureTable, *, active_dims: Any = None) -> None:
        super().__init__(table, active_dims=active_dims)
        number = table.descriptors().shape[-1]
        learn_weights(self, number)
        learn_positive(self, "lengths", LogNormalPrior(0.5, 0.7), start=1.0, size=number)

    @property
    def weights(self) -> Tensor:
        """Of the descriptors, `[d]`, with sum 1."""
        return self.raw_weights.softmax(-1)

    @property
    def lengths(self) -> Tensor:
        """Length scales in deviations of each descriptor, `[d]`."""
        return self.raw_lengths_constraint.transform(self.raw_lengths)

    def _block(self, one: Tensor, two: Tensor, like: Tensor) -> Tensor:
        rows = self._rows(like)
        return self._of_rows(rows[one][:, None], rows[two])

    def _pairs(self, one: Tensor, two: Tensor, like: Tensor) -> Tensor:
        rows = self._rows(like)
        return self._of_rows(rows[one], rows[two])

    def _rows(self, like: Tensor) -> Tensor:
        return self.table.descriptors().to(like) / self.lengths.to(like) * 5**0.5

    def _of_rows(self, one: Tensor, two: Tensor) -> Tensor:
        if math.prod(torch.broadcast_shapes(one.shape, two.shape)) < AT_ONCE:
            distance = (one - two).abs()
            polynomial = torch.addcmul(1 + distance, distance, distance, value=1 / 3)
            return (polynomial * (-distance).exp()) @ self.weights.to(one)
        # One descriptor after another, as all of them at once would fill the memory.
        total = one.new_zeros(())
        for place, weight in enumerate(self.weights.to(one)):
            distance = (one[..., place] - two[..., place]).abs()
            polynomial = torch.addcmul(1 + distance, distance, distance, value=1 / 3)
            total = torch.addcmul(total, polynomial, weight * (-distance).exp())
        return total


class LinearKernel(LookupKernel):
    """The inner product of descriptors, divided by their number: a plane through the mean.

    Larger networks are better until they are not, so a trend is what few trials show first.

    Args:
        table: Of the architectures whose numbers X holds.
        active_dims: Which column holds the number.
    """

    def _block(self, one: Tensor, two: Tensor, like: Tensor) -> Tensor:
        rows = self._rows(like)
        return rows[one] @ rows[two].T

    def _pairs(self, one: Tensor, two: Tensor, like: Tensor) -> Tensor:
        rows = self._rows(like)
        return (rows[one] * rows[two]).sum(-1)

    def _rows(self, like: Tensor) -> Tensor:
        rows = self.table.descriptors().to(like)
        return rows / rows.shape[-1] ** 0.5


class CodeKernel(LookupKernel):
    """exp(-sum_j w_j |c_j - c'_j|) on the codes of a space, 0 where an architecture has none.

    In a flat space a choice has its place, such as the edge of a cell, which motifs and counts do
    not tell. Each choice has one weight, which its columns c_j share: for one-hot codes this is a
    kernel of the choices that differ.

    Args:
        table: Of the architectures whose numbers X holds.
        active_dims: Which column holds the number.
    """

    def __init__(self, table: ArchitectureTable, *, active_dims: Any = None) -> None:
        super().__init__(table, active_dims=active_dims)
        prior = LogNormalPrior(math.log(0.2), 1.0)
        learn_positive(self, "weights", prior, start=0.2, size=len(table.code_sizes))

    @property
    def weights(self) -> Tensor:
        """Of the choices, `[len(table.code_sizes)]`."""
        return self.raw_weights_constraint.transform(self.raw_weights)

    def _block(self, one: Tensor, two: Tensor, like: Tensor) -> Tensor:
        codes = self._rows(like)
        distance = torch.cdist(codes[one, 1:], codes[two, 1:], p=1.0)
        return codes[one, :1] * codes[two, :1].T * (-distance).exp()

    def _pairs(self, one: Tensor, two: Tensor, like: Tensor) -> Tensor:
        codes = self._rows(like)
        distance = (codes[one, 1:] - codes[two, 1:]).abs().sum(-1)
        return codes[one, 0] * codes[two, 0] * (-distance).exp()

    def _rows(self, like: Tensor) -> Tensor:
        sizes = torch.tensor(self.table.code_sizes, device=like.device)
        weights = self.weights.to(like).repeat_interleave(sizes)
        scale = torch.cat([like.new_ones(1), weights])
        return self.table.codes().to(like) * scale
