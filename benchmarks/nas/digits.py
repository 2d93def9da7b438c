"""Does the search find better networks than what people use, for the same trials?

Task: `examples/digits_study.py` (digits, 8x8; depth, widths, activation, residual, learning rate,
weight decay; every candidate is trained for real). All methods search the same space for the same
number of trials; they see validation rows only; the best candidate by validation is trained anew
and scored once on the test rows. `gp` and `vectors` are surrogates of `BayesianSampler`; the
others are Optuna's samplers over the flat parameters of the space. Runs are paired by seed.

    python -m benchmarks search                     # 20 seeds of everything, 30 trials each
    python -m benchmarks search digits --table      # what is there
    python -m benchmarks search digits --methods gp optuna-tpe --seeds 5

One line of JSON for each method, seed and number of trials; those that are there are not run again.
A run takes from 15 to 40 processor seconds.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import optuna

import nas
from benchmarks.nas.runs import carry_out, half_width, parser_of

__all__ = ["load_study", "losses", "main", "report", "with_half_width"]

ROOT = Path(__file__).resolve().parents[2]
STUDY = ROOT / "examples" / "digits_study.py"
NUM_TRIALS = 30


def _ours(surrogate: str, seed: int) -> optuna.samplers.BaseSampler:
    study_file = load_study()
    return nas.BayesianSampler(
        study_file.SPACE,
        hyperparameters=study_file.HYPERPARAMETERS,
        surrogate=surrogate,
        seed=seed,
    )


SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "optuna-tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "optuna-gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "gp": partial(_ours, "gp"),
    "vectors": partial(_ours, "vectors"),
}


def load_study() -> ModuleType:
    """The example script as a module."""
    if STUDY.stem not in sys.modules:
        spec = importlib.util.spec_from_file_location(STUDY.stem, STUDY)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[STUDY.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[STUDY.stem])
    return sys.modules[STUDY.stem]


def main(argv: list[str]) -> int:
    """Run what is missing and print the table."""
    parser = parser_of("digits", __doc__, seeds=20, data=False)
    parser.add_argument("--methods", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--trials", type=int, default=NUM_TRIALS, help=f"of each ({NUM_TRIALS})")
    options = parser.parse_args(argv)
    wanted = [
        {"method": method, "seed": seed, "trials": options.trials}
        for seed in range(options.first, options.first + options.seeds)
        for method in options.methods
    ]

    def reports(found: list[dict[str, Any]]) -> str:
        return report([r for r in found if r["trials"] == options.trials])

    return carry_out(options, wanted, _run, reports)


def _run(*, method: str, seed: int, trials: int) -> dict[str, Any]:
    study_file = load_study()
    start = time.process_time()
    study = optuna.create_study(sampler=SAMPLERS[method](seed), study_name=f"{method}-{seed}")
    study.optimize(study_file.objective, n_trials=trials)
    seconds = time.process_time() - start
    best = study.best_trial
    architecture = nas.architecture_of(best)
    assert architecture is not None
    return {
        "validation": [trial.value for trial in study.trials],
        "test": study_file.held_out_loss(best),
        "best": study_file.SPACE.to_parameters(architecture)
        | {name: best.params[name] for name in study_file.HYPERPARAMETERS},
        "seconds": round(seconds, 1),
    }


def report(found: Sequence[dict[str, Any]]) -> str:
    """Log losses of the recommended networks with 95% intervals, in nats, by method.

    Args:
        found: Records of runs of as many trials.

    Returns:
        Means, then what `gp` has less than each, by seed, and seconds of a run.
    """
    runs_of = {
        method: {r["seed"]: r for r in found if r["method"] == method} for method in SAMPLERS
    }
    lines = ["log loss of the best by validation: validation, test"]
    for method, runs in runs_of.items():
        if not runs:
            continue
        lines.append(f"  {method:<11}{len(runs):>3} runs  {_means([*runs.values()])}")
        pairs = [(runs_of["gp"][seed], r) for seed, r in runs.items() if seed in runs_of["gp"]]
        if method != "gp" and len(pairs) > 1:
            less = np.array([losses(ours) - losses(other) for ours, other in pairs])
            lines[-1] += f"   gp less it, {len(pairs)} seeds  {with_half_width(less)}"
        lines[-1] += f"   {np.mean([r['seconds'] for r in runs.values()]):.0f} s"
    return "\n".join(lines)


def losses(run: dict[str, Any]) -> np.ndarray:
    """Of the best by validation: validation and test, `[2]`."""
    return np.array([min(run["validation"]), run["test"]])


def _means(runs: Sequence[dict[str, Any]]) -> str:
    return with_half_width(np.array([losses(run) for run in runs]))


def with_half_width(values: np.ndarray) -> str:
    """Means of the columns of values `[runs, 2]` with 95% intervals."""
    pairs = zip(values.mean(0), half_width(values), strict=True)
    return "  ".join(f"{mean:.4f}±{half:.4f}" for mean, half in pairs)
