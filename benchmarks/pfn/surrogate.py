"""Does the network find better optima of functions than the Gaussian process everybody uses?

Six standard test functions of 2 to 6 inputs on the unit cube, without noise; 50 evaluations of
which 10 are a scrambled Sobol sequence. Network `bo` against BoTorch's SingleTaskGP (defaults,
fitted anew at every step), with the same acquisition function, the exact marginal
LogExpectedImprovement of this package, the same maximisation of it and the same initial points;
pure random and Sobol search are the floor. 20 seeds, paired. Ackley's domain is [-5, 10], so that
its optimum is not in the centre, where designs and models like to look.

Simple regret is the optimum minus the best value so far; log10 regrets are compared, with 1e-6 as
the smallest regret. Seconds are of one proposal: conditioning or fitting, and maximising the
acquisition function, on one CPU thread.

    python -m benchmarks pfn surrogate                # hours on one core: 480 runs
    python -m benchmarks pfn surrogate --quick        # 2 functions, 2 seeds, 20 evaluations
    python -m benchmarks pfn surrogate --processes 8

An interrupted run goes on where it stopped: every finished run is kept under `runs/`.
"""

from __future__ import annotations

import sys
import time
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from botorch.exceptions import BotorchWarning
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.model import Model
from botorch.models.transforms import Standardize
from botorch.optim import optimize_acqf
from botorch.optim.initializers import initialize_q_batch
from botorch.test_functions import (
    Ackley,
    Branin,
    Hartmann,
    Levy,
    Rosenbrock,
    SixHumpCamel,
    SyntheticTestFunction,
)
from gpytorch.mlls import ExactMarginalLogLikelihood
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor
from torch.quasirandom import SobolEngine

import pfn
from benchmarks.pfn import common, jobs
from benchmarks.pfn.scores import paired
from priors import LogExpectedImprovement

NETWORK, GP = "network", "SingleTaskGP"
METHODS = (NETWORK, GP, "sobol", "random")
INITIAL = 10
SMALLEST = 1e-6

# Functions to minimise, and their minima to more digits than BoTorch's.
FUNCTIONS = {
    "branin": (lambda: Branin(), 0.39788735772973816),
    "camel": (lambda: SixHumpCamel(), -1.031628453489877),
    "rosenbrock4": (lambda: Rosenbrock(dim=4), 0.0),
    "levy4": (lambda: Levy(dim=4), 0.0),
    "ackley5": (lambda: Ackley(dim=5, bounds=[(-5.0, 10.0)] * 5), 0.0),
    "hartmann6": (lambda: Hartmann(dim=6), -3.322368011415515),
}
QUICK = ("branin", "hartmann6")

# Starts of the maximisation of the acquisition function, for both models.
_SPREAD, _NEAR, _NEAR_STD, _STARTS, _STEPS = 256, 64, 0.05, 4, 50


def main(argv: list[str] | None = None) -> int:
    """Run all methods on all functions and seeds; print, write JSON and the figure."""
    parser = common.parser("surrogate", __doc__)
    parser.add_argument("--seeds", type=int, help="paired runs (20), from --seed on")
    parser.add_argument("--evaluations", type=int, help="in all, with the 10 initial ones (50)")
    parser.add_argument("--functions", nargs="+", choices=FUNCTIONS, help="only these")
    parser.add_argument("--network", default="bo", help="shipped name or file")
    parser.add_argument("--processes", type=int, default=1, help="runs at the same time (1)")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    evaluations = options.evaluations or (20 if options.quick else 50)
    if evaluations <= INITIAL:
        parser.error(f"--evaluations must be more than the {INITIAL} initial ones")
    names = options.functions or (QUICK if options.quick else list(FUNCTIONS))
    seeds = range(options.seed, options.seed + (options.seeds or (2 if options.quick else 20)))
    file, version = jobs.network_file(options.network)
    tasks: dict[tuple[str, str, int], jobs.Task] = {}
    for seed in seeds:
        for name in names:
            for method in METHODS:
                network = (file, version) if method == NETWORK else ("", "")
                tasks[name, method, seed] = (name, method, seed, evaluations, *network)
    cache = jobs.cache_file("surrogate", __file__)
    found = jobs.run(optimise, list(tasks.values()), cache, options.processes)

    runs = {
        name: {m: [found[tasks[name, m, seed]] for seed in seeds] for m in METHODS}
        for name in names
    }
    summary = summarise(runs)
    results = {
        "command": "python -m benchmarks pfn surrogate " + " ".join(argv or []),
        "evaluations": evaluations,
        "initial": INITIAL,
        "seeds": list(seeds),
        "processes": options.processes,
        "network": jobs.describe(file, version),
        "summary": summary,
        "runs": runs,
    }
    report(summary, len(seeds), evaluations)
    path = common.write("surrogate", options, results)
    plot(runs, path.with_suffix(".png"))
    print(path)
    return 0


