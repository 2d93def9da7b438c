"""The protocols of the literature on NAS-Bench-201, beside that of `benchmarks search lookups`.

queries      an oracle without noise, the mean validation accuracy over seeds: how many queries
             until the best cell is found, at most 500
calibration  from 50 random cells with one training seed each: rank correlation of what the
             surrogate expects of 1,000 others and what one training of each gives, and how many of
             these are in their 90% intervals
transfer     50 finished trials on CIFAR-10 as a warm start on CIFAR-100, after 10 and 25 queries

    python -m benchmarks search oracle --data FOLDER                    # all parts, 10 seeds
    python -m benchmarks search oracle --parts calibration --seeds 30
    python -m benchmarks search oracle --table                          # what is there

One line of JSON for each part, task, method and seed; those that are there are not run again.
Reading the tables needs pyarrow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import scipy.stats
import torch

import nas
from benchmarks.nas.methods import METHODS
from benchmarks.nas.runs import carry_out, half_width, parser_of
from benchmarks.nas.tables import Lookup, Table, load_table
from nas.encoding.candidates import Candidate
from nas.encoding.hyperparameters import HyperparameterCube
from nas.encoding.outcomes import half_rank
from nas.surrogates import GraphProcess

__all__ = ["main", "report", "warped_like"]

MAX_QUERIES = 500
NUM_KNOWN, NUM_OTHERS = 50, 1000
NUM_EARLIER = 50
STOPS = (10, 25)
Tables = Callable[[str], Table]
Part = Callable[[Tables, str, str, int], dict[str, Any]]


class _Found(Exception):
    """The best cell was queried."""


class _Oracle(Lookup):
    """Mean validation accuracy; ends when the best one was seen."""

    def __init__(self, table: Table) -> None:
        super().__init__(table, 0)
        self.means = np.nanmean(table.observed, axis=1)

    def query(self, row: int) -> float:
        self.rows.append(row)
        self.scores.append(float(self.means[row]))
        if self.scores[-1] == self.means.max():
            raise _Found
        return self.scores[-1]


def _queries(tables: Tables, task: str, method: str, seed: int) -> dict[str, Any]:
    lookup, found = _Oracle(tables(task)), False
    try:
        METHODS[method](lookup, MAX_QUERIES, seed)
    except _Found:
        found = True
    return {"queries": len(lookup.rows) if found else None}


def _calibration(tables: Tables, task: str, method: str, seed: int) -> dict[str, Any]:
    table = tables(task)
    rng = np.random.default_rng([seed, 5])
    rows = rng.permutation(len(table))[: NUM_KNOWN + NUM_OTHERS]
    lookup = Lookup(table, seed)
    values = torch.tensor([lookup.query(int(row)) for row in rows], dtype=torch.float64)
    known, others = values[:NUM_KNOWN], values[NUM_KNOWN:]
    cells = [_cell(table, int(row)) for row in rows]
    encoder = PROCESS.encoder(table.space, HyperparameterCube({}), cells[:NUM_KNOWN])
    targets = half_rank(known)
    model = PROCESS.fit(encoder(cells[:NUM_KNOWN]), targets[:, None], encoder)
    with torch.no_grad():
        posterior: Any = model.posterior(encoder(cells[NUM_KNOWN:])[:, None, :])
    mean = posterior.mean[:, 0, 0]
    deviation = (posterior.variance[:, 0, 0] + model.likelihood.noise.detach()).sqrt()
    apart = (warped_like(others, known, targets) - mean).abs() / deviation
    inside = apart <= scipy.stats.norm.ppf(0.95)
    return {
        "spearman": float(scipy.stats.spearmanr(mean, others).statistic),
        "coverage": float(inside.double().mean()),
    }


def _transfer(tables: Tables, task: str, method: str, seed: int) -> dict[str, Any]:
    earlier = _searched(Lookup(tables("cifar10"), seed), NUM_EARLIER, seed, ())
    lookup = Lookup(tables(task), seed)
    _searched(lookup, STOPS[-1], seed, [earlier])
    return {"quality": [float(tables(task).quality[lookup.recommended(stop)]) for stop in STOPS]}


def _searched(
    lookup: Lookup, queries: int, seed: int, warm_start: Sequence[optuna.Study]
) -> optuna.Study:
    space = lookup.table.space
    sampler = nas.BayesianSampler(space, hyperparameters={}, warm_start=warm_start, seed=seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(queries):
        trial = study.ask()
        nas.suggest(trial, space)
        study.tell(trial, lookup.query(lookup.table.row(trial.params)))
    return study


def _cell(table: Table, row: int) -> Candidate:
    places = np.unravel_index(row, table.sizes)
    chosen = {
        name: values[place]
        for (name, values), place in zip(table.choices.items(), places, strict=True)
    }
    return Candidate(table.space.from_parameters(chosen))


def warped_like(values: torch.Tensor, known: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """What `half_rank` makes of further values, given what it made of known ones.

    Affine above the median of the known, where it is; linear between neighbouring values below; the
    target of the worst one for what is worse.

    Args:
        values: `[n]`.
        known: Values, `[m]`, of which at least two of the better half differ.
        targets: `half_rank(known)`.
    """
    order = known.argsort()
    low, high = int(order[len(order) // 2]), int(order[-1])
    slope = (targets[high] - targets[low]) / (known[high] - known[low])
    above = targets[low] + slope * (values - known[low])
    within = np.interp(values.numpy(), known[order].numpy(), targets[order].numpy())
    return torch.where(values > known.max(), above, torch.from_numpy(within))


PROCESS = GraphProcess()
PARTS: dict[str, tuple[Part, tuple[str, ...], tuple[str, ...]]] = {
    "queries": (_queries, ("cifar10", "cifar100"), ("gp",)),
    "calibration": (_calibration, ("cifar10", "cifar100"), ("gp",)),
    "transfer": (_transfer, ("cifar100",), ("gp",)),
}


def main(argv: list[str]) -> int:
    """Run what is missing and print what is there."""
    parser = parser_of("oracle", __doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="of the queries (gp)")
    options = parser.parse_args(argv)
    wanted = [
        {"part": part, "task": task, "method": method, "seed": seed}
        for part in options.parts
        for seed in range(options.first, options.first + options.seeds)
        for task in PARTS[part][1]
        for method in (part == "queries" and options.methods) or PARTS[part][2]
    ]
    return carry_out(options, wanted, partial(_run, options.data), report)


def _run(data: Path | None, *, part: str, task: str, method: str, seed: int) -> dict[str, Any]:
    return PARTS[part][0](partial(load_table, folder=data), task, method, seed)


def report(found: Sequence[dict[str, Any]]) -> str:
    """A line for each part, task and method: medians of queries, means of the rest.

    Args:
        found: Records.
    """
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for record in found:
        groups.setdefault((record["part"], record["task"], record["method"]), []).append(record)
    lines = []
    for (part, task, method), runs in sorted(groups.items()):
        line = f"{part} {task} {method}: {len(runs)} runs"
        if part == "queries":
            numbers = [np.inf if r["queries"] is None else r["queries"] for r in runs]
            low, middle, high = np.quantile(numbers, (0.25, 0.5, 0.75), method="higher")
            line += f", median {middle:.0f} queries, quartiles {low:.0f} and {high:.0f}"
        else:
            names = [name for name in ("spearman", "coverage", "quality") if name in runs[0]]
            for name in names:
                values = np.array([r[name] for r in runs]).reshape(len(runs), -1)
                pairs = zip(values.mean(0), half_width(values), strict=True)
                line += f", {name} " + " ".join(f"{m:.3f}±{h:.3f}" for m, h in pairs)
        lines.append(line)
    return "\n".join(lines)
