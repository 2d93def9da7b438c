"""Does the network find better optima of functions than the Gaussian process everybody uses?

Six standard test functions of 2 to 6 inputs on the unit cube, without noise; 50 evaluations of
which 10 are a scrambled Sobol sequence. Ackley's domain is [-5, 10], so that its optimum is not in
the centre, where designs and models like to look. 20 seeds, paired; the same acquisition function,
the exact marginal LogExpectedImprovement of this package, the same maximisation of it and the same
initial points for

network         the network `bo`, bad values on a log scale: `TailCompression`
network, plain  values standardised as they are
SingleTaskGP    BoTorch's default, fitted anew at every step
GP, tail        the same with `TailCompression`
noise-free GP   the same told that there is no noise, which the others have to find out

Pure random and Sobol search are the floor. `TailCompression` and its quantile were chosen among a
few such transforms on seeds 0 to 2 of these functions.

Simple regret is the optimum minus the best value so far; log10 regrets are compared, with 1e-6 as
the smallest regret. CPU seconds, of one thread, are of one proposal: conditioning or fitting, and
maximising the acquisition function. They are no wall clock, so that busy machines count alike.

    python -m benchmarks pfn surrogate                # 840 runs, two hours on one core
    python -m benchmarks pfn surrogate --quick        # 2 functions, 2 seeds, 20 evaluations
    python -m benchmarks pfn surrogate --processes 8  # seeds in parallel
    python -m benchmarks pfn surrogate --methods network --competitors FILE  # a new network

`--competitors` takes the runs without a network from the JSON of an earlier run: another network
does not change them. An interrupted run goes on where it stopped: every finished run is kept under
`runs/`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.commands import command
from benchmarks.pfn import common, jobs, optimisation
from benchmarks.pfn.optimisation import (
    FUNCTIONS,
    INITIAL,
    METHODS,
    MODELS,
    NETWORK,
    NETWORKS,
    optimise,
)
from benchmarks.pfn.scores import paired

SMALLEST = 1e-6
QUICK = ("branin", "hartmann6")


def main(argv: list[str] | None = None) -> int:
    """Run all methods on all functions and seeds; print, write JSON and the figure."""
    parser = common.parser("surrogate", __doc__)
    parser.add_argument("--seeds", type=int, help="paired runs (20), from --seed on")
    parser.add_argument("--evaluations", type=int, help="in all, with the 10 initial ones (50)")
    parser.add_argument("--functions", nargs="+", choices=FUNCTIONS, help="only these")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="only these")
    parser.add_argument(
        "--competitors", type=Path, metavar="FILE", help="earlier results, for all but networks"
    )
    parser.add_argument("--network", default="bo", help="shipped name or file")
    parser.add_argument("--processes", type=int, default=1, help="runs at the same time (1)")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    evaluations = options.evaluations or (20 if options.quick else 50)
    if evaluations <= INITIAL:
        parser.error(f"--evaluations must be more than the {INITIAL} initial ones")
    names = options.functions or (QUICK if options.quick else list(FUNCTIONS))
    seeds = range(options.seed, options.seed + (options.seeds or (2 if options.quick else 20)))
    methods = [m for m in METHODS if m in (options.methods or METHODS)]
    if NETWORK not in methods:
        parser.error(f"--methods must have {NETWORK!r}, which the others are compared with")
    earlier: dict[str, dict[str, list[dict[str, Any]]]] = {}
    if options.competitors is not None:
        try:
            earlier = competitors(options.competitors, names, seeds, evaluations)
        except (OSError, ValueError, KeyError) as error:
            parser.error(f"--competitors: {error!r}")
    file, version = jobs.network_file(options.network)
    tasks: dict[tuple[str, str, int], jobs.Task] = {}
    for seed in seeds:
        for name in names:
            for method in methods:
                if method in earlier.get(name, {}):
                    continue
                network = (file, version) if method in NETWORKS else ("", "")
                tasks[name, method, seed] = (name, method, seed, evaluations, *network)
    cache = jobs.cache_file("surrogate", optimisation.__file__)
    found = jobs.run(optimise, list(tasks.values()), cache, options.processes)

    runs = {name: dict(earlier.get(name, {})) for name in names}
    for name, method, _ in tasks:
        runs[name][method] = [found[tasks[name, method, seed]] for seed in seeds]
    runs = {name: {m: of[m] for m in METHODS if m in of} for name, of in runs.items()}
    summary = summarise(runs)
    results = {
        "command": command("pfn surrogate", argv),
        "evaluations": evaluations,
        "initial": INITIAL,
        "seeds": list(seeds),
        "processes": options.processes,
        "network": jobs.describe(file, version),
        "competitors": options.competitors and options.competitors.name,
        "summary": summary,
        "runs": runs,
    }
    report(summary, len(seeds), evaluations)
    name = "surrogate" if options.competitors is None else "surrogate_network"
    path = common.write(name, options, results)
    plot(runs, path.with_suffix(".png"))
    print(path)
    return 0


def competitors(
    path: Path, names: Sequence[str], seeds: Sequence[int], evaluations: int
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Runs without a network of an earlier result, by function and method.

    Raises:
        ValueError: they are of other evaluations, or lack a function or a seed.
    """
    record = json.loads(path.read_text())
    if record["evaluations"] != evaluations:
        raise ValueError(f"{path} has {record['evaluations']} evaluations, not {evaluations}")
    places = [record["seeds"].index(seed) for seed in seeds]
    return {
        name: {
            method: [runs[place] for place in places]
            for method, runs in record["runs"][name].items()
            if method not in NETWORKS
        }
        for name in names
    }


