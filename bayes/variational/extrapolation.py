"""Anderson's acceleration of natural gradient steps.

A step is x -> x + f(x) for the natural parameters x = (t, P) of q(v). Means and variances of a
likelihood that saturates feed each other, so that plain steps creep along a few directions. From
the last steps the combination is taken whose f is smallest (Walker & Ni 2011, SIAM J. Numer. Anal.
49(4), section 2), in the metric that q itself gives to its parameters: t as W't and P as W'PW, with
the covariance W W'.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bayes.variational.whitened_gaussian import WhitenedGaussian

__all__ = ["Extrapolation"]

_DEPTH = 6


class Extrapolation:
    """The last natural parameters and the steps from there."""

    def __init__(self) -> None:
        self._points: list[WhitenedGaussian] = []
        self._steps: list[WhitenedGaussian] = []

    def __call__(
        self, q: WhitenedGaussian, ahead: WhitenedGaussian, half: Tensor
    ) -> WhitenedGaussian | None:
        """Where the steps so far seem to lead; None from the first one.

        Args:
            q: The present one.
            ahead: What a whole step from there leads to.
            half: W of the present one, `[k, M, M]`.
        """
        step = ahead.plus(q, -1)
        self._points = [*self._points[-_DEPTH:], q]
        self._steps = [*self._steps[-_DEPTH:], step]
        if len(self._steps) < 2:
            return None
        moved, changed = (
            [new.plus(old, -1) for old, new in zip(some[:-1], some[1:], strict=True)]
            for some in (self._points, self._steps)
        )
        columns = torch.stack([_coordinates(part, half) for part in changed], dim=1)
        size = columns.norm(dim=0).clamp_min(torch.finfo(columns.dtype).tiny)
        # by eigenvalues of a few numbers, so that directions that say the same do no harm
        values, vectors = torch.linalg.eigh((columns / size).mT @ (columns / size))
        along = (columns / size).mT @ _coordinates(step, half)
        kept = values > 1e-10 * values[-1]
        share = vectors[:, kept] @ ((vectors[:, kept].mT @ along) / values[kept]) / size
        found = ahead
        for part, of_step, weight in zip(moved, changed, share, strict=True):
            found = found.plus(part, -weight).plus(of_step, -weight)
        return found


def _coordinates(part: WhitenedGaussian, half: Tensor) -> Tensor:
    """A change of natural parameters in the metric of q, flat."""
    linear = half.mT @ part.linear.unsqueeze(-1)
    precision = half.mT @ part.precision @ half
    return torch.cat([linear.flatten(), precision.flatten() / 2**0.5])
