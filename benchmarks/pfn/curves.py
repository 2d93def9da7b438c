"""Are forecasts of real learning curves by `predict_curve` calibrated?

Curves of validation losses over 50 checkpoints: TaskSet's text models under random settings of Adam
(Metz et al. 2020, eight tasks) and the recurrent cells of NAS-Bench-NLP on WikiText-2 (Klyuchnikov
et al. 2022). Of each the first 5, 10, 20 or 40 values are shown and the last one is predicted.
Losses go to [0, 1] as a user would have them: 0 is the best, and the worst is the loss before the
training, for the cells that of a uniform guess among the 33,278 words. Curves that diverged are
left out: those with values that are not finite, or that end no better than the worst.

network     `predict_curve` with a network of learning curves; nothing tuned
GP          BoTorch's SingleTaskGP on the logarithm of the epoch, fitted to the shown values
last value  a normal distribution about it, with the deviation that the other curves of the same set
            have there: it has seen what the others do not

Scores, in units of the metric: negative log density of the true last value (nats), coverage of
central 50 % and 90 % intervals, absolute error of the median, and "apart": the mean distance of
the predicted smooth curve from the values that were shown, which have hardly any noise.

    python -m benchmarks pfn curves --data ../shared/data/nas    # ten minutes on one core
    python -m benchmarks pfn curves --data FOLDER --quick        # a minute
    make curve-priors
    python -m benchmarks pfn curves --parts priors    # curves that other people's priors draw: 20

An interrupted run goes on where it stopped. The data are taskset_curves.npz (Adriaensen et al.'s
and Kadra et al.'s, github.com/releaunifreiburg/DPL) and nasbench_nlp_curves.csv.gz
(github.com/fmsnew/nas-bench-nlp-release).
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
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
from benchmarks.commands import command
from benchmarks.pfn import common, curve_priors, jobs, scores
from priors.posteriors.gaussian import as_predictive
from priors.tasks.training_curves import log_time

SHOWN = (5, 10, 20, 40)
EPOCHS = 50
WORDS = 33_278
SETS = ("taskset", "nlp")
MODELS = ("network", "GP", "last value")
FILES = {"taskset": "taskset_curves.npz", "nlp": "nasbench_nlp_curves.csv.gz"}


def main(argv: list[str] | None = None) -> int:
    """Score all forecasts; print a table, write JSON."""
    parser = common.parser("curves", __doc__)
    at = os.environ.get("WIDEPRIOR_DATA")
    usual = None if at is None else Path(at) / "nas"
    parser.add_argument("--data", type=Path, default=usual, help="folder of the curves")
    parser.add_argument("--network", default="learning-curve", help="shipped name or file")
    parser.add_argument("--curves", type=int, help="of each set (64)")
    parser.add_argument("--processes", type=int, default=1, help="at the same time (1)")
    parser.add_argument("--parts", nargs="+", choices=("real", "priors"), default=["real"])
    options = parser.parse_args(argv)
    if "priors" in options.parts:
        if not curve_priors.THEIRS.exists():
            parser.error("other people's priors need their packages: make curve-priors")
        common.device()  # one thread
        found = curve_priors.measure(
            curves=options.curves or (2 if options.quick else 64),
            network=options.network,
            seed=options.seed,
            processes=options.processes,
        )
        curve_priors.report(found["results"])
        record = {"command": command("pfn curves", argv), **found}
        print(common.write("curve_priors", options, record))
    if "real" not in options.parts:
        return 0
    if options.data is None:
        parser.error("the curves are not in the package: --data FOLDER; --help says where from")
    for file in FILES.values():
        if not (options.data / file).exists():
            parser.error(f"{options.data / file} is missing; --help says where it is from")
    number = options.curves or (8 if options.quick else 64)
    network, version = jobs.network_file(options.network)
    folder = str(options.data.resolve())
    tasks: dict[tuple[str, str, int, int], jobs.Task] = {}
    for name in SETS:
        count = len(load_curves(folder, name))
        order = np.random.RandomState(options.seed).permutation(count)[:number]
        for index in map(int, order):
            for shown in SHOWN:
                for model in MODELS:
                    of_network = (network, version) if model == "network" else ("", "")
                    task = (folder, name, model, index, shown, *of_network)
                    tasks[name, model, shown, index] = task
    cache = jobs.cache_file("curves", __file__)
    found = jobs.run(evaluate, list(tasks.values()), cache, options.processes)

    results: dict[str, Any] = {}
    for name in SETS:
        for shown in SHOWN:
            for model in MODELS:
                keys = [key for key in tasks if key[:3] == (name, model, shown)]
                runs = [found[tasks[key]] for key in keys]
                row = {
                    metric: scores.paired(np.array([run[metric] for run in runs]))
                    for metric in runs[0]
                }
                results.setdefault(name, {}).setdefault(str(shown), {})[model] = row
    report(results)
    record = {
        "command": command("pfn curves", argv),
        "curves": number,
        "network": jobs.describe(network, version),
        "results": results,
    }
    print(common.write("curves", options, record))
    return 0


@lru_cache(maxsize=2)
def load_curves(folder: str, name: str) -> np.ndarray:
    """Metrics in [0, 1], larger is better, at epochs 1 to 50: `[curves, 50]`."""
    path = Path(folder) / FILES[name]
    if name == "taskset":
        with np.load(path) as file:
            losses = file["curves"][:, :, list(file["channels"]).index("valid_loss")]
        losses = losses.reshape(-1, losses.shape[-1]).astype(float)
        worst, losses = losses[:, :1], losses[:, 1:]
    else:
        with gzip.open(path, "rt") as text:
            rows = [json.loads(row["val_losses"]) for row in csv.DictReader(text) if _ended(row)]
        losses = np.array([row[:EPOCHS] for row in rows], dtype=float)
        worst = np.full((len(losses), 1), math.log(WORDS))
    metric = 1 - losses / worst
    return metric[np.isfinite(metric).all(1) & (metric[:, -1] > 0)].clip(0, 1)


def _ended(row: dict[str, str]) -> bool:
    return row["status"] == "OK" and int(row["epochs_done"]) >= EPOCHS


def evaluate(
    folder: str, name: str, model: str, index: int, shown: int, network: str, version: str
) -> dict[str, float]:
    """One forecast; the arguments identify the result."""
    curves = load_curves(folder, name)
    epochs, curve = torch.arange(1, EPOCHS + 1).double(), torch.tensor(curves[index])
    y, target = curve[:shown], curve[-1:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if model == "network":
            at = torch.cat([epochs[:shown], epochs[-1:]])
            known: dict[str, Any] = {"at": at, "maximum": EPOCHS, "network": _load(network)}
            posterior = pfn.predict_curve(epochs[:shown], y, **known)
            smooth = pfn.predict_curve(epochs[:shown], y, noisy=False, **known).mean[:shown, 0]
            values = posterior.log_prob(target)[-1], posterior.cdf(target)[-1]
            median = posterior.quantile(torch.tensor(0.5).double())[-1]
        elif model == "GP":
            values, median, smooth = _gaussian_process(epochs, y, target)
        else:
            others = np.delete(curves, index, axis=0)
            moved = torch.tensor(others[:, -1] - others[:, shown - 1])
            law = torch.distributions.Normal(y[-1], moved.square().mean().sqrt())
            values, median, smooth = (law.log_prob(target), law.cdf(target)), y[-1], y
    log_density, below = (float(value) for value in values)
    return {
        "nll": -log_density,
        "coverage50": float(abs(below - 0.5) <= 0.25),
        "coverage90": float(abs(below - 0.5) <= 0.45),
        "error": float((median - target).abs()),
        "apart": float((smooth - y).abs().mean()),
    }


def _gaussian_process(
    epochs: Tensor, y: Tensor, target: Tensor
) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    time = log_time(epochs, EPOCHS)[:, None]
    model = SingleTaskGP(time[: len(y)], y[:, None])
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    with torch.no_grad():
        posterior = as_predictive(model.posterior(time[-1:], observation_noise=True))
        smooth = model.posterior(time[: len(y)]).mean[:, 0]
        values = posterior.log_prob(target), posterior.cdf(target)
    return values, posterior.mean, smooth


@lru_cache(maxsize=1)
def _load(network: str) -> pfn.PFN:
    return pfn.load(network)


def report(results: dict[str, Any]) -> None:
    """Print means by set and number of values shown."""
    metrics = ("nll", "coverage50", "coverage90", "error", "apart")
    print(f"{'':26}" + "".join(f"{metric:>16}" for metric in metrics))
    for name, of_set in results.items():
        for shown, of_models in of_set.items():
            for model, row in of_models.items():
                cells = [f"{row[metric]['mean']:16.3f}" for metric in metrics]
                print(f"{name:<8} {shown:>3} {model:<12} " + "".join(cells))
