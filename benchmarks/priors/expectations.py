"""What do expectations over several variables cost, and how exact are they?

Kernels that need quasi-Monte Carlo: a ResNet that adds branches after their activations, without
normalisation; gates; an LSTM; attention over heads. Each in a process of its own, one thread,
double precision. Seconds of processor time of a second call (NNGP, NTK, NNGP with the gradient in
all variances), peak memory above that of the process before, the true error (root mean square over
seeds from the mean with 16 times as many points, in units of the mean diagonal), and the median of
error over stated error. The competitor is an earlier version of this package: run the file there.

    python -m benchmarks expectations           # about five minutes
    python -m benchmarks expectations --quick   # fewer seeds, without attention
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from priors import InfiniteNetwork, QuasiMonteCarlo

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = 4096


class Block(nn.Module):
    """x + F(x), added after the activations."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        return torch.relu(x + self.second(torch.relu(self.first(x))))


class Last(nn.Module):
    """A readout of the last state of a recurrent layer."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer, self.readout = layer, nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The output `[batch, 1]`."""
        return self.readout(self.layer(x)[0][:, -1])


class Gated(nn.Module):
    """tanh(u + sigmoid(v) w)."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.v, self.w = (nn.Linear(3, 16) for _ in range(3))
        self.readout = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The output `[batch, 1]`."""
        return self.readout(torch.tanh(self.u(x) + torch.sigmoid(self.v(x)) * self.w(x)))


class Attended(nn.Module):
    """Attention over the positions of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, stride=2, padding=1)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.readout = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The output `[batch, 1]`."""
        h = torch.relu(self.conv(x)).flatten(2).transpose(1, 2)
        return self.readout(self.attention(h, h, h, need_weights=False)[0].mean(1))


def _resnet() -> nn.Module:
    first = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), Block(16), Block(16)]
    return nn.Sequential(*first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 1))


# name -> (module, shape of one input, number of inputs)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "resnet": (_resnet, (1, 8, 8), 2),
    "gates": (Gated, (3,), 20),
    "gru, 2 steps": (lambda: Last(nn.GRU(3, 16, batch_first=True)), (2, 3), 3),
    "lstm, 3 steps": (lambda: Last(nn.LSTM(3, 16, batch_first=True)), (3, 3), 3),
    "attention": (Attended, (1, 8, 8), 2),
}


def main(argv: list[str]) -> int:
    """Measure, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks expectations", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="three seeds, without attention")
    parser.add_argument("--cases", nargs="*", choices=sorted(CASES), help="only these")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(argv)
    names = options.cases or [n for n in CASES if not (options.quick and n == "attention")]
    rows = []
    context = multiprocessing.get_context("spawn")
    for name in names:
        with context.Pool(1) as pool:  # a process of its own, for its peak memory
            row = pool.apply(measured, (name, 3 if options.quick else 6))
        rows.append(row)
        print(json.dumps(row), flush=True)
    record = {
        "question": __doc__.splitlines()[0],
        "device": platform.processor() or platform.machine(),
        "threads": 1,
        "num_samples": SAMPLES,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    name = "expectations" + "_quick" * options.quick
    (options.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0


def measured(name: str, seeds: int) -> dict[str, Any]:
    """One row of the table."""
    torch.set_num_threads(1)
    make, shape, n = CASES[name]
    torch.manual_seed(0)
    network = InfiniteNetwork(
        make().double().eval(), weight_var=1.5, bias_var=0.1, input_shape=shape
    ).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, math.prod(shape), dtype=torch.float64, generator=generator)
    row: dict[str, Any] = {"case": name}

    def gradient() -> None:
        network.nngp(x).sum().backward()

    with torch.no_grad():
        network.nngp(x[:1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row["nngp_and_gradient_s"] = seconds(gradient)
    row["peak_mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    with torch.no_grad():
        row["nngp_s"] = seconds(lambda: network.nngp(x))
        row["ntk_s"] = seconds(lambda: network.ntk(x))
        few = x[: min(n, 3)]
        network.quadrature = QuasiMonteCarlo(16 * SAMPLES, 1000)
        truth = network.kernels(few)
        errors: list[list[Tensor]] = [[], []]
        ratios: list[Tensor] = []
        for seed in range(seeds):
            network.quadrature = QuasiMonteCarlo(SAMPLES, seed)
            values = network.kernels(few)
            stated = network.quadrature_error(few)
            for k in (0, 1):
                error = (values[k] - truth[k]).abs()
                errors[k].append(error / truth[k].diagonal().mean())
                ratios.append((error / stated[k]).flatten())
    for k, kernel in enumerate(("nngp", "ntk")):
        row[f"{kernel}_error"] = float(torch.stack(errors[k]).square().mean().sqrt())
    row["median_error_over_stated"] = float(torch.cat(ratios).nanmedian())
    row["largest_error_over_stated"] = float(torch.cat(ratios).nan_to_num(0).max())
    return row


def seconds(function: Callable[[], object]) -> float:
    """Processor time of a second call."""
    function()
    start = time.process_time()
    function()
    return round(time.process_time() - start, 3)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
