"""What does an ensemble make of columns that are nearly the same?

Tasks of the prior of `regression` (random kernels, 200 context rows and 64 queries), whose columns
z of variance 1 are shown in a form in which some are alike up to a share s of what they vary:

differences  x_j = c + s z_j with one random c for all columns: the target depends on how columns
             differ
half         the same for half of the columns, the others as they are
common       every z_j twice or more often, each with noise of deviation s of its own: the target
             depends on what they share, and their differences tell nothing

`PFNRegressor` with `whitening=True`, as it comes, and False: negative log densities, paired by
task. What is whitened, and how, was chosen by single members on 25 tasks like these of other seeds.

    python -m benchmarks pfn collinear           # about ten minutes on one core
    python -m benchmarks pfn collinear --quick   # a minute
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
from priors import RandomKernelTaskPrior, RandomNoise, TaskSize

ROWS, QUERIES, MOST_FEATURES = 200, 64, 8
SHARES = (0.01, 0.1, 0.3)


def shown(case: str, Z: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """Inputs `[N, d]` of variance 1 as the ensemble sees them in a case."""
    d = Z.shape[1]
    if case == "common":
        which = np.concatenate([np.arange(d), random.integers(0, d, size=d)])
        return Z[:, which] + share * random.normal(size=(len(Z), 2 * d))
    first = d // 2 if case == "half" else 0
    alike = random.normal(size=(len(Z), 1)) + share * Z[:, first:]
    return np.concatenate([Z[:, :first], alike], axis=1)


CASES = {"differences": 2, "half": 4, "common": 1}  # fewest columns


def task(seed: int, fewest: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of variance 1 and targets of one task."""
    prior = RandomKernelTaskPrior(
        size=TaskSize(num_context=ROWS, num_queries=QUERIES, max_features=MOST_FEATURES),
        noise=RandomNoise(low=1e-5),
    )
    generator = torch.Generator().manual_seed(seed)
    while True:
        made = prior.sample(1, generator=generator)
        if made.X.shape[-1] >= fewest:
            break
    Z = made.X[0].double().numpy()
    return (Z - Z[:ROWS].mean(0)) / Z[:ROWS].std(0), made.y[0, :, 0].double().numpy()


def evaluate(case: str, share: float, seed: int, network: pfn.PFN) -> dict[str, float]:
    """Negative log densities per query with and without whitening."""
    Z, y = task(seed, CASES[case])
    X = shown(case, Z, share, np.random.default_rng(seed))
    found = {}
    for name, whitening in (("plain", False), ("whitened", True)):
        made = pfn.PFNRegressor(network, whitening=whitening, check=False)
        made.fit(X[:ROWS], y[:ROWS])
        found[name] = -float(made.log_likelihood(X[ROWS:], y[ROWS:]).mean())
    return found


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = common.parser("collinear", __doc__)
    parser.add_argument("--tasks", type=int, help="of each case and share (24)")
    options = parser.parse_args(argv)
    number = options.tasks or (3 if options.quick else 24)
    common.device()
    network = pfn.load("regression")
    rows: list[dict[str, Any]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in CASES:
            for share in SHARES[:1] if options.quick else SHARES:
                seeds = range(options.seed + 5_000, options.seed + 5_000 + number)
                progress = tqdm(seeds, desc=f"{case} {share}", leave=False, disable=None)
                runs = [evaluate(case, share, seed, network) for seed in progress]
                scores = {name: [run[name] for run in runs] for name in runs[0]}
                gap = paired(np.subtract(scores["whitened"], scores["plain"]))
                row = {"case": case, "share": share, "difference": gap, "tasks": number, **scores}
                rows.append(row)
                means = ", ".join(f"{name} {np.mean(scores[name]):.3f}" for name in scores)
                error = gap["standard_error"] or 0.0
                print(f"{case:12} {share:5}: {means}, {gap['mean']:+.3f} ± {error:.3f}", flush=True)
    common.write("collinear", options, {"command": command("pfn collinear", argv), "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
