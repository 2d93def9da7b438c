"""What searches the tables: each method queries a `Lookup` a given number of times.

Every method is called with the table's queries, their number and a seed, and returns the processor
seconds that each of its proposals took.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, IntDistribution

import nas
from benchmarks.nas.tables import Lookup
from nas import BayesianSampler
from nas.surrogates import GraphProcess

__all__ = ["METHODS", "Method", "at_hand"]

Method = Callable[[Lookup, int, int], list[float]]

TUNERS = Path(__file__).resolve().parents[2] / ".venv-tuners" / "bin" / "python"
ELSEWHERE = ("smac", "syne-tune-cqr")
PROCESS = GraphProcess()  # runs of one space share what it keeps of architectures
POPULATION, TOURNAMENT = 20, 5  # a population of 50, as usual, would be random for half of the run


def random_search(lookup: Lookup, queries: int, seed: int) -> list[float]:
    """Rows without replacement."""
    rng = np.random.default_rng([seed, 1])
    for row in rng.permutation(len(lookup.table))[:queries]:
        lookup.query(int(row))
    return []


def evolution(lookup: Lookup, queries: int, seed: int) -> list[float]:
    """Regularised evolution (Real et al. 2019, 1802.01548): one changed choice for each child."""
    rng = np.random.default_rng([seed, 2])
    for _ in range(queries):
        alive = range(max(0, len(lookup.rows) - POPULATION), len(lookup.rows))
        if len(lookup.rows) < POPULATION:
            lookup.query(int(rng.integers(len(lookup.table))))
            continue
        chosen = rng.choice(list(alive), TOURNAMENT, replace=False)
        parent = lookup.rows[max(chosen, key=lambda place: lookup.scores[place])]
        near = _neighbours(lookup, parent)
        lookup.query(int(near[rng.integers(len(near))]))
    return []


def local_search(lookup: Lookup, queries: int, seed: int) -> list[float]:
    """Neighbours in random order, on to the first that is better; anew from a local optimum."""
    rng = np.random.default_rng([seed, 3])
    while len(lookup.rows) < queries:
        here = int(rng.integers(len(lookup.table)))
        best, waiting = lookup.query(here), list(rng.permutation(_neighbours(lookup, here)))
        while waiting and len(lookup.rows) < queries:
            row = int(waiting.pop())
            if row in lookup.rows:
                continue
            score = lookup.query(row)
            if score > best:
                best, waiting = score, list(rng.permutation(_neighbours(lookup, row)))
    return []


def _neighbours(lookup: Lookup, row: int) -> np.ndarray:
    """Rows that differ in one choice; ordered choices are not told apart from others."""
    sizes = lookup.table.sizes
    places = np.array(np.unravel_index(row, sizes))
    found = []
    for dimension, size in enumerate(sizes):
        for place in range(size):
            if place != places[dimension]:
                moved = places.copy()
                moved[dimension] = place
                found.append(int(np.ravel_multi_index(moved, sizes)))
    return np.array(found)


def flat(make: Callable[[int], optuna.samplers.BaseSampler]) -> Method:
    """An Optuna sampler on the flat parameters."""

    def run(lookup: Lookup, queries: int, seed: int) -> list[float]:
        study = optuna.create_study(direction="maximize", sampler=make(seed))
        distributions, seconds = lookup.table.distributions(), []
        for _ in range(queries):
            start = time.process_time()
            trial = study.ask()
            chosen = {}
            for name, each in distributions.items():
                if isinstance(each, CategoricalDistribution):
                    chosen[name] = trial.suggest_categorical(name, each.choices)
                else:
                    assert isinstance(each, IntDistribution)
                    chosen[name] = trial.suggest_int(name, each.low, each.high)
            seconds.append(time.process_time() - start)
            row = lookup.table.row(lookup.table.values_at(chosen))
            study.tell(trial, lookup.query(row))
        return seconds

    return run


def elsewhere(method: str) -> Method:
    """A tuner of `tuners_side.py`, in the environment that `make tuners` makes."""

    def run(lookup: Lookup, queries: int, seed: int) -> list[float]:
        if not TUNERS.exists():
            raise FileNotFoundError(f"{method} wants an environment of its own: `make tuners`.")
        distributions = lookup.table.distributions()
        told = {"method": method, "queries": queries, "seed": seed}
        told["space"] = {name: _sent(each) for name, each in distributions.items()}
        script = Path(__file__).with_name("tuners_side.py")
        seconds = []
        with subprocess.Popen(
            [str(TUNERS), str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            print(json.dumps(told), file=process.stdin, flush=True)
            for _ in range(queries):
                line = process.stdout.readline()
                if not line:
                    raise RuntimeError(f"{method} stopped; run {script.name} by hand to see why.")
                answer = json.loads(line)
                seconds.append(answer["seconds"])
                row = lookup.table.row(lookup.table.values_at(answer["chosen"]))
                print(-lookup.query(row), file=process.stdin, flush=True)
        return seconds

    return run


def _sent(distribution: optuna.distributions.BaseDistribution) -> list[Any] | int:
    """Categories, or the number of ordered places from 0 on."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, IntDistribution)
    assert distribution.low == 0
    return distribution.high + 1


