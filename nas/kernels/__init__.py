"""Kernels between architectures."""

from nas.kernels.kernels import (
    BudgetKernel,
    DescriptorKernel,
    LinearKernel,
    WeisfeilerLehmanKernel,
    architecture_kernel,
)
from nas.kernels.table import ArchitectureTable

__all__ = [
    "ArchitectureTable",
    "BudgetKernel",
    "DescriptorKernel",
    "LinearKernel",
    "WeisfeilerLehmanKernel",
    "architecture_kernel",
]
