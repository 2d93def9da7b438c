r"""How close do networks come to exact Bayesian inference, where the exact answer is known?

gp        Gaussian processes on the unit cube in 1, 2 and 5 dimensions, squared exponential of
          length 0.2, 0.4 and 0.6, noise variance 0.01. A process of length l on [0, 1]^d is one of
          length 1 on [0, 1 / l]^d, so one network per d, trained on boxes of the three sides under
          the one kernel of length 1, serves the three without doubt about the prior.
processes A Student t process (a = 2.5) in d = 1, and the limit of a ReLU network with two hidden
          layers in d = 2.
mixture   18 kernels with equal weights (length 0.2, 0.4, 0.8; noise 0.001, 0.01, 0.1; squared
          exponential and Matern 5/2), d = 1. Competitors, on the same tasks: marginal likelihood
          maximised over length and noise of either kernel, from the best of the 9 grid points;
          the component of the largest marginal likelihood; BoTorch's SingleTaskGP as it comes.
          Is the network or the fitted Gaussian process nearer to the exact Bayes average?
scaling   Gap against the number of training tasks and of parameters, d = 1, at a constant learning
          rate (weights averaged), so that the states within a run compare.
ablation  Settings of architecture and optimiser at equal processor time, one seed each, d = 1.

Every gap is E[log p - log q] in nats per point, p the exact posterior predictive, on tasks paired
between the two; its standard error, and its mean over the worst 1% of tasks. Besides, for every
network: the gap without context (does it know its prior?), the largest change of a log density
when context rows are permuted, and, by encoding anew, the martingale and order scores of
`pfn.certification`, which exact inference has at 0 up to the quadrature, whose error is also given.

Settings were chosen in runs of less than a minute; `ablation` measures them in longer ones.
Muon's own arithmetic takes 13 ms of a step of 55 ms with 16 tasks.

    python -m benchmarks pfn mimicry                            # 5 h: 40 min for each network
    python -m benchmarks pfn mimicry --parts gp --minutes 9     # 30 min
    python -m benchmarks pfn mimicry --reuse                    # measure the saved networks again
    python -m benchmarks pfn mimicry --parts gp --dimensions 2 --minutes 50 --more
                                                                # train a saved network on
    python -m benchmarks pfn mimicry --parts gp --minutes 8 --batch 512 --embedding 128
                                                # larger networks, on a GPU
    python -m benchmarks pfn mimicry --quick                    # 6 min
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import gpytorch
import matplotlib
import torch
from botorch.exceptions import InputDataWarning, OptimizationWarning
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor, nn
from torch.distributions import Distribution, Normal

import pfn
import pfn.training.run
from benchmarks.commands import command
from benchmarks.pfn.common import ROOT, device, parser, write
from benchmarks.pfn.processes import (
    Component,
    GaussianTasks,
    MixtureTasks,
    Sizes,
    condition,
    matern52,
    rbf,
)
from pfn import PFN, ArchitectureConfig, TrainingConfig, certify, train
from priors import InfiniteNetwork
from priors.tasks.task import Task

PARTS = ("gp", "processes", "mixture", "scaling", "ablation")
LENGTHS = (0.2, 0.4, 0.6)
CONTEXTS = (0, 5, 10, 20, 40, 80)
QUERIES = 24

ARCHITECTURE = ArchitectureConfig(
    max_features=1,
    embedding=64,
    layers=4,
    heads=4,
    hidden=128,
    thinking_rows=8,
    bars=256,
)
# Neither known noise nor appended rows: they are other tasks, which cost accuracy at this one.
TRAINING = TrainingConfig(
    architecture=ARCHITECTURE,
    inputs="raw",
    targets="raw",
    steps=10**7,
    batch=32,
    matrix_learning_rate=2e-2,
    known_noise=0.0,
    appended=0.0,
    held_out_tasks=512,
    evaluate_every=200,
)


def architecture(**changes: Any) -> dict[str, ArchitectureConfig]:
    """The change of a configuration that changes its architecture."""
    return {"architecture": replace(ARCHITECTURE, **changes)}


ABLATION: dict[str, dict[str, Any]] = {
    "as used": {},
    "Muon 4e-2": {"matrix_learning_rate": 4e-2},
    "AdamW of the rest 4e-3": {"learning_rate": 4e-3},
    "Muon 1e-2": {"matrix_learning_rate": 1e-2},
    "batch 16": {"batch": 16},
    "decoupled values": architecture(decoupled_values=True),
    "embedding 96, hidden 192": architecture(embedding=96, hidden=192),
    "layers 6": architecture(layers=6),
    "bars 100": architecture(bars=100),
    "heads 2": architecture(heads=2),
    "AdamW 2e-3": {"optimizer": "adamw"},
    "thinking rows 1": architecture(thinking_rows=1),
    "no log n scale": architecture(log_scaling=False),
}
SCALES = {
    "embedding 32, layers 2": architecture(embedding=32, hidden=64, layers=2),
    "embedding 48, layers 3": architecture(embedding=48, hidden=96, layers=3),
    "embedding 64, layers 4": architecture(),
}


def gaussian(d: int) -> GaussianTasks:
    """The prior of the network of dimension d."""
    sizes = Sizes(d, tuple(1 / length for length in LENGTHS), max(CONTEXTS), QUERIES)
    text = f"RBF of length 1, noise variance 0.01, boxes of side 1 / {LENGTHS} in {d} dimensions"
    return GaussianTasks(rbf, 0.01, sizes, description=text)


def student_t() -> GaussianTasks:
    """Heavy-tailed functions: the scale of f and noise is random."""
    sizes = Sizes(1, (2.5,), max(CONTEXTS), QUERIES)
    text = "Student t process of 5 degrees of freedom, RBF of length 0.4, noise ratio 0.01"
    return GaussianTasks(rbf, 0.01, sizes, concentration=2.5, description=text)


def network_limit() -> GaussianTasks:
    """The infinitely wide network; its variance on the box is between 0.4 and 4.5."""
    layers = [nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)]
    network = InfiniteNetwork(nn.Sequential(*layers), weight_var=2.0, bias_var=0.1)

    def covariance(X: Tensor) -> Tensor:
        with torch.no_grad():
            return network.to(X.device).nngp(X)

    sizes = Sizes(2, (4.0,), max(CONTEXTS), QUERIES)
    return GaussianTasks(covariance, 0.01, sizes, description="NNGP of a ReLU network, depth 2")


PROCESSES: dict[str, Callable[[], GaussianTasks]] = {
    "student_t": student_t,
    "nngp": network_limit,
}


def mixture() -> MixtureTasks:
    """Length, noise and smoothness are unknown."""
    components = tuple(
        Component(f"{name} {length} {noise}", partial(kernel, lengthscale=length), noise)
        for name, kernel in FAMILIES.items()
        for length in (0.2, 0.4, 0.8)
        for noise in (0.001, 0.01, 0.1)
    )
    return MixtureTasks(components, Sizes(1, (1.0,), max(CONTEXTS), QUERIES))


FAMILIES: dict[str, Callable[..., Tensor]] = {"RBF": rbf, "Matern 5/2": matern52}


@contextmanager
def processor_clock() -> Iterator[None]:
    """Let time limits of training count the processor time of this process.

    On a machine shared with others that is what equal time means.
    """
    with mock.patch.object(pfn.training.run.time, "monotonic", time.process_time):
        yield


def trained(
    name: str,
    prior: Any,
    config: TrainingConfig,
    minutes: float,
    options: argparse.Namespace,
    *,
    processor: bool = False,
) -> tuple[PFN, list[dict[str, Any]]]:
    """A network and the log of its training; from files where they are there to be reused."""
    options.networks.mkdir(parents=True, exist_ok=True)
    stem = f"{name}{'_quick' if options.quick else ''}".replace(" ", "_").replace(",", "")
    path = options.networks / f"{stem.replace('/', '-')}.safetensors"
    log = path.with_suffix(".jsonl")
    known = None
    if path.exists() and (options.reuse or options.more):
        known = pfn.load(path).to(device())
    if known is None or options.more:
        if known is None:
            log.unlink(missing_ok=True)
        config = replace(config, time_limit=60 * minutes, seed=options.seed)
        if options.quick:
            config = replace(config, held_out_tasks=64, border_tasks=500)
        start = time.process_time()
        with processor_clock() if processor else nullcontext():
            network = train(
                prior,
                config=config,
                device=device(),
                log=log,
                reference=prior.reference,
                progress=False,
                initial=known,
            )
        network.metadata["training"]["processor_seconds"] = round(time.process_time() - start, 1)
        if torch.cuda.is_available():
            network.metadata["training"]["device"] = torch.cuda.get_device_name()
        network.save(path)
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    return pfn.load(path).to(device()), entries


def curve(entries: Sequence[dict[str, Any]], batch: int) -> list[list[float]]:
    """Training tasks and gap on held-out tasks, from a log."""
    found, before, last = [], 0, 0
    for entry in entries:
        before += last if entry["step"] < last else 0  # a training that goes on counts anew
        last = entry["step"]
        if "gap" in entry:
            found.append([(before + last) * batch, entry["gap"]])
    return found


def gaps(network: PFN, prior: Any, options: argparse.Namespace) -> dict[str, Any]:
    """The gap by context size, and its mean over the sizes that are not 0."""
    certificate = certify(
        network,
        prior,
        reference=prior.reference,
        context_sizes=CONTEXTS,
        num_queries=QUERIES,
        num_tasks=options.tasks,
        batch=min(64, options.tasks // 8),
        seed=options.seed + 10_000,
        progress=False,
    )
    rows = {
        n: {
            "gap": row.gap,
            "error": row.gap_error,
            "worst_percent": row.gap_worst,
            "exact_nll": row.nll - row.gap,
            "coverage90": row.coverage90,
        }
        for n, row in certificate.by_context.items()
    }
    used = [row for n, row in rows.items() if n]
    mean = {key: sum(row[key] for row in used) / len(used) for key in ("gap", "worst_percent")}
    # The sizes share their tasks: the mean of the standard errors bounds that of the mean.
    error = sum(row["error"] for row in used) / len(used)
    return {"mean": {**mean, "error": error}, "by_context": rows}


def about(network: PFN, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a network is and what it has cost."""
    trainings = network.trainings
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "tasks": network.tasks_seen,
        "minutes": network.training_seconds / 60,
        "processor_minutes": sum(t.get("processor_seconds", 0.0) for t in trainings) / 60,
        "curve": curve(entries, trainings[0]["config"]["batch"]),
        "devices": sorted({t.get("device", "cpu") for t in trainings}),
    }


