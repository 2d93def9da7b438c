"""What are more rows worth than a network was trained on, and what is a minute of fine-tuning?

Rows: `regression` in `PFNRegressor`, by what it does with more rows than its limit of 512. Each of
its members sees a random part ("subsample", 8 members and 32), or all rows are cut into disjoint
contexts ("chunk", for 8 members). Beside it boosting, tuned as in `benchmarks pfn real`, on all
rows, and BoTorch's SingleTaskGP on up to 2,000. The same splits and test rows for all.

Fine-tuning: `PFN.finetune` for a minute on the training rows of a split (up to 512), against the
same network as it comes, both in one pass; paired by split.

    python -m benchmarks pfn rows --data ../shared/data/uci    # about an hour on one core
    python -m benchmarks pfn rows --data ../shared/data/uci --quick    # a minute
    python -m benchmarks pfn rows --data ../shared/data/uci --sets power-plant --sizes 512 2000

An interrupted run goes on where it stopped: pieces are kept under `runs/`, and parts of a run, by
`--sets`, `--sizes` and `--models`, are pieces of the whole one.
"""

from __future__ import annotations

import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pfn
from benchmarks.commands import command
from benchmarks.pfn import common, datasets, jobs, scores, tabular_models
from benchmarks.pfn.datasets import Split, Table, load_tables

LARGE = ("power-plant", "naval-propulsion-plant")
ROWS = (512, 1_000, 2_000, 5_000, 10_000)
STRATEGIES: dict[str, dict[str, Any]] = {
    "network": {},
    "network, 32 members": {"num_ensemble": 32},
    "network, chunks": {"context_strategy": "chunk"},
}
MOST = {"SingleTaskGP": 2_000}  # rows that its time allows
MODELS = (*STRATEGIES, "boosting", "SingleTaskGP")
AS_IT_COMES, TUNED = "as it comes", "fine-tuned"
METRICS = ("nll", "rmse", "crps", "coverage", "seconds")


