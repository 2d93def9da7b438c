"""What does a nonlinearity without a closed form cost, in ReLU networks of the same shape?

Seconds of the kernel of 1000 points, two hidden layers, one thread, double precision, divided by
those of ReLU in the same run: NNGP and NTK, forward, and forward with the gradient in all
variances. `first` is the first call, which makes the tables that later ones use; they serve all
steps of a fit. GELU, which has a closed form, is the other competitor. Processor time, the
smallest of several calls that take turns, so that other work on the machine counts less.

    python -m benchmarks duals                # about two minutes
    python -m benchmarks duals --quick        # 300 points
    python -m benchmarks duals --quadrature   # without tables: as it was, about ten minutes
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from priors import InfiniteNetwork, Nonlinearity
from priors.gaussian.interpolation import store

ROOT = Path(__file__).resolve().parents[2]
CASES: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "mish": nn.Mish,
    "sin^2": lambda: Nonlinearity(lambda x: torch.sin(x) ** 2),
}


def main(argv: list[str]) -> int:
    """Measure, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks duals", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="300 points")
    parser.add_argument("--quadrature", action="store_true", help="make no tables")
    parser.add_argument("--inputs", type=int, default=8, help="features of a point")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.quadrature:
        store.MIN_PAIRS = store.MIN_POINTS = 2**62
    n, d = 300 if options.quick else 1000, options.inputs
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, dtype=torch.float64, generator=generator)
    weights = torch.randn(n, n, dtype=torch.float64, generator=generator)
    rows: list[dict[str, Any]] = []
    for ntk in (False, True):
        for gradient in (False, True):
            rows += measured(x, weights, ntk, gradient, options.repeats)
    record = {
        "question": __doc__.splitlines()[0],
        "device": platform.processor() or platform.machine(),
        "threads": 1,
        "seed": 0,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "n": n,
        "inputs": d,
        "tables": not options.quadrature,
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    name = "duals" + "_quick" * options.quick + "_quadrature" * options.quadrature
    (options.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0


def measured(
    x: Tensor, weights: Tensor, ntk: bool, gradient: bool, repeats: int
) -> list[dict[str, Any]]:
    """One row per nonlinearity, with its ratio to the first."""
    calls = {name: call(make, x, weights, ntk, gradient) for name, make in CASES.items()}
    first = {name: seconds(one) for name, one in calls.items()}
    best: dict[str, float] = {}
    for _ in range(repeats):
        for name, one in calls.items():
            if name in best and best[name] * repeats > 60:
                continue
            best[name] = min(best.get(name, float("inf")), seconds(one))
    what = ("NTK" if ntk else "NNGP") + (" and gradient" if gradient else "")
    rows = []
    for name, time_ in best.items():
        ratio = time_ / best["relu"]
        rows.append(
            {"kernel": what, "function": name, "s": time_, "ratio": ratio, "first_s": first[name]}
        )
        print(
            f"{what:17s} {name:9s} {time_:8.4f} s {ratio:7.2f} x ReLU  first {first[name]:6.2f} s"
        )
    return rows


def call(
    make: Callable[[], nn.Module], x: Tensor, weights: Tensor, ntk: bool, gradient: bool
) -> Callable[[], None]:
    """Of a kernel with two hidden layers, or of it and its gradient."""
    d = x.shape[-1]
    layers = [nn.Linear(d, 9), make(), nn.Linear(9, 9), make(), nn.Linear(9, 1)]
    network = InfiniteNetwork(nn.Sequential(*layers)).double()
    kernel = network.ntk if ntk else network.nngp

    def forward() -> None:
        with torch.no_grad():
            kernel(x)

    def both() -> None:
        (kernel(x) * weights).sum().backward()

    return both if gradient else forward


def seconds(function: Callable[[], None]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