def part(task: Task, n: int, m: int = QUERIES) -> Task:
    """The same tasks with n context rows and their last m rows as queries."""
    rows = [*range(n), *range(task.X.shape[1] - m, task.X.shape[1])]
    return replace(task, X=task.X[:, rows], y=task.y[:, rows], num_context=n)


@torch.no_grad()
def log_density(network: PFN, task: Task) -> Tensor:
    """Log densities of the queries, `[B, m]`."""
    n = task.num_context
    encoding = network.encode(task.X[:, :n], task.y[:, :n, 0])
    logits, _ = network.decode(encoding, task.X[:, n:])
    z = (task.y[:, n:, 0] - encoding.location) / encoding.scale
    assert network.bars is not None
    return network.bars.log_prob(logits, z) - encoding.scale.log()


@torch.no_grad()
def coherence(network: PFN, prior: Any, seed: int, *, n: int = 10, tasks: int = 128) -> dict:
    """Permutation, martingale and order scores, every context encoded anew."""
    task = prior.sample(
        tasks,
        generator=torch.Generator(device()).manual_seed(seed + 20_000),
        device=device(),
        dtype=torch.float32,
    )
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed)).to(device())
    whole = part(task, 40)
    rows = torch.cat([order, torch.arange(40, 40 + QUERIES, device=order.device)])
    other = replace(whole, X=whole.X[:, rows], y=whole.y[:, rows])
    change = (log_density(network, whole) - log_density(network, other)).abs().max()

    task = part(task, n, 2)
    X, y = task.X, task.y[..., 0]
    bars, location, scale = network.bars, network.prior_location, network.prior_scale
    assert bars is not None

    def logits(known: Tensor, values: Tensor, asked: Tensor) -> Tensor:
        return network.decode(network.encode(known, values), asked)[0]

    first = logits(X[:, :n], y[:, :n], X[:, n:])
    log_q = bars.log_prob(first, (y[:, n:] - location) / scale)
    joint = []
    for a, b in ((0, 1), (1, 0)):
        known = [*range(n), n + a]
        after = logits(X[:, known], y[:, known], X[:, n + b, None])
        value = (y[:, n + b, None] - location) / scale
        joint.append(log_q[:, a] + bars.log_prob(after, value)[:, 0])
    p = (torch.arange(32, device=X.device) + 0.5) / 32
    drawn = bars.quantile(first[:, :1].expand(-1, 32, -1), p) * scale + location  # [B, 32]
    copies = torch.arange(tasks, device=X.device).repeat_interleave(32)
    values = torch.cat([y[copies, :n], drawn.reshape(-1, 1)], dim=1)
    after = logits(X[copies, : n + 1], values, X[copies, n + 1, None])
    grid = bars.quantile(first[:, 1:].expand(-1, 32, -1), p)
    cdf = bars.cdf(after.expand(-1, 32, -1), grid[copies])
    found = {
        "permutation": float(change),
        "martingale": float((cdf.unflatten(0, (tasks, 32)).mean(1) - p).abs().amax(-1).mean()),
        "order": float((joint[0] - joint[1]).abs().mean()),
    }
    if isinstance(prior.reference(task), Normal):
        found["martingale_of_exact"] = _exact_martingale(prior, task)
    return found


