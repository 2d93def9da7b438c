"""Kernels between architectures."""

from nas.kernels.budget import BudgetKernel
from nas.kernels.graphs import (
    CodeKernel,
    DescriptorKernel,
    LinearKernel,
    WeisfeilerLehmanKernel,
)
from nas.kernels.places import FidelityKernel, StudyKernel
from nas.kernels.product import architecture_kernel, dense
from nas.kernels.shared_matern import SharedMaternKernel
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
