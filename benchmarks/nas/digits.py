"""Does the Bayesian sampler find better networks than random search, for the same trials?

Task: `examples/digits_study.py` (digits, 8x8; depth, widths, activation, residual, learning rate,
weight decay; every candidate is trained for real). Both methods search the same space for the same
number of trials; the sampler sees validation rows only; the best candidate by validation is
trained anew and scored once on the test rows. Competitor: Optuna's `RandomSampler` over the flat
parameters of the same space. Runs are paired by seed, the difference has a Student t interval.

    python -m benchmarks search            # 20 seeds x 2 x 30 trials, about 20 minutes on one core
    python -m benchmarks search --quick    # 2 seeds x 2 x 12 trials, about a minute

Each seed is cached under `runs/`, so an interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any

import botorch
import numpy as np
import optuna
import scipy.stats
import sklearn
import torch
from tqdm import tqdm

import nas
from benchmarks.commands import command
from nas import BayesianSampler

ROOT = Path(__file__).resolve().parents[2]
STUDY = ROOT / "examples" / "digits_study.py"
METHODS = ("bayesian", "random")


def load_study() -> ModuleType:
    """The example script as a module."""
    if STUDY.stem not in sys.modules:
        spec = importlib.util.spec_from_file_location(STUDY.stem, STUDY)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[STUDY.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[STUDY.stem])
    return sys.modules[STUDY.stem]


def run_seed(seed: int, num_trials: int) -> dict[str, Any]:
    """Both methods for one seed: their values by trial, held-out losses and seconds."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study_file = load_study()
    samplers = {
        "bayesian": BayesianSampler(
            study_file.SPACE,
            hyperparameters=study_file.HYPERPARAMETERS,
            surrogate="vectors",  # what the results were made with
            seed=seed,
        ),
        "random": optuna.samplers.RandomSampler(seed=seed),
    }
    result: dict[str, Any] = {"seed": seed}
    for method in METHODS:
        start = time.perf_counter()
        study = optuna.create_study(sampler=samplers[method], study_name=f"{method}-{seed}")
        study.optimize(study_file.objective, n_trials=num_trials)
        result[method] = {
            "validation": [trial.value for trial in study.trials],
            "test": study_file.held_out_loss(study.best_trial),
            "best_parameters": study_file.SPACE.to_parameters(nas.architecture_of(study.best_trial))
            | {name: study.best_trial.params[name] for name in study_file.HYPERPARAMETERS},
            "seconds": time.perf_counter() - start,
        }
    return result


