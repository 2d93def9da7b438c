"""Observations encoded by a network, which answer queries and grow by appended rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pfn.coverage import check_data, check_num_classes
from pfn.network import Encoding, Network
from pfn.observations import Observations
from pfn.queries import Queries

__all__ = ["EncodedObservations"]


@dataclass(frozen=True)
class EncodedObservations:
    """Data sets, and what a network made of them.

    Attributes:
        network: Encodes and decodes.
        data: In the user's units.
        num_classes: Number of possible classes; None for those of the data, and in regression.
        column_seed: See `PFN.condition`.
        encoding: Encoding of the flat data sets.
        num_appended: Rows of `data`, its last ones, that were appended to the encoded others.
    """

    network: Network
    data: Observations
    num_classes: int | None
    column_seed: int
    encoding: Encoding
    num_appended: int = 0

    @classmethod
    def together(
        cls, network: Network, data: Observations, num_classes: int | None, column_seed: int
    ) -> EncodedObservations:
        """All rows encoded together."""
        rows, targets, noise = data.flat()
        told = None if num_classes is None else targets.new_full((len(rows),), num_classes)
        encoding = network.encode(
            rows,
            targets,
            noise_var=noise,
            categorical=data.kinds(),
            num_classes=told,
            column_seed=column_seed,
        )
        return cls(network, data, num_classes, column_seed, encoding)

    def check(self, more: Observations) -> None:
        """Refuse further rows that the network cannot take."""
        check_data(self.network.architecture, self.network.coverage, more.X, more.Y, more.Yvar)
        check_num_classes(self.network.architecture, self.num_classes, more.Y)

    def extended(
        self, data: Observations, more: Observations, *, imagined: bool
    ) -> EncodedObservations:
        """With further rows `more`, after which the data are `data`.

        They are appended as long as no more rows are than in training, and the units of the
        encoded rows fit all of them; or, if they are only imagined, whether they fit or not, so
        that fantasies are smooth in X.
        """
        appended = self.num_appended + more.X.shape[-2]
        encoding = self.encoding.select(self.data.index(more.batch_shape, self.data.outputs))
        within = appended <= self.network.coverage.max_buffer
        if not within or not (imagined or self._fits(encoding, data)):
            return self.together(self.network, data, self.num_classes, self.column_seed)
        if data.Yvar is not None:
            more = replace(more, Yvar=more.known_or_nan())
        rows, targets, noise = more.flat()
        encoding = self.network.append(encoding, rows, targets, noise_var=noise)
        return replace(self, data=data, encoding=encoding, num_appended=appended)

    def of_outputs(self, outputs: list[int]) -> EncodedObservations:
        """Some outputs only; they are independent, so nothing else changes."""
        encoding = self.encoding.select(self.data.index(self.data.batch_shape, outputs))
        return replace(self, data=self.data.of_outputs(outputs), encoding=encoding)

    def logits(
        self, queries: Queries, noise: Tensor | None, *, noisy: bool, rows_at_once: int
    ) -> Tensor:
        """Logits `[B m, q, K]` of queries, by data set so that each is looked up once.

        Args:
            queries: Points to predict.
            noise: Known noise variances, `[B m, q]`, or None.
            noisy: Whether of y, or of the function where the network knows one.
            rows_at_once: Queries of a data set that go through the network together.
        """
        encoding = self.encoding
        if len(queries.outputs) != self.data.Y.shape[-1]:
            encoding = encoding.select(self.data.index(self.data.batch_shape, queries.outputs))
        rows = queries.by_data_set(queries.inputs())
        known = None if noise is None else queries.by_data_set(noise)
        parts = []
        for start in range(0, max(rows.shape[1], 1), rows_at_once):
            part = slice(start, start + rows_at_once)
            some = None if known is None else known[:, part]
            parts.append(
                self.network.decode_one(encoding, rows[:, part], noisy=noisy, noise_var=some)
            )
        return queries.from_data_sets(torch.cat(parts, dim=1))

    def units(self, outputs: list[int]) -> tuple[Tensor, Tensor]:
        """Location and scale of some outputs, `[*batch, 1, m]`."""
        shape = (*self.data.batch_shape, 1, self.data.Y.shape[-1])
        location, scale = self.encoding.location, self.encoding.scale
        return location.reshape(shape)[..., outputs], scale.reshape(shape)[..., outputs]

    def _fits(self, encoding: Encoding, data: Observations) -> bool:
        """Whether the units, and classes, of an encoding of some rows suit all of them."""
        rows, targets, _ = data.flat()
        if encoding.num_classes is not None and self.num_classes is None:
            if bool((targets.amax(-1) >= encoding.num_classes).any()):
                return False
        return self.network.still_fits(encoding, rows, targets)
