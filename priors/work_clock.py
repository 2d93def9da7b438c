"""Time that work takes by itself, however busy the machine is with other work."""

from __future__ import annotations

import time

import torch

__all__ = ["WorkClock"]


class WorkClock:
    """Seconds since it was made: those that passed, and those that the work itself needed.

    On a CPU the second are processor seconds, so that an estimate made of them is of the work and
    not of what else the machine does: those of the calling thread, which takes part where torch
    computes in several, or an equal share of the process's where it only waits for others. On
    other devices the processor may sleep while the device computes, and both are the same.

    Args:
        device: Where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._threads = torch.get_num_threads() if device.type == "cpu" else None
        self._start = self._now()

    @property
    def seconds(self) -> tuple[float, float]:
        """That have passed, and of work; the second is never above the first."""
        passed, thread, process = (b - a for a, b in zip(self._start, self._now(), strict=True))
        if self._threads is None:
            return passed, passed
        return passed, min(passed, max(thread, process / self._threads))

    def _now(self) -> tuple[float, float, float]:
        return time.monotonic(), time.thread_time(), time.process_time()
