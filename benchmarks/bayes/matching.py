"""Which way of matching a weight prior to a Gaussian process is fast, and how close does it come?

The published setting of Tran et al. 2022 for tables: a network of 100 tanh units, variances of its
two layers, D = 8, an RBF target with length scale sqrt(2 D), measurement sets of 100 points, 70%
of them training rows and the rest in the box that these span. Processor seconds of a match in one
thread; covariance error and sliced distance on 100 held-out rows, beside the sampling floor.

"published" is the dual Wasserstein distance with its settings, one bag of 128 functions for each
critic; "wasserstein" the same with a pool of functions, as here. A limit's tables are made before
the clock starts, as they are once in a process.

    python -m benchmarks networks --matching            # 3 seeds: an hour or two on one core
    python -m benchmarks networks --matching --quick    # one seed, a tenth of the dual's steps
    python -m benchmarks networks --matching --table    # of what is there
    python -m benchmarks networks --matching --pooled 6 # its sliced distances at other rows

A run appends to `--out` and skips what is there.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from gpytorch.kernels import RBFKernel
from torch import Tensor, nn

from bayes import match_functional_prior, match_quality, match_report
from bayes.functional_prior import (
    MatchingMethod,
    MomentMatching,
    SlicedMatching,
    TrainingBox,
    WassersteinMatching,
)
from benchmarks import records, runs
from priors import GaussianProcessPrior, NetworkPrior

RESULT = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "matching.jsonl"
_FEATURES, _ROWS, _WIDTH = 8, 100, 100


def main(argv: list[str]) -> int:
    """Match what is missing and print the table."""
    parser = runs.parser_of("networks --matching", __doc__, RESULT)
    parser.add_argument("--pooled", type=int, metavar="N", help="sets of rows for what is there")
    parser.add_argument("--quick", action="store_true", help="one seed, few steps of the dual")
    parser.add_argument("--seeds", type=int, default=3)
    names = ["start", *methods(False)]
    parser.add_argument("--methods", nargs="+", choices=names, default=names)
    options = parser.parse_args(argv)
    if options.pooled:
        torch.set_num_threads(1)
        print(pooled([r for r in records.read(options.out) if not r["quick"]], options.pooled))
        return 0
    wanted = [
        {"method": name, "seed": seed, "quick": options.quick}
        for seed in range(1 if options.quick else options.seeds)
        for name in options.methods
    ]
    return runs.carry_out(options, wanted, measure, table)


def methods(quick: bool) -> dict[str, MatchingMethod]:
    """By name, those that are quick first."""
    steps = 20 if quick else 200
    return {
        "moments": MomentMatching(),
        "sliced": SlicedMatching(),
        "published": WassersteinMatching(num_iterations=steps, critic_pool=128),
        "wasserstein": WassersteinMatching(num_iterations=steps),
    }


def problem(seed: int) -> tuple[NetworkPrior, GaussianProcessPrior, TrainingBox, Tensor]:
    """Network, target, measurement sets and held-out rows."""
    module = nn.Sequential(nn.Linear(_FEATURES, _WIDTH), nn.Tanh(), nn.Linear(_WIDTH, 1))
    kernel = RBFKernel()
    kernel.lengthscale = math.sqrt(2 * _FEATURES)
    generator = torch.Generator().manual_seed(seed)
    train, held_out = torch.randn(2, _ROWS, _FEATURES, generator=generator, dtype=torch.float64)
    prior = NetworkPrior(module, weight_var=1.0, bias_var=1.0)
    return prior, GaussianProcessPrior(kernel), TrainingBox(train, num_points=_ROWS), held_out


def measure(method: str, seed: int, quick: bool) -> dict[str, Any]:
    """Seconds of a match, and how close it comes."""
    prior, target, box, held_out = problem(seed)
    _make_tables()
    before = time.process_time()
    if method != "start":
        prior = match_functional_prior(
            prior, target, box, method=methods(quick)[method], num_sets=2, seed=seed
        )
    seconds = time.process_time() - before
    report = match_report(prior, target, held_out)
    return {
        "seconds": seconds,
        "covariance_error": match_quality(prior, target, held_out).covariance_error,
        "distance": report.distance,
        "floor": float(report.floor.mean()),
        "variances": {
            kind: {k: v.item() for k, v in getattr(prior.variances, kind).items()}
            for kind in ("weight_var", "bias_var")
        },
    }


@functools.cache
def _make_tables() -> None:
    """Those of the limit, which are made once in a process."""
    prior, target, box, _ = problem(0)
    match_functional_prior(prior, target, box, progress=False)


def pooled(found: list[dict[str, Any]], number: int) -> str:
    """Sliced distances of recorded matches at other rows, and theirs minus the published way's."""
    distances: dict[str, list[float]] = {r["method"]: [] for r in found} | {"floor": []}
    for index in range(number):
        prior, target, _, X = problem(1000 + index)
        for record in found:
            for kind in ("weight_var", "bias_var"):
                for layer, value in record["variances"][kind].items():
                    getattr(prior.variances, kind)[layer] = value
            report = match_report(prior, target, X, seed=index)
            distances[record["method"]].append(report.distance)
        distances["floor"].append(float(report.floor.mean()))
    lines = [f"sliced distances at {number} sets of {_ROWS} rows    minus published"]
    for name, values in distances.items():
        each = len(values) // number  # seeds of the match
        means = [statistics.mean(values[i * each : (i + 1) * each]) for i in range(number)]
        line = f"{name:12} {_mean(means)}"
        published = distances.get("published", [])
        if published and name not in ("floor", "published"):
            other = len(published) // number
            theirs = [statistics.mean(published[i * other :][:other]) for i in range(number)]
            line += f"    {_mean([a - b for a, b in zip(means, theirs, strict=True)])}"
        lines.append(line)
    return "\n".join(lines)


def _mean(values: list[float]) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.4f} ± {error:.4f}"


def table(found: list[dict[str, Any]]) -> str:
    """Medians over seeds, and how much faster moments are."""
    lines = [f"{'method':12} seeds  seconds  covariance error  sliced distance  floor"]
    seconds: dict[tuple[str, bool], float] = {}
    for name, quick in dict.fromkeys((r["method"], r["quick"]) for r in found):
        some = [r for r in found if (r["method"], r["quick"]) == (name, quick)]

        def median(key: str, some: list[dict[str, Any]] = some) -> float:
            return statistics.median(r[key] for r in some)

        seconds[name, quick] = median("seconds")
        lines.append(
            f"{name:12} {len(some):5d} {median('seconds'):8.1f} {median('covariance_error'):17.3f} "
            f"{median('distance'):16.3f} {median('floor'):6.3f}{'  (quick)' if quick else ''}"
        )
    moments = seconds.get(("moments", False))
    for name in ("published", "wasserstein", "sliced"):
        other = seconds.get((name, False))
        if moments and other:
            lines.append(f"moments are {other / moments:.0f} times as fast as {name}")
    return "\n".join(lines)