def main(argv: list[str] | None = None) -> int:
    """Score all models, print two tables, write JSON."""
    parser = common.parser("rows", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of UCI sets, NAME.npz")
    parser.add_argument("--splits", type=int, help="random splits of each set (3)")
    parser.add_argument("--network", default="regression", help="shipped name or file")
    parser.add_argument("--sets", nargs="+", help="only these sets")
    parser.add_argument("--sizes", nargs="+", type=int, help="only so many rows (all of ROWS)")
    parser.add_argument("--models", nargs="+", choices=(*MODELS, AS_IT_COMES, TUNED))
    parser.add_argument("--processes", type=int, default=1, help="at the same time (1)")
    options = parser.parse_args(argv)
    try:
        tables = [table for table in load_tables(options.data) if table.classes is None]
    except FileNotFoundError as error:
        parser.error(str(error))
    unknown = sorted(set(options.sets or ()) - {table.name for table in tables})
    if unknown:
        parser.error(f"no set {unknown[0]!r}; known are {', '.join(t.name for t in tables)}")
    tables = [table for table in tables if table.name in (options.sets or [table.name])]
    seeds = range(options.seed, options.seed + (options.splits or (1 if options.quick else 3)))
    sizes = tuple(options.sizes or (ROWS[:2] if options.quick else ROWS))
    seconds = 3.0 if options.quick else 60.0
    if options.quick:
        tables = [table for table in tables if table.name in ("yacht", LARGE[0])]
    network = jobs.network_file(options.network)
    folder, device = str(options.data.resolve()), str(common.device())
    tasks = [
        (table.name, model, seed, rows, seconds, folder, *network, device)
        for seed in seeds
        for table in tables
        for model, rows in _runs(table, sizes, options.models)
    ]
    cache = jobs.cache_file("rows", *(str(m.__file__) for m in (datasets, scores, tabular_models)))
    found = jobs.run(evaluate, tasks, cache, options.processes)

    results: dict[str, Any] = {"rows": {}, "tuning": {}}
    for table in tables:
        of_set = {
            (model, rows): [
                found[task] for task in tasks if task[:2] == (table.name, model) and task[3] == rows
            ]
            for model, rows in _runs(table, sizes, options.models)
        }
        results["rows"][table.name] = [
            {"model": model, "rows": rows, **_means(runs)}
            for (model, rows), runs in of_set.items()
            if model in MODELS
        ]
        if not {(AS_IT_COMES, 512), (TUNED, 512)} <= of_set.keys():
            continue
        before, after = of_set[AS_IT_COMES, 512], of_set[TUNED, 512]
        results["tuning"][table.name] = {
            **{f"before_{key}": value for key, value in _means(before).items()},
            **{f"after_{key}": value for key, value in _means(after).items()},
            "steps": [run["steps"] for run in after],
            "difference": scores.paired(_values(after, "nll") - _values(before, "nll")),
        }
    report(results)
    results = {
        "command": command("pfn rows", argv),
        "splits": list(seeds),
        "network": jobs.describe(*network),
        **results,
    }
    print(common.write("rows", options, results))
    return 0


def evaluate(
    name: str,
    model: str,
    seed: int,
    rows: int,
    seconds: float,
    folder: str,
    network: str,
    version: str,
    device: str,
) -> dict[str, Any]:
    """One model on so many rows of a split; `version` is the network's file."""
    split = datasets.split(_tables(folder)[name], seed, rows=rows)
    if model not in (*STRATEGIES, AS_IT_COMES, TUNED):
        return tabular_models.evaluate(model, split, network, seed, device)
    made = pfn.load(network).to(device)
    start, steps = time.perf_counter(), 0
    if model == TUNED:
        made = _tuned(made, split, seconds, seed)
        steps = made.metadata["finetuned"]["steps"]
    of_model = STRATEGIES.get(model, {"num_ensemble": 1})
    estimator = pfn.PFNRegressor(made, check=False, random_state=seed, device=device, **of_model)
    posterior = estimator.fit(split.train_X, split.train_y).predict_distribution(split.test_X)
    predicted = tabular_models.prediction(posterior, torch.as_tensor(split.test_y).to(device))
    found: dict[str, Any] = scores.density_scores(predicted, split.test_y)
    return {**found, "steps": steps, "seconds": time.perf_counter() - start}


def report(results: dict[str, Any]) -> None:
    """Print both tables."""
    for name, lines in results["rows"].items():
        if lines:
            print(f"\n{name:<24}{'rows':>8}" + "".join(f"{metric:>12}" for metric in METRICS))
        for line in lines:
            values = "".join(f"{line[metric]:>12.3f}" for metric in METRICS)
            print(f"  {line['model']:<22}{line['rows']:>8}{values}")
    if not results["tuning"]:
        return
    print(f"\n{'fine-tuning':<24}{'before':>10}{'after':>10}{'difference':>22}   steps")
    for name, line in results["tuning"].items():
        gap = line["difference"]
        error = "" if gap["standard_error"] is None else f" ± {gap['standard_error']:.3f}"
        told = f"{gap['mean']:+.3f}{error}"
        scored = f"{line['before_nll']:>10.3f}{line['after_nll']:>10.3f}"
        print(f"  {name:<22}{scored}{told:>22}   {line['steps']}")


def _runs(table: Table, sizes: tuple[int, ...], models: list[str] | None) -> list[tuple[str, int]]:
    """What is run on a set: models with their rows; only `models`, if some are named."""
    runs = [(model, 512) for model in (AS_IT_COMES, TUNED)]
    if table.name in LARGE:
        most = int(0.8 * len(table.y))
        runs += [
            (model, min(rows, most))
            for rows in sizes
            for model in MODELS
            if rows <= MOST.get(model, rows)
        ]
    return [run for run in runs if models is None or run[0] in models]


def _tuned(network: pfn.PFN, split: Split, seconds: float, seed: int) -> pfn.PFN:
    X, y = (torch.as_tensor(v).float() for v in (split.train_X, split.train_y))
    most = 10_000  # steps: the time ends it
    return network.float().finetune(X, y, steps=most, seconds=seconds, seed=seed)


@lru_cache(maxsize=1)
def _tables(folder: str) -> dict[str, Table]:
    return {table.name: table for table in load_tables(folder)}


def _values(runs: list[dict[str, Any]], metric: str) -> np.ndarray:
    return np.array([run[metric] for run in runs], dtype=float)


def _means(runs: list[dict[str, Any]]) -> dict[str, float]:
    return {metric: float(_values(runs, metric).mean()) for metric in METRICS}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
