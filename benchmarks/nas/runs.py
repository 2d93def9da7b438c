"""Benchmarks of many runs, each of which is a line of JSON: those that are there are not run again.

A run is told by what it was asked for, such as its method and its seed, which its line repeats
before what was measured.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import scipy.stats
import torch
from tqdm import tqdm

from benchmarks.bayes import records

__all__ = ["carry_out", "half_width", "parser_of"]

RESULTS = Path(__file__).resolve().parents[1] / "results"
Record = dict[str, Any]


def parser_of(
    name: str, doc: str | None, *, seeds: int = 10, data: bool = True
) -> argparse.ArgumentParser:
    """Options that all of them have.

    Args:
        name: Of the benchmark; its results are in `results/search_<name>.jsonl`.
        doc: What `--help` says.
        seeds: Runs of each method where nothing else is said.
        data: Whether it reads tables.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks search {name}", description=doc)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    if data:
        at = os.environ.get("WIDEPRIOR_DATA")
        usual = None if at is None else Path(at) / "nas"
        parser.add_argument("--data", type=Path, default=usual, help="folder of the tables")
    parser.add_argument("--seeds", type=int, default=seeds, help=f"runs of each ({seeds})")
    parser.add_argument("--first", type=int, default=0, help="number of the first seed (0)")
    usual = RESULTS / f"search_{name}.jsonl"
    parser.add_argument("--out", type=Path, default=usual, help="file of results, JSON lines")
    parser.add_argument("--table", action="store_true", help="run nothing, print what is there")
    return parser


def carry_out(
    options: argparse.Namespace,
    wanted: Iterable[Record],
    measure: Callable[..., Record],
    report: Callable[[list[Record]], str],
) -> int:
    """Run what is missing and print what is there.

    Args:
        options: Of a `parser_of`.
        wanted: What tells each run from the others, in the order in which they run.
        measure: Takes that as keyword arguments and returns what is kept of the run.
        report: From all lines of the file to a text.

    Returns:
        The exit status, 2 where a table is missing.
    """
    found = records.read(options.out)
    if not options.table:
        torch.set_num_threads(1)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        missing = [run for run in wanted if not any(run.items() <= each.items() for each in found)]
        try:
            for run in tqdm(missing, desc="runs"):
                found.append({**run, **measure(**run), **_made_with()})
                records.append(options.out, found[-1])
        except FileNotFoundError as error:
            print(f"python -m benchmarks search: {error}", file=sys.stderr)
            return 2
    print(report(found))
    return 0


def half_width(values: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Of the 95% Student t interval of the mean over the first dimension, NaN of a single value."""
    array = np.asarray(values, dtype=float)
    if len(array) < 2:
        return np.full(array.shape[1:], np.nan)
    return np.asarray(scipy.stats.t.ppf(0.975, len(array) - 1) * scipy.stats.sem(array, axis=0))


def _made_with() -> Record:
    versions = {name: version(name) for name in ("torch", "botorch", "optuna")}
    return {"machine": platform.machine(), "versions": versions}
