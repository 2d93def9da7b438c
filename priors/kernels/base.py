"""The base class of network kernels, infinite and finite ones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

__all__ = ["NetworkKernel"]


class NetworkKernel(Kernel):
    """Not stationary, not additive over features, and with a batch that is a copy's to change."""

    @property
    def is_stationary(self) -> bool:
        """Network kernels depend on more than the difference of their inputs."""
        return False

    def __getitem__(self, index: Any) -> Self:
        if len(self.batch_shape) == 0:
            return self
        return self._with_batch(lambda value: value[index])

    def expand_batch(self, *sizes: Any) -> Self:
        """A copy whose batch is expanded to the given shape."""
        shape = torch.Size(sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes)
        return self if shape == self.batch_shape else self._with_batch(lambda v: v.expand(shape))

    def forward(
        self,
        x1: Tensor,
        x2: Tensor,
        diag: bool = False,
        last_dim_is_batch: bool = False,
        **params: Any,
    ) -> Tensor:
        """Kernel between `x1` `[..., n1, d]` and `x2` `[..., n2, d]`.

        Returns:
            `[..., n1, n2]`, or `[..., n]` with `diag`.

        Raises:
            NotImplementedError: `last_dim_is_batch`, which GPyTorch deprecates.
            ValueError: shapes that do not fit.
        """
        if last_dim_is_batch:
            raise NotImplementedError(
                "Network kernels are not additive over features; last_dim_is_batch is not "
                "supported."
            )
        # The same points in two tensors: equal values without separate gradients to keep apart.
        same = x1 is x2 or (
            x1.shape == x2.shape
            and not (x1.requires_grad or x2.requires_grad)
            and torch.equal(x1, x2)
        )
        return self._evaluate(x1, None if same else x2, diag)

    @abstractmethod
    def _with_batch(self, change: Callable[[Tensor], Tensor]) -> Self:
        """A copy of which everything that has the batch's dimensions in front is changed."""

    @abstractmethod
    def _evaluate(self, x1: Tensor, x2: Tensor | None, diag: bool) -> Tensor:
        """The kernel; without `x2` between the points of `x1`."""
