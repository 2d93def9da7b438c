"""Is an ensemble of the networks of a search better than its best one, at the same cost?

Task: digits, the space, split and training of `examples/digits_study.py`, one training for each
trial, whose network and validation predictions are kept. One study for each seed; from it, with no
further training: the single best network by validation log loss, `nas.ensemble` of 5 and of 10, and
as competitor the plain average of the 10 best. The test rows are looked at once. Differences from
the single best are paired by seed, with Student t intervals.

    python -m benchmarks search --ensembles            # 20 seeds of 30 trials
    python -m benchmarks search --ensembles --quick    # 2 seeds of 10 trials

Each seed is one line of a file under `runs/`, so an interrupted benchmark goes on where it stopped.
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
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

import nas
from benchmarks.nas.digits import ROOT, load_study, paired
from nas.studies.ensembles import Ensemble

METHODS = ("best", "average of 10", "ensemble of 5", "ensemble of 10")


def run_seed(seed: int, num_trials: int, sampler: str, cache: Path) -> dict[str, Any]:
    """Test log losses in nats of what one study leaves behind.

    The log probabilities of all its networks go to the cache, so that other pools can be tried.
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
        keep_log_scores(study, folder, cache / f"{seed}.npz")
        made = {
            "best": nas.ensemble(study, 1, folder=folder),
            "average of 10": plain_average(study, 10, folder),
            "ensemble of 5": nas.ensemble(study, 5, folder=folder),
            "ensemble of 10": nas.ensemble(study, 10, folder=folder),
        }
    result: dict[str, Any] = {"seed": seed, "cpu_seconds_search": searched}
    for name, pool in made.items():
        result[name] = {
            "test": log_loss(pool, rows["test"].X, rows["test"].y),
            "validation": log_loss(pool, rows["validation"].X, rows["validation"].y),
            "test_error": error_rate(pool, rows["test"].X, rows["test"].y),
            "members": len(pool.members),
        }
    return result


def keep_log_scores(study: optuna.Study, folder: str, path: Path) -> None:
    """Log probabilities of the true digits by every trial, `[trials, rows]`."""
    rows = load_study().digits()
    scores: dict[str, list[Tensor]] = {"validation": [], "test": []}
    for trial in study.trials:
        pool = alone(study, trial, folder)
        with torch.no_grad():
            for name, kept in scores.items():
                kept.append(pool.log_prob(rows[name].X, rows[name].y))
    np.savez(path, **{name: torch.stack(kept).numpy() for name, kept in scores.items()})


def alone(study: optuna.Study, trial: optuna.trial.FrozenTrial, folder: str) -> Ensemble:
    """The network of one trial."""
    one = optuna.create_study(study_name=study.study_name)
    one.add_trial(trial)
    return nas.ensemble(one, 1, folder=folder)


def plain_average(study: optuna.Study, size: int, folder: str) -> Ensemble:
    """The networks of the best trials with equal weights."""
    best = sorted(study.trials, key=lambda trial: trial.value)[:size]
    members = [alone(study, trial, folder).members[0] for trial in best]
    return Ensemble(members, torch.full((len(members),), 1 / len(members))).eval()


def log_loss(pool: Ensemble, X: Tensor, y: Tensor) -> float:
    """Mean negative log probability, nats."""
    with torch.no_grad():
        return -float(pool.log_prob(X, y).mean())


def error_rate(pool: Ensemble, X: Tensor, y: Tensor) -> float:
    """Share of wrong classes."""
    with torch.no_grad():
        return float((pool(X).argmax(-1) != y).float().mean())


def main(argv: list[str] | None = None) -> int:
    """Run the seeds, write JSON, print the comparison."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks search --ensembles", description=__doc__
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
    lines = cache / "seeds.jsonl"
    lines.touch()
    results = [json.loads(line) for line in lines.read_text().splitlines()]
    done = {result["seed"] for result in results}
    for seed in tqdm([seed for seed in range(num_seeds) if seed not in done], desc="seeds"):
        results.append(run_seed(seed, num_trials, options.sampler, cache))
        with lines.open("a") as file:
            file.write(json.dumps(results[-1]) + "\n")
    results = sorted(results, key=lambda result: result["seed"])[:num_seeds]
    tests = {name: np.array([result[name]["test"] for result in results]) for name in METHODS}
    summary: dict[str, Any] = {}
    print(f"{'':<16} {'validation':>10} {'test':>8} {'error':>7}   test - best, 95% interval")
    for name in METHODS:
        means = {
            key: float(np.mean([result[name][key] for result in results]))
            for key in ("validation", "test", "test_error", "members")
        }
        gap = paired(tests[name] - tests["best"]) if name != "best" and num_seeds > 1 else None
        summary[name] = {**means, "test_minus_best": gap}
        told = f"{gap['mean']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}]" if gap else ""
        print(
            f"{name:<16} {means['validation']:>10.4f} {means['test']:>8.4f} "
            f"{means['test_error']:>7.4f}   {told}"
        )
    record = {
        "benchmark": "ensembles of a search on digits against its single best network",
        "command": "python -m benchmarks search --ensembles " + " ".join(argv or []),
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
