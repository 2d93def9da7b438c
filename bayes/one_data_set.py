"""What models of one data set `[n, d]` share that are no exact processes.

They take further rows without a batch, and keep what they were computed with in float64 whatever
the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from bayes.conditioning import check_observations
from bayes.transformed_model import TransformedModel
from priors.posteriors.transforms import check_range

__all__ = ["OneDataSet"]


class OneDataSet(TransformedModel):
    """Base of `VariationalProcess` and `WeightSpaceProcess`."""

    _doubles: ClassVar[Sequence[str]] = ()  # buffers that stay in float64

    @property
    def batch_shape(self) -> torch.Size:
        """Empty: one data set."""
        return torch.Size()

    def _check_further_rows(self, X: Tensor, Y: Tensor, like_X: Tensor, like_Y: Tensor) -> None:
        """Refuse further rows that do not fit those before, of which the last two are some."""
        owner = type(self).__name__
        check_observations(owner, X, Y, None, like_X, like_Y)
        if X.dim() != 2 or Y.dim() != 2:
            raise NotImplementedError(
                f"{owner} is conditioned on one set of rows [n, d], got X {tuple(X.shape)} and Y "
                f"{tuple(Y.shape)}; an exact GaussianProcess takes batches."
            )
        if self.outcome_transform is not None:
            check_range(self.outcome_transform.transform, Y)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for name in self._doubles:
            setattr(self, name, getattr(self, name).double())
        return self
