"""Kernels between architectures."""

from nas.kernels.kernels import (
    BudgetKernel,
    CodeKernel,
    DescriptorKernel,
    FidelityKernel,
    LinearKernel,
    SharedMaternKernel,
    StudyKernel,
    WeisfeilerLehmanKernel,
    architecture_kernel,
    dense,
)
from nas.kernels.table import ArchitectureTable

__all__ = [
    "ArchitectureTable",
    "BudgetKernel",
    "CodeKernel",
    "DescriptorKernel",
    "FidelityKernel",
    "LinearKernel",
    "SharedMaternKernel",
    "StudyKernel",
    "WeisfeilerLehmanKernel",
    "architecture_kernel",
    "dense",
]
