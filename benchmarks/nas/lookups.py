"""Does the search find better networks than what people use, query for query?

On tables of trained networks (`benchmarks.nas.tables`): NAS-Bench-201 on CIFAR-10 and CIFAR-100,
where a query is one training of 200 epochs, and the FCNet sets, architecture and hyperparameters
together. All methods have the same space, queries and training seeds; what they recommend after 10,
25, 50 and 100 queries is judged by the mean test accuracy (FCNet: the mean validation error).

    python -m benchmarks search lookups --data FOLDER           # 30 seeds of everything
    python -m benchmarks search lookups --table                 # what is there
    python -m benchmarks search lookups --tasks cifar10 --methods gp optuna-tpe --seeds 5

One line of JSON for each task, method and seed; those that are there are not run again. Reading the
tables needs pyarrow, and `optuna-cmaes` the package cmaes; `smac` (SMAC 2.4.1, its facade for mixed
spaces) and `syne-tune-cqr` (Syne Tune 0.16.0) have an environment of their own, from `make tuners`,
and are left out without it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.nas.methods import METHODS, at_hand
from benchmarks.nas.runs import carry_out, half_width, parser_of
from benchmarks.nas.tables import TASKS, Lookup, load_table

__all__ = ["main", "report"]

STOPS = (10, 25, 50, 100)


def main(argv: list[str]) -> int:
    """Run what is missing and print the tables."""
    parser = parser_of("lookups", __doc__, seeds=30)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=at_hand())
    parser.add_argument("--queries", type=int, default=STOPS[-1], help="of each run (100)")
    options = parser.parse_args(argv)
    seeds = range(options.first, options.first + options.seeds)
    wanted = [
        {"task": task, "method": method, "seed": seed}
        for seed in seeds
        for task in options.tasks
        for method in options.methods
    ]

    def reports(found: list[dict[str, Any]]) -> str:
        rows = [r for r in found if r["seed"] >= options.first]
        by_task = {task: [r for r in rows if r["task"] == task] for task in TASKS}
        return "\n".join(report(task, rows) for task, rows in by_task.items() if rows)

    return carry_out(options, wanted, partial(_run, options.data, options.queries), reports)


def _run(data: Path | None, queries: int, *, task: str, method: str, seed: int) -> dict[str, Any]:
    table = load_table(task, data)
    lookup = Lookup(table, seed)
    seconds = METHODS[method](lookup, queries, seed)
    stops = [stop for stop in STOPS if stop <= queries]
    return {
        "quality": [float(table.quality[lookup.recommended(stop)]) for stop in stops],
        "seconds": [round(float(np.sum(seconds[: lookup.seen(stop)])), 3) for stop in stops],
        "best": float(table.quality.max()),
        "average": float(table.quality.mean()),
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
        half, mean = half_width(quality), quality.mean(0)
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
