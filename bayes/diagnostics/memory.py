"""Peak memory of a piece of work."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Peak", "peak_memory"]

_SECONDS = 0.005  # between looks
_STATUS = Path("/proc/self/statm")


@dataclass
class Peak:
    """What a piece of work needed at most, beyond what was in use before.

    Attributes:
        mib: MiB; NaN before the work has ended, and on the CPU of systems without /proc.
    """

    mib: float = math.nan


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the work within: tensors of a CUDA device, or the resident memory of this process.

    That of the process is looked at every five milliseconds; what an allocator keeps from before is
    not seen.

    Args:
        device: Where the work is.
    """
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.mib = (torch.cuda.max_memory_allocated(device) - before) / 2**20
        return
    if not _STATUS.exists():
        yield peak
        return
    before = most = _resident()
    ended = threading.Event()

    def look() -> None:
        nonlocal most
        while not ended.wait(_SECONDS):
            most = max(most, _resident())

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        most = max(most, _resident())
        ended.set()
        watcher.join()
        peak.mib = (most - before) / 2**20


def _resident() -> int:
    return int(_STATUS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
