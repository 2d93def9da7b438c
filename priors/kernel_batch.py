"""Kernels with hyperparameters of a batch, sums and products of kernels among them.

GPyTorch's `expand_batch` leaves the parts of sums, products and nested kernels as they were, beside
expanded copies under names with dots, which nothing evaluates, and expands `active_dims`, by which
no columns can be chosen then. Kernels are expanded part by part here.
"""

from __future__ import annotations

import copy

import torch
from gpytorch.kernels import Kernel

__all__ = ["expanded_kernel"]


def expanded_kernel(kernel: Kernel, batch_shape: torch.Size) -> Kernel:
    """A kernel whose hyperparameters, and those of its parts, have the batch's dimensions in front.

    Args:
        kernel: Of no batch, or of one that broadcasts; it stays as it is.
        batch_shape: Of the copy, whose parameters share memory over the batch.
    """
    return _expanded(kernel, batch_shape, {})


def _expanded(kernel: Kernel, batch_shape: torch.Size, known: dict[int, Kernel]) -> Kernel:
    if id(kernel) in known:  # a part that is used twice stays one
        return known[id(kernel)]
    if type(kernel).expand_batch is not Kernel.expand_batch:
        found = kernel.expand_batch(batch_shape)
    else:
        found = copy.deepcopy(kernel)
        for name, value in (
            *kernel.named_parameters(recurse=False),
            *kernel.named_buffers(recurse=False),
        ):
            if name != "active_dims":
                own = value.shape[len(kernel._batch_shape) :]
                getattr(found, name).data = value.data.expand(*batch_shape, *own)
        found._batch_shape = batch_shape
        for name, part in _parts(kernel).items():
            owner, _, last = name.rpartition(".")
            setattr(found.get_submodule(owner), last, _expanded(part, batch_shape, known))
    known[id(kernel)] = found
    return found


def _parts(kernel: Kernel) -> dict[str, Kernel]:
    """The kernels next below one, by name."""
    found: dict[str, Kernel] = {}
    for name, module in kernel.named_modules(remove_duplicate=False):
        below = name and not any(name.startswith(f"{other}.") for other in found)
        if below and isinstance(module, Kernel):
            found[name] = module
    return found
