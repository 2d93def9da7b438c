"""The evidence lower bound of all rows at fixed hyperparameters, in blocks of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bayes.variational.coupled_means import CoupledRows, coupled_means
from bayes.variational.laws import Law
from bayes.variational.projection import Projection
from bayes.variational.whitened_gaussian import Factorised, WhitenedGaussian, target

__all__ = ["Bound", "rows_at_once"]

# Numbers of projections that are kept, and of one block of rows.
_KEPT, _BLOCK = 2**26, 2**23


def rows_at_once(points: int, law: Law) -> int:
    """Rows of a block, for M inducing points and the nodes of a law."""
    return max(64, _BLOCK // max(points, law.num_nodes * law.num_functions))


class Bound:
    """The bound as a function of q(v), and where its natural gradient points.

    Args:
        law: The likelihood.
        Y: Outcomes on the model's scale, `[n, m]`.
        points: M.
        rows: Gives the projection of a slice of the rows.
        weights: Of the rows' log likelihoods, `[n, 1]`; equal if None.
    """

    def __init__(
        self,
        law: Law,
        Y: Tensor,
        points: int,
        rows: Callable[[slice], Projection],
        weights: Tensor | None = None,
    ) -> None:
        self.law = law
        self.Y = Y.double()
        self._weights = None if weights is None else weights[:, 0].double()
        self.points = points
        self._rows = rows
        self._few = len(Y) * points <= _KEPT
        self._kept: list[tuple[slice, Projection]] | None = None
        with torch.no_grad():
            self.inverse_scale = float(law.inverse_scale())

    def _blocks(self) -> Iterator[tuple[slice, Projection]]:
        if self._kept is not None:
            yield from self._kept
            return
        n = len(self.Y)
        size = rows_at_once(self.points, self.law)
        kept: list[tuple[slice, Projection]] | None = [] if self._few else None
        for start in range(0, n, size):
            part = slice(start, min(start + size, n))
            with torch.no_grad():
                rows = self._rows(part)
            if kept is not None:
                kept.append((part, rows))
            yield part, rows
        self._kept = kept

    def __call__(self, at: Factorised) -> tuple[float, WhitenedGaussian]:
        """The bound in nats, and the q to step towards: along the natural gradient, with the means
        of functions that a row couples where Newton's method has them."""
        ahead = WhitenedGaussian.prior(at.mean.shape, at.mean.device)
        linear, precision = ahead.linear, ahead.precision
        total = -float(at.divergence(self.inverse_scale))
        coupled: list[CoupledRows] = []
        for part, rows in self._blocks():
            with torch.no_grad():
                mean, variance = at.marginals(rows)
            weights = 1.0 if self._weights is None else self._weights[part]
            found = self.law.slopes(self.Y[part], mean, variance, weights)
            total += float(found.value)
            more = target(rows, mean, found.mean, found.variance)
            linear, precision = linear + more[0], precision + more[1]
            if found.coupling is not None and self._few:
                coupled.append(CoupledRows(rows.weights, found.mean, found.coupling))
        if coupled:
            r = self.inverse_scale
            mean = coupled_means(at.mean, precision, r, coupled)
            linear = (precision @ mean.unsqueeze(-1)).squeeze(-1) + (r - 1) * mean
        return total, WhitenedGaussian(linear, precision)
