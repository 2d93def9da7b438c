"""How much faster than sampling is a trained network, at equal data and at equal accuracy?

Two priors that need a sampler (`benchmarks.pfn.references`): a Gaussian process with random
hyperparameters, and a small random network. For each a network is trained on exactly that prior
(`--minutes` each; it is kept in runs/ and used again), and then conditioned on fresh data sets next
to

    grid       quadrature over the GP's three hyperparameters: the exact posterior (GP only)
    MLE-II     BoTorch's SingleTaskGP, same kernel, marginal likelihood maximised; with the
               hyperprior (MAP) and without (GP only)
    HMC        16 chains in one batch, several lengths: the fastest sampler here
    NUTS       Pyro's through `bayes`, 4 chains one after the other, several lengths; the first
               data sets only

Every sampler conditions on the observed targets, starts in draws from the prior, and predicts by
the mean of its draws' densities; R-hat and bulk ESS by arviz. Seconds are of the process (CPU time:
other processes do not count) in one thread, from data to densities at the queries; the network's
both one data set at a time and 64 together. Its number at one data set includes conditioning.

Reported: mean negative log density (NLL) with paired differences from the network; seconds and
their ratio; the speed ratio at equal NLL, from the shortest run whose mean gap to the reference
(the grid, or the longest HMC) is no more than the network's on the same data sets; and after how
many data sets the training is paid for.

    python -m benchmarks pfn speed             # 30 minutes of training for each, then about 30
    python -m benchmarks pfn speed --quick     # half a minute of training
    python -m benchmarks pfn speed --only gp   # or network
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import ZeroMean
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import LogNormalPrior
from torch import Tensor
from tqdm import tqdm

import pfn
from bayes import NUTS, BayesianNetwork
from benchmarks.commands import command
from benchmarks.pfn import common
from benchmarks.pfn.references import (
    LOG_MEAN,
    LOG_STD,
    GPTasks,
    NetworkTasks,
    diagnostics,
    grid,
    hmc,
    mixture_nll,
)
from pfn import PFN, ArchitectureConfig, TrainingConfig

CHAINS, NUTS_CHAINS = 16, 4
TOGETHER = 64
# what a method gives: NLL per query [m], and R-hat and ESS of a sampler
Found = tuple[Tensor, dict[str, float]]


def trained(name: str, tasks: Any, minutes: float, folder: Path, seed: int) -> PFN:
    """The network of this prior: kept, or trained now."""
    path = folder / f"speed_{name}_{minutes:g}min.safetensors"
    if path.exists():
        found = pfn.load(path)
        if found.metadata["training"]["prior"] == tasks.description:
            return found
    config = TrainingConfig(
        architecture=ArchitectureConfig(
            max_features=tasks.features, embedding=64, layers=4, heads=4, hidden=128, bars=250
        ),
        targets="raw",
        steps=10**7,
        batch=32,
        time_limit=60 * minutes,
        known_noise=0.0,
        appended=0.0,
        seed=seed,
    )
    start = time.process_time()
    network = pfn.train(tasks, config=config, device="cpu")
    network.metadata["cpu_seconds"] = time.process_time() - start
    folder.mkdir(parents=True, exist_ok=True)
    network.save(path)
    return network


def network_nll(network: PFN, X: Tensor, y: Tensor, queries: Tensor, target: Tensor) -> Tensor:
    """Negative log densities at the queries, by data set; what is timed for the network."""
    with torch.no_grad():
        model = network.condition(X, y, check=False)
        return -model.posterior(queries, observation_noise=True).log_prob(target)[..., 0]  # type: ignore[union-attr]


def marginal_likelihood_nll(
    X: Tensor, y: Tensor, queries: Tensor, target: Tensor, *, hyperprior: bool
) -> Tensor:
    """The same of BoTorch's model after maximisation."""
    start = [math.exp(mean) for mean in LOG_MEAN]
    priors: list[Any] = [None] * 3
    if hyperprior:
        priors = [LogNormalPrior(m, s) for m, s in zip(LOG_MEAN, LOG_STD, strict=True)]
    base = MaternKernel(nu=2.5, lengthscale_prior=priors[0])
    kernel = ScaleKernel(base, outputscale_prior=priors[1])
    likelihood = GaussianLikelihood(noise_prior=priors[2])
    base.lengthscale, kernel.outputscale, likelihood.noise = start
    model = SingleTaskGP(
        X,
        y[:, None],
        likelihood=likelihood,
        covar_module=kernel,
        mean_module=ZeroMean(),
        outcome_transform=None,
    )
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    with torch.no_grad():
        found = model.posterior(queries, observation_noise=True)
        mean, variance = found.mean[:, 0], found.variance[:, 0]
    return mixture_nll(mean[None], variance[None], target)


