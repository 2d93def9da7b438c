"""Networks of grammars and their hyperparameters, trained for real, in searches that are killed.

Task: that of `examples/digits_study.py` (digits, 8x8 images; learning rate and weight decay beside
the architecture; AdamW, 20 epochs, one training a trial). Spaces: `ResNetSpace`, residual stages of
convolutions, and `Einspace`, networks of fundamental operations (Ericsson et al. 2024). Methods:
the default `nas.BayesianSampler`, and random search, which draws from the same grammar; samplers of
flat parameters cannot search these.

Each search is a process with an SQLite file. In the middle of a trial, when half of them are done,
it is killed (SIGKILL), and the same command goes on. Of every run: the validation log losses in
order; the held-out log loss of the best, trained anew three times; trials that failed, the one that
was killed among them, that were lost, and that ran twice. Runs with
"killed" false are not disturbed: their trials are to be the same, one by one.

    python -m benchmarks search grammars                      # 5 seeds, 20 trials: an hour or two
    python -m benchmarks search grammars --table              # what is there
    python -m benchmarks search grammars --spaces resnet --seeds 2 --trials 8

One line of JSON for each run; those that are there are not run again.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.trial import TrialState

import nas
from benchmarks.nas.digits import load_study, losses, with_half_width
from benchmarks.nas.runs import carry_out, parser_of
from nas.spaces import Einspace, ResNetSpace, Space

__all__ = ["go_on", "main", "report"]

ROOT = Path(__file__).resolve().parents[2]
SPACES: dict[str, Callable[[], Space]] = {
    "resnet": lambda: ResNetSpace(
        10, in_channels=1, image_size=8, widths=(8, 16), num_stages=2, max_blocks=2
    ),
    "einspace": lambda: Einspace((1, 8, 8), 10, widths=(16, 32, 64, 128), patches=(2, 4)),
}
METHODS = ("gp", "random")
NUM_TRIALS = 20


def main(argv: list[str]) -> int:
    """Run what is missing and print the table."""
    parser = parser_of("grammars", __doc__, seeds=5, data=False)
    parser.add_argument("--spaces", nargs="+", choices=SPACES, default=list(SPACES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--trials", type=int, default=NUM_TRIALS, help=f"of each ({NUM_TRIALS})")
    options = parser.parse_args(argv)
    wanted = [
        {"space": space, "method": method, "seed": seed, "trials": options.trials, "killed": killed}
        for seed in range(options.first, options.first + options.seeds)
        for space in options.spaces
        for method in options.methods
        for killed in ((True, False) if seed == 0 and method == "gp" else (True,))
    ]

    def reports(found: list[dict[str, Any]]) -> str:
        return report([r for r in found if r["trials"] == options.trials])

    return carry_out(options, wanted, _run, reports)


def go_on(file: str, space: str, method: str, seed: int, trials: int) -> None:
    """Search until so many trials are complete, from where the file is."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", "The worker process of trial")  # it was killed on purpose
    study_file, networks = load_study(), SPACES[space]()
    there = _complete(Path(file))
    # Optuna's begins again with its first draw where its seed is the same.
    sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=1000 * seed + there)
    if method == "gp":
        hyperparameters = study_file.HYPERPARAMETERS
        sampler = nas.BayesianSampler(networks, hyperparameters=hyperparameters, seed=seed)
    if there < trials:
        nas.search(
            partial(study_file.objective, space=networks, repeats=1),
            networks,
            num_trials=trials - there,
            storage=file,
            study_name="search",
            sampler=sampler,
            show_progress=False,
        )


def _run(*, space: str, method: str, seed: int, trials: int, killed: bool) -> dict[str, Any]:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "study.db"
        words = (str(file), space, method, seed, trials)
        code = f"from benchmarks.nas.grammars import go_on; go_on(*{words!r})"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        search = partial(subprocess.Popen, [sys.executable, "-c", code], cwd=ROOT, env=environment)
        process = search()
        if killed:
            while process.poll() is None and _complete(file) < trials // 2:
                time.sleep(0.2)
            time.sleep(0.5)
            process.send_signal(signal.SIGKILL)
            process.wait()
            process = search()
        if process.wait() != 0:
            raise RuntimeError(f"The search of {space} by {method} ended: {process.returncode}.")
        study = optuna.load_study(study_name="search", storage=f"sqlite:///{file}")
        complete = [t for t in study.trials if t.state is TrialState.COMPLETE]
        candidates = [(nas.architecture_of(t), *sorted(t.params.items())) for t in complete]
        best = min(complete, key=lambda trial: trial.value)
        architecture = nas.architecture_of(best)
        assert architecture is not None
        return {
            "validation": [trial.value for trial in complete],
            "test": load_study().mean_loss(best, "test", first_seed=0),
            "best": {
                "parameters": architecture.num_parameters,
                "depth": architecture.depth,
                **best.params,
            },
            "failed": sum(t.state is TrialState.FAIL for t in study.trials),
            "lost": sum(not t.state.is_finished() for t in study.trials),
            "doubled": len(candidates) - len(set(candidates)),
            "seconds": round(time.perf_counter() - started, 1),
        }


def _complete(file: Path) -> int:
    """Complete trials, as far as there is a file; read without a hand in the search."""
    if not file.exists():
        return 0
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        try:
            query = "SELECT COUNT(*) FROM trials WHERE state = 'COMPLETE'"
            return int(connection.execute(query).fetchone()[0])
        except sqlite3.OperationalError:  # locked, or without tables yet
            return 0


def report(found: Sequence[dict[str, Any]]) -> str:
    """Log losses with 95% intervals, what `gp` has less than random search, and kills.

    Args:
        found: Records of runs of as many trials.
    """
    lines = ["log loss of the best by validation: validation, test"]
    disturbed = [r for r in found if r["killed"]]
    for space in dict.fromkeys(r["space"] for r in disturbed):
        runs: dict[str, dict[int, dict[str, Any]]] = {method: {} for method in METHODS}
        for r in disturbed:
            if r["space"] == space:
                runs[r["method"]][r["seed"]] = r
        for method, of_seed in runs.items():
            if of_seed:
                values = np.array([losses(r) for r in of_seed.values()])
                lines.append(
                    f"  {space:<9} {method:<7}{len(values):>3} runs  {with_half_width(values)}"
                )
        both = runs["gp"].keys() & runs["random"].keys()
        if len(both) > 1:
            less = np.array([losses(runs["gp"][s]) - losses(runs["random"][s]) for s in both])
            lines.append(f"  {space:<9} gp less random, {len(both)} seeds  {with_half_width(less)}")
    counts = {name: sum(r[name] for r in disturbed) for name in ("failed", "lost", "doubled")}
    told = ", ".join(f"{count} trials {name}" for name, count in counts.items())
    lines.append(f"of {len(disturbed)} searches that were killed: {told}")
    for calm in (r for r in found if not r["killed"]):
        same = [r for r in disturbed if _key(r) == _key(calm)]
        lines += [
            f"  {calm['space']}, {calm['method']}, seed {calm['seed']}: killed and resumed, "
            f"{sum(map(float.__eq__, r['validation'], calm['validation']))} of "
            f"{len(calm['validation'])} trials are those of a search that was not"
            for r in same
        ]
    return "\n".join(lines)


def _key(run: dict[str, Any]) -> tuple[Any, ...]:
    return run["space"], run["method"], run["seed"]
