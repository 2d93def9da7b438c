"""Which rows a fit gets: sets, sizes and splits, the same for every model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.pfn.datasets import Table, load_tables

__all__ = ["SIZES", "Problem", "chosen_sizes", "regression_tables", "split"]

# Training rows by set; UCI's files have long names.
SIZES = {
    "diabetes": (100, 300),
    "concrete": (100, 300),
    "energy": (100, 300),
    "yacht": (100, 200),
    "power-plant": (100, 300, 1000),
    "naval": (100, 300, 1000),
}
_FILES = {"naval": "naval-propulsion-plant"}
_MOST_TEST_ROWS = 1000


@dataclass(frozen=True)
class Problem:
    """Rows as they are in the file, in float64.

    Attributes:
        train_X: `[n, d]`.
        train_Y: `[n, 1]`.
        test_X: `[t, d]`, 100 <= t <= 1000.
        test_Y: `[t, 1]`.
    """

    train_X: Tensor
    train_Y: Tensor
    test_X: Tensor
    test_Y: Tensor


def chosen_sizes(names: list[str] | None) -> list[tuple[str, int]]:
    """Sets with their numbers of training rows, few rows first.

    Args:
        names: "energy" for all its sizes or "energy-300" for one; all sets without.

    Raises:
        ValueError: an unknown name.
    """
    every = [(name, rows) for name, sizes in SIZES.items() for rows in sizes]
    known = {f"{name}-{rows}": [(name, rows)] for name, rows in every}
    known |= {name: [(name, rows) for rows in sizes] for name, sizes in SIZES.items()}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ValueError(f"no set {unknown[0]!r}; there are {', '.join(sorted(known))}.")
    wanted = every if names is None else [size for name in names for size in known[name]]
    return sorted(dict.fromkeys(wanted), key=lambda size: size[1])


def regression_tables(folder: Path) -> dict[str, Table]:
    """The sets by name: diabetes of scikit-learn, the others from a folder of `.npz` files."""
    tables = {table.name: table for table in load_tables(folder)}
    return {name: tables[_FILES.get(name, name)] for name in SIZES}


def split(table: Table, rows: int, number: int) -> Problem:
    """The random split `number`; more training rows contain fewer, test rows are others."""
    chosen = np.random.default_rng(number).permutation(len(table.y))
    train, test = chosen[:rows], chosen[rows:][:_MOST_TEST_ROWS]
    X, Y = torch.as_tensor(table.X), torch.as_tensor(table.y)[:, None]
    return Problem(X[train], Y[train], X[test], Y[test])
