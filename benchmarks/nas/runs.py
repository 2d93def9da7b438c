"""Benchmarks of the search: runs of methods by seed."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import optuna
import scipy.stats

from benchmarks import runs

__all__ = ["carry_out", "half_width", "parser_of"]

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
    out = runs.RESULTS / f"search_{name}.jsonl"
    parser = runs.parser_of(f"search {name}", doc, out, data="nas" if data else None)
    parser.add_argument("--seeds", type=int, default=seeds, help=f"runs of each ({seeds})")
    parser.add_argument("--first", type=int, default=0, help="number of the first seed (0)")
    return parser


def carry_out(
    options: argparse.Namespace,
    wanted: Iterable[Record],
    measure: Callable[..., Record],
    report: Callable[[list[Record]], str],
) -> int:
    """`benchmarks.runs.carry_out` without Optuna's messages."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    packages = ("torch", "botorch", "optuna")
    return runs.carry_out(options, wanted, measure, report, packages)


def half_width(values: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Of the 95% Student t interval of the mean over the first dimension, NaN of a single value."""
    array = np.asarray(values, dtype=float)
    if len(array) < 2:
        return np.full(array.shape[1:], np.nan)
    return np.asarray(scipy.stats.t.ppf(0.975, len(array) - 1) * scipy.stats.sem(array, axis=0))
