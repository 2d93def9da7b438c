"""How many epochs does stopping trials early save, and does it lose the best of them?

Curves: validation losses of TaskSet (eight text tasks, Adam with eight hyperparameters, 51
checkpoints) and of NAS-Bench-NLP (cells on WikiText-2, 50 epochs), in the folder `nas` of the data.
A run is 60 random curves of a set one after the other in an Optuna study that reports every epoch,
diverged ones included. Competitors on the same curves in the same order: successive halving and the
median rule of Optuna, and the support-vector regression of Baker et al. 2017 (1705.10823, section
3: nu-SVR of the last value on the values so far and their first and second differences, with a
Gaussian of the residuals of cross-validation; a trial stops below a probability of 0.05; first 15
complete curves).

`saved` is all epochs over those that were run; `loss` is how much worse the best last value is than
without stopping, in units of the distance from there to the median of the curves; `speed-up` is the
epochs after which the run without stopping has its best value over those after which this one has
a value as good, 0 where it never has. `coverage` is how often the last value of new curves lies in
the pruner's central 90% interval, the process fitted to 30 whole curves.

    python -m benchmarks search curves --data FOLDER            # 5 seeds, 15 minutes on one core
    python -m benchmarks search curves --data FOLDER --quick    # 1 seed of 30 curves

Each run is a line of a file under `runs/`, so an interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas
import scipy
import sklearn
import torch
from scipy.special import ndtr, stdtr
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import NuSVR

from benchmarks.commands import command
from benchmarks.records import append, read
from nas import LearningCurvePruner
from nas.pruning.pruners import FittedCurves

ROOT = Path(__file__).resolve().parents[2]
SEEN = (3, 6, 12, 25)  # epochs


class BakerPruner(optuna.pruners.BasePruner):
    """Baker et al. 2017; see the module."""

    def __init__(self) -> None:
        self.models: dict[tuple[int, int], tuple[Any, float]] = {}

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        """Whether the trial should stop."""
        own = trial.intermediate_values
        length = len(own)
        if np.isnan(own[max(own)]):
            return True
        complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        whole = np.array([list(t.intermediate_values.values()) for t in complete])
        if len(whole) < 15 or length < 4 or length == whole.shape[1]:
            return False
        best, whole = whole[:, -1].min(), np.clip(whole, None, np.quantile(whole, 0.9))
        key = (length, len(whole))
        if key not in self.models:
            model = make_pipeline(StandardScaler(), NuSVR(C=10.0, nu=0.5))
            X, y = _features(whole[:, :length]), whole[:, -1]
            residuals = y - cross_val_predict(model, X, y, cv=5)
            self.models[key] = (model.fit(X, y), float(residuals.std()))
        model, spread = self.models[key]
        row = np.clip(np.array([list(own.values())]), None, whole.max())
        return bool(ndtr((best - model.predict(_features(row))[0]) / spread) < 0.05)


def _features(curves: np.ndarray) -> np.ndarray:
    return np.concatenate([curves, np.diff(curves), np.diff(curves, n=2)], 1)


METHODS = {
    "learning curves": LearningCurvePruner,
    "successive halving": lambda: optuna.pruners.SuccessiveHalvingPruner(2, 3),
    "median": optuna.pruners.MedianPruner,
    "support vectors": BakerPruner,
}


def load(folder: Path) -> dict[str, np.ndarray]:
    """Validation losses `[curves, epochs]` of each set."""
    with np.load(folder / "nas" / "taskset_curves.npz") as file:
        sets = {f"taskset {k}": file["curves"][k, :, 1] for k in range(8)}
    table = pandas.read_csv(folder / "nas" / "nasbench_nlp_curves.csv.gz")
    rows = [json.loads(text.replace("nan", "NaN")) for text in table["val_losses"]]
    longest = max(map(len, rows))
    sets["cells"] = np.array([row + [np.nan] * (longest - len(row)) for row in rows])
    return {name: curves.astype(np.float64) for name, curves in sets.items()}


def run(curves: np.ndarray, pruner: optuna.pruners.BasePruner) -> dict[str, float]:
    """One study of these curves."""
    study = optuna.create_study(pruner=pruner)
    whole = np.where(np.isnan(curves).any(1), np.inf, curves[:, -1])
    goal = float(whole.min())
    used = reached = 0
    best = np.inf
    begin = time.process_time()
    for curve in curves:
        trial = study.ask()
        stopped = False
        for step, value in enumerate(curve):
            used += 1
            trial.report(value, step)
            if np.isnan(value) or trial.should_prune():
                stopped = True
                break
        if stopped:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            continue
        study.tell(trial, float(curve[-1]))
        best = min(best, float(curve[-1]))
        reached = reached or (used if best <= goal else 0)
    without = (int(whole.argmin()) + 1) * curves.shape[1]
    return {
        "saved": curves.size / used,
        "loss": (best - goal) / (float(np.median(whole[np.isfinite(whole)])) - goal),
        "speed_up": without / reached if reached else 0.0,
        "cpu_seconds_per_epoch": (time.process_time() - begin) / used,
    }


def coverage(curves: np.ndarray) -> dict[str, float]:
    """Of central 90% intervals of the last value, by epochs seen."""
    curves = curves[~np.isnan(curves).any(1)]
    known = [dict(enumerate(curve)) for curve in curves[:30]]
    fitted = FittedCurves(known, known, -1.0)
    found = {}
    for seen in SEEN:
        inside = []
        for curve in curves[30:]:
            end, value = fitted.end(dict(enumerate(curve[:seen]))), fitted.warped(-curve[-1:])
            level = stdtr(end.df.item(), ((value - end.loc) / end.scale).item())
            inside.append(0.05 <= level <= 0.95)
        found[str(seen)] = float(np.mean(inside))
    return found


def main(argv: list[str] | None = None) -> int:
    """Run or finish the benchmark, print a table and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks search curves", description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("WIDEPRIOR_DATA"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(argv)
    if options.data is None or not (options.data / "nas").is_dir():
        parser.error("--data must be a folder with nas/taskset_curves.npz and the cells' curves.")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    num_curves, seeds = (30, 1) if options.quick else (60, options.seeds)
    lines = ROOT / "runs" / f"search-curves-{num_curves}.jsonl"
    done = {(r["set"], r["method"], r["seed"]) for r in read(lines)}
    sets = load(options.data)
    for seed in range(seeds):
        for name, curves in sets.items():
            order = np.random.default_rng(seed).permutation(len(curves))
            key = {"set": name, "seed": seed}
            for method, make in METHODS.items():
                if (name, method, seed) not in done:
                    result = run(curves[order[:num_curves]], make())
                    append(lines, {**key, "method": method, **result})
            if (name, "coverage", seed) not in done:
                found = coverage(curves[order[: num_curves + 30]])
                append(lines, {**key, "method": "coverage", **found})
    records = [r for r in read(lines) if r["seed"] < seeds]
    summary = {}
    for method in METHODS:
        mine = [r for r in records if r["method"] == method]
        each = [np.mean([r["saved"] for r in mine if r["set"] == name]) for name in sets]
        summary[method] = {
            "saved, median of sets": float(np.median(each)),
            "saved, least of sets": float(np.min(each)),
            "speed_up, median of runs": float(np.median([r["speed_up"] for r in mine])),
            "loss, mean": float(np.mean([r["loss"] for r in mine])),
            "runs without loss": float(np.mean([r["loss"] <= 0 for r in mine])),
            "milliseconds per epoch": 1e3
            * float(np.mean([r["cpu_seconds_per_epoch"] for r in mine])),
        }
        print(method, json.dumps({k: round(v, 3) for k, v in summary[method].items()}))
    covered = [r for r in records if r["method"] == "coverage"]
    intervals = {str(seen): float(np.mean([r[str(seen)] for r in covered])) for seen in SEEN}
    print("coverage of 90% intervals by epochs seen", intervals)
    name = "search_curves_quick" if options.quick else "search_curves"
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    result = {
        "benchmark": "stopping trials by their learning curves",
        "command": command("search curves", argv),
        "seeds": seeds,
        "curves of a run": num_curves,
        "summary": summary,
        "coverage": intervals,
        "runs": records,
        "machine": platform.machine(),
        "versions": {m.__name__: m.__version__ for m in (torch, optuna, scipy, sklearn)},
    }
    path.write_text(json.dumps(result, indent=1) + "\n")
    return 0
