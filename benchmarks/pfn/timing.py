"""Seconds of a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


def median_seconds(
    call: Callable[[], Any], repeats: int, device: torch.device | None = None
) -> tuple[float, float]:
    """Median CPU and wall seconds of a call, after a first one; on a GPU wall seconds for both."""
    gpu = device is not None and device.type == "cuda"
    call()
    times = []
    for _ in range(repeats):
        if gpu:
            torch.cuda.synchronize(device)
        cpu, wall = time.process_time(), time.perf_counter()
        call()
        if gpu:
            torch.cuda.synchronize(device)
        now = time.perf_counter() - wall
        times.append((now if gpu else time.process_time() - cpu, now))
    cpu_seconds, wall_seconds = (
        sorted(column)[repeats // 2] for column in zip(*times, strict=True)
    )
    return cpu_seconds, wall_seconds