def _exact_martingale(prior: GaussianTasks, task: Task) -> float:
    """The same score of the exact posterior: the error of the quadrature."""
    n, B = task.num_context, len(task.X)
    p = ((torch.arange(32, device=task.X.device) + 0.5) / 32).double()
    exact = prior.reference(task)
    ends = exact.icdf(p.expand(B, 2, 32))  # [B, 2, 32]
    copies = torch.arange(B, device=task.X.device).repeat_interleave(32)
    y = task.y.double()[copies]
    y[:, n, 0] = ends[:, 0].reshape(-1)
    told = replace(task, X=task.X[copies], y=y, num_context=n + 1)
    cdf = prior.reference(told).cdf(ends[copies, 1][:, None])[:, 0]  # [B 32, 32]
    return float((cdf.unflatten(0, (B, 32)).mean(1) - p).abs().amax(-1).mean())


def _config(features: int, options: argparse.Namespace) -> TrainingConfig:
    changes = architecture(
        max_features=features, embedding=options.embedding, hidden=2 * options.embedding
    )
    return replace(
        TRAINING,
        batch=options.batch,
        held_out_batch=TRAINING.batch,
        matrix_learning_rate=options.matrix_learning_rate,
        **changes,
    )


def gaussian_processes(options: argparse.Namespace) -> dict[str, Any]:
    """One network per dimension, each measured at three lengths."""
    found: dict[str, Any] = {}
    for d in options.dimensions:
        prior = gaussian(d)
        network, entries = trained(f"gp_d{d}", prior, _config(d, options), options.minutes, options)
        by_length = {}
        for length in LENGTHS:
            by_length[str(length)] = gaps(network, prior.full((1 / length,)), options)
            mean = by_length[str(length)]["mean"]
            print(f"d {d} length {length}: {_show(mean)}", flush=True)
        found[f"d{d}"] = {
            **about(network, entries),
            "by_length": by_length,
            "coherence": coherence(network, prior.full(), options.seed),
        }
        print(f"d {d}: {_costs(found[f'd{d}'])}", flush=True)
    return found


