"""Does the search find better trade-offs of accuracy and latency than what people use?

On NAS-Bench-201 with CIFAR-10 (`benchmarks.nas.tables`): a query trains one random seed, its two
objectives are the validation error and the latency measured on a phone. All methods have the same
space, queries and training seeds. The cells on the front of what a method saw are judged by their
mean test error and latency: the area that they dominate up to 15% and 25 ms, as a share of what the
front of the whole table does.

    python -m benchmarks search pareto --data FOLDER            # 10 seeds of everything
    python -m benchmarks search pareto --table                  # what is there
    python -m benchmarks search pareto --methods gp nsga2 --seeds 3

One line of JSON for each method and seed; those that are there are not run again. Reading the table
needs pyarrow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna

import nas
from benchmarks.nas.runs import carry_out, half_width, parser_of
from benchmarks.nas.tables import Lookup, Table, load_table

__all__ = ["dominated", "main", "report"]

STOPS = (25, 50, 100, 150)
REFERENCE = (15.0, 25.0)  # percent, ms
SAMPLERS: dict[str, Callable[[Table, int], optuna.samplers.BaseSampler]] = {
    "random": lambda table, seed: optuna.samplers.RandomSampler(seed=seed),
    "nsga2": lambda table, seed: optuna.samplers.NSGAIISampler(population_size=20, seed=seed),
    "optuna-tpe": lambda table, seed: optuna.samplers.TPESampler(seed=seed),
    "optuna-gp": lambda table, seed: optuna.samplers.GPSampler(seed=seed),
    "gp": lambda table, seed: nas.BayesianSampler(table.space, hyperparameters={}, seed=seed),
}


def main(argv: list[str]) -> int:
    """Run what is missing and print the table."""
    parser = parser_of("pareto", __doc__)
    parser.add_argument("--methods", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--queries", type=int, default=STOPS[-1], help="of each run (150)")
    options = parser.parse_args(argv)
    wanted = [
        {"method": method, "seed": seed}
        for seed in range(options.first, options.first + options.seeds)
        for method in options.methods
    ]
    return carry_out(options, wanted, partial(_run, options.data, options.queries), report)


def _run(data: Path | None, queries: int, *, method: str, seed: int) -> dict[str, Any]:
    table = load_table("cifar10", data)
    assert table.latency is not None
    lookup, seconds = Lookup(table, seed), []
    study = optuna.create_study(
        directions=["minimize", "minimize"], sampler=SAMPLERS[method](table, seed)
    )
    for _ in range(queries):
        start = time.process_time()
        trial = study.ask()
        nas.suggest(trial, table.space)
        seconds.append(time.process_time() - start)
        row = table.row(trial.params)
        study.tell(trial, (100 - lookup.query(row), table.latency[row]))
    error = 100 - table.quality
    whole = dominated(error, table.latency)
    found = []
    for stop in (stop for stop in STOPS if stop <= queries):
        rows, seen = np.array(lookup.rows[:stop]), 100 - np.array(lookup.scores[:stop])
        front = rows[_front(seen, table.latency[rows])]
        found.append(dominated(error[front], table.latency[front]) / whole)
    return {
        "share": found,
        "seconds": [round(float(np.sum(seconds[:stop])), 3) for stop in STOPS],
    }


def _front(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Places of the points that no other one beats in both, by the first."""
    best, kept = np.inf, []
    for place in np.lexsort((two, one)):
        if two[place] < best:
            kept.append(place)
            best = two[place]
    return np.array(kept)


def dominated(one: np.ndarray, two: np.ndarray, reference: Sequence[float] = REFERENCE) -> float:
    """The area of what is worse than some point in both, up to the reference."""
    inside = (one < reference[0]) & (two < reference[1])
    one, two = one[inside], two[inside]
    if not len(one):
        return 0.0
    front = _front(one, two)
    widths = np.diff([*one[front], reference[0]])
    return float((widths * (reference[1] - two[front])).sum())


def report(found: Sequence[dict[str, Any]]) -> str:
    """Mean percent of the table's area with 95% intervals by method and queries.

    Args:
        found: Records.

    Returns:
        Then what `gp` has more than each, by seed, and processor seconds of all proposals.
    """
    ours = {r["seed"]: r["share"] for r in found if r["method"] == "gp"}
    lines = ["percent of the area after " + ", ".join(map(str, STOPS)) + " queries"]
    for method in SAMPLERS:
        runs = [r for r in found if r["method"] == method]
        if not runs:
            continue
        length = min(len(r["share"]) for r in runs)
        share = 100 * np.array([r["share"][:length] for r in runs])
        line = f"  {method:<11}{len(runs):>3} runs  " + "  ".join(_with_half_width(share))
        paired = [
            100 * (np.array(ours[r["seed"]][:length]) - r["share"][:length])
            for r in runs
            if r["seed"] in ours
        ]
        if method != "gp" and len(paired) > 1:
            line += "   gp less it " + "  ".join(_with_half_width(np.array(paired)))
        seconds = np.mean([r["seconds"][length - 1] for r in runs])
        lines.append(f"{line}   {seconds:.0f} s")
    return "\n".join(lines)


def _with_half_width(values: np.ndarray) -> list[str]:
    pairs = zip(values.mean(0), half_width(values), strict=True)
    return [f"{m:.2f}±{h:.2f}" for m, h in pairs]
