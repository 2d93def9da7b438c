"""What do our exact processes cost beside plain GPyTorch and beside each other?

Two questions, each answered in one run on the same rows, with medians over repeats that take
turns, so that the load of the machine falls on all alike:

* One evaluation of the objective of `GaussianProcess.fit` and its gradient, and one of what
  `fit_gpytorch_mll` maximises: a plain GPyTorch model of the same kernel, noise and start.
* The first posterior of `ScaleMixtureProcess`, whose rows are decomposed, and later ones at other
  queries (mean and variance), beside those of `GaussianProcess`.

    python -m benchmarks posteriors --speed            # minutes
    python -m benchmarks posteriors --speed --quick

Goals: 1.1 times GPyTorch for an evaluation, 1.5 times the Gaussian process for later posteriors.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from botorch.models import SingleTaskGP
from gpytorch.kernels import Kernel, MaternKernel, ScaleKernel
from gpytorch.means import ZeroMean
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor, nn

from bayes import GaussianProcess, ScaleMixtureProcess
from benchmarks.records import append, read
from priors import HalfCauchyVariance, NNGPKernel

RESULT = Path(__file__).resolve().parents[1] / "results" / "posterior_speed.jsonl"


def main(argv: list[str]) -> int:
    """Measure, append to `--out` and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks posteriors --speed")
    parser.add_argument("--quick", action="store_true", help="two sizes, few repeats")
    parser.add_argument("--rows", nargs="+", type=int, default=[50, 200, 500, 1000])
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args(argv)
    if options.quick:
        options.rows, options.repeats = [50, 200], 5
    torch.set_num_threads(1)
    for rows in options.rows:
        for name in ("matern", "nngp"):
            record = {
                "rows": rows,
                "kernel": name,
                **_measure(rows, options.queries, name, options.repeats),
                "queries": options.queries,
                "torch": version("torch"),
                "gpytorch": version("gpytorch"),
                "machine": platform.machine(),
            }
            append(options.out, record)
            print(json.dumps(record), flush=True)
    print(table(read(options.out)))
    return 0


def kernel(name: str, columns: int) -> Kernel:
    """Matern-5/2 with length scales and an output scale, or the NNGP of a network."""
    if name == "matern":
        return ScaleKernel(MaternKernel(nu=2.5, ard_num_dims=columns))
    network = nn.Sequential(nn.Linear(columns, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    return NNGPKernel(nn.Sequential(*network, nn.Linear(8, 1)), ard_num_dims=columns)


def data(rows: int, columns: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A smooth function with noise."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(rows, columns, generator=generator, dtype=torch.float64)
    f = torch.sin(6 * X[:, :1]) + X[:, 1:2] * X[:, 2:3]
    return X, f + 0.1 * torch.randn(rows, 1, generator=generator, dtype=torch.float64)


def _measure(rows: int, queries: int, name: str, repeats: int) -> dict[str, float]:
    X, Y = data(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = GaussianProcess(X, Y, kernel(name, X.shape[-1]))
        mixture = ScaleMixtureProcess(X, Y, kernel(name, X.shape[-1]), scale=HalfCauchyVariance())
        plain = _plain(ours)
        found = _evaluations(ours, plain, repeats)
        found |= _posteriors(ours, mixture, queries, repeats)
    return found


def _plain(ours: GaussianProcess) -> SingleTaskGP:
    """Kernel, noise and rows of a process as `fit_gpytorch_mll` is mostly used."""
    model = SingleTaskGP(
        ours.transform_inputs(ours.train_X),
        ours.train_targets.unsqueeze(-1),
        covar_module=copy.deepcopy(ours.covar_module),
        mean_module=ZeroMean(),
        outcome_transform=None,
    )
    model.likelihood.noise = ours.likelihood.noise.detach()
    return model


def _evaluations(ours: GaussianProcess, plain: SingleTaskGP, repeats: int) -> dict[str, float]:
    from bayes.processes.marginal_likelihood import exact_solves

    own = ours._marginal_log_likelihood()
    theirs = ExactMarginalLogLikelihood(plain.likelihood, plain)
    ours.train()
    plain.train()

    def evaluate_ours() -> Any:
        with exact_solves():
            value = ours._objective(own)
        return torch.autograd.grad(value, list(ours.parameters()), allow_unused=True), value

    def evaluate_theirs() -> Any:
        value = theirs(plain(*plain.train_inputs), plain.train_targets)
        return torch.autograd.grad(value, list(plain.parameters()), allow_unused=True), value

    same = abs(float(evaluate_ours()[1] - evaluate_theirs()[1]))
    if same > 1e-6:
        raise RuntimeError(f"the objectives differ by {same}")
    seconds = _in_turns({"ours": evaluate_ours, "gpytorch": evaluate_theirs}, repeats)
    ours.eval()
    return {
        "evaluation": seconds["ours"],
        "gpytorch evaluation": seconds["gpytorch"],
        "evaluation ratio": seconds["ours"] / seconds["gpytorch"],
    }


def _posteriors(
    process: GaussianProcess, mixture: ScaleMixtureProcess, queries: int, repeats: int
) -> dict[str, float]:
    Xs = [data(queries, seed=seed)[0] for seed in range(1, 4)]
    turn = {"gp": 0, "mixture": 0}

    def ask(name: str, model: Any) -> Callable[[], None]:
        def posterior() -> None:
            turn[name] += 1
            with torch.no_grad():
                found = model.posterior(Xs[turn[name] % 3])
                _ = found.mean, found.variance

        return posterior

    def first(model: Any) -> Callable[[], None]:
        def posterior() -> None:
            model._clear_cache()
            with torch.no_grad():
                found = model.posterior(Xs[0])
                _ = found.mean, found.variance

        return posterior

    first_seconds = _in_turns(
        {"gp": first(process), "mixture": first(mixture)}, max(3, repeats // 5)
    )
    later = _in_turns({"gp": ask("gp", process), "mixture": ask("mixture", mixture)}, repeats)
    return {
        "first gp": first_seconds["gp"],
        "first mixture": first_seconds["mixture"],
        "later gp": later["gp"],
        "later mixture": later["mixture"],
        "later ratio": later["mixture"] / later["gp"],
    }


def _in_turns(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median processor seconds of each, after one call that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if repeat:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(each) for name, each in seconds.items()}


def table(records: list[dict[str, Any]]) -> str:
    """Milliseconds and ratios, the latest record of each size and kernel."""
    latest = {(record["rows"], record["kernel"]): record for record in records}
    lines = [
        "rows kernel   evaluation gpytorch ratio   first gp  mixture   later gp  mixture ratio"
    ]
    for (rows, kind), r in sorted(latest.items()):
        names = ("evaluation", "gpytorch evaluation", "evaluation ratio")
        names += ("first gp", "first mixture", "later gp", "later mixture", "later ratio")
        own, theirs, ratio, *posteriors, later = (r[name] for name in names)
        first, first_mixture, gp, mixture = (1e3 * value for value in posteriors)
        lines.append(
            f"{rows:4d} {kind:8} {1e3 * own:9.1f} {1e3 * theirs:8.1f} {ratio:6.2f} "
            f"{first:9.1f} {first_mixture:8.1f} {gp:9.1f} {mixture:8.1f} {later:5.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