def processes(options: argparse.Namespace) -> dict[str, Any]:
    """A Student t process and the limit of a network."""
    found: dict[str, Any] = {}
    for name in options.processes:
        prior = PROCESSES[name]()
        config = _config(prior.sizes.features, options)
        network, entries = trained(name, prior, config, options.process_minutes, options)
        found[name] = {
            **about(network, entries),
            **gaps(network, prior.full(), options),
            "coherence": coherence(network, prior.full(), options.seed),
        }
        print(f"{name}: {_show(found[name]['mean'])}; {_costs(found[name])}", flush=True)
    return found


def maximum_likelihood(task: Task, *, steps: int = 150) -> Distribution:
    """Gaussian processes with length and noise of the largest marginal likelihood, `[B, m, 1]`.

    For either family Adam from the best of nine grid points (those of the mixture), all tasks at
    once; then the better family. Noise variances below 1e-4, GPyTorch's bound, are not tried.
    """
    n, X = task.num_context, task.X.double()
    y = task.y[:, :n, 0].double()
    found = []
    for kernel in FAMILIES.values():
        grid = [
            (length, noise, condition(kernel(X[:, :n], length), noise, y)[3])
            for length in (0.2, 0.4, 0.8)
            for noise in (0.001, 0.01, 0.1)
        ]
        best = torch.stack([evidence for *_, evidence in grid]).argmax(0)
        start = torch.tensor([pair[:2] for pair in grid], dtype=X.dtype, device=X.device)[best]
        log = start.log().requires_grad_()
        optimiser = torch.optim.Adam([log], lr=0.05)
        low = torch.tensor([0.02, 1e-4], dtype=X.dtype, device=X.device).log()
        high = torch.tensor([50.0, 10.0], dtype=X.dtype, device=X.device).log()
        for _ in range(steps):
            length, noise = log.exp()[:, :, None, None].unbind(1)
            evidence = condition(kernel(X[:, :n], length), noise, y)[3]
            optimiser.zero_grad()
            (-evidence.sum()).backward()
            optimiser.step()
            with torch.no_grad():
                log.clamp_(low, high)
        with torch.no_grad():
            length, noise = log.exp()[:, :, None, None].unbind(1)
            found.append(condition(kernel(X, length), noise, y))
    means, variances, _, evidence = (torch.stack(v) for v in zip(*found, strict=True))
    best = evidence.argmax(0)
    index = torch.arange(len(X), device=X.device)
    return Normal(means[best, index, :, None], variances[best, index, :, None].sqrt())