def problem(name: str) -> tuple[SyntheticTestFunction, float]:
    """The function to maximise, in double precision, and its maximum."""
    make, minimum = FUNCTIONS[name]
    function = make().to(torch.float64)
    function.negate = True
    return function, -minimum


def optimise(
    name: str, method: str, seed: int, evaluations: int, network: str, version: str
) -> dict[str, Any]:
    """One run; the arguments identify the result, `version` the network's file.

    Returns:
        "regrets" of the best value after each evaluation, and "seconds" of each proposal.
    """
    warnings.filterwarnings("ignore", category=BotorchWarning)
    warnings.filterwarnings("ignore", category=NumericalWarning)
    warnings.filterwarnings("ignore", message="This network")
    function, maximum = problem(name)
    lower, upper = function.bounds
    d = function.dim

    def evaluate(X: Tensor) -> Tensor:
        return function(lower + (upper - lower) * X)[:, None]

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        X = SobolEngine(d, scramble=True, seed=seed).draw(INITIAL, dtype=torch.float64)
        Y, seconds = evaluate(X), []
        if method == "sobol":  # the same sequence goes on
            engine = SobolEngine(d, scramble=True, seed=seed)
            Y = evaluate(engine.draw(evaluations, dtype=torch.float64))
        elif method == "random":
            rest = torch.rand(evaluations - INITIAL, d, dtype=torch.float64)
            Y = torch.cat([Y, evaluate(rest)])
        else:
            fit = network_model(network) if method == NETWORK else gaussian_process
            for step in range(evaluations - INITIAL):
                start = time.perf_counter()
                proposed = propose(fit(X, Y), X, Y, seed=1000 * seed + step)
                seconds.append(time.perf_counter() - start)
                X, Y = torch.cat([X, proposed]), torch.cat([Y, evaluate(proposed)])
    regrets = maximum - Y[:, 0].cummax(0).values
    return {"regrets": regrets.tolist(), "seconds": seconds}


def propose(model: Model, X: Tensor, Y: Tensor, *, seed: int) -> Tensor:
    """The point `[1, d]` of largest log expected improvement.

    Gradient ascent from 4 starts, which are drawn by their values from a Sobol sequence and from
    points near the best one.
    """
    acquisition = LogExpectedImprovement(model, best_f=Y.max())
    d = X.shape[-1]
    spread = SobolEngine(d, scramble=True, seed=seed).draw(_SPREAD, dtype=X.dtype)
    best = X[Y[:, 0].argmax()]
    near = (best + _NEAR_STD * torch.randn(_NEAR, d, dtype=X.dtype)).clamp(0, 1)
    raw = torch.cat([spread, near])[:, None]
    with torch.no_grad():
        values = acquisition(raw)
    starts, _ = initialize_q_batch(raw, values, _STARTS)
    proposed, _ = optimize_acqf(
        acquisition,
        bounds=torch.stack([torch.zeros(d), torch.ones(d)]).to(X),
        q=1,
        num_restarts=_STARTS,
        batch_initial_conditions=starts,
        options={"maxiter": _STEPS, "batch_limit": _STARTS},
    )
    return proposed.detach()


def gaussian_process(X: Tensor, Y: Tensor) -> SingleTaskGP:
    """BoTorch's default, fitted by maximum a posteriori."""
    model = SingleTaskGP(X, Y, outcome_transform=Standardize(m=1))
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model


def network_model(network: str) -> Any:
    """The network on data; what is unlike its prior does not warn at every step."""
    loaded = _load(network)
    return lambda X, Y: loaded.condition(X, Y, check=False)


