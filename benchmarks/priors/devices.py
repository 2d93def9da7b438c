"""Kernels and one fit of an exact Gaussian process on a device beside the CPU, in one process.

The cases of `kernels`; each on the device and then on the CPU, with the largest difference of the
two results relative to the largest value. Results are printed one by one, for
`benchmarks.accelerator`, which ends this process when its time is over.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bayes import GaussianProcess
from benchmarks.priors.measure import CASES, inputs
from benchmarks.priors.ours import network, rows
from priors import NNGPKernel

# The informative ones first: time may end before the last.
ORDER = (
    ("fc 1000", "float32"),
    ("fc 1000", "float64"),
    ("attention 16", "float64"),
    ("conv+flatten 200", "float32"),
    ("fc 4000", "float32"),
    ("fc 4000", "float64"),
    ("conv+gap 8", "float64"),
    ("conv+flatten 200", "float64"),
    ("fc 1000 xz", "float32"),
    ("attention 16 xz", "float32"),
    ("fc 10000", "float32"),
)
FIT_ROWS, FIT_FEATURES = 500, 8
SLOW_CPU = 20.0  # seconds after which a call on the CPU is not repeated


def seconds(call: Callable[[], Any], device: str, repeats: int = 3) -> tuple[float, Any]:
    """Shortest time of a call after a first one, and its result."""
    result, best = None, float("inf")
    for repeat in range(repeats + 1):
        result = None  # what the last call returned is not held twice
        _finish(device)
        start = time.perf_counter()
        result = call()
        _finish(device)
        taken = time.perf_counter() - start
        if repeat or taken > SLOW_CPU:
            best = min(best, taken)
        if taken > SLOW_CPU:
            break
    return best, result


def _finish(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def kernel(case: str, dtype: str, device: str) -> dict[str, Any]:
    """NNGP and NTK of a case on both."""
    points, others, _ = inputs(case, dtype)
    found: dict[str, Any] = {}
    for place in dict.fromkeys((device, "cpu")):
        made = network(case.split()[0]).to(place)
        x = rows(points, place)
        z = None if others is None else rows(others, place)

        def call(made: Any = made, x: Tensor = x, z: Tensor | None = z) -> Any:
            with torch.no_grad():
                return made.kernels(x, z)

        found[place] = seconds(call, place)
    (there, a), (here, b) = found[device], found["cpu"]
    gap = max(
        float((one.to(other) - other).abs().max() / other.abs().max())
        for one, other in zip(a, b, strict=True)
    )
    return {"device_s": there, "cpu_s": here, "difference": gap}


def fit(device: str) -> dict[str, Any]:
    """A Gaussian process with a ReLU network's kernel: its fit, and its score on other rows."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(FIT_ROWS + 100, FIT_FEATURES, generator=generator, dtype=torch.float64)
    y = torch.sin(X[:, :1]) + X[:, 1:2] * X[:, 2:3]
    y = y + 0.1 * torch.randn(y.shape, generator=generator, dtype=torch.float64)
    found: dict[str, Any] = {}
    for place in dict.fromkeys((device, "cpu")):
        module = nn.Sequential(
            nn.Linear(FIT_FEATURES, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)
        )
        a, b = X.to(place), y.to(place)
        model = GaussianProcess(a[:FIT_ROWS], b[:FIT_ROWS], NNGPKernel(module, bias_var=0.1))

        def call(model: Any = model, a: Tensor = a, b: Tensor = b) -> float:
            model.fit()
            posterior = model.posterior(a[FIT_ROWS:], observation_noise=True)
            return -float(posterior.log_prob(b[FIT_ROWS:]).mean())

        # Once: a second fit would begin where the first one ended.
        start = time.perf_counter()
        found[place] = call(), time.perf_counter() - start
    (there, device_s), (here, cpu_s) = found[device], found["cpu"]
    gap = abs(there - here)
    return {"device_s": device_s, "cpu_s": cpu_s, "difference": gap, "nlpd": there}


def main(device: str) -> None:
    """All cases in order, one line of JSON each."""
    plan: list[tuple[str, str, Callable[[], dict[str, Any]]]] = [
        (case, dtype, lambda case=case, dtype=dtype: kernel(case, dtype, device))  # type: ignore[misc]
        for case, dtype in ORDER
        if case in CASES
    ]
    plan.insert(3, (f"GaussianProcess.fit {FIT_ROWS}", "float64", lambda: fit(device)))
    for case, dtype, measure in plan:
        row: dict[str, Any] = {"case": case, "dtype": dtype}
        try:
            row |= measure()
        except Exception as error:  # a fault of one case is a result, and the others go on
            row["error"] = f"{type(error).__name__}: {error}"[:300]
        print("RESULT " + json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
