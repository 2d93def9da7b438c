"""Are the shipped networks any good on real data, with their defaults?

Networks: `regression` and `classification` in the estimators with their defaults, ensembles of 8,
and in one forward pass; nothing tuned. Competitors, tuned as by default (`tabular_models.py` has
grids and densities): scikit-learn's Gaussian process, random forest (with two densities), gradient
boosting and linear model, BoTorch's SingleTaskGP (regression), and the training mean or the class
frequencies. Sets: scikit-learn's, and UCI's from a folder (`datasets.py`); up to 512 training rows,
10 random splits, the same for all models.

Scores: NLL (log loss in classification), RMSE or accuracy, coverage of 90 % intervals or
overconfidence, seconds of fit and prediction; ranks by mean NLL over the splits of each set, and
their mean over the sets; the network minus each competitor, paired by split, and minus the best one
of each set, which is chosen by these same scores and so a little too good. Standard errors are over
the splits, which share rows: of sets that are used whole, 80 % for training, they are too small by
a factor of about 1.5 to 2 (Nadeau & Bengio 2003, section 5). The aim is the best mean
rank in NLL. "unlike" counts the splits on which the network warned that the data set is unlike
its prior; its prediction counts all the same. Networks and SingleTaskGP run on the GPU where there
is one, the others on one CPU thread.

    python -m benchmarks pfn real --data ../shared/data/uci    # about an hour on one core
    python -m benchmarks pfn real                              # scikit-learn's sets: half an hour
    python -m benchmarks pfn real --features 100 --sets digits breast_cancer   # with all columns
    python -m benchmarks pfn real --quick                      # 2 splits of 2 small sets, a minute

An interrupted run goes on where it stopped: pieces are kept under `runs/`.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import sklearn

from benchmarks.commands import command
from benchmarks.pfn import common, datasets, jobs, scores, tabular_models
from benchmarks.pfn.datasets import Table, load_tables
from benchmarks.pfn.tabular_models import CLASSIFIERS, NETWORK, NETWORKS, ON_DEVICE, REGRESSORS

KINDS = ("regression", "classification")
METRICS = {
    "regression": ("nll", "rmse", "coverage", "seconds"),
    "classification": ("nll", "accuracy", "overconfidence", "seconds"),
}
QUICK = ("diabetes", "iris")


def main(argv: list[str] | None = None) -> int:
    """Score all models on all splits, print tables, write JSON."""
    parser = common.parser("real", __doc__)
    at = os.environ.get("WIDEPRIOR_DATA")
    usual = None if at is None else Path(at) / "uci"
    parser.add_argument("--data", type=Path, default=usual, help="folder of UCI sets, NAME.npz")
    parser.add_argument("--splits", type=int, help="random splits of each set (10)")
    parser.add_argument("--sets", nargs="+", help="only these sets")
    parser.add_argument("--features", type=int, default=20, help="most columns of a set (20)")
    parser.add_argument("--network", default="regression", help="shipped name or file")
    parser.add_argument("--classifier", default="classification", help="shipped name or file")
    parser.add_argument("--processes", type=int, default=1, help="at the same time (1)")
    options = parser.parse_args(argv)
    num_splits = options.splits or (2 if options.quick else 10)
    try:
        tables = load_tables(options.data)
    except FileNotFoundError as error:
        parser.error(str(error))
    wanted = options.sets or (QUICK if options.quick else [table.name for table in tables])
    unknown = sorted(set(wanted) - {table.name for table in tables})
    if unknown:
        parser.error(f"no set {unknown[0]!r}; known are {', '.join(t.name for t in tables)}")
    if options.data is None:
        print(f"without --data: not {', '.join(datasets.UCI)}")
    for name, reason in datasets.SKIPPED.items():
        print(f"skipped: {name}, {reason}")

    tables = [table for table in tables if table.name in wanted]
    seeds = range(options.seed, options.seed + num_splits)
    given = {"regression": options.network, "classification": options.classifier}
    networks = {k: jobs.network_file(given[k]) for k in KINDS if any(_kind(t) == k for t in tables)}
    folder = "" if options.data is None else str(options.data.resolve())
    device = str(common.device())
    most = options.features
    tasks: dict[tuple[str, str, int], jobs.Task] = {}
    for seed in seeds:  # the splits outside, so that an interrupted run has whole ones
        for table in tables:
            for model in models_of(table):
                file, version = networks[_kind(table)] if model in NETWORKS else ("", "")
                where = folder if table.name in datasets.UCI else ""
                on = device if model in ON_DEVICE else "cpu"
                task = (table.name, model, seed, where, file, version, on, most)
                tasks[table.name, model, seed] = task
    sources = [str(module.__file__) for module in (datasets, scores, tabular_models)]
    found: dict[jobs.Task, dict[str, Any]] = {}
    for are_networks in (False, True):  # competitors stay as they are when a network changes
        cache = jobs.cache_file("real", *sources, networks=are_networks)
        some = [task for task in tasks.values() if (task[1] in NETWORKS) == are_networks]
        found |= jobs.run(evaluate, some, cache, options.processes)

    differences = ("network_minus", "network_minus_best")
    results: dict[str, Any] = {name: {} for name in ("sets", "ranks", *differences)}
    for table in tables:
        of_models = {
            model: [found[tasks[table.name, model, seed]] for seed in seeds]
            for model in models_of(table)
        }
        results["sets"][table.name] = summarise(of_models, _kind(table))
        results["network_minus"][table.name] = {
            model: scores.paired(_values(of_models[NETWORK], "nll") - _values(runs, "nll"))
            for model, runs in of_models.items()
            if model != NETWORK
        }
        best = best_competitor(results["sets"][table.name])
        gap = results["network_minus"][table.name][best]
        results["network_minus_best"][table.name] = {"model": best, **gap}
    for kind in networks:
        names = [table.name for table in tables if _kind(table) == kind]
        results["ranks"][kind] = scores.ranks(
            {name: {m: row["nll"] for m, row in results["sets"][name].items()} for name in names}
        )
        report(kind, names, results)
    results = {
        "command": command("pfn real", argv),
        "splits": list(seeds),
        "features": most,
        "rows": {t.name: [*t.X.shape, min(512, int(0.8 * len(t.y)))] for t in tables},
        "networks": {kind: jobs.describe(*networks[kind]) for kind in networks},
        "skipped": datasets.SKIPPED,
        "processes": options.processes,
        **results,
    }
    wide = "" if most == 20 else f"_{most}_features"
    print(common.write(f"real{wide}", options, results, sklearn=sklearn.__version__))
    return 0


def evaluate(
    name: str,
    model: str,
    seed: int,
    folder: str,
    network: str,
    version: str,
    device: str,
    features: int,
) -> dict[str, Any]:
    """One model on one split; the arguments identify the result, `version` the network's file."""
    split = datasets.split(_tables(folder)[name], seed, features)
    return tabular_models.evaluate(model, split, network, seed, device)


