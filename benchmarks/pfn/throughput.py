"""How fast do networks train and answer, and how close is that to what the machine can do?

Training: tasks per second of the whole step (forward, backward, clipping, optimisers, average;
tasks are drawn beforehand) for the architectures of the shipped networks at 64 to 576 rows, a
quarter of them queries; and the rate of floating-point operations in matrix products (those of
forward and backward, counted by torch with attention written out) as a share of that of a product
of two 4096 x 4096 matrices in single precision on the same threads. In single precision, in bf16,
and compiled.

Optimiser: a step of Muon for the matrices of `bo`, ours beside torch's.

Latency: conditioning on 20, 100 or 500 rows and asking 1, 64 or 1000 queries, and asking a model
that is already conditioned; what matrix products of the network alone would take at the rate above
(eigenvalues and factors of its experts come on top); and BoTorch's SingleTaskGP as it comes, made
of the same rows and asked without any fit. Ensembles: `PFNRegressor` with 1 and 8 members, fit and
prediction of 100 rows, without the comparison with the prior.

Competitor: the transformer over rows of the package `pfns` 0.4.2 with the sizes of our network over
rows ("bo"), in an environment of its own that `make pfns` makes. BoTorch's `PFNModel` runs that
transformer on context and queries together at every call, so its latency is at least that.

Seconds are CPU seconds of the process on one thread, medians; wall-clock ones are in the JSON.

    python -m benchmarks pfn throughput           # about ten minutes
    python -m benchmarks pfn throughput --quick   # about a minute
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from botorch.models import SingleTaskGP
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import pfn
from benchmarks.commands import command
from benchmarks.pfn import common
from benchmarks.pfn.timing import median_seconds
from pfn import PFN, ArchitectureConfig, TrainingConfig
from pfn.checkpoints.recipes import RECIPES
from pfn.muon import Muon
from pfn.training.fabric import make_fabric
from pfn.training.state import TrainingState
from pfn.training.tasks import Batch
from priors.tasks.task import Task

THEIRS = common.ROOT / ".venv-pfns" / "bin" / "python"
FEATURES, SHARE, BATCH = 10, 75, 8  # share of context rows in percent


class OneTask:
    """The same tasks at every call: what is measured is the network, not the prior."""

    def __init__(self, rows: int, classes: int) -> None:
        self.rows, self.classes = rows, classes

    def sample(
        self,
        batch: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Task:
        """Random numbers."""
        own = torch.Generator().manual_seed(0)
        X = torch.randn(batch, self.rows, FEATURES, generator=own)
        y = torch.randn(batch, self.rows, 1, generator=own)
        f: Tensor | None = y + 0.1 * torch.randn(y.shape, generator=own)
        number = None
        if self.classes:
            y, f = (y > 0).float(), None
            number = torch.full((batch,), 2)
        n = SHARE * self.rows // 100
        task = Task(X, y, f, torch.full((batch,), 0.01), n, num_classes=number)
        return Task(
            **{k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(task).items()}
        )


def peak(dtype: torch.dtype, device: torch.device, size: int) -> float:
    """Operations per CPU second of a product of two square matrices."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: a @ b, 3, device)[0]


def state(
    config: TrainingConfig, rows: int, device: torch.device, *, precision: str, compiled: bool
) -> TrainingState:
    """A training at its start."""
    config = replace(
        config,
        batch=BATCH,
        precision=precision,
        compile=compiled,
        border_tasks=64,
        held_out_tasks=1,
        known_noise=0.0,
        appended=0.0,
    )
    prior = OneTask(rows, config.architecture.classes)
    return TrainingState(prior, config, make_fabric(device, precision), None, None)


def operations(training: TrainingState) -> int:
    """Of the matrix products of one step's forward and backward."""
    task, told = training.draw()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        y, f = training.loss(Batch(task, told))
        training.fabric.backward(y if f is None else y + 0.5 * f)
    return int(counter.get_total_flops())


