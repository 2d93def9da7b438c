"""What holds a network back where there is little noise: one change of its recipe at a time.

Small networks see the same tasks, in the same order and as many of them, each with one thing
changed; they are measured on tasks with little noise that none has seen, by the gap to the
posterior of one who is told each task's kernel and noise, in nats per query: an upper bound of the
gap to the exact posterior, whose part that is not the network's is the same for all.

    python -m benchmarks pfn recipes [--variants NAME ...] [--tasks N] [--kernels random|single]

A line of JSON per variant and run is appended to the results; about 5 minutes each on one core.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import pfn
from benchmarks.pfn.common import device, parser
from pfn.architecture import ArchitectureConfig
from pfn.distribution import place_nodes
from pfn.prior_fitted_network import PFN
from pfn.training.config import TrainingConfig
from pfn.training.start import initial_network
from priors import RandomKernelTaskPrior, RandomNoise, TaskSize
from priors.tasks.task import Task, TaskPrior

__all__ = ["VARIANTS", "Variant", "main"]

_ROWS = (16, 80, 256)
_FEATURES, _QUERIES = 4, 32
_BANDS = {"below 1e-4": (0.0, 1e-4), "1e-4 to 1e-2": (1e-4, 1e-2), "above 1e-2": (1e-2, 9.0)}
_RATE = {"learning_rate": 4e-3, "matrix_learning_rate": 2e-2}  # twice the default: few steps


@dataclass(frozen=True)
class Variant:
    """What differs from the first recipe.

    Attributes:
        architecture: Fields of `ArchitectureConfig`.
        training: Fields of `TrainingConfig`.
        noise: Fields of `RandomNoise`.
        equal_mass: Share of the nodes that follow the targets' distribution, see `place_nodes`.
    """

    architecture: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    noise: dict[str, Any] = field(default_factory=dict)
    equal_mass: float | None = None


VARIANTS = {
    "first": Variant(),
    "more low noise": Variant(noise={"moderate": 0.2}),
    "only log-uniform noise": Variant(noise={"moderate": 0.0}),
    "100 nodes": Variant(architecture={"bars": 100}),
    "1600 nodes": Variant(architecture={"bars": 1600}),
    "nodes even": Variant(equal_mass=0.1),
    "nodes by mass": Variant(equal_mass=0.9),
    "targets given": Variant(training={"targets": "given"}),
    "deep": Variant(architecture={"embedding": 48, "layers": 8, "hidden": 96}),
    "wide": Variant(architecture={"embedding": 96, "layers": 2, "hidden": 192}),
    "decoupled values": Variant(architecture={"decoupled_values": True}),
    "3 experts": Variant(architecture={"experts": 3}),
    "3 experts, 1600 nodes": Variant(architecture={"experts": 3, "bars": 1600}),
    "no log scale": Variant(architecture={"log_scaling": False}),
}


def main(argv: list[str]) -> int:
    """Train and measure the variants."""
    options = parser("recipes", __doc__)
    options.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    options.add_argument("--tasks", type=int, default=8_000, help="seen by each network")
    options.add_argument("--kernels", choices=("random", "single"), default="random")
    given = options.parse_args(argv)
    tasks = 800 if given.quick else given.tasks
    where = device()
    measured = _held_out(_kernels(given.kernels), 8 if given.quick else 48, where)
    path = Path(given.out) / f"pfn_recipes{'_quick' if given.quick else ''}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in given.variants:
        found = _run(VARIANTS[name], _kernels(given.kernels), tasks, given.seed, measured, where)
        line = {"variant": name, "kernels": given.kernels, "seed": given.seed, **found}
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
    return 0


def _kernels(kind: str) -> Callable[..., RandomKernelTaskPrior]:
    """Any kernel of the shipped recipe, or a single radial one."""

    def prior(size: TaskSize, **fields: Any) -> RandomKernelTaskPrior:
        if kind == "single":
            fields |= {"form_weights": (1.0, 0.0, 0.0, 0.0), "max_components": 1, "periodic": 0.0}
        return RandomKernelTaskPrior(size=size, **fields)

    return prior


def _run(
    variant: Variant,
    kernels: Callable[..., RandomKernelTaskPrior],
    tasks: int,
    seed: int,
    measured: list[tuple[Task, dict[int, torch.Tensor]]],
    where: torch.device,
) -> dict[str, Any]:
    sizes = {"max_features": _FEATURES, "embedding": 64, "layers": 4, "heads": 4, "hidden": 128}
    architecture = ArchitectureConfig(**{**sizes, "bars": 400, **variant.architecture})
    settings = {"inputs": "standardised", "targets": "standardised", "batch": 8, **_RATE}
    config = TrainingConfig(architecture, **{**settings, **variant.training}, seed=seed)
    config = replace(config, steps=tasks // config.batch, held_out_tasks=0, border_tasks=800)
    size = TaskSize(max_features=_FEATURES, max_context=_ROWS[-1], num_queries=_QUERIES)
    noise = RandomNoise(**{"low": 1e-5, **variant.noise})
    prior = kernels(size=size, noise=noise, functions=4)
    initial = None if variant.equal_mass is None else _placed(prior, config, variant.equal_mass)
    start = time.perf_counter()
    network = pfn.train(prior, config=config, initial=initial, device=where, progress=False)
    seconds = time.perf_counter() - start
    parameters = sum(p.numel() for p in network.network.parameters())
    return {
        "tasks": tasks,
        "parameters": parameters,
        "seconds": round(seconds),
        "gaps": _gaps(network, measured),
    }


def _placed(prior: TaskPrior, config: TrainingConfig, equal_mass: float) -> PFN:
    """The network that the training would start with, but for its nodes."""
    made = initial_network(prior, config, None)
    generator = torch.Generator().manual_seed(config.seed)
    targets = []
    for _ in range(200):
        task = prior.sample(8, generator=generator, dtype=torch.float32)
        n = task.num_context
        location, scale, _ = made.units(task.y[:, :n, 0])
        if n >= 8:
            targets.append(((task.y[:, n:, 0] - location) / scale).flatten())
    assert made.bars is not None
    nodes, scale = place_nodes(torch.cat(targets), len(made.bars.borders), equal_mass=equal_mass)
    made.bars.borders.copy_(nodes)
    made.bars.tail_scale = scale
    return made


def _held_out(
    kernels: Callable[..., RandomKernelTaskPrior], count: int, where: torch.device
) -> list[tuple[Task, dict[int, torch.Tensor]]]:
    """Tasks of all noise levels, and the log densities of those told the kernels, by rows."""
    size = TaskSize(max_features=_FEATURES, num_context=_ROWS[-1], num_queries=_QUERIES)
    prior = kernels(size=size, noise=RandomNoise(low=1e-5, moderate=0.0))
    generator = torch.Generator().manual_seed(2**40)
    found = []
    for _ in range(count):
        task = prior.sample(4, generator=generator, dtype=torch.float32)
        exact = {}
        for n in _ROWS:
            part = _part(task, n)
            exact[n] = prior.oracle(part).log_prob(part.y[:, n:].double())[..., 0]
        found.append((task.to(where), {n: value.to(where) for n, value in exact.items()}))
    return found


def _part(task: Task, n: int) -> Task:
    """Its first n rows as context, with the same queries."""
    rows = [*range(n), *range(_ROWS[-1], task.X.shape[1])]
    assert task.f is not None
    return replace(task, X=task.X[:, rows], y=task.y[:, rows], f=task.f[:, rows], num_context=n)


@torch.no_grad()
def _gaps(
    network: PFN, measured: list[tuple[Task, dict[int, torch.Tensor]]]
) -> dict[str, dict[int, list[float]]]:
    """Mean gap and its standard error over tasks, by band of the noise and by context rows."""
    assert network.bars is not None
    found: dict[str, dict[int, list[float]]] = {band: {} for band in _BANDS}
    noise = torch.cat([task.noise_var for task, _ in measured])
    for n in _ROWS:
        gaps = []
        for task, exact in measured:
            part = _part(task, n)
            encoding = network.encode(part.X[:, :n], part.y[:, :n, 0])
            logits, _ = network.decode(encoding, part.X[:, n:])
            z = (part.y[:, n:, 0] - encoding.location) / encoding.scale
            log_q = network.bars.log_prob(logits, z) - encoding.scale.log()
            gaps.append((exact[n] - log_q).mean(-1))
        gap = torch.cat(gaps)
        for band, (low, high) in _BANDS.items():
            some = gap[(noise >= low) & (noise < high)]
            error = float(some.std()) / len(some) ** 0.5
            found[band][n] = [round(float(some.mean()), 4), round(error, 4)]
    return found
