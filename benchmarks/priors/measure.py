"""Time and memory of one call in a process of its own; shared by both sides of `kernels`.

Only the standard library and numpy: the competitor's environment has no torch.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy

# The cases: name -> (shape of one input channels last, n, whether against other points).
CASES: dict[str, tuple[tuple[int, ...], int, bool]] = {
    "fc 1000": ((32,), 1000, False),
    "fc 1000 xz": ((32,), 1000, True),
    "fc 4000": ((32,), 4000, False),
    "fc 4000 xz": ((32,), 4000, True),
    "fc 10000": ((32,), 10000, False),
    "conv+gap 8": ((16, 16, 3), 8, False),
    "conv+gap 8 xz": ((16, 16, 3), 8, True),
    "conv+flatten 200": ((16, 16, 3), 200, False),
    "conv+flatten 200 xz": ((16, 16, 3), 200, True),
    "attention 16": ((16, 8), 16, False),
    "attention 16 xz": ((16, 8), 16, True),
    "likelihood gradient 1000": ((32,), 1000, False),
}
WEIGHT_VAR, BIAS_VAR, NOISE_VAR = 2.0, 0.1, 0.1


def inputs(case: str, dtype: str) -> tuple[numpy.ndarray, numpy.ndarray | None, numpy.ndarray]:
    """Points, other points or None, and targets; the same on both sides."""
    shape, n, other = CASES[case]
    generator = numpy.random.default_rng(0)
    x, z = (generator.standard_normal((n, *shape)).astype(dtype) for _ in range(2))
    return x, z if other else None, generator.standard_normal(n).astype(dtype)


def report(call: Callable[[], Any], numbers: Callable[[Any], Any], repeats: int) -> None:
    """Print one line of JSON: seconds, memory and some of the values, for the parent.

    Args:
        call: What is measured; it returns when the work is done.
        numbers: A small part of the result, as nested lists.
        repeats: Calls after the first, at most; slow ones are repeated less.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    result = call()
    first = time.perf_counter() - start
    part = numbers(result)
    seconds: list[float] = []
    while len(seconds) < repeats and (len(seconds) < 2 or sum(seconds) < 20):
        result = None  # what the last call returned is not counted twice
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    record = {
        "first_s": first,
        "median_s": float(numpy.median(seconds)),
        "min_s": min(seconds),
        "repeats": len(seconds),
        "peak_mib": (peak - before) / 1024,
        "values": part,
    }
    sys.stdout.write("RESULT " + json.dumps(record) + "\n")
