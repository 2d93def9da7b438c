"""How many effective samples does a gradient buy, and how many a second?

The smallest bulk or tail effective sample size over function values at ten rows (or parameters of
eight schools, or logarithms of hyperparameters) and the log density, divided by the gradients of
all chains after the warm-up, by those with it, and by the processor seconds of the whole run, its
start and compilation included; libraries and their tracers are imported before.
Per gradient is a figure of the method, which load does not touch; per second one of the machine.
"Means off" is the largest distance of a mean (of all that is asked but the log density) to that of
NumPyro's NUTS, in standard errors of both: chance gives 2 to 3, beyond 4 someone is wrong, or has
fewer effective draws than it seems, as networks have whose chains stay in modes of their own.

Competitors: Pyro's NUTS in the same run; in an environment of their own, made by `make blackjax`,
and on the same densities in double precision, NumPyro's NUTS and BlackJAX's NUTS, ChEES and
adjusted MCLMC. BlackJAX's ChEES learns a diagonal metric, which it does when asked and which makes
it five times as good on eight schools; its adjusted MCLMC finds the step size for a number of steps
that is given, here 2, its default, 4 and 8: the best of them counts.

    python -m benchmarks networks --speed            # 10 seeds: hours
    python -m benchmarks networks --speed --quick    # one seed of each, minutes
    python -m benchmarks networks --speed --seeds 3 --problems "eight schools" --chains 512
    python -m benchmarks networks --table            # of what is there
    python -m benchmarks networks --matching ...     # ways of matching priors, see `matching`
    python -m benchmarks networks --priors ...       # what a match is worth, see `matched_priors`
    python -m benchmarks networks --accuracy ...     # on small tables, see `network_accuracy`
    python -m benchmarks networks --saas ...         # beside BoTorch's own model, see `saas`
    python -m benchmarks networks --shift ...        # classes of shifted inputs, see `shift`

A run appends to `--out` and skips what is there.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the tracer, which is otherwise imported by the first run
from torch import Tensor

from bayes import HMC, MCLMC, NUTS, ChEES
from bayes.inference.arviz_export import import_arviz, many_chains
from bayes.inference.chain_statistics import bulk_ess
from benchmarks import records
from benchmarks.bayes import matched_priors, matching, network_accuracy, saas, shift, side
from benchmarks.bayes import sampling_problems as problems

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "samplers.jsonl"
JAX = ROOT / ".venv-blackjax" / "bin" / "python"
_PARTS = {
    "--accuracy": network_accuracy.main,
    "--matching": matching.main,
    "--priors": matched_priors.main,
    "--saas": saas.main,
    "--shift": shift.main,
}
# by its mean number of steps
_ADJUSTED = tuple(f"blackjax adjusted MCLMC {steps}" for steps in (2, 4, 8))
# whose means the others' are compared with
REFERENCE = "numpyro NUTS"
_OTHERS = (REFERENCE, "blackjax NUTS", "blackjax ChEES", *_ADJUSTED)


def main(argv: list[str]) -> int:
    """Run what is missing and print the table, or pass on to another part."""
    for part, run in _PARTS.items():
        if part in argv:
            return run([a for a in argv if a != part])
    parser = argparse.ArgumentParser(prog="python -m benchmarks networks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--speed", action="store_true", help="run what is missing")
    parser.add_argument("--table", action="store_true", help="print what is there")
    parser.add_argument("--quick", action="store_true", help="one seed, fewer draws")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--chains", type=int, default=64)
    parser.add_argument("--problems", nargs="+", default=list(problems.PROBLEMS))
    parser.add_argument("--methods", nargs="+", help="some of the methods")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args(argv)
    unknown = [name for name in options.problems if name not in problems.PROBLEMS]
    if unknown or not (options.speed or options.table):
        known = ", ".join(problems.PROBLEMS)
        print(f"benchmarks networks: --speed or --table, of {known}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    if options.speed:
        _run(options)
    print(table(records.read(options.out)))
    return 0


def methods(seed: int, chains: int, draws: int) -> dict[str, Any]:
    """Ours, and Pyro's."""
    settings = {"num_chains": chains, "num_warmup": draws, "num_samples": draws, "seed": seed}
    settings["progress"] = False
    return {
        "ChEES": ChEES(**settings, compile=False),
        "ChEES compiled": ChEES(**settings, compile=True),
        "HMC": HMC(**settings, compile=False),
        "MCLMC adjusted": MCLMC(adjusted=True, **settings, compile=False),
        "MCLMC": MCLMC(**settings, compile=False),
        "Pyro NUTS": NUTS(
            num_chains=1, num_warmup=draws // 2, num_samples=draws // 2, seed=seed, progress=False
        ),
    }


def _run(options: argparse.Namespace) -> None:
    done = {(*_setting(r), r["seed"]) for r in records.read(options.out)}
    draws = 200 if options.quick else 500
    for seed in range(1 if options.quick else options.seeds):
        for problem in options.problems:
            ours = methods(seed, options.chains, draws)
            for name in (*ours, *_OTHERS):
                if options.methods and name not in options.methods:
                    continue
                if (problem, options.chains, draws, name, seed) in done:
                    continue
                if name in ours:
                    found = _measure(problem, ours[name])
                else:
                    found = _measure_jax(problem, name, seed, options.chains, draws)
                if found is None:
                    continue
                record = {
                    "problem": problem,
                    "method": name,
                    "seed": seed,
                    **found,
                    "torch": version("torch"),
                    "machine": platform.machine(),
                    "chains": options.chains,
                    "draws": draws,
                }
                records.append(options.out, record)
                print(json.dumps(record), flush=True)


