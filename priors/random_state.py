"""Seeding torch's global generators temporarily, for code that takes no generator.

`torch.manual_seed` seeds the CPU and every GPU; a fork of the CPU's state alone would leave the
GPUs' generators changed. Here only those in use are seeded, and put back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["seeded"]


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Global random numbers from `seed` inside; those of the caller continue as before.

    Args:
        seed: Seed of the CPU's generator and that of `device`.
        device: Where else random numbers are drawn.
    """
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
