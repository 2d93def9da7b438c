"""What does a proposal cost, beside Optuna's GPSampler, as the trials grow?

Processor seconds for each proposal in the space of NAS-Bench-201, one thread, in studies of random
finished cells. What counts is the cost within a study that goes on. Our hyperparameters are learnt
again with each fifth more trials, so it is that of a proposal without learning and, apart, that of
learning divided by the trials between two; the first proposal of a new process has both and
counts the features of all architectures that it looks at. GPSampler learns at each proposal.

    python -m benchmarks search overhead            # 10, 50, 100, 500 and 1,000 trials
    python -m benchmarks search overhead --quick    # 10 and 50

The values are a made-up function of the cells, so no table is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from botorch.models.model import Model
from optuna.distributions import CategoricalDistribution
from threadpoolctl import threadpool_limits
from torch import Generator, Tensor

import nas
from benchmarks.commands import command
from nas import BayesianSampler
from nas.encoding.candidates import Encoder
from nas.proposals.memory import GROWTH
from nas.spaces import CellSpace
from nas.surrogates import GraphProcess

__all__ = ["main"]

RESULT = Path(__file__).resolve().parents[1] / "results" / "search_overhead.json"
TRIALS = (10, 50, 100, 500, 1000)
PROPOSALS = 6
BATCH, BATCH_TRIALS = 4, 40  # so many trials have a pool of about 1,500 architectures
SPACE = CellSpace()


class _TimedProcess(GraphProcess):
    """Which adds up what its learning costs."""

    def __init__(self) -> None:
        super().__init__()
        self.fits: list[float] = []

    def fit(self, X: Tensor, Y: Tensor, encoder: Encoder) -> Model:
        start = time.process_time()
        model = super().fit(X, Y, encoder)
        self.fits.append(time.process_time() - start)
        return model


def _value(architecture: nas.Architecture, noise: float) -> float:
    counts = architecture.operation_counts()
    return (
        counts.get("nor_conv_3x3", 0)
        + 0.5 * counts.get("skip_connect", 0)
        - 0.1 * counts.get("none", 0) ** 2
        + noise
    )


def _study(sampler: optuna.samplers.BaseSampler, trials: int) -> optuna.Study:
    study = optuna.create_study(direction="maximize", sampler=sampler, study_name="overhead")
    generator = Generator().manual_seed(trials)
    noise = np.random.default_rng(trials).normal(size=trials)
    distributions = SPACE.parameters()
    for each in noise.tolist():
        architecture = SPACE.random(generator)
        study.add_trial(
            optuna.trial.create_trial(
                params=SPACE.to_parameters(architecture),
                distributions=distributions,
                value=_value(architecture, each),
                user_attrs={"architecture": architecture.to_json()},
            )
        )
    return study


def _proposals(
    study: optuna.Study, number: int, suggest: Callable[[optuna.Trial], nas.Architecture]
) -> list[float]:
    seconds = []
    for _ in range(number):
        start = time.process_time()
        trial = study.ask()
        architecture = suggest(trial)
        seconds.append(time.process_time() - start)
        study.tell(trial, _value(architecture, 0.0))
    return seconds


def _ours(trials: int) -> dict[str, float]:
    process = _TimedProcess()
    sampler = BayesianSampler(SPACE, hyperparameters={}, surrogate=process, seed=0)
    study = _study(sampler, trials)
    first, *others = _proposals(study, 1 + PROPOSALS, lambda trial: nas.suggest(trial, SPACE))
    learning = float(np.mean(process.fits))
    between = (sum(others) - sum(process.fits[1:])) / PROPOSALS
    gap = max(1.0, (GROWTH - 1) * trials)
    return {
        "seconds": between + learning / gap,
        "without_learning": between,
        "learning": learning,
        "first": first,
    }


def _theirs(trials: int) -> dict[str, float]:
    def suggest(trial: optuna.Trial) -> nas.Architecture:
        values = {}
        for name, each in SPACE.parameters().items():
            assert isinstance(each, CategoricalDistribution)
            values[name] = trial.suggest_categorical(name, each.choices)
        return SPACE.from_parameters(values)

    study = _study(optuna.samplers.GPSampler(seed=0), trials)
    first, *others = _proposals(study, 1 + (PROPOSALS if trials < 500 else 2), suggest)
    return {"seconds": float(np.mean(others)), "first": first}


def _batch() -> float:
    """Processor seconds of proposals that run at once, each pending for the next."""
    study = _study(BayesianSampler(SPACE, hyperparameters={}, seed=0), BATCH_TRIALS)
    _proposals(study, 1, lambda trial: nas.suggest(trial, SPACE))
    start = time.process_time()
    for _ in range(BATCH):
        nas.suggest(study.ask(), SPACE)
    return time.process_time() - start


def main(argv: list[str] | None = None) -> int:
    """Time both, write JSON, print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks search overhead", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="10 and 50 trials")
    parser.add_argument("--trials", nargs="+", type=int, help="finished trials of the studies")
    parser.add_argument("--out", type=Path, default=RESULT, help="file of the result, JSON")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    threadpool_limits(1)  # SciPy's optimiser too, whose threads would only wait
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    nas.suggest(_study(BayesianSampler(SPACE, seed=0), 20).ask(), SPACE)  # loads what is slow
    rows: list[dict[str, Any]] = []
    print("trials   ours (between, learning, first)      GPSampler (first)")
    for trials in options.trials or (TRIALS[:2] if options.quick else TRIALS):
        ours, theirs = _ours(trials), _theirs(trials)
        rows.append({"trials": trials, "ours": ours, "gp_sampler": theirs})
        print(
            f"{trials:>6}   {ours['seconds']:.3f} ({ours['without_learning']:.3f}, "
            f"{ours['learning']:.3f}, {ours['first']:.2f})   "
            f"{theirs['seconds']:.3f} ({theirs['first']:.2f})",
            flush=True,
        )
    batch = _batch()
    print(f"a batch of {BATCH} at {BATCH_TRIALS} trials: {batch:.3f}")
    record = {
        "benchmark": "processor seconds for each proposal, space of NAS-Bench-201",
        "command": command("search overhead", argv),
        "versions": {name: version(name) for name in ("torch", "botorch", "optuna")},
        "device": f"cpu, {platform.machine()}, {os.cpu_count()} cores, 1 thread",
        "rows": rows,
        "batch": {"size": BATCH, "trials": BATCH_TRIALS, "seconds": batch},
    }
    if not options.quick:
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0
