"""Gaussians with a given precision: draws and log determinants."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

__all__ = ["Dense", "Diagonal", "Gaussian", "Implicit"]


class Gaussian(ABC):
    """N(0, P^-1).

    Attributes:
        log_det: Of P.
    """

    log_det: float

    @abstractmethod
    def draw(self, number: int, generator: torch.Generator) -> Tensor:
        """`[number, d]`."""


class Diagonal(Gaussian):
    """P by its diagonal `[d]`."""

    def __init__(self, precision: Tensor) -> None:
        self.precision = precision
        self.log_det = float(precision.log().sum())

    def draw(self, number: int, generator: torch.Generator) -> Tensor:
        normals = self.precision.new_empty(number, len(self.precision)).normal_(generator=generator)
        return normals * self.precision.rsqrt()


class Dense(Gaussian):
    """P `[d, d]`.

    Raises:
        RuntimeError: it is not positive definite.
    """

    def __init__(self, precision: Tensor) -> None:
        factor, failed = torch.linalg.cholesky_ex(precision)
        if bool(failed):
            raise RuntimeError(
                "Laplace: the log density is not curved downwards at the maximum that was found; "
                "it may lie at the edge of the support, or need more num_training_steps."
            )
        self.factor = factor
        self.log_det = float(2 * factor.diagonal().log().sum())

    def draw(self, number: int, generator: torch.Generator) -> Tensor:
        normals = self.factor.new_empty(len(self.factor), number).normal_(generator=generator)
        return torch.linalg.solve_triangular(self.factor.mT, normals, upper=True).mT


class Implicit(Gaussian):
    """P = I + A^T A of A `[rows, d]` with more columns than rows.

    The matrix is never formed: draws are e - A' (I + A A')^-1 (A e + e'), of the same law
    (Matheron's rule), and its determinant is that of I + A A'.

    Raises:
        RuntimeError: I + A A' has no Cholesky factor in this dtype.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        inner = rows @ rows.mT
        inner.diagonal().add_(1)
        self.factor, failed = torch.linalg.cholesky_ex(inner)
        if bool(failed):
            dtype = str(inner.dtype).removeprefix("torch.")
            raise RuntimeError(
                f"Laplace: the precision of the weights has no Cholesky factor in {dtype}; give "
                "training data in float64, or a likelihood with more noise."
            )
        self.log_det = float(2 * self.factor.diagonal().log().sum())

    def draw(self, number: int, generator: torch.Generator) -> Tensor:
        count, dimension = self.rows.shape
        first = self.rows.new_empty(number, dimension).normal_(generator=generator)
        second = self.rows.new_empty(number, count).normal_(generator=generator)
        missed = (first @ self.rows.mT + second).mT
        return first - torch.cholesky_solve(missed, self.factor).mT @ self.rows
