"""Does the search find better networks than what people use, query for query?

On tables of trained networks (`benchmarks.nas.tables`): NAS-Bench-201 on CIFAR-10 and CIFAR-100,
where a query is one training of 200 epochs, and the FCNet sets, architecture and hyperparameters
together. All methods have the same space, queries and training seeds; what they recommend after 10,
25, 50 and 100 queries is judged by the mean test accuracy (FCNet: the mean validation error).

    python -m benchmarks search lookups --data FOLDER           # 30 seeds of everything
    python -m benchmarks search lookups --table                 # what is there
    python -m benchmarks search lookups --tasks cifar10 --methods gp optuna-tpe --seeds 5

One line of JSON for each task, method and seed; those that are there are not run again. Reading the
tables needs pyarrow, and `optuna-cmaes` the package cmaes.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import scipy.stats
import torch
from tqdm import tqdm

from benchmarks.bayes import records
from benchmarks.nas.methods import METHODS
from benchmarks.nas.tables import TASKS, Lookup, load_table

__all__ = ["main", "report"]

RESULT = Path(__file__).resolve().parents[1] / "results" / "search_lookups.jsonl"
STOPS = (10, 25, 50, 100)


def main(argv: list[str]) -> int:
    """Run what is missing and print the tables."""
    options = _options(argv)
    if not options.table:
        try:
            _run(options)
        except FileNotFoundError as error:
            print(f"benchmarks search lookups: {error}", file=sys.stderr)
            return 2
    found = records.read(options.out)
    for task in TASKS:
        rows = [r for r in found if r.get("task") == task and r["seed"] >= options.first]
        if rows:
            print(report(task, rows))
    return 0


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks search lookups", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    at = os.environ.get("WIDEPRIOR_DATA")
    usual = None if at is None else Path(at) / "nas"
    parser.add_argument("--data", type=Path, default=usual, help="folder of the tables")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=30, help="runs of each method (30)")
    parser.add_argument("--first", type=int, default=0, help="number of the first seed (0)")
    parser.add_argument("--queries", type=int, default=STOPS[-1], help="of each run (100)")
    parser.add_argument("--out", type=Path, default=RESULT, help="file of results, JSON lines")
    parser.add_argument("--table", action="store_true", help="run nothing, print what is there")
    return parser.parse_args(argv)


def _run(options: argparse.Namespace) -> None:
    if options.data is None:
        raise FileNotFoundError("--data FOLDER with the tables is needed, or WIDEPRIOR_DATA.")
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = records.read(options.out)
    done = {(r["task"], r["method"], r["seed"]) for r in found}
    tables = {task: load_table(task, options.data) for task in options.tasks}
    every = [
        (task, method, seed)
        for seed in range(options.first, options.first + options.seeds)
        for task in options.tasks
        for method in options.methods
        if (task, method, seed) not in done
    ]
    for task, method, seed in tqdm(every, desc="runs"):
        lookup = Lookup(tables[task], seed)
        seconds = METHODS[method](lookup, options.queries, seed)
        records.append(options.out, _record(lookup, options.queries, method, seed, seconds))


def _record(
    lookup: Lookup, queries: int, method: str, seed: int, seconds: list[float]
) -> dict[str, Any]:
    table = lookup.table
    stops = [stop for stop in STOPS if stop <= queries]
    return {
        "task": table.name,
        "method": method,
        "seed": seed,
        "quality": [float(table.quality[lookup.recommended(stop)]) for stop in stops],
        "seconds": [round(float(np.sum(seconds[: lookup.seen(stop)])), 3) for stop in stops],
        "best": float(table.quality.max()),
        "average": float(table.quality.mean()),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "botorch", "optuna")},
    }


def report(task: str, rows: list[dict[str, Any]]) -> str:
    """Means with 95% intervals by method and queries.

    Args:
        task: Name.
        rows: Records of the task.

    Returns:
        Quality, then regret, relative improvement over the average network in percent, the
        probability to be better than random search with the same seed (ties count half), and
        processor seconds of all proposals.
    """
    best, average = rows[0]["best"], rows[0]["average"]
    accuracy = best > 0
    lines = [f"{task}: best {best:.6g}, average {average:.6g}"]
    by_method = {
        method: sorted((r for r in rows if r["method"] == method), key=lambda r: r["seed"])
        for method in METHODS
    }
    random = {r["seed"]: r["quality"] for r in by_method["random"]}
    for method, runs in by_method.items():
        if not runs:
            continue
        length = min(len(r["quality"]) for r in runs)
        quality = np.array([r["quality"][:length] for r in runs])
        half = np.full(length, np.nan)
        if len(runs) > 1:
            error = scipy.stats.sem(quality, axis=0)
            half = scipy.stats.t.ppf(0.975, len(runs) - 1) * error
        mean = quality.mean(0)
        improvement = 100 * (mean - average) / abs(average)
        paired = [(r["quality"][:length], random[r["seed"]]) for r in runs if r["seed"] in random]
        wins = [
            [(a > b) + 0.5 * (a == b) for a, b in zip(own, other, strict=False)]
            for own, other in paired
        ]
        form = "{:.3f}±{:.3f}" if accuracy else "{:.3e}±{:.0e}"
        regret = best - mean
        lines += [
            f"  {method:<13} {len(runs):>3} runs  "
            + "  ".join(form.format(m, h) for m, h in zip(mean, half, strict=True)),
            "                 regret "
            + "  ".join(f"{r:.3g}" for r in regret)
            + "   improvement "
            + " ".join(f"{i:.2f}%" for i in improvement)
            + ("   beats random " if wins else "")
            + " ".join(f"{w:.2f}" for w in (np.mean(wins, axis=0) if wins else ()))
            + f"   {np.mean([r['seconds'][length - 1] for r in runs]):.1f} s",
        ]
    return "\n".join(lines)
