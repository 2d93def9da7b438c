"""Queries of a batch of data sets with several outputs, in the layout of a network.

A network sees plain batches `[B, q, d]`: every output of every data set is one of its own. A user
asks with any batch shape that broadcasts with that of the data sets, of some outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Queries", "which_encoding"]


@dataclass(frozen=True)
class Queries:
    """Queries, and what asks for them.

    Attributes:
        rows: `[*batch, q, d]`.
        outputs: Which outputs are asked for, m of them.
        data_sets: Batch shape of the data sets, which broadcasts to `batch`.
        num_outputs: Outputs of a data set.
    """

    rows: Tensor
    outputs: list[int]
    data_sets: torch.Size
    num_outputs: int

    @classmethod
    def of(
        cls, rows: Tensor, outputs: list[int], data_sets: torch.Size, num_outputs: int
    ) -> Queries:
        """Queries whose batch is broadcast with that of the data sets."""
        batch = torch.broadcast_shapes(rows.shape[:-2], data_sets)
        return cls(rows.expand(*batch, *rows.shape[-2:]), outputs, data_sets, num_outputs)

    @property
    def batch(self) -> torch.Size:
        """Batch shape of the queries."""
        return self.rows.shape[:-2]

    def index(self) -> Tensor:
        """Which encoding serves each of `[*batch, outputs]`, flat."""
        return which_encoding(
            self.data_sets, self.num_outputs, self.batch, self.outputs, self.rows.device
        )

    def inputs(self) -> Tensor:
        """Rows by output, `[B m, q, d]`."""
        q, d = self.rows.shape[-2:]
        m = len(self.outputs)
        return self.rows.unsqueeze(-3).expand(*self.batch, m, q, d).flatten(0, -3)

    def flatten(self, values: Tensor) -> Tensor:
        """[..., *batch, q, m] -> [... B m, q]."""
        return values.mT.flatten(0, -2)

    def restore(self, values: Tensor, lead: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """[lead B m, q, ...] -> [*lead, *batch, q, m, ...]."""
        values = values.reshape(*lead, *self.batch, len(self.outputs), *values.shape[1:])
        at = len(lead) + len(self.batch)
        return values.transpose(at, at + 1)

    def by_data_set(self, value: Tensor) -> Tensor:
        """[B m, q, ...] -> [data sets and outputs, queries of each, ...].

        So that each data set is looked up once.
        """
        order, shape, merged = self._layout()
        value = value.reshape(*shape, *value.shape[2:])
        value = value.permute(*order, *range(len(order), value.dim()))
        return value.reshape(*merged, *value.shape[len(order) :])

    def from_data_sets(self, logits: Tensor) -> Tensor:
        """Back to [B m, q, K]."""
        order, shape, _ = self._layout()
        logits = logits.reshape(*(shape[i] for i in order), logits.shape[-1])
        back = [order.index(i) for i in range(len(order))]
        return logits.permute(*back, -1).reshape(
            math.prod(shape[:-1]), *shape[-1:], *logits.shape[-1:]
        )

    def _layout(self) -> tuple[list[int], list[int], list[int]]:
        """Order of dimensions by data set, shape before, and shape with them merged.

        Dimensions along which queries share a data set, wherever they are, go to their rows.
        """
        batch, own = self.batch, self.data_sets
        aligned = (1,) * (len(batch) - len(own)) + tuple(own)
        shared = [i for i, size in enumerate(aligned) if size == 1]
        apart = [i for i, size in enumerate(aligned) if size != 1]
        order = [*apart, len(batch), *shared, len(batch) + 1]
        shape = [*batch, len(self.outputs), self.rows.shape[-2]]
        merged = [
            own.numel() * len(self.outputs),
            math.prod(shape[i] for i in [*shared, len(shape) - 1]),
        ]
        return order, shape, merged


def which_encoding(
    data_sets: torch.Size,
    num_outputs: int,
    batch: torch.Size,
    outputs: list[int],
    device: torch.device,
) -> Tensor:
    """Which encoded data set serves each of `[*batch, outputs]`, flat."""
    index = torch.arange(data_sets.numel() * num_outputs, device=device)
    index = index.reshape(*data_sets, num_outputs)
    return index[..., outputs].expand(*batch, len(outputs)).flatten()
