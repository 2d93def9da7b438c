"""The kernel of candidates: of architectures, times those of what else there is.

`WeisfeilerLehmanKernel` weighs the levels of motifs and paths, `LinearKernel` has a trend in sizes
and counts, `DescriptorKernel` compares them one at a time, `CodeKernel` the choices of a flat
space; `architecture_kernel` adds them and multiplies by kernels of hyperparameters, of fidelity and
of the study.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import torch
from gpytorch.kernels import AdditiveKernel, Kernel, ProductKernel, ScaleKernel
from gpytorch.priors import LogNormalPrior
from torch import Tensor

from nas.kernels.graphs import (
    CodeKernel,
    DescriptorKernel,
    LinearKernel,
    WeisfeilerLehmanKernel,
)
from nas.kernels.places import FidelityKernel, LevelKernel, StudyKernel
from nas.kernels.shared_matern import SharedMaternKernel
from nas.kernels.table import ArchitectureTable

__all__ = ["architecture_kernel", "dense"]


def architecture_kernel(
    table: ArchitectureTable,
    hyperparameters: Sequence[int] = (),
    *,
    shares: Sequence[float] = (),
    num_earlier: int = 0,
) -> Kernel:
    """(motifs + trend + descriptors + code) times kernels of hyperparameters, fidelity and study.

    Args:
        table: Holds the architectures of the training rows; column 0 of X are its numbers.
        hyperparameters: Columns behind it, in the unit cube, of a Matern-5/2 kernel: how many share
            each length scale, which has the dimension-scaled prior of Hvarfner et al. 2024
            (2402.02229, section 5).
        shares: Of levels of fidelity, see `FidelityKernel`; if there are any, one more column is
            the place of the level.
        num_earlier: Of earlier studies; if there are any, the last column is the number of a
            candidate's study.
    """
    parts: list[Kernel] = [
        _scaled(WeisfeilerLehmanKernel(table, active_dims=[0]), 0.7)
        + _scaled(LinearKernel(table, active_dims=[0]), 0.5)
        + _scaled(DescriptorKernel(table, active_dims=[0]), 0.05)
    ]
    if table.code_sizes:
        parts[0] = parts[0] + _scaled(CodeKernel(table, active_dims=[0]), 0.5)
    place = 1 + sum(hyperparameters)
    if hyperparameters:
        parts.append(SharedMaternKernel(hyperparameters, active_dims=list(range(1, place))))
    if shares:
        parts.append(FidelityKernel(shares, active_dims=[place]))
    if num_earlier:
        parts.append(StudyKernel(num_earlier, active_dims=[place + bool(shares)]))
    product = parts[0] if len(parts) == 1 else ProductKernel(*parts)
    if shares:
        product = product + _scaled(LevelKernel(active_dims=[place]), 1.0)
    return product


def dense(kernel: Kernel, one: Tensor, two: Tensor, *, diag: bool = False) -> Tensor:
    """The matrix of a kernel of `architecture_kernel`, without GPyTorch's deferred evaluation.

    Args:
        kernel: Sums, products and scalings of kernels that know their matrix.
        one: Rows, `[n1, d]`.
        two: Rows, `[n2, d]`.
        diag: Whether only of each row with the one of the same place.

    Returns:
        `[n1, n2]`, or `[n1]`.
    """
    if kernel.active_dims is not None:
        one, two = one[:, kernel.active_dims], two[:, kernel.active_dims]
    match kernel:
        case AdditiveKernel() | ProductKernel():
            combine = torch.add if isinstance(kernel, AdditiveKernel) else torch.mul
            return reduce(combine, (dense(part, one, two, diag=diag) for part in kernel.kernels))
        case ScaleKernel():  # whose columns are those of its base
            base = kernel.base_kernel
            matrix: Tensor = kernel.outputscale * base.forward(one, two, diag=diag)
        case _:
            matrix = kernel.forward(one, two, diag=diag)
    return matrix


def _scaled(kernel: Kernel, variance: float) -> ScaleKernel:
    """With a learnt variance around this one."""
    prior = LogNormalPrior(math.log(variance), 1.0)
    scaled = ScaleKernel(kernel, outputscale_prior=prior)
    scaled.outputscale = variance
    return scaled