def hmc_draws(tasks: Any, X: Tensor, y: Tensor, length: int, seed: int) -> Tensor:
    """Draws `[chains, length, D]` after as many steps of warm-up."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(CHAINS, tasks.size, generator=generator, dtype=X.dtype)
    return hmc(
        lambda z: tasks.log_density(z, X, y),
        start,
        warmup=length,
        samples=length,
        generator=generator,
    ).draws


def nuts_draws(tasks: Any, X: Tensor, y: Tensor, length: int, seed: int) -> Tensor:
    """The same by the NUTS of `bayes`."""
    method = NUTS(length, length, NUTS_CHAINS, seed=seed, progress=False)
    if isinstance(tasks, GPTasks):
        return method.run(tasks.pyro_model(X, y), X).samples["z"]
    model = BayesianNetwork(
        X,
        y[:, None],
        tasks.prior(),
        log_noise_var_prior=tasks.log_noise_var_prior,
        input_transform=None,
        outcome_transform=None,
    ).fit(method)
    assert model.draws is not None
    samples = model.draws.samples
    mean, std = tasks.log_noise_var_prior
    return torch.cat([samples["eps"], (samples["log_noise_var"] - mean) / std], -1)


class Table:
    """NLL and seconds of every method on every data set it was run on."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, list[float]]] = {}

    def time(self, name: str, method: Callable[[], Any]) -> Any:
        """Run a method, keep its seconds, return its result."""
        row = self.rows.setdefault(name, {"nll": [], "cpu": [], "wall": [], "rhat": [], "ess": []})
        cpu, wall = time.process_time(), time.perf_counter()
        found = method()
        row["cpu"].append(time.process_time() - cpu)
        row["wall"].append(time.perf_counter() - wall)
        return found

    @property
    def reference(self) -> str:
        """Grid or longest HMC."""
        hmc_runs = [name for name in self.rows if name.startswith("HMC")]
        return "grid" if "grid" in self.rows else hmc_runs[-1]

    def summary(self, together: float) -> dict[str, Any]:
        """By method, against the network; `together` its CPU seconds in a batch."""
        own = self.rows["PFN"]
        reference = self.reference
        network_cpu = _mean(own["cpu"])
        found = {}
        for name, row in self.rows.items():
            count = len(row["nll"])
            paired = [a - b for a, b in zip(row["nll"], own["nll"], strict=False)]
            found[name] = {
                "data_sets": count,
                "nll": _mean(row["nll"]),
                "nll_minus_pfn": _mean(paired),
                "standard_error": _error(paired),
                "cpu_s": _mean(row["cpu"]),
                "wall_s": _mean(row["wall"]),
                "cpu_ratio_to_pfn": _mean(row["cpu"]) / network_cpu,
                "cpu_ratio_to_pfn_together": _mean(row["cpu"]) / together,
            }
            gaps = [a - b for a, b in zip(row["nll"], self.rows[reference]["nll"], strict=False)]
            known = self.rows[reference]["nll"][:count]
            network = [a - b for a, b in zip(own["nll"], known, strict=False)]
            found[name] |= {"gap": _mean(gaps), "gap_error": _error(gaps)}
            found[name]["gap_of_pfn"] = _mean(network)
            if row["rhat"]:
                found[name] |= {
                    "rhat_median": _median(row["rhat"]),
                    "rhat_worst": max(row["rhat"]),
                    "ess_median": _median(row["ess"]),
                    "ess_worst": min(row["ess"]),
                    "converged": sum(
                        r < 1.01 and e > 400 for r, e in zip(row["rhat"], row["ess"], strict=True)
                    ),
                }
        return found


