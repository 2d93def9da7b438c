"""Does the search find the best of known functions sooner than what people use?

Functions of perceptrons and of hyperparameters, one drawn for each seed and the same for all
methods, with the parameters of the space as ordinary Optuna parameters:

sizes            perceptrons by depth, activation and parameters, the best learning rate by depth
widths           perceptrons by the width of each layer, activation and residual; nothing beside
hyperparameters  five hyperparameters of one network, with interactions
wave             perceptrons and hyperparameters under a random network of cosines, which no method
                 has in its model
hartmann         the function of six numbers (Dixon & Szego 1978), the same for every seed

What was found is told in units of the function: 0 is the best of 5,000 random candidates, 1 the
median of them.

    python -m benchmarks search functions                       # 16 seeds of everything
    python -m benchmarks search functions --table               # what is there
    python -m benchmarks search functions --functions widths --methods gp optuna-gp --seeds 4

One line of JSON for each function, method and seed; those that are there are not run again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from torch import Generator

import nas
from benchmarks.nas.runs import carry_out, half_width, parser_of
from nas.encoding.hyperparameters import HyperparameterCube
from nas.spaces import FlatSpace, MLPSpace

__all__ = ["FUNCTIONS", "Function", "main"]

STOPS = (10, 20, 30)
NUM_RANDOM = 5000
PERCEPTRONS = MLPSpace(64, 10)
ONE_NETWORK = MLPSpace(64, 10, depth=(1, 1), widths=(32,), activations=("relu",), residual=False)
TRAINING: dict[str, BaseDistribution] = {
    "learning_rate": FloatDistribution(1e-5, 1e-1, log=True),
    "optimizer": CategoricalDistribution(("adam", "sgd")),
}
MORE_TRAINING: dict[str, BaseDistribution] = {
    **TRAINING,
    "batch_size": IntDistribution(8, 256, log=True),
    "dropout": FloatDistribution(0.0, 0.6),
    "weight_decay": FloatDistribution(1e-6, 1e-2, log=True),
}
SIX: dict[str, BaseDistribution] = {f"x{k}": FloatDistribution(0.0, 1.0) for k in range(6)}


class Function:
    """A known function, smaller is better.

    Args:
        space: Of the networks.
        hyperparameters: Beside them.
        value: Of the parameters of both by name.
    """

    def __init__(
        self,
        space: FlatSpace,
        hyperparameters: Mapping[str, BaseDistribution],
        value: Callable[[Mapping[str, Any]], float],
    ) -> None:
        self.space = space
        self.hyperparameters = dict(hyperparameters)
        self._value = value

    def __call__(self, trial: optuna.Trial) -> float:
        """The value of what a trial has."""
        network = nas.suggest(trial, self.space)
        chosen = {n: _suggested(trial, n, each) for n, each in self.hyperparameters.items()}
        return self._value({**self.space.to_parameters(network), **chosen})

    def random(self, number: int) -> np.ndarray:
        """Values of random candidates, the same for every call."""
        generator = Generator().manual_seed(0)
        cube = HyperparameterCube({**self.space.parameters(), **self.hyperparameters})
        drawn = (cube.random(generator) for _ in range(number))
        return np.array([self._value(self._alone(values)) for values in drawn])

    def _alone(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """With the parameters of a network as they are read from it."""
        network = self.space.from_parameters(values)
        return {**values, **self.space.to_parameters(network)}


def _suggested(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    match distribution:
        case CategoricalDistribution():
            return trial.suggest_categorical(name, distribution.choices)
        case FloatDistribution():
            low, high, log = distribution.low, distribution.high, distribution.log
            return trial.suggest_float(name, low, high, log=log)
        case IntDistribution():
            low, high, log = distribution.low, distribution.high, distribution.log
            return trial.suggest_int(name, low, high, log=log)
    raise TypeError(distribution)


def sizes(rng: np.random.Generator) -> Function:
    """As `nas.testing.SyntheticObjective`, with constants of its own."""
    depth, slope, rate = rng.integers(1, 5), rng.uniform(-0.5, 0.5), rng.uniform(-4, -2)
    parameters = rng.uniform(np.log(3e3), np.log(1.5e5))
    activation = str(rng.choice(PERCEPTRONS.activations))
    optimizer = str(rng.choice(["adam", "sgd"]))
    weights = rng.uniform(0.1, 0.6, 5)

    def value(at: Mapping[str, Any]) -> float:
        size = PERCEPTRONS.from_parameters(at).num_parameters
        terms = (
            2 * (math.log10(at["learning_rate"]) - rate - slope * (at["depth"] - 2.5)) ** 2,
            abs(at["depth"] - depth),
            2 * (at["activation"] != activation),
            at["optimizer"] != optimizer,
            abs(math.log(size) - parameters),
        )
        return float(np.dot(weights, terms))

    return Function(PERCEPTRONS, TRAINING, value)


def widths(rng: np.random.Generator) -> Function:
    """A width of its own for each layer that is there, a depth, an activation and a shortcut."""
    best = rng.uniform(4, 8, 4)
    pull = rng.uniform(0.05, 0.3, 4)
    of_depth = rng.uniform(0, 1, 4)
    of_activation = dict(zip(PERCEPTRONS.activations, rng.uniform(0, 1, 3), strict=True))
    shortcut = rng.uniform(-0.5, 0.5)

    def value(at: Mapping[str, Any]) -> float:
        log_widths = np.log2([at[f"width_{layer}"] for layer in range(1, at["depth"] + 1)])
        away = pull[: len(log_widths)] * (log_widths - best[: len(log_widths)]) ** 2
        return float(
            away.mean()
            + of_depth[at["depth"] - 1]
            + of_activation[at["activation"]]
            + shortcut * (at["residual"] and at["depth"] > 1)
        )

    return Function(PERCEPTRONS, {}, value)


def hyperparameters(rng: np.random.Generator) -> Function:
    """A bowl whose axes are turned, and an optimizer with a learning rate of its own."""
    turned = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    curvature = turned @ np.diag(rng.uniform(0.5, 8, 4)) @ turned.T
    best = rng.uniform(0.15, 0.85, 4)
    shift, worse = rng.uniform(-0.3, 0.3), rng.uniform(0, 0.5)
    cube = HyperparameterCube({n: d for n, d in MORE_TRAINING.items() if n != "optimizer"})

    def value(at: Mapping[str, Any]) -> float:
        point = np.array(cube.row(at)) - best  # by name; the learning rate is the third
        sgd = at["optimizer"] == "sgd"
        point[2] -= shift * sgd
        return float(point @ curvature @ point + worse * sgd)

    return Function(ONE_NETWORK, MORE_TRAINING, value)


def wave(rng: np.random.Generator) -> Function:
    """sum_k a_k cos(w_k x + b_k) of 60 terms; x are unit coordinates, of an absent layer 0.5."""
    every = {**PERCEPTRONS.parameters(), **TRAINING}
    ordered = ["depth", *(n for n in every if n.startswith("width"))]
    sizes = [1 if n in ordered or n == "learning_rate" else len(_choices(every[n])) for n in every]
    w, b, a = (
        rng.normal(size=(60, sum(sizes))) * 1.5,
        rng.uniform(0, 2 * np.pi, 60),
        rng.normal(size=60),
    )

    def value(at: Mapping[str, Any]) -> float:
        row: list[float] = []
        for name, each in every.items():
            if name in ordered:
                absent = name.startswith("width") and int(name[6:]) > at["depth"]
                choices = _choices(each)
                row.append(0.5 if absent else choices.index(at[name]) / (len(choices) - 1))
            elif name == "learning_rate":
                row.append((math.log10(at[name]) + 5) / 4)
            else:
                row += [float(at[name] == choice) for choice in _choices(each)]
        return float(a @ np.cos(w @ np.array(row) + b))

    return Function(PERCEPTRONS, TRAINING, value)


def _choices(distribution: BaseDistribution) -> tuple[Any, ...]:
    assert isinstance(distribution, CategoricalDistribution)
    return tuple(distribution.choices)


def hartmann(rng: np.random.Generator) -> Function:
    """Minimum -3.32237."""
    import torch
    from botorch.test_functions import Hartmann

    function = Hartmann(dim=6)

    def value(at: Mapping[str, Any]) -> float:
        return float(function(torch.tensor([[at[name] for name in SIX]], dtype=torch.float64)))

    return Function(ONE_NETWORK, SIX, value)


FUNCTIONS: dict[str, Callable[[np.random.Generator], Function]] = {
    "sizes": sizes,
    "widths": widths,
    "hyperparameters": hyperparameters,
    "wave": wave,
    "hartmann": hartmann,
}
SAMPLERS: dict[str, Callable[[Function, int], optuna.samplers.BaseSampler]] = {
    "random": lambda function, seed: optuna.samplers.RandomSampler(seed=seed),
    "optuna-tpe": lambda function, seed: optuna.samplers.TPESampler(seed=seed),
    "optuna-gp": lambda function, seed: optuna.samplers.GPSampler(seed=seed),
    "gp": lambda function, seed: nas.BayesianSampler(
        function.space, hyperparameters=function.hyperparameters, seed=seed
    ),
    "vectors": lambda function, seed: nas.BayesianSampler(
        function.space,
        hyperparameters=function.hyperparameters,
        surrogate="vectors",
        seed=seed,
    ),
}


def main(argv: list[str]) -> int:
    """Run what is missing and print the table."""
    parser = parser_of("functions", __doc__, seeds=16, data=False)
    parser.add_argument("--functions", nargs="+", choices=FUNCTIONS, default=list(FUNCTIONS))
    parser.add_argument("--methods", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--trials", type=int, default=STOPS[-1], help="of each run (30)")
    options = parser.parse_args(argv)
    wanted = [
        {"function": function, "method": method, "seed": seed}
        for seed in range(options.first, options.first + options.seeds)
        for function in options.functions
        for method in options.methods
    ]
    return carry_out(options, wanted, partial(run, options.trials), report)


def run(trials: int, *, function: str, method: str, seed: int) -> dict[str, Any]:
    """One run: the best values in units of the function, and processor seconds."""
    known, zero, one = _known(function, seed)
    study = optuna.create_study(sampler=SAMPLERS[method](known, seed))
    start = time.process_time()
    study.optimize(known, n_trials=trials)
    best = np.minimum.accumulate([trial.value for trial in study.trials])
    return {
        "best": [float((best[stop - 1] - zero) / (one - zero)) for stop in STOPS if stop <= trials],
        "seconds": round(time.process_time() - start, 2),
    }


@cache
def _known(function: str, seed: int) -> tuple[Function, float, float]:
    """The function of a seed, its best random value and their median."""
    known = FUNCTIONS[function](np.random.default_rng([seed, 71]))
    values = known.random(NUM_RANDOM)
    return known, float(values.min()), float(np.median(values))


def report(found: list[dict[str, Any]]) -> str:
    """Means with 95% intervals after some trials by function and method, and less `optuna-gp`."""
    lines = ["after " + ", ".join(map(str, STOPS)) + " trials"]
    for function in FUNCTIONS:
        of = [r for r in found if r["function"] == function]
        theirs = {r["seed"]: r["best"] for r in of if r["method"] == "optuna-gp"}
        for method in SAMPLERS:
            runs = [r for r in of if r["method"] == method]
            if not runs:
                continue
            length = min(len(r["best"]) for r in runs)
            line = f"  {function:<16}{method:<11}{len(runs):>3} runs  " + _told(
                [r["best"][:length] for r in runs]
            )
            paired = [
                np.subtract(r["best"][:length], theirs[r["seed"]][:length])
                for r in runs
                if method != "optuna-gp" and len(theirs.get(r["seed"], ())) >= length
            ]
            line += f"   less optuna-gp {_told(paired)}" if paired else " " * 3
            lines.append(f"{line}   {np.mean([r['seconds'] for r in runs]):.1f} s")
    return "\n".join(lines)


def _told(values: list[Any]) -> str:
    pairs = zip(np.mean(values, axis=0), half_width(values), strict=True)
    return "  ".join(f"{m:+.3f}±{h:.3f}" for m, h in pairs)