@lru_cache(maxsize=1)
def _load(network: str) -> pfn.PFN:
    return pfn.load(network)


def log_regrets(runs: list[dict[str, Any]]) -> np.ndarray:
    """log10 of regrets, `[seeds, evaluations]`."""
    return np.log10(np.maximum([run["regrets"] for run in runs], SMALLEST))


def summarise(runs: dict[str, dict[str, list[dict[str, Any]]]]) -> dict[str, Any]:
    """Final log10 regrets by function and method, and paired differences of the network.

    "overall" has the means of the differences over the functions, with standard errors from the
    seeds: these functions are fixed, not a sample of functions.
    """
    functions: dict[str, Any] = {}
    differences: dict[str, list[np.ndarray]] = {m: [] for m in METHODS if m != NETWORK}
    for name, of_methods in runs.items():
        final = {m: log_regrets(of_methods[m])[:, -1] for m in METHODS}
        functions[name] = {"log10_regret": {m: paired(final[m]) for m in METHODS}}
        functions[name]["median_regret"] = {
            m: float(np.median([run["regrets"][-1] for run in of_methods[m]])) for m in METHODS
        }
        functions[name]["seconds_per_proposal"] = {
            m: float(np.mean([run["seconds"] for run in of_methods[m]])) for m in (NETWORK, GP)
        }
        functions[name]["network_minus"] = {}
        for method, found in differences.items():
            found.append(final[NETWORK] - final[method])
            wins = int((found[-1] < 0).sum())
            functions[name]["network_minus"][method] = {**paired(found[-1]), "wins": wins}
    overall = {m: paired(np.mean(found, axis=0)) for m, found in differences.items()}
    return {"functions": functions, "overall_network_minus": overall}


def report(summary: dict[str, Any], num_seeds: int, evaluations: int) -> None:
    """Print the final regrets and the differences."""
    print(f"mean log10 regret after {evaluations} evaluations, {num_seeds} seeds")
    print(f"{'':<13}" + "".join(f"{m:>18}" for m in METHODS) + f"{'network - GP':>18}{'wins':>6}")
    for name, found in summary["functions"].items():
        cells = "".join(f"{_cell(found['log10_regret'][m]):>18}" for m in METHODS)
        gap = found["network_minus"][GP]
        print(f"{name:<13}{cells}{_cell(gap):>18}{gap['wins']:>6}")
    for method, gap in summary["overall_network_minus"].items():
        print(f"network - {method}, mean over the functions: {_cell(gap)}")
    print("seconds per proposal, network and SingleTaskGP")
    for name, found in summary["functions"].items():
        seconds = found["seconds_per_proposal"]
        print(f"{name:<13}{seconds[NETWORK]:>18.3f}{seconds[GP]:>18.3f}")


def plot(runs: dict[str, dict[str, list[dict[str, Any]]]], path: Path) -> None:
    """Mean log10 regret by evaluation, with 95 % intervals of the mean."""
    from matplotlib.figure import Figure

    columns = min(3, len(runs))
    rows = -(-len(runs) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.7 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    colours = ("#2f5d8a", "#c4722e", "#7a7a7a", "#b5b5b5")
    for axes, (name, of_methods) in zip(panels, runs.items(), strict=False):
        for method, colour in zip(METHODS, colours, strict=True):
            curves = log_regrets(of_methods[method])
            mean, n = curves.mean(0), len(curves)
            width = 1.96 * curves.std(0, ddof=1) / n**0.5 if n > 1 else 0 * mean
            at = np.arange(1, len(mean) + 1)
            axes.plot(at, mean, color=colour, label=method)
            axes.fill_between(at, mean - width, mean + width, color=colour, alpha=0.2, lw=0)
        axes.axvline(INITIAL, color="0.8", lw=0.8, zorder=0)
        axes.set_title(name, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(runs) :]:
        axes.set_axis_off()
    figure.supxlabel("evaluation", fontsize=9)
    figure.supylabel("log10 of simple regret", fontsize=9)
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def _cell(measured: dict[str, Any]) -> str:
    error = measured["standard_error"]
    told = f"{measured['mean']:+.2f}"
    return told if error is None else f"{told} ± {error:.2f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