def training_rates(
    name: str, rows: list[int], device: torch.device, peaks: dict[str, float], options: Any
) -> list[dict[str, Any]]:
    """Of one shipped architecture."""
    config = RECIPES[name]().config
    modes = [("32-true", False), ("bf16-mixed", False)]
    if options.compile:
        modes.append(("32-true", True))
    found: list[dict[str, Any]] = []
    for size in rows:
        count = 0
        for precision, compiled in modes:
            row: dict[str, Any] = {"network": name, "rows": size, "precision": precision}
            row |= {"compiled": compiled}
            try:
                training = state(config, size, device, precision=precision, compiled=compiled)
                if not count:
                    count = operations(training)
                cpu, wall = median_seconds(training.advance, options.repeats, device)
            except Exception as error:  # what does not work here is a result too
                found.append({**row, "error": f"{type(error).__name__}: {str(error)[:200]}"})
                print(found[-1])
                continue
            row |= {
                "parameters": sum(p.numel() for p in training.pfn.network.parameters()),
                "cpu_s_per_step": cpu,
                "wall_s_per_step": wall,
                "tasks_per_cpu_s": BATCH / cpu,
                "gflop_per_step": count / 1e9,
                "gflop_per_cpu_s": count / cpu / 1e9,
                "share_of_peak": count / cpu / peaks["float32"],
            }
            found.append(row)
            print(
                f"{name:14} {size:4} rows {precision:10} {'compiled' if compiled else '':8} "
                f"{row['tasks_per_cpu_s']:8.1f} tasks/s {row['gflop_per_cpu_s']:7.1f} GFLOP/s "
                f"{row['share_of_peak']:6.1%} of peak",
                flush=True,
            )
    return found


def optimisers(device: torch.device, repeats: int) -> dict[str, float]:
    """Seconds of a step of Muon for the matrices of `bo`: torch's, one by one, and ours."""
    config = RECIPES["bo"]().config
    blocks = untrained(config.architecture, config).network.blocks
    found = {}
    for name, kind in (("torch.optim.Muon", torch.optim.Muon), ("pfn.muon.Muon", Muon)):
        matrices = [nn.Parameter(torch.randn_like(p, device=device)) for p in blocks.parameters()]
        matrices = [p for p in matrices if p.dim() == 2]
        for matrix in matrices:
            matrix.grad = torch.randn_like(matrix)
        step = kind(matrices, lr=1e-2, weight_decay=0.0).step
        found[name] = median_seconds(step, repeats, device)[0]
        print(f"{name:17} {len(matrices)} matrices: {1e3 * found[name]:7.1f} ms a step", flush=True)
    return found


def untrained(architecture: ArchitectureConfig, config: TrainingConfig) -> PFN:
    """A network of random weights, whose speed is that of a trained one."""
    torch.manual_seed(0)
    borders = None if architecture.classes else torch.linspace(-3, 3, architecture.bars + 1)
    return PFN(
        architecture,
        borders,
        inputs=config.inputs,
        targets=config.targets,
        metadata={"max_context": 512, "max_buffer": 32},
    ).eval()


def latencies(
    name: str, sizes: list[tuple[int, int]], device: torch.device, repeats: int, peak: float
) -> list[dict[str, Any]]:
    """Seconds to condition and ask, to ask only, and of matrix products at the rate `peak`."""
    config = RECIPES[name]().config
    network = untrained(config.architecture, config).to(device)
    found = []
    for n, q in sizes:
        generator = torch.Generator().manual_seed(0)
        X, queries = (torch.randn(k, FEATURES, generator=generator).to(device) for k in (n, q))
        y = torch.randn(n, 1, generator=generator).to(device)
        with torch.no_grad():
            model = network.condition(X, y, check=False)

            def ask(model: Any = model, queries: Tensor = queries) -> None:
                _ = model.posterior(queries, observation_noise=True).mean

            def both(X: Tensor = X, y: Tensor = y, queries: Tensor = queries) -> None:
                _ = network.condition(X, y, check=False).posterior(queries).mean

            cached, whole = (median_seconds(f, 3 * repeats, device) for f in (ask, both))
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                both()
            products = counter.get_total_flops() / peak
        found.append(
            {
                "network": name,
                "context": n,
                "queries": q,
                "cached_cpu_s": cached[0],
                "cached_wall_s": cached[1],
                "not_cached_cpu_s": whole[0],
                "not_cached_wall_s": whole[1],
                "products_s": products,
            }
        )
        print(
            f"{name:14} n = {n:4}, q = {q:4}: {1e3 * whole[0]:8.2f} ms, conditioned before "
            f"{1e3 * cached[0]:8.2f} ms, products of the whole {1e3 * products:8.2f} ms",
            flush=True,
        )
    return found


def process_latencies(
    sizes: list[tuple[int, int]], device: torch.device, repeats: int
) -> list[dict[str, Any]]:
    """Seconds to make a SingleTaskGP and ask it, nothing fitted."""
    found = []
    for n, q in sizes:
        generator = torch.Generator().manual_seed(0)
        X, queries = (torch.rand(k, FEATURES, generator=generator).to(device) for k in (n, q))
        y = torch.randn(n, 1, generator=generator).to(device)

        def both(X: Tensor = X, y: Tensor = y, queries: Tensor = queries) -> None:
            _ = SingleTaskGP(X, y).posterior(queries, observation_noise=True).variance

        with torch.no_grad():
            cpu, wall = median_seconds(both, 3 * repeats, device)
        found.append({"context": n, "queries": q, "cpu_s": cpu, "wall_s": wall})
        print(f"{'SingleTaskGP':14} n = {n:4}, q = {q:4}: {1e3 * cpu:8.2f} ms", flush=True)
    return found


