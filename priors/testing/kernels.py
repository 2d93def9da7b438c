"""What every kernel must satisfy."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from priors.testing.dtypes import both_dtypes

__all__ = ["KernelContract"]


class KernelContract(ABC):
    """What every kernel must satisfy, beyond GPyTorch's own `BaseKernelTestCase`.

    Attributes:
        num_features: Features of the test points.
    """

    num_features = 3

    @abstractmethod
    def make_kernel(self) -> Kernel:
        """A kernel without batch shape, the same at every call."""

    def points(self, dtype: torch.dtype) -> Tensor:
        """Rows in general position, and the hard ones: twice the same, opposite, zero, scaled."""
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(6, self.num_features, generator=generator, dtype=torch.float64)
        hard = [rows[:1], -rows[1:2], torch.zeros_like(rows[:1]), 2 * rows[2:3]]
        return torch.cat([rows, *hard]).to(dtype)

    @both_dtypes
    def test_symmetric_and_positive_semidefinite(self, dtype: torch.dtype) -> None:
        """Of all points with themselves, to rounding."""
        kernel, x = self.make_kernel().to(dtype), self.points(dtype)
        with torch.no_grad():
            matrix = kernel(x).to_dense()
        assert matrix.dtype == dtype
        scale = matrix.diagonal().max()
        precision = 100 * torch.finfo(dtype).eps
        assert (matrix - matrix.mT).abs().max() <= precision * scale
        assert torch.linalg.eigvalsh(matrix.double()).min() >= -(precision**0.75) * scale

    def test_diagonal_and_rectangle_agree_with_the_square(self) -> None:
        """`diag=True`, and rows against other rows."""
        kernel, x = self.make_kernel().double(), self.points(torch.float64)
        with torch.no_grad():
            matrix = kernel(x).to_dense()
            assert torch.allclose(kernel(x, diag=True), matrix.diagonal(), rtol=1e-9)
            # A separate tensor for the same points may lose the square root of the precision.
            rectangle = kernel(x[:4], x[2:].clone()).to_dense()
        assert torch.allclose(rectangle, matrix[:4, 2:], rtol=1e-6, atol=1e-6)

    def test_batch_equals_loop(self) -> None:
        """A batch of inputs is as many kernels of each."""
        kernel, x = self.make_kernel().double(), self.points(torch.float64)
        batch = torch.stack([x, 0.5 * x, x.flip(0)])
        with torch.no_grad():
            together = kernel(batch).to_dense()
            for k, rows in enumerate(batch):
                assert torch.allclose(together[k], kernel(rows).to_dense(), rtol=1e-9)

    @both_dtypes
    def test_gradients_are_finite(self, dtype: torch.dtype) -> None:
        """In inputs and parameters, at coincident, opposite and zero rows as well."""
        kernel = self.make_kernel().to(dtype)
        x1 = self.points(dtype).requires_grad_()
        x2 = self.points(dtype).requires_grad_()
        total = kernel(x1).to_dense().sum() + kernel(x1, x2).to_dense().sum()
        wanted = [x1, x2, *(p for p in kernel.parameters() if p.requires_grad)]
        for gradient in torch.autograd.grad(total, wanted, allow_unused=True):
            assert gradient is None or gradient.isfinite().all()