def _measure(problem: str, method: Any) -> dict[str, Any]:
    model: Any = None
    if problem == "eight schools":
        target, like = problems.eight_schools()
    elif problem == "SAAS":
        target, like, model = problems.saas()
    else:
        target, like, model = problems.network(problem)
    before = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        draws = method.run(target, like)
    seconds = time.process_time() - before
    chains = next(iter(draws.samples.values())).shape[0]
    if draws.num_gradients is None:  # Pyro's, which does not count those of its warm-up
        sampling = float(draws.stats["n_steps"].sum())
        total = 2 * sampling
    else:
        sampling = chains * float(draws.num_gradients["sampling"])
        total = sampling + chains * float(draws.num_gradients["warmup"])
    values = problems.quantities(problem, draws.samples, draws.stats["lp"], model)
    found: dict[str, Any] = {"gradients": sampling, "all": total, "seconds": seconds}
    return {"effective": smallest(values), **found, **moments(values)}


def moments(values: Tensor) -> dict[str, list[float]]:
    """Means of all but the last of `[chains, draws, k]`, the log density, and their errors."""
    asked = values[..., :-1]
    errors = asked.flatten(0, 1).std(0) / bulk_ess(asked).sqrt()
    return {"means": asked.mean((0, 1)).tolist(), "errors": errors.tolist()}


def smallest(values: Tensor) -> float:
    """Smallest bulk or tail effective sample size of `[chains, draws, k]`."""
    arviz = import_arviz()
    with many_chains():
        data = arviz.convert_to_dataset({"f": values.double().cpu().numpy()})
    bulk, tail = arviz.ess(data), arviz.ess(data, method="tail")
    return float(min(bulk["f"].min(), tail["f"].min()))


def _measure_jax(
    problem: str, method: str, seed: int, chains: int, draws: int
) -> dict[str, Any] | None:
    if not JAX.exists():
        print(f"{method} is left out: `make blackjax` makes its environment", file=sys.stderr)
        return None
    told = {**told_of(problem), "method": method, "seed": seed, "chains": chains, "draws": draws}
    try:
        found = side.answer(method, JAX, "jax_samplers.py", told)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return None
    values = torch.tensor(found.pop("values"), dtype=torch.float64)
    return {"effective": smallest(values), **found, **moments(values)}


def told_of(problem: str) -> dict[str, Any]:
    """What determines a problem's density, for those who write it themselves."""
    told: dict[str, Any] = {"problem": problem}
    if problem == "SAAS":
        target, _, model = problems.saas()
        noise = model.likelihood.noise_covar
        told["X"], told["Y"] = target.inputs.tolist(), target.targets[0].tolist()
        told["noise"] = [float(noise.noise_prior.loc), float(noise.noise_prior.scale)]
        told["lower"] = float(noise.raw_noise_constraint.lower_bound)
        told["shrinkage"] = model.covar_module.base_kernel.lengthscale_prior.shrinkage
    elif problem != "eight schools":
        _, X, model = problems.network(problem)
        targets, _ = model.targets()
        told["X"] = model.transformed_inputs(X).tolist()
        told["Y"] = targets.tolist()
        parameters, stds = dict(model.prior.module.named_parameters()), model.prior.parameter_std()
        told["stds"] = [float(stds[name]) for name in parameters]
        told["shapes"] = [list(p.shape) for p in parameters.values()]
    return told


def _setting(record: dict[str, Any]) -> tuple[str, int, int, str]:
    return record["problem"], record["chains"], record["draws"], record["method"]


def table(found: list[dict[str, Any]]) -> str:
    """Medians over seeds."""
    lines = [
        f"{'problem':15} chains draws {'method':26} seeds  per gradient  with warm-up  per second"
        "  seconds  means off"
    ]
    for setting in sorted({_setting(r) for r in found}):
        some = [r for r in found if _setting(r) == setting]
        problem, chains, draws, method = setting

        def median(key: str, some: list[dict[str, Any]] = some) -> float:
            return statistics.median(r["effective"] / r[key] for r in some)

        lines.append(
            f"{problem:15} {chains:6d} {draws:5d} {method:26} {len(some):5d} "
            f"{median('gradients'):13.4f} "
            f"{median('all'):13.4f} {median('seconds'):11.1f} "
            f"{statistics.median(r['seconds'] for r in some):8.1f} {_off(some, found):>10}"
        )
    return "\n".join(lines)


def _off(some: list[dict[str, Any]], found: list[dict[str, Any]]) -> str:
    """How far, in standard errors, the worst mean over seeds is from that of the reference."""
    first = some[0]
    reference = [r for r in found if (r["problem"], r["method"]) == (first["problem"], REFERENCE)]
    if first["method"] == REFERENCE or not reference or "means" not in first:
        return "-"
    (one, error), (other, its) = (_pooled(group) for group in (some, reference))
    return f"{float(((one - other).abs() / (error.square() + its.square()).sqrt()).max()):.1f}"


def _pooled(found: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """Means over seeds, and their standard errors."""
    errors = torch.tensor([r["errors"] for r in found])
    return (
        torch.tensor([r["means"] for r in found]).mean(0),
        errors.square().sum(0).sqrt() / len(found),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
