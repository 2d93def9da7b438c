"""Devices, processes and precision, through Lightning Fabric."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["attention_of_any_shape", "make_fabric"]


def make_fabric(device: torch.device, precision: str) -> Fabric:
    from lightning_fabric import Fabric  # loads torch's compiler, which only training needs

    kind = {"cuda": "cuda", "mps": "mps"}.get(device.type, "cpu")
    options: Any = {"accelerator": kind, "precision": precision}
    # What torchrun tells its processes.
    world, local = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if world > 1:
        fabric = Fabric(devices=local, num_nodes=world // local, strategy="ddp", **options)
        fabric.launch()
        return fabric
    return Fabric(devices=[device.index or 0] if kind == "cuda" else 1, **options)


def attention_of_any_shape(device: torch.device) -> AbstractContextManager[None]:
    """Kernels without a plan for each shape: sizes of tasks differ, and cuDNN plans for 0.4 s."""
    if device.type != "cuda":
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with_any_shape = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return cast(AbstractContextManager[None], sdpa_kernel(with_any_shape))