def log_regrets(runs: list[dict[str, Any]]) -> np.ndarray:
    """log10 of regrets, `[seeds, evaluations]`."""
    return np.log10(np.maximum([run["regrets"] for run in runs], SMALLEST))


def summarise(runs: dict[str, dict[str, list[dict[str, Any]]]]) -> dict[str, Any]:
    """Final log10 regrets by function and method, and paired differences of the network.

    "overall" has the means of the differences over the functions, with standard errors from the
    seeds: these functions are fixed, not a sample of functions.
    """
    functions: dict[str, Any] = {}
    methods = list(next(iter(runs.values())))
    differences: dict[str, list[np.ndarray]] = {m: [] for m in methods if m != NETWORK}
    for name, of_methods in runs.items():
        final = {m: log_regrets(of_methods[m])[:, -1] for m in methods}
        functions[name] = {"log10_regret": {m: paired(final[m]) for m in methods}}
        functions[name]["median_regret"] = {
            m: float(np.median([run["regrets"][-1] for run in of_methods[m]])) for m in methods
        }
        functions[name]["seconds_per_proposal"] = {
            m: float(np.mean([run["seconds"] for run in of_methods[m]]))
            for m in methods
            if m in MODELS
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
    first = next(iter(summary["functions"].values()))
    methods, modelled = list(first["log10_regret"]), list(first["seconds_per_proposal"])
    print(f"mean log10 regret after {evaluations} evaluations, {num_seeds} seeds")
    print(f"{'':<13}" + "".join(f"{m:>17}" for m in methods))
    for name, found in summary["functions"].items():
        cells = "".join(f"{_cell(found['log10_regret'][m]):>17}" for m in methods)
        print(f"{name:<13}{cells}")
    for method, gap in summary["overall_network_minus"].items():
        wins = [found["network_minus"][method]["wins"] for found in summary["functions"].values()]
        print(f"network - {method}, mean over the functions: {_cell(gap)}; wins {wins}")
    print("CPU seconds per proposal: " + ", ".join(modelled))
    for name, found in summary["functions"].items():
        seconds = found["seconds_per_proposal"]
        print(f"{name:<13}" + "".join(f"{seconds[m]:>17.3f}" for m in modelled))


def plot(runs: dict[str, dict[str, list[dict[str, Any]]]], path: Path) -> None:
    """Mean log10 regret by evaluation, with 95 % intervals of the mean."""
    from matplotlib.figure import Figure

    columns = min(3, len(runs))
    rows = -(-len(runs) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.7 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    colours = ("#2f5d8a", "#8fb3d4", "#c4722e", "#e0b187", "#5f8f4e", "#7a7a7a", "#b5b5b5")
    for axes, (name, of_methods) in zip(panels, runs.items(), strict=False):
        for method, colour in zip(METHODS, colours, strict=True):
            if method not in of_methods:
                continue
            curves = log_regrets(of_methods[method])
            mean, n = curves.mean(0), len(curves)
            width = 1.96 * curves.std(0, ddof=1) / n**0.5 if n > 1 else 0 * mean
            at = np.arange(1, len(mean) + 1)
            order = 10 - METHODS.index(method)  # the network on top
            axes.plot(at, mean, color=colour, label=method, zorder=order)
            axes.fill_between(at, mean - width, mean + width, color=colour, alpha=0.15, lw=0)
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