def equal_nll(summary: dict[str, Any], sampler: str, training_cpu: float) -> dict[str, Any] | None:
    """The shortest run of a sampler whose gap to the reference is no more than the network's.

    On the same data sets, those that the sampler was run on.
    """
    runs = {name: row for name, row in summary.items() if name.startswith(sampler)}
    for i, (name, row) in enumerate(runs.items()):
        if row["gap"] > row["gap_of_pfn"]:
            continue
        network_cpu = row["cpu_s"] / row["cpu_ratio_to_pfn"]
        return {
            "run": name,
            "shortest_tried": i == 0,
            "ratio": row["cpu_ratio_to_pfn"],
            "ratio_together": row["cpu_ratio_to_pfn_together"],
            "break_even_data_sets": training_cpu / max(row["cpu_s"] - network_cpu, 1e-9),
        }
    return None


def measure(
    name: str,
    tasks: Any,
    network: PFN,
    *,
    seed: int,
    sets: int,
    nuts_sets: int,
    hmc_lengths: tuple[int, ...],
    nuts_lengths: tuple[int, ...],
) -> dict[str, Any]:
    """All methods on fresh data sets of one size."""
    generator = torch.Generator().manual_seed(seed + 10_000)
    dtype = torch.float64 if name == "gp" else torch.float32
    n = tasks.max_context
    task = tasks.sample(max(sets, TOGETHER), generator=generator, dtype=dtype)
    single = [v.float() for v in (task.X[:, :n], task.y[:, :n], task.X[:, n:], task.y[:, n:])]
    network_nll(network, *(v[:1] for v in single))  # warm up
    seconds = []
    for _ in range(5):
        start = time.process_time()
        network_nll(network, *(v[:TOGETHER] for v in single))
        seconds.append((time.process_time() - start) / TOGETHER)
    together = _median(seconds)
    table = Table()
    for i in tqdm(range(sets), desc=name, leave=False, disable=None):
        X, queries = task.X[i, :n], task.X[i, n:]
        y, target = task.y[i, :n, 0], task.y[i, n:, 0]
        data = [v[i] for v in single]

        def keep(name: str, nll: Tensor, table: Table = table) -> None:
            table.rows[name]["nll"].append(float(nll.mean()))

        keep("PFN", table.time("PFN", lambda data=data: network_nll(network, *data)))
        if name == "gp":

            def exact(X=X, y=y, q=queries, t=target, points=25) -> Tensor:  # type: ignore[no-untyped-def]
                nodes, log_weights = grid(tasks, X, y, points=points)
                return mixture_nll(*tasks.predictive(nodes, X, y, q), t, log_weights)

            keep("grid", table.time("grid", exact))
            keep("grid 9^3", table.time("grid 9^3", lambda exact=exact: exact(points=9)))
            for label, hyperprior in (("MLE-II", False), ("MAP-II", True)):
                found = table.time(
                    label,
                    lambda h=hyperprior, d=(X, y, queries, target): marginal_likelihood_nll(
                        *d, hyperprior=h
                    ),
                )
                keep(label, found)
        runs: list[tuple[str, Any, int]] = [(f"HMC {k}", hmc_draws, k) for k in hmc_lengths]
        if i < nuts_sets:
            runs += [(f"NUTS {k}", nuts_draws, k) for k in nuts_lengths]
        for label, sampler, length in runs:

            def predict(  # type: ignore[no-untyped-def]
                sampler=sampler, length=length, X=X, y=y, q=queries, t=target, i=i
            ) -> tuple[Tensor, Tensor, Tensor]:
                draws = sampler(tasks, X, y, length, seed + i)
                with torch.no_grad():
                    mean, variance = tasks.predictive(draws.flatten(0, 1), X, y, q)
                return draws, mean, mixture_nll(mean, variance, t)

            draws, mean, nll = table.time(label, predict)
            keep(label, nll)
            # weights have symmetries: what must converge is the prediction
            watched = draws if name == "gp" else mean.unflatten(0, draws.shape[:2])
            rhat, ess = diagnostics(watched.double())
            table.rows[label]["rhat"].append(rhat)
            table.rows[label]["ess"].append(ess)
    summary = table.summary(together)
    training = network.metadata["training"]
    training_cpu = network.metadata.get("cpu_seconds", training["seconds"])
    result: dict[str, Any] = {
        "prior": tasks.description,
        "context": n,
        "queries": task.y.shape[1] - n,
        "pfn_parameters": sum(p.numel() for p in network.network.parameters()),
        "training": {k: training[k] for k in ("tasks", "seconds")} | {"cpu_s": training_cpu},
        "load_average": os.getloadavg(),
        "pfn_cpu_s_in_a_batch": together,
        "batch": TOGETHER,
        "reference": table.reference,
        "methods": summary,
    }
    equal = {s: equal_nll(summary, s, training_cpu) for s in ("HMC", "NUTS", "MLE-II", "grid 9^3")}
    result["at_equal_nll"] = {
        k: v for k, v in equal.items() if any(n.startswith(k) for n in summary)
    }
    return result


