"""A covariance matrix that is computed only when more than its diagonal is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from linear_operator.operators import LinearOperator
from linear_operator.utils.memoize import cached
from torch import Tensor

__all__ = ["DeferredCovariance"]


class DeferredCovariance(LinearOperator):
    """A covariance whose diagonal is known and whose other entries are computed when asked for.

    Args:
        variance: The diagonal, `[..., q]`.
        covariance: Gives the whole, `[..., q, q]`; called once, in the gradient mode of now.
    """

    def __init__(self, variance: Tensor, *, covariance: Callable[[], LinearOperator]) -> None:
        super().__init__(variance, covariance=covariance)
        self._variance = variance
        self._covariance = covariance
        self._with_gradient = torch.is_grad_enabled()

    @cached
    def evaluate_kernel(self) -> LinearOperator:
        with torch.set_grad_enabled(self._with_gradient):
            return self._covariance()

    def to_dense(self) -> Tensor:
        return self.evaluate_kernel().to_dense()

    def representation(self) -> tuple[Tensor, ...]:
        return self.evaluate_kernel().representation()

    def representation_tree(self) -> Any:
        return self.evaluate_kernel().representation_tree()

    def _diagonal(self) -> Tensor:
        return self._variance

    def _size(self) -> torch.Size:
        return torch.Size([*self._variance.shape, self._variance.shape[-1]])

    def _matmul(self, rhs: Tensor) -> Tensor:
        return self.evaluate_kernel()._matmul(rhs)

    def _transpose_nonbatch(self) -> DeferredCovariance:
        return self

    def _getitem(self, row_index: Any, col_index: Any, *batch_indices: Any) -> LinearOperator:
        if slice(None) == row_index == col_index:
            index = (*batch_indices, row_index)
            return self._of_batch(self._variance[index], lambda whole: whole[*index, col_index])
        return self.evaluate_kernel()._getitem(row_index, col_index, *batch_indices)

    def _get_indices(self, row_index: Any, col_index: Any, *batch_indices: Any) -> Tensor:
        return self.evaluate_kernel()._get_indices(row_index, col_index, *batch_indices)

    def _expand_batch(self, batch_shape: torch.Size) -> DeferredCovariance:
        variance = self._variance.expand(*batch_shape, self.shape[-1])
        return self._of_batch(variance, lambda whole: whole._expand_batch(batch_shape))

    def _unsqueeze_batch(self, dim: int) -> DeferredCovariance:
        variance = self._variance.unsqueeze(dim)
        return self._of_batch(variance, lambda whole: whole._unsqueeze_batch(dim))

    def _permute_batch(self, *dims: int) -> DeferredCovariance:
        variance = self._variance.permute(*dims, -1)
        return self._of_batch(variance, lambda whole: whole._permute_batch(*dims))

    def _of_batch(
        self, variance: Tensor, part: Callable[[LinearOperator], LinearOperator]
    ) -> DeferredCovariance:
        """The same of other batch dimensions, still deferred."""
        return DeferredCovariance(variance, covariance=lambda: part(self.evaluate_kernel()))
