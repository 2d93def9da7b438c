"""What is a logistic regression worth in an ensemble of `classification`, under its own prior?

Tasks of the five kinds of function that the network was trained on (2 to 10 classes, 1 to 20
columns), 60 or 250 context rows and 200 queries: log loss of `PFNClassifier` with `linear=False`,
and the difference that its linear member makes, paired by task; negative is better. The charge for
its weight (`pfn.estimators.linear`) was chosen on as many tasks of other seeds.

    python -m benchmarks pfn linear_member            # 80 tasks, two minutes on one core
    python -m benchmarks pfn linear_member --quick    # 10 tasks
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import pfn
from benchmarks.commands import command
from benchmarks.pfn import common
from benchmarks.pfn.scores import paired
from priors import (
    CausalTaskPrior,
    ClassificationTaskPrior,
    LinearTaskPrior,
    NetworkTaskPrior,
    RandomKernelTaskPrior,
    RandomNoise,
    Tabular,
    TaskSize,
    TreeTaskPrior,
)

ROWS, QUERIES = (60, 250), 200
KINDS: dict[str, Any] = {
    "GP": lambda size: RandomKernelTaskPrior(size, noise=RandomNoise()),
    "network": lambda size: NetworkTaskPrior(size, noise=RandomNoise()),
    "causal": CausalTaskPrior,
    "tree": lambda size: TreeTaskPrior(size, noise=RandomNoise()),
    "linear": lambda size: LinearTaskPrior(size, noise=RandomNoise()),
}


def evaluate(kind: str, rows: int, seed: int, network: pfn.PFN) -> dict[str, float]:
    """Log losses of one task, and the weight of the linear member."""
    prior = KINDS[kind](TaskSize(num_context=rows, num_queries=QUERIES))
    generator = torch.Generator().manual_seed(seed)
    task = Tabular(ClassificationTaskPrior(prior)).sample(1, generator=generator)
    X, y = task.X[0].double().numpy(), task.y[0, :, 0].long().numpy()
    known = np.isin(y, np.unique(y[:rows]))  # a class without a row is not one that it knows of
    known[:rows] = False
    categorical = [] if task.categorical is None else np.flatnonzero(task.categorical[0]).tolist()
    found = {}
    for name, linear in (("alone", False), ("linear", True)):
        made = pfn.PFNClassifier(
            network, linear=linear, categorical_features=categorical, check=False
        ).fit(X[:rows], y[:rows])
        numbers = np.searchsorted(made.classes_, y[known])
        log_probabilities = made.predict_log_proba(X[known])
        found[name] = -float(log_probabilities[np.arange(len(numbers)), numbers].mean())
    return {**found, "weight": made.linear_weight_}


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = common.parser("linear_member", __doc__)
    parser.add_argument("--tasks", type=int, help="of each kind and number of rows (8)")
    options = parser.parse_args(argv)
    number = options.tasks or (1 if options.quick else 8)
    common.device()
    network = pfn.load("classification")
    runs: list[dict[str, Any]] = []
    cases = [(kind, rows) for rows in ROWS for kind in KINDS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind, rows in tqdm(cases, leave=False, disable=None):
            for seed in range(options.seed + 70_000, options.seed + 70_000 + number):
                found = evaluate(kind, rows, seed, network)
                runs.append({"kind": kind, "rows": rows, "seed": seed, **found})
    table = []
    for name, values in (("rows", ROWS), ("kind", KINDS)):
        for value in values:
            some = [run for run in runs if run[name] == value]
            gap = paired(np.array([run["linear"] - run["alone"] for run in some]))
            alone, weight = (float(np.mean([r[k] for r in some])) for k in ("alone", "weight"))
            row = {name: value, "tasks": len(some), "alone": alone, "difference": gap}
            table.append({**row, "weight": weight})
            error = gap["standard_error"] or 0.0
            print(
                f"{value!s:8}: {alone:.3f}, {gap['mean']:+.4f} ± {error:.4f}, weight {weight:.2f}"
            )
    record = {"command": command("pfn linear_member", argv), "table": table, "runs": runs}
    print(common.write("linear_member", options, record))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
