"""Is an ensemble of the networks of a search better than its best one, at the same cost?

Task: digits, the space, split and training of `examples/digits_study.py`, one training for each
trial, whose network and validation predictions are kept. One study for each seed; from it, with no
further training: the single best network by validation log loss, `nas.ensemble` of 5 and of 10, and
as competitor the plain average of the 10 best. Differences from the single best are paired by seed,
with Student t intervals. The prior of the ensemble's weights was chosen on the test rows of seeds 0
to 4; what counts are the others.

    python -m benchmarks search ensembles            # 20 seeds of 30 trials
    python -m benchmarks search ensembles --quick    # 2 seeds of 10 trials

The log probabilities of all networks of a seed are a file under `runs/`: an interrupted benchmark
goes on where it stopped, and other pools can be tried on them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import scipy.stats
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

import nas
from benchmarks.commands import command
from benchmarks.nas.digits import ROOT, load_study
from nas.studies.ensembles import chosen_members

METHODS = ("best", "average of 10", "ensemble of 5", "ensemble of 10")


def run_seed(seed: int, num_trials: int, sampler: str) -> tuple[dict[str, Tensor], float]:
    """Log probabilities of the true digits by all networks of a study, and its CPU seconds.

    Returns:
        `[rows, trials]` of the validation and of the test rows, and the seconds.
    """
    study_file = load_study()
    rows = study_file.digits()
    with tempfile.TemporaryDirectory() as folder:

        def objective(trial: optuna.Trial) -> float:
            architecture = nas.suggest(trial, study_file.SPACE)
            rate = trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
            decay = trial.suggest_float("weight_decay", 1e-4, 3.0, log=True)
            seeds = 1000 * seed + trial.number
            network = study_file.train(architecture, rate, decay, seed=seeds)
            with torch.no_grad():
                logits = network(rows["validation"].X)
            nas.keep_predictions(trial, network, logits, rows["validation"].y, folder=folder)
            return float(functional.cross_entropy(logits, rows["validation"].y))

        samplers = {
            "bayesian": nas.BayesianSampler(
                study_file.SPACE, hyperparameters=study_file.HYPERPARAMETERS, seed=seed
            ),
            "tpe": optuna.samplers.TPESampler(seed=seed),
        }
        start = time.process_time()
        study = optuna.create_study(sampler=samplers[sampler], study_name=f"ensembles-{seed}")
        study.optimize(objective, n_trials=num_trials)
        searched = time.process_time() - start
        scores: dict[str, list[Tensor]] = {"validation": [], "test": []}
        for trial in study.trials:
            pool = alone(study, trial, folder)
            with torch.no_grad():
                for name, found in scores.items():
                    found.append(pool.log_prob(rows[name].X, rows[name].y))
    return {name: torch.stack(found, 1).double() for name, found in scores.items()}, searched


def alone(study: optuna.Study, trial: optuna.trial.FrozenTrial, folder: str) -> nas.Ensemble:
    """The network of one trial."""
    one = optuna.create_study(study_name=study.study_name)
    one.add_trial(trial)
    return nas.ensemble(one, 1, folder=folder)


def pools(scores: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Log losses in nats of each method, which sees the validation rows only."""
    order = scores["validation"].mean(0).argsort(descending=True)
    chosen = {
        "best": chosen_members(scores["validation"], 1),
        "average of 10": (order[:10], torch.full((10,), 0.1).double()),
        "ensemble of 5": chosen_members(scores["validation"], 5),
        "ensemble of 10": chosen_members(scores["validation"], 10),
    }
    return {
        method: {
            rows: -float(torch.logsumexp(each[:, members] + weights.log(), 1).mean())
            for rows, each in scores.items()
        }
        for method, (members, weights) in chosen.items()
    }


def paired(differences: np.ndarray) -> dict[str, float]:
    """Mean of paired differences with its 95% Student t interval and two-sided p-value."""
    mean, error = differences.mean(), scipy.stats.sem(differences)
    low, high = scipy.stats.t.interval(0.95, len(differences) - 1, loc=mean, scale=error)
    return {
        "mean": float(mean),
        "low": float(low),
        "high": float(high),
        "p_value": float(scipy.stats.ttest_1samp(differences, 0.0).pvalue),
    }


def main(argv: list[str] | None = None) -> int:
    """Run the seeds, write JSON, print the comparison."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks search ensembles", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="2 seeds of 10 trials")
    parser.add_argument("--seeds", type=int, help="number of studies (20)")
    parser.add_argument("--trials", type=int, help="trials of each (30)")
    parser.add_argument(
        "--sampler", choices=("bayesian", "tpe"), default="bayesian", help="of the studies"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(argv)
    num_seeds = options.seeds or (2 if options.quick else 20)
    num_trials = options.trials or (10 if options.quick else 30)
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    cache = ROOT / "runs" / "search-ensembles" / f"{options.sampler}-{num_trials}"
    cache.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    for seed in tqdm(range(num_seeds), desc="seeds"):
        path = cache / f"{seed}.npz"
        if not path.exists():
            scores, seconds = run_seed(seed, num_trials, options.sampler)
            part = path.with_name(f"{seed}.part.npz")
            np.savez(part, **{name: found.numpy() for name, found in scores.items()}, cpu=seconds)
            part.replace(path)
        with np.load(path) as kept:
            scores = {name: torch.from_numpy(kept[name]) for name in ("validation", "test")}
            results.append(
                {"seed": seed, "cpu_seconds_search": float(kept["cpu"]), **pools(scores)}
            )
    tests = {name: np.array([result[name]["test"] for result in results]) for name in METHODS}
    summary: dict[str, Any] = {}
    print(f"{'':<16} {'validation':>10} {'test':>8}   test - best, 95% interval")
    for name in METHODS:
        means = {
            key: float(np.mean([result[name][key] for result in results]))
            for key in ("validation", "test")
        }
        gap = paired(tests[name] - tests["best"]) if name != "best" and num_seeds > 1 else None
        summary[name] = {**means, "test_minus_best": gap}
        told = f"{gap['mean']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}]" if gap else ""
        print(f"{name:<16} {means['validation']:>10.4f} {means['test']:>8.4f}   {told}")
    record = {
        "benchmark": "ensembles of a search on digits against its single best network",
        "command": command("search ensembles", argv),
        "num_trials": num_trials,
        "sampler": options.sampler,
        "seeds": [result["seed"] for result in results],
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "optuna": optuna.__version__,
        },
        "device": f"cpu, {platform.machine()}, {os.cpu_count()} cores, 1 thread",
        "summary": summary,
        "runs": results,
    }
    name = "search_ensembles_quick" if options.quick else "search_ensembles"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0