def ensembles(rows: list[int], device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """Seconds of `PFNRegressor` with one member and with eight."""
    network, found = pfn.load("regression"), []
    for n in rows:
        random = np.random.default_rng(0)
        X, queries = random.normal(size=(n, FEATURES)), random.normal(size=(100, FEATURES))
        y = np.sin(X[:, 0]) + 0.3 * X[:, 1] * X[:, 2] + 0.1 * random.normal(size=n)
        for members in (1, 8):
            made = pfn.PFNRegressor(network, num_ensemble=members, check=False, device=device)
            fit = median_seconds(lambda m=made, X=X, y=y: m.fit(X, y), repeats, device)
            ask = median_seconds(lambda m=made, q=queries: m.predict(q), repeats, device)
            row = {"context": n, "members": members, "fit_cpu_s": fit[0], "predict_cpu_s": ask[0]}
            found.append(row)
            print(
                f"PFNRegressor n = {n:4}, {members} members: fit {1e3 * fit[0]:8.1f} ms, "
                f"predict 100 rows {1e3 * ask[0]:8.1f} ms",
                flush=True,
            )
    return found


def competitor(rows: list[int], sizes: list[tuple[int, int]], repeats: int) -> dict[str, Any]:
    """The transformer of `pfns` in its own process."""
    own = RECIPES["bo"]().config.architecture
    wanted = {
        "embedding": own.embedding,
        "heads": own.heads,
        "hidden": own.hidden,
        "layers": own.layers,
        "bars": own.bars,
        "features": FEATURES,
        "rows": rows,
        "share": SHARE,
        "batch": BATCH,
        "queries": sizes,
        "repeats": repeats,
        "threads": torch.get_num_threads(),
    }
    script = Path(__file__).with_name("pfns_side.py")
    done = subprocess.run(
        [str(THEIRS), str(script), json.dumps(wanted)],
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": ""},
    )
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
            break
    else:
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1][:300]}
    for size, (cpu, _) in zip(rows, found["train"], strict=True):
        print(f"{'pfns':14} {size:4} rows {'32-true':19} {BATCH / cpu:8.1f} tasks/s")
    for (n, q), (cpu, _) in zip(sizes, found["query"], strict=True):
        print(f"{'pfns':14} n = {n:4}, q = {q:4}: {1e3 * cpu:8.2f} ms")
    return {"sizes": wanted, **found}


def main(argv: list[str]) -> int:
    """Measure, print, write."""
    options_parser = common.parser("throughput", __doc__)
    options_parser.add_argument("--repeats", type=int, help="timed calls of each kind (5)")
    options_parser.add_argument("--networks", nargs="*", default=["regression", "bo"])
    options_parser.add_argument("--rows", type=int, nargs="*", default=[64, 192, 576])
    options_parser.add_argument("--compile", action="store_true", help="also compiled by torch")
    options = options_parser.parse_args(argv)
    options.repeats = options.repeats or (2 if options.quick else 5)
    device = common.device()
    rows = [64] if options.quick else options.rows
    sizes = [(n, q) for n in (20, 100, 500) for q in (1, 64, 1000)][: 2 if options.quick else 9]
    peaks = {
        str(dtype).removeprefix("torch."): peak(dtype, device, 1024 if options.quick else 4096)
        for dtype in (torch.float32, torch.bfloat16)
    }
    print({name: f"{value / 1e9:.0f} GFLOP/s" for name, value in peaks.items()})
    results: dict[str, Any] = {
        "command": command("pfn throughput", argv),
        "load_average": os.getloadavg(),
        "peak_gflop_per_s": {name: value / 1e9 for name, value in peaks.items()},
        "batch": BATCH,
        "features": FEATURES,
        "optimisers": optimisers(device, options.repeats),
        "training": [],
        "latency": [],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in options.networks:
            results["training"] += training_rates(name, rows, device, peaks, options)
        for name in options.networks:
            fastest = peaks["float32"]
            results["latency"] += latencies(name, sizes, device, options.repeats, fastest)
        results["process_latency"] = process_latencies(sizes, device, options.repeats)
        contexts = [50] if options.quick else [50, 500]
        results["ensembles"] = ensembles(contexts, device, options.repeats)
    if THEIRS.exists() and device.type == "cpu":
        results["pfns"] = competitor(rows, sizes, options.repeats)
        if "error" in results["pfns"]:
            print(results["pfns"]["error"], file=sys.stderr)
    else:
        print("pfns is not there (or this is no CPU); `make pfns` installs it. Ours alone.")
    common.write("throughput", options, results)
    return 0