def models_of(table: Table) -> list[str]:
    """The names of the models that are compared on a set."""
    return [*NETWORKS, *(REGRESSORS if table.classes is None else CLASSIFIERS)]


def summarise(of_models: dict[str, list[dict[str, Any]]], kind: str) -> dict[str, dict[str, Any]]:
    """Means over the splits with standard errors."""
    table: dict[str, dict[str, Any]] = {}
    for model, runs in of_models.items():
        row: dict[str, Any] = {}
        for metric in METRICS[kind]:
            measured = scores.paired(_values(runs, metric))
            row[metric], row[f"{metric}_error"] = measured["mean"], measured["standard_error"]
        row["nll_by_split"] = _values(runs, "nll").tolist()
        if model == NETWORK:
            row["unlike"] = sum(bool(run["unlike_the_prior"]) for run in runs)
        table[model] = row
    return table


def best_competitor(of_set: dict[str, dict[str, Any]]) -> str:
    """The model of smallest mean NLL on a set that is no network."""
    return min((m for m in of_set if m not in NETWORKS), key=lambda m: of_set[m]["nll"])


def report(kind: str, names: list[str], results: dict[str, Any]) -> None:
    """Print a table of each set, the ranks, and the paired differences."""
    heads = METRICS[kind]
    for name in names:
        print(f"\n{name}{'':{max(0, 24 - len(name))}}" + "".join(f"{h:>22}" for h in heads))
        for model, row in results["sets"][name].items():
            cells = [_cell(row[metric], row[f"{metric}_error"]) for metric in heads]
            told = f"   unlike its prior: {row['unlike']} splits" if row.get("unlike") else ""
            print(f"  {model:<22}" + "".join(f"{cell:>22}" for cell in cells) + told)
    ranks = results["ranks"][kind]
    print(f"\n{kind}: rank in NLL" + "".join(f"{name[:12]:>14}" for name in [*names, "mean"]))
    for model in sorted(ranks, key=lambda m: ranks[m]["mean"]):
        of_sets = "".join(f"{ranks[model][name]:>14.2f}" for name in [*names, "mean"])
        print(f"  {model:<{len(kind) + 11}}{of_sets}")
    print("\nNLL of the network minus that of ..., paired; negative is better")
    for name in names:
        best, gaps = results["network_minus_best"][name], results["network_minus"][name]
        print(f"  {name:<22}", end="")
        named = {f"the best, {best['model']}": best, **gaps}
        cells = [f"{m} {_cell(g['mean'], g['standard_error'], '+')}" for m, g in named.items()]
        print("; ".join(cells))


@lru_cache(maxsize=2)
def _tables(folder: str) -> dict[str, Table]:
    return {table.name: table for table in load_tables(folder or None)}


def _kind(table: Table) -> str:
    return KINDS[table.classes is not None]


def _values(runs: list[dict[str, Any]], metric: str) -> np.ndarray:
    return np.array([run[metric] for run in runs], dtype=float)


def _cell(mean: float, error: float | None, sign: str = "") -> str:
    digits = 1 if abs(mean) >= 100 else 3
    told = f"{mean:{sign}.{digits}f}"
    return told if error is None else f"{told} ± {error:.{digits}f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
