"""How far is `learning-curve` from exact inference under other people's priors of learning curves?

The network was trained on a prior of its own, so that part of its distance is that it believes
something else: this is its loss on curves that others drew, no certificate.

Domhan    the prior of LC-PFN: one curve of 100 epochs, of which 10, 20 or 40 are shown; drawn by
          the package lcpfn. All later values are predicted, each by its own distribution.
FT-PFN    the prior of FT-PFN: 20, 80 or 256 points of many curves, of settings of 1 to 4
          hyperparameters, and 64 later points; drawn by the package ifbo. Values that it cut off at
          0 or 1 have no density and are not scored, in any model.

network     `learning-curve` as it comes: `predict_curve`, or its posterior given all points
MCMC        samples of Domhan's model itself, at two lengths; see `domhan.py`. The longer, sampled
            twice, says how far it is from convergence. FT-PFN's model, a random network of 8 to 15
            layers behind every curve, has none.
GP          BoTorch's SingleTaskGP on the logarithm of the epoch and the hyperparameters, fitted

The wheels have no trained weights, so that LC-PFN and FT-PFN themselves are not here.

Scores: negative log density of y (nats, mean over the queries of a task), coverage of central 50 %
and 90 % intervals, CPU seconds from the shown values to all densities; paired differences by task.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

import pfn
from benchmarks.pfn import common, domhan, jobs, scores
from priors.posteriors.gaussian import as_predictive
from priors.tasks.training_curves import log_time

THEIRS = common.ROOT / ".venv-curve-priors" / "bin" / "python"
SHOWN = {"domhan": (10, 20, 40), "ft-pfn": (20, 80, 256)}
LENGTHS = {
    "MCMC": domhan.Length(particles=250, moves=2, final_moves=10),
    "MCMC, long": domhan.Length(particles=500, moves=4, final_moves=20),
}
AGAIN = "MCMC, long, again"
MODELS = {"domhan": ("network", *LENGTHS, AGAIN, "GP"), "ft-pfn": ("network", "GP")}
QUERIES, HYPERPARAMETERS = 64, 4


def measure(*, curves: int, network: str, seed: int, processes: int) -> dict[str, Any]:
    """Scores by prior, rows shown and model.

    Args:
        curves: Tasks of each kind.
        network: Shipped name or file.
        seed: Of the tasks.
        processes: At the same time.
    """
    file = str(drawn(curves, seed))
    path, version = jobs.network_file(network)
    tasks: dict[tuple[str, int, str, int], jobs.Task] = {}
    for index in range(curves):
        for name, sizes in SHOWN.items():
            for shown in sizes:
                for model in MODELS[name]:
                    of_network = (path, version) if model == "network" else ("", "")
                    task = (file, name, shown, model, index, *of_network)
                    tasks[name, shown, model, index] = task
    found: dict[jobs.Task, dict[str, Any]] = {}
    for are_networks in (False, True):  # competitors stay as they are when a network changes
        sources = (__file__, domhan.__file__)
        cache = jobs.cache_file("curve-priors", *map(str, sources), networks=are_networks)
        some = [task for task in tasks.values() if (task[3] == "network") == are_networks]
        found |= jobs.run(evaluate, some, cache, processes)
    results: dict[str, Any] = {}
    for name, sizes in SHOWN.items():
        for shown in sizes:
            runs = {
                model: [found[tasks[name, shown, model, index]] for index in range(curves)]
                for model in MODELS[name]
            }
            results.setdefault(name, {})[str(shown)] = summarise(runs)
    return {"tasks": curves, "network": jobs.describe(path, version), "results": results}


def drawn(count: int, seed: int) -> Path:
    """The file of their tasks, drawn now if it is not there."""
    wanted = {
        "seed": seed,
        "epochs": domhan.EPOCHS,
        "curves": count,
        "tasks": count,
        "shown": SHOWN["ft-pfn"],
        "queries": QUERIES,
        "hyperparameters": HYPERPARAMETERS,
    }
    script = Path(__file__).with_name("curve_priors_side.py")
    digest = hashlib.sha256(script.read_bytes() + json.dumps(wanted).encode()).hexdigest()[:12]
    path = common.ROOT / "runs" / "pfn-curve-priors" / f"tasks_{digest}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name("partial.npz")
        subprocess.run(
            [str(THEIRS), str(script), json.dumps({**wanted, "file": str(partial)})],
            check=True,
            env={**os.environ, "PYTHONPATH": "", "PYTHONWARNINGS": "ignore"},
        )
        partial.replace(path)
    return path.relative_to(common.ROOT)


@lru_cache(maxsize=2)
def _load(file: str) -> dict[str, np.ndarray]:
    with np.load(common.ROOT / file) as found:
        return dict(found)


def task_of(file: str, name: str, shown: int, index: int) -> tuple[Tensor, Tensor]:
    """Features `[N, d]`, time first, and values `[N]`; the first `shown` rows are the context."""
    arrays = _load(file)
    if name == "domhan":
        y = torch.tensor(arrays["domhan"][index])
        epochs = torch.arange(1, len(y) + 1).double()
        return log_time(epochs, len(y))[:, None], y
    rows, y = (torch.tensor(arrays[f"{k}_{shown}_{index}"]).double() for k in "xy")
    # Every curve is shown from its first step on, whose share of the training is 1 / steps.
    steps = (1 / rows[:shown, 1].min()).round()
    time_feature = log_time((rows[:, 1] * steps).round(), steps)
    X = torch.cat([time_feature[:, None], rows[:, 2:]], dim=1)
    scored = (y > 0) & (y < 1)
    scored[:shown] = True
    return X[scored], y[scored]


def evaluate(
    file: str, name: str, shown: int, model: str, index: int, network: str, version: str
) -> dict[str, float]:
    """One model on one task; the arguments identify the result."""
    X, y = task_of(file, name, shown, index)
    if model == "network":
        _network(network)  # loading is not counted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.process_time()
        target = y[shown:, None]
        posterior = _posterior(name, model, X, y[:shown], network)
        with torch.no_grad():
            log_density, below = posterior.log_prob(target), posterior.cdf(target)
        seconds = time.process_time() - start
    return {
        "nll": -float(log_density.mean()),
        "coverage50": float(((below - 0.5).abs() <= 0.25).double().mean()),
        "coverage90": float(((below - 0.5).abs() <= 0.45).double().mean()),
        "seconds": seconds,
        "queries": len(target),
    }


def _posterior(name: str, model: str, X: Tensor, y: Tensor, network: str) -> Any:
    n = len(y)
    if model in (*LENGTHS, AGAIN):
        length = LENGTHS.get(model, LENGTHS["MCMC, long"])
        return domhan.posterior(y, length, seed=int(model == AGAIN))
    if model == "GP":
        process = SingleTaskGP(X[:n], y[:, None])
        fit_gpytorch_mll(ExactMarginalLogLikelihood(process.likelihood, process))
        with torch.no_grad():
            return as_predictive(process.posterior(X[n:], observation_noise=True))
    made = _network(network)
    if name == "domhan":
        epochs = torch.arange(1, domhan.EPOCHS + 1)
        return pfn.predict_curve(epochs[:n], y, at=epochs[n:], maximum=domhan.EPOCHS, network=made)
    return made.condition(X[:n], y[:, None], check=False).posterior(X[n:], observation_noise=True)


@lru_cache(maxsize=1)
def _network(path: str) -> pfn.PFN:
    return pfn.load(path)


def summarise(runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Means over tasks with standard errors, and the network less the others, paired."""
    columns = {
        model: {k: np.array([run[k] for run in of_model]) for k in of_model[0]}
        for model, of_model in runs.items()
    }
    table: dict[str, Any] = {}
    for model, values in columns.items():
        table[model] = {
            metric: scores.paired(values[metric])
            for metric in ("nll", "coverage50", "coverage90", "seconds")
        }
        if model != "network":
            apart = columns["network"]["nll"] - values["nll"]
            table[model]["network_minus"] = scores.paired(apart)
    return {"queries": int(columns["network"]["queries"].sum()), "models": table}


def report(results: dict[str, Any]) -> None:
    """Print means by prior and rows shown."""
    print(f"{'':32}{'NLL':>16}{'network minus':>18}{'50%':>8}{'90%':>8}{'CPU s':>8}")
    for name, of_prior in results.items():
        for shown, found in of_prior.items():
            for model, row in found["models"].items():
                apart = _cell(row["network_minus"]) if "network_minus" in row else ""
                cells = [f"{row[m]['mean']:8.3f}" for m in ("coverage50", "coverage90", "seconds")]
                label = f"{name:<8} {shown:>3} {model}"
                print(f"{label:32}{_cell(row['nll']):>16}{apart:>18}" + "".join(cells))


def _cell(measured: dict[str, Any]) -> str:
    error = measured["standard_error"]
    told = f"{measured['mean']:.3f}"
    return told if error is None else f"{told} ± {error:.3f}"