def botorch_default(task: Task) -> Tensor:
    """Log densities of BoTorch's default model, fitted to each task, `[B, m]`."""
    n, X, y = task.num_context, task.X.double(), task.y.double()
    found = []
    for inputs, targets in zip(X, y, strict=True):
        model = SingleTaskGP(inputs[:n], targets[:n])
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        with torch.no_grad():
            posterior = model.posterior(inputs[n:], observation_noise=True)
            marginal = Normal(posterior.mean, posterior.variance.sqrt())
            found.append(marginal.log_prob(targets[n:])[:, 0])
    return torch.stack(found)


def hyperprior(options: argparse.Namespace) -> dict[str, Any]:
    """The mixture: network and fits against the exact Bayes average, on the same tasks."""
    prior = mixture()
    config = replace(TRAINING, held_out_tasks=256)
    network, entries = trained("mixture", prior, config, options.mixture_minutes, options)
    task = prior.full().sample(
        options.fits,
        generator=torch.Generator(device()).manual_seed(options.seed + 30_000),
        device=device(),
        dtype=torch.float32,
    )
    found: dict[str, Any] = {
        **about(network, entries),
        **gaps(network, prior.full(), options),
        "coherence": coherence(network, prior.full(), options.seed),
    }
    print(f"mixture: {_show(found['mean'])}; {_costs(found)}", flush=True)
    compared: dict[str, dict[str, Any]] = {}
    every: dict[str, list[Tensor]] = {}
    few = options.botorch_fits
    for n in CONTEXTS[1:]:
        asked = part(task, n)
        y = asked.y[:, n:]

        def of(known: Distribution, y: Tensor = y) -> Tensor:
            return known.log_prob(y)[..., 0]

        def only(asked: Task = asked) -> Task:
            return replace(asked, X=asked.X[:few], y=asked.y[:few])

        methods: dict[str, Callable[[], Tensor]] = {
            "network": partial(log_density, network, asked),
            "maximum likelihood": lambda asked=asked: of(maximum_likelihood(asked)),
            "best component": lambda asked=asked: of(prior.best_component(asked)),
            "true component": lambda asked=asked: of(prior.true_component(asked)),
            "SingleTaskGP": lambda: botorch_default(only()),
        }
        exact = of(prior.reference(asked))
        compared[str(n)] = {}
        for name, method in methods.items():
            start = time.perf_counter()
            log_q = method()
            seconds = time.perf_counter() - start
            gap = (exact[: len(log_q)] - log_q).mean(-1).detach()  # [B]
            every.setdefault(name, []).append(gap)
            compared[str(n)][name] = {**_summary(gap), "seconds_per_task": seconds / len(gap)}
            print(f"n {n:>3} {name:>20}: {_show(compared[str(n)][name])}", flush=True)
    means = {name: torch.stack(values).mean(0) for name, values in every.items()}
    found["compared"] = compared
    found["compared_mean"] = {name: _summary(values) for name, values in means.items()}
    found["network_minus"] = {
        name: _summary(means["network"][: len(values)] - values)
        for name, values in means.items()
        if name != "network"
    }
    for name, values in found["compared_mean"].items():
        print(f"mean  {name:>20}: {_show(values)}")
    return found