def show(result: dict[str, Any]) -> None:
    """Print one case."""
    print(f"{result['prior']}; n = {result['context']}")
    training = result["training"]
    print(
        f"training: {training['tasks']:,} tasks, {training['cpu_s']:.0f} CPU s; PFN in a batch of "
        f"{result['batch']}: {1e3 * result['pfn_cpu_s_in_a_batch']:.2f} ms per data set"
    )
    columns = {"sets": 4, "NLL": 8, "minus PFN": 17, "gap": 7, "CPU s": 9, "ratio": 8, "batch": 8}
    head = " ".join(f"{name:>{width}}" for name, width in columns.items())
    print(f"{'':10} {head}  worst R-hat, ESS (converged)")
    for name, row in result["methods"].items():
        line = (
            f"{name:10} {row['data_sets']:4} {row['nll']:8.4f} {row['nll_minus_pfn']:+8.4f} ± "
            f"{row['standard_error']:.4f} {row['gap']:7.4f} {row['cpu_s']:9.4f} "
            f"{row['cpu_ratio_to_pfn']:8.1f} {row['cpu_ratio_to_pfn_together']:8.0f}"
        )
        if "rhat_worst" in row:
            line += f"  {row['rhat_worst']:.3f}, {row['ess_worst']:.0f} ({row['converged']})"
        print(line)
    for sampler, found in result["at_equal_nll"].items():
        print(f"at equal NLL, {sampler}: {found or 'no run is as good as the network'}")


def main(argv: list[str]) -> int:
    """Train, measure, print, write."""
    options_parser = common.parser("speed", __doc__)
    options_parser.add_argument("--minutes", type=float, help="of training for each prior (30)")
    options_parser.add_argument("--only", choices=("gp", "network"))
    options_parser.add_argument("--sets", type=int, help="data sets (64; NUTS fewer)")
    options_parser.add_argument("--nuts-sets", type=int, help="data sets for NUTS (8 and 2)")
    options_parser.add_argument("--nuts-lengths", type=int, nargs="*", help="draws per chain")
    options_parser.add_argument("--networks", type=Path, default=common.ROOT / "runs")
    options = options_parser.parse_args(argv)
    torch.set_num_threads(1)
    quick = options.quick
    minutes = options.minutes or (0.5 if quick else 30.0)
    sets = options.sets or (4 if quick else 64)
    cases: dict[str, dict[str, Any]] = {
        "gp": {
            "training": GPTasks(),
            "tasks": GPTasks(max_context=30, fixed=True),
            "nuts_sets": 1 if quick else 8,
            "hmc_lengths": (4, 16) if quick else (4, 12, 40, 160),
            "nuts_lengths": (8,) if quick else (10, 50, 250),
        },
        "network": {
            "training": NetworkTasks(),
            "tasks": NetworkTasks(max_context=50, fixed=True),
            "nuts_sets": 0 if quick else 2,
            "hmc_lengths": (4, 12) if quick else (4, 12, 40, 120),
            "nuts_lengths": (8,) if quick else (8, 25, 100),
        },
    }
    results = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, case in cases.items():
            if options.only not in (None, name):
                continue
            network = trained(name, case.pop("training"), minutes, options.networks, options.seed)
            if options.nuts_sets is not None:
                case["nuts_sets"] = options.nuts_sets
            if options.nuts_lengths is not None:
                case["nuts_lengths"] = tuple(options.nuts_lengths)
            results[name] = measure(name, network=network, seed=options.seed, sets=sets, **case)
            show(results[name])
    suffix = f"_{options.only}" if options.only else ""
    common.write(f"speed{suffix}", options, {"command": command("pfn speed", argv), **results})
    return 0


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _median(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).median())


def _error(values: list[float]) -> float:
    """Standard error of the mean; 0 for a single value, which has none."""
    if len(values) < 2:
        return 0.0
    return float(torch.tensor(values, dtype=torch.float64).std() / len(values) ** 0.5)