def code_key(num_trials: int) -> str:
    """Names the cache: another package, example or number of trials is another run."""
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "nas").rglob("*.py"), STUDY, Path(__file__)]):
        if path.name not in ("report.py", "search.py", "__main__.py", "__init__.py", "testing.py"):
            digest.update(path.read_bytes())
    return f"{num_trials}-{digest.hexdigest()[:12]}"


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


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Means by method, paired differences, and the mean incumbent by trial."""
    summary: dict[str, Any] = {}
    incumbents = {
        method: np.minimum.accumulate([r[method]["validation"] for r in results], axis=1)
        for method in METHODS
    }
    tests = {method: np.array([r[method]["test"] for r in results]) for method in METHODS}
    for method in METHODS:
        summary[method] = {
            "test_mean": float(tests[method].mean()),
            "validation_mean": float(incumbents[method][:, -1].mean()),
            "seconds_mean": float(np.mean([r[method]["seconds"] for r in results])),
            "incumbent_by_trial": incumbents[method].mean(axis=0).tolist(),
        }
    summary["bayesian_minus_random"] = {
        "test": paired(tests["bayesian"] - tests["random"]),
        "validation": paired(incumbents["bayesian"][:, -1] - incumbents["random"][:, -1]),
        "wins_on_test": int((tests["bayesian"] < tests["random"]).sum()),
    }
    return summary


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Validation regret by trial, with 95% intervals of the mean, and the paired test losses."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    best = min(min(r[m]["validation"]) for r in results for m in METHODS)
    for method, colour in zip(METHODS, ("#2f5d8a", "#c4722e"), strict=True):
        curves = np.minimum.accumulate([r[method]["validation"] for r in results], axis=1) - best
        mean, error = curves.mean(axis=0), scipy.stats.sem(curves, axis=0)
        width = scipy.stats.t.ppf(0.975, len(results) - 1) * error
        trials = np.arange(1, len(mean) + 1)
        left.plot(trials, mean, color=colour, label=method)
        left.fill_between(trials, mean - width, mean + width, color=colour, alpha=0.2, lw=0)
    left.set(xlabel="trial", ylabel="validation regret (nats)", ylim=(0, 0.25))
    left.legend(frameon=False)
    tests = np.array([[r[m]["test"] for m in METHODS] for r in results])
    right.scatter(tests[:, 1], tests[:, 0], color="#2f5d8a", s=22)
    ends = [tests.min() * 0.95, tests.max() * 1.05]
    right.plot(ends, ends, color="0.6", lw=1)
    right.set(xlabel="random: test log loss", ylabel="bayesian: test log loss")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> int:
    """Run the seeds, write JSON and figure, print the comparison."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks search", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="2 seeds of 12 trials")
    parser.add_argument("--seeds", type=int, help="number of paired runs (20)")
    parser.add_argument("--first-seed", type=int, default=0, help="seeds count from here (0)")
    parser.add_argument("--trials", type=int, help="trials for each method and seed (30)")
    parser.add_argument("--processes", type=int, default=1, help="seeds at the same time (1)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(argv)
    num_seeds = options.seeds or (2 if options.quick else 20)
    num_trials = options.trials or (12 if options.quick else 30)
    if num_seeds < 2:
        parser.error("a paired interval needs at least 2 seeds")
    seeds = range(options.first_seed, options.first_seed + num_seeds)
    cache = ROOT / "runs" / "search-digits" / code_key(num_trials)
    cache.mkdir(parents=True, exist_ok=True)
    missing = [seed for seed in seeds if not (cache / f"{seed}.json").exists()]

    def keep(result: dict[str, Any]) -> None:
        part = cache / f"{result['seed']}.part"
        part.write_text(json.dumps(result))
        part.replace(cache / f"{result['seed']}.json")

    with tqdm(total=num_seeds, initial=num_seeds - len(missing), desc="seeds") as progress:
        if options.processes > 1:
            with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
                for result in pool.map(run_seed, missing, [num_trials] * len(missing)):
                    keep(result)
                    progress.update()
        else:
            for seed in missing:
                keep(run_seed(seed, num_trials))
                progress.update()
    results = [json.loads((cache / f"{seed}.json").read_text()) for seed in seeds]
    summary = summarise(results)
    options.out.mkdir(parents=True, exist_ok=True)
    name = "search_digits_quick" if options.quick else "search_digits"
    record = {
        "benchmark": "search over networks for digits, BayesianSampler against RandomSampler",
        "command": command("search", argv),
        "num_trials": num_trials,
        "seeds": list(seeds),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "botorch": botorch.__version__,
            "optuna": optuna.__version__,
            "sklearn": sklearn.__version__,
        },
        "device": f"cpu, {platform.machine()}, {os.cpu_count()} cores, 1 thread",
        "summary": summary,
        "runs": results,
    }
    (options.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    plot(results, options.out / f"{name}.png")
    print(f"{'method':<10} {'validation':>10} {'test':>8} {'seconds':>8}")
    for method in METHODS:
        row = summary[method]
        print(
            f"{method:<10} {row['validation_mean']:>10.4f} {row['test_mean']:>8.4f} "
            f"{row['seconds_mean']:>8.1f}"
        )
    for rows in ("validation", "test"):
        gap = summary["bayesian_minus_random"][rows]
        print(
            f"bayesian - random, {rows} log loss: {gap['mean']:+.4f} nats, 95% interval "
            f"[{gap['low']:+.4f}, {gap['high']:+.4f}], {num_seeds} seeds"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