def scaling(options: argparse.Namespace) -> dict[str, Any]:
    """Gap against tasks and parameters, and the slopes of their logarithms."""
    found: dict[str, Any] = {}
    for name, changes in SCALES.items():
        config = replace(TRAINING, schedule="constant", **changes)
        network, entries = trained(
            f"scaling {name}", gaussian(1), config, options.scaling_minutes, options, processor=True
        )
        row = about(network, entries)
        late = [(tasks, gap) for tasks, gap in row["curve"] if tasks >= 6_000 and gap > 0]
        row["slope_tasks"] = slope(late)
        found[name] = row
        print(f"{name}: {_costs(row)} slope {row['slope_tasks']}", flush=True)
    shared = min(row["curve"][-1][0] for row in found.values())
    ends = [
        (row["parameters"], min(row["curve"], key=lambda point: abs(point[0] - shared))[1])
        for row in found.values()
    ]
    equal = [(row["parameters"], row["curve"][-1][1]) for row in found.values()]
    return {
        "networks": found,
        "slope_parameters_at_equal_tasks": slope(ends),
        "equal_tasks": shared,
        "slope_parameters_at_equal_time": slope(equal),
    }


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Least-squares slope of log gap on log size; None from fewer than two sizes."""
    points = [(x, gap) for x, gap in points if gap > 0]
    if len({x for x, _ in points}) < 2:
        return None
    x, gap = torch.tensor(points, dtype=torch.float64).log().unbind(-1)
    x = x - x.mean()
    return float((x * gap).sum() / x.square().sum())


def ablation(options: argparse.Namespace) -> dict[str, Any]:
    """One setting changed at a time, at equal processor time."""
    found: dict[str, Any] = {}
    for name in options.settings:
        changes = ABLATION[name]
        config = replace(TRAINING, **changes)
        network, entries = trained(
            f"ablation {name}",
            gaussian(1),
            config,
            options.ablation_minutes,
            options,
            processor=True,
        )
        found[name] = {**about(network, entries), **gaps(network, gaussian(1).full(), options)}
        print(f"{name:>34}: {_show(found[name]['mean'])}; {_costs(found[name])}", flush=True)
    return found


def _summary(gap: Tensor) -> dict[str, float]:
    count = len(gap)
    return {
        "gap": float(gap.mean()),
        "error": float(gap.std()) / math.sqrt(count) if count > 1 else 0.0,
        "worst_percent": float(gap.sort(descending=True).values[: max(1, count // 100)].mean()),
        "tasks": count,
    }


def _show(row: dict[str, float]) -> str:
    return f"gap {row['gap']:.4f} ± {row['error']:.4f}, worst 1% {row['worst_percent']:.3f}"


def _costs(row: dict[str, Any]) -> str:
    more = f", {row['coherence']}" if "coherence" in row else ""
    return (
        f"{row['parameters']} parameters, {row['tasks']} tasks in {row['minutes']:.1f} min "
        f"({row['processor_minutes']:.1f} of the processor){more}"
    )


def figure(results: dict[str, Any], path: Path) -> None:
    """Gap against context size, and against training tasks."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axes in (left, right):
        axes.set_prop_cycle(color=pyplot.colormaps["tab20"].colors)  # more lines than usual colours
    lines: dict[str, Any] = {}
    for d, row in results.get("gp", {}).get("networks", {}).items():
        right.plot(*zip(*row["curve"], strict=True), label=f"GP, {d}")
        lines |= {f"{d}, length {length}": v for length, v in row["by_length"].items()}
    for name, row in results.get("processes", {}).get("networks", {}).items():
        lines[name] = row
        right.plot(*zip(*row["curve"], strict=True), label=name)
    if "mixture" in results:
        lines["mixture"] = row = results["mixture"]["networks"]
        right.plot(*zip(*row["curve"], strict=True), label="mixture")
    for name, row in results.get("scaling", {}).get("networks", {}).get("networks", {}).items():
        right.plot(*zip(*row["curve"], strict=True), ":", label=name)
    for name, row in lines.items():
        sizes = list(row["by_context"])
        left.errorbar(
            [int(n) for n in sizes],
            [row["by_context"][n]["gap"] for n in sizes],
            [2 * row["by_context"][n]["error"] for n in sizes],
            label=name,
            marker=".",
        )
    left.set(
        xscale="symlog",
        yscale="log",
        xlabel="context rows",
        ylabel="gap, nats per point",
        ylim=5e-4,
    )
    right.set(xscale="log", yscale="log", xlabel="training tasks", ylabel="gap, held-out tasks")
    for axes in (left, right):
        if axes.lines:
            axes.legend(fontsize=6)
    drawn.savefig(path, dpi=150)
    pyplot.close(drawn)