def bayesian(surrogate: str) -> Method:
    """Our sampler, the architecture as one parameter of its own."""

    def run(lookup: Lookup, queries: int, seed: int) -> list[float]:
        table = lookup.table
        sampler = BayesianSampler(
            table.space, hyperparameters=table.hyperparameters, surrogate=surrogate, seed=seed
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        seconds = []
        for _ in range(queries):
            start = time.process_time()
            trial = study.ask()
            nas.suggest(trial, table.space)
            for name, each in table.hyperparameters.items():
                if isinstance(each, CategoricalDistribution):
                    trial.suggest_categorical(name, each.choices)
                else:
                    assert isinstance(each, IntDistribution)
                    trial.suggest_int(name, each.low, each.high)
            seconds.append(time.process_time() - start)
            study.tell(trial, lookup.query(table.row(trial.params)))
        return seconds

    return run


def screening(lookup: Lookup, queries: int, seed: int) -> list[float]:
    """Our sampler with trainings of 12 epochs as a lower fidelity, for the cost of the queries.

    Features of cells are shared by the runs of a process, so proposals cost less than they would.
    """
    space = lookup.table.space
    epochs = nas.Fidelity("epochs", (12, 200))
    sampler = BayesianSampler(
        space, hyperparameters={}, surrogate=PROCESS, fidelity=epochs, seed=seed
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    seconds = [0.0]  # up to each query
    while True:
        start = time.process_time()
        trial = study.ask()
        nas.suggest(trial, space)
        level = epochs.suggest(trial)
        seconds[-1] += time.process_time() - start
        if lookup.cost + level / epochs.full > queries + 1e-9:
            return seconds
        row = lookup.table.row(trial.params)
        if level == epochs.full:
            study.tell(trial, lookup.query(row))
            seconds.append(0.0)
        else:
            study.tell(trial, lookup.screen(row))


METHODS: dict[str, Method] = {
    "random": random_search,
    "evolution": evolution,
    "local": local_search,
    "optuna-tpe": flat(lambda seed: optuna.samplers.TPESampler(seed=seed)),
    "optuna-gp": flat(lambda seed: optuna.samplers.GPSampler(seed=seed)),
    "optuna-cmaes": flat(
        lambda seed: optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    ),
    **{method: elsewhere(method) for method in ELSEWHERE},
    "gp": bayesian("gp"),
    "gp-screens": screening,
    "vectors": bayesian("vectors"),
    "ensemble": bayesian("ensemble"),
}


def at_hand() -> list[str]:
    """Names of the methods that can run here."""
    return [method for method in METHODS if method not in ELSEWHERE or TUNERS.exists()]