def options_of(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the options, with the defaults of `--quick`."""
    made = parser("mimicry", __doc__)
    made.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    made.add_argument("--minutes", type=float, help="per Gaussian process network (40)")
    made.add_argument("--process-minutes", type=float, help="per network of `processes` (40)")
    made.add_argument("--mixture-minutes", type=float, help="for the network of `mixture` (40)")
    made.add_argument("--scaling-minutes", type=float, help="processor minutes per size (15)")
    made.add_argument("--ablation-minutes", type=float, help="processor minutes per setting (3)")
    made.add_argument("--settings", nargs="+", choices=list(ABLATION), help="of `ablation` (all)")
    made.add_argument("--processes", nargs="+", choices=list(PROCESSES), default=list(PROCESSES))
    made.add_argument("--dimensions", nargs="+", type=int, default=[1, 2, 5])
    made.add_argument("--tasks", type=int, help="tasks of each measurement (1024)")
    made.add_argument("--fits", type=int, help="tasks on which fits are compared (256)")
    made.add_argument("--botorch-fits", type=int, help="of which SingleTaskGP sees (32)")
    made.add_argument(
        "--matrix-learning-rate",
        type=float,
        default=TRAINING.matrix_learning_rate,
        help="of Muon in `gp` and `processes` (2e-2); lower for short continuations",
    )
    made.add_argument("--batch", type=int, default=TRAINING.batch, help="tasks a step there (32)")
    made.add_argument(
        "--embedding", type=int, default=ARCHITECTURE.embedding, help="of the networks there (64)"
    )
    made.add_argument("--networks", type=Path, default=ROOT / "runs" / "mimicry")
    made.add_argument("--reuse", action="store_true", help="do not train networks that are saved")
    made.add_argument("--more", action="store_true", help="train saved networks on, for as long")
    options = made.parse_args(argv)
    usual: dict[str, tuple[Any, Any]] = {
        "minutes": (40.0, 0.5),
        "process_minutes": (40.0, 0.5),
        "mixture_minutes": (40.0, 0.5),
        "scaling_minutes": (15.0, 0.1),
        "ablation_minutes": (3.0, 0.1),
        "tasks": (1024, 64),
        "fits": (256, 8),
        "botorch_fits": (32, 2),
        "settings": (list(ABLATION), list(ABLATION)[:2]),
    }
    for name, values in usual.items():
        if getattr(options, name) is None:
            setattr(options, name, values[options.quick])
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the parts, print tables, write JSON and the figure after each.

    The file keeps what earlier runs found for parts and networks that are not run.
    """
    argv = sys.argv[1:] if argv is None else argv
    options = options_of(argv)
    device()
    warnings.filterwarnings("ignore", category=InputDataWarning)
    warnings.filterwarnings("ignore", category=OptimizationWarning)
    warnings.filterwarnings("ignore", category=gpytorch.utils.warnings.NumericalWarning)
    runs: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        "gp": gaussian_processes,
        "processes": processes,
        "mixture": hyperprior,
        "scaling": scaling,
        "ablation": ablation,
    }
    path = options.out / f"pfn_mimicry{'_quick' if options.quick else ''}.json"
    earlier = json.loads(path.read_text()) if path.exists() else {}
    results = {name: earlier[name] for name in PARTS if name in earlier}
    for name in options.parts:
        start = time.perf_counter()
        found = runs[name](options)
        said = command("pfn mimicry", argv)
        if name in ("gp", "processes"):  # networks that were not trained now stay
            before = results.get(name, {}).get("networks", {})
            for network, row in found.items():
                first = before.get(network, {}).get("command", "") if options.more else ""
                row["command"] = f"{first}; {said}" if first else said
            found = {**before, **found}
        results[name] = {
            "command": said,
            "minutes": (time.perf_counter() - start) / 60,
            "networks": found,
        }
        results = json.loads(json.dumps({k: results[k] for k in PARTS if k in results}))
        write("mimicry", options, results)
        figure(results, path.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
