"""Training of a prior-data fitted network on tasks drawn afresh at every step.

The loss is the mean negative log density of the query targets under the predicted bar
distribution, in units of the standardised target; its minimiser over all functions of the context
is the exact posterior predictive (Mueller et al. 2022, 2112.10510, corollary 1.1). Where tasks
carry their noise-free function, a second head learns its posterior the same way.

Matrices inside the blocks are trained by Muon, everything else by AdamW; the shipped weights are
the exponential moving average. One cosine schedule follows the share of the steps or of the time
limit, whichever is further on, so that a run on a slow machine still ends annealed.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pfn.architecture import ArchitectureConfig
from pfn.inference import PFN
from priors.files import read_safetensors, write_safetensors_atomically
from priors.tasks import Task, TaskPrior

__all__ = ["TrainingConfig", "train"]


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained.

    Attributes:
        architecture: Sizes of the network.
        steps: Optimisation steps.
        batch: Tasks per step.
        time_limit: Seconds after which training ends, annealed; None for no limit.
        learning_rate: Peak learning rate of AdamW.
        matrix_learning_rate: Peak learning rate of Muon.
        warmup: Steps of linear warm-up.
        clip: Largest norm of the gradient.
        average_decay: Decay of the moving average of the weights.
        border_tasks: Tasks from whose standardised targets the bars are placed.
        checkpoint_every: Seconds between checkpoints.
        seed: Seed of weights and tasks.
    """

    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    steps: int = 20_000
    batch: int = 32
    time_limit: float | None = None
    learning_rate: float = 2e-3
    matrix_learning_rate: float = 1e-2
    warmup: int = 100
    clip: float = 1.0
    average_decay: float = 0.999
    border_tasks: int = 2_000
    checkpoint_every: float = 300.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "border_tasks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay must lie in [0, 1), got {self.average_decay}.")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """Inverse of `to_json`."""
        return cls(**{**values, "architecture": ArchitectureConfig(**values["architecture"])})


def train(
    task_prior: TaskPrior,
    *,
    config: TrainingConfig | None = None,
    device: torch.device | str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    log: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> PFN:
    """Train a network to do Bayesian inference under a task prior.

    Args:
        task_prior: Where tasks come from.
        config: Sizes and schedule.
        device: Where to train; the GPU when there is one if None.
        checkpoint: File for the state of the training, written every `checkpoint_every` seconds
            and at the end.
        resume: Continue from `checkpoint` if it exists. The continued run draws the tasks and
            takes the steps that an uninterrupted one would have.
        log: File to which a line of JSON per 100 steps is appended: step, loss, seconds.
        progress: Show a progress bar.

    Raises:
        ValueError: the checkpoint is of another configuration, or tasks have more features than
            the network has slots.
        RuntimeError: the loss is no longer finite.
    """
    config = TrainingConfig() if config is None else config
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if resume and checkpoint is None:
        raise ValueError("resume=True needs the checkpoint file to resume from.")
    state = _State(task_prior, config, torch.device(device))
    if resume and checkpoint is not None and Path(checkpoint).exists():
        state.load(Path(checkpoint))
    saved = started = time.monotonic() - state.elapsed
    losses: list[float] = []
    with tqdm(total=config.steps, initial=state.step, disable=not progress, desc="train") as bar:
        while state.step < config.steps and not state.out_of_time():
            losses.append(state.advance())
            bar.update()
            now = time.monotonic()
            state.elapsed = now - started
            if state.step % 100 == 0 or state.step == config.steps:
                mean = sum(losses) / len(losses)
                bar.set_postfix(loss=f"{mean:.4f}")
                _append(log, {"step": state.step, "loss": mean, "seconds": state.elapsed})
                losses.clear()
            if checkpoint is not None and now - saved > config.checkpoint_every:
                state.save(Path(checkpoint))
                saved = now
    if checkpoint is not None:
        state.save(Path(checkpoint))
    return state.result()


class _State:
    """Everything that a resumed run needs to go on as if nothing had happened."""

    def __init__(self, task_prior: TaskPrior, config: TrainingConfig, device: torch.device) -> None:
        self.task_prior, self.config, self.device = task_prior, config, device
        self.step, self.elapsed, self.tasks = 0, 0.0, 0
        self.generator = torch.Generator(device).manual_seed(config.seed)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(config.seed)
            self.pfn = _initial_network(task_prior, config, self.generator, device)
        self.average = {k: p.detach().clone() for k, p in self.pfn.network.named_parameters()}
        inside = dict(self.pfn.network.blocks.named_parameters(prefix="blocks"))
        matrices = [p for p in inside.values() if p.dim() == 2]
        chosen = {id(p) for p in matrices}
        others = [p for p in self.pfn.network.parameters() if id(p) not in chosen]
        self.optimisers = (
            torch.optim.Muon(matrices, lr=config.matrix_learning_rate, weight_decay=0.0),
            torch.optim.AdamW(others, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
        )
        self.peaks = (config.matrix_learning_rate, config.learning_rate)

    def out_of_time(self) -> bool:
        limit = self.config.time_limit
        return limit is not None and self.elapsed >= limit

    def schedule(self) -> float:
        share = self.step / self.config.steps
        if self.config.time_limit is not None:
            share = max(share, self.elapsed / self.config.time_limit)
        warm = min(1.0, (self.step + 1) / max(1, self.config.warmup))
        return warm * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))

    def advance(self) -> float:
        """One step; returns the loss in nats per query."""
        task = self.task_prior.sample(
            self.config.batch, generator=self.generator, device=self.device, dtype=torch.float32
        )
        loss_y, loss_f = _losses(self.pfn, task)
        loss = loss_y if loss_f is None else loss_y + 0.5 * loss_f
        if not bool(loss.detach().isfinite()):
            raise RuntimeError(
                f"The loss of step {self.step} is {loss.item()}. Lower the learning rates, or "
                "look for infinite values in the tasks."
            )
        factor = self.schedule()
        for optimiser, peak in zip(self.optimisers, self.peaks, strict=True):
            optimiser.param_groups[0]["lr"] = peak * factor
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.pfn.network.parameters(), self.config.clip)
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        self.tasks += self.config.batch
        # A long average over the first steps would remember the initial weights.
        decay = min(self.config.average_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, parameter in self.pfn.network.named_parameters():
                self.average[name].lerp_(parameter, 1 - decay)
        return float(loss_y.detach())

    def result(self) -> PFN:
        pfn = self.pfn
        pfn.network.load_state_dict(self.average, strict=False)
        pfn.metadata["training"] = {
            "config": self.config.to_json(),
            "prior": getattr(self.task_prior, "description", type(self.task_prior).__name__),
            "steps": self.step,
            "tasks": self.tasks,
            "seconds": round(self.elapsed, 1),
        }
        return pfn.eval()

    def save(self, path: Path) -> None:
        tensors: dict[str, Tensor] = {"generator": self.generator.get_state()}
        tensors |= {f"network.{k}": v for k, v in self.pfn.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for i, optimiser in enumerate(self.optimisers):
            for index, values in optimiser.state_dict()["state"].items():
                for key, value in values.items():
                    tensors[f"optimiser.{i}.{index}.{key}"] = torch.as_tensor(value)
        description = {
            "config": self.config.to_json(),
            "step": self.step,
            "elapsed": self.elapsed,
            "tasks": self.tasks,
        }
        write_safetensors_atomically(path, tensors, kind="PFN training", description=description)

    def load(self, path: Path) -> None:
        tensors, description = read_safetensors(path, kind="PFN training")
        if description["config"] != json.loads(json.dumps(self.config.to_json())):
            raise ValueError(
                f"{path} was written by a training with another configuration; pass that one, or "
                "another checkpoint file."
            )
        self.step, self.elapsed = description["step"], description["elapsed"]
        self.tasks = description["tasks"]
        self.generator.set_state(tensors["generator"])
        self.pfn.load_state_dict(_under("network", tensors))
        self.average = {k: v.to(self.device) for k, v in _under("average", tensors).items()}
        for i, optimiser in enumerate(self.optimisers):
            values: dict[int, dict[str, Tensor]] = {}
            for name, value in _under(f"optimiser.{i}", tensors).items():
                index, key = name.split(".", 1)
                values.setdefault(int(index), {})[key] = value
            optimiser.load_state_dict({**optimiser.state_dict(), "state": values})


def _losses(pfn: PFN, task: Task) -> tuple[Tensor, Tensor | None]:
    """Mean negative log density of the queries' y, and of their f where there is one."""
    n = task.num_context
    mask = None if task.points is None else task.points[:, :n]
    encoding = pfn.encode(task.X[:, :n], task.y[:, :n, 0], mask)
    logits_y, logits_f = pfn.network.decode(encoding.context, task.X[:, n:])
    weight = None if task.points is None else task.points[:, n:].to(task.y)

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        z = (target[:, n:, 0] - encoding.location) / encoding.scale
        nll = -pfn.bars.log_prob(logits, z)
        return nll.mean() if weight is None else (nll * weight).sum() / weight.sum().clamp_min(1)

    return loss(logits_y, task.y), None if task.f is None else loss(logits_f, task.f)


def _initial_network(
    task_prior: TaskPrior,
    config: TrainingConfig,
    generator: torch.Generator,
    device: torch.device,
) -> PFN:
    """An untrained network whose units and bars fit the prior's targets."""
    tasks = [
        task_prior.sample(config.batch, generator=generator, device=device, dtype=torch.float32)
        for _ in range(-(-config.border_tasks // config.batch))
    ]
    features = max(task.X.shape[-1] for task in tasks)
    if features > config.architecture.max_features:
        raise ValueError(
            f"The prior draws tasks with {features} features, the network has slots for "
            f"{config.architecture.max_features}; raise ArchitectureConfig.max_features."
        )
    y = torch.cat([t.y[..., 0].flatten() if t.points is None else t.y[t.points] for t in tasks])

    def network(borders: Tensor, tail_scale: float) -> PFN:
        return PFN(
            config.architecture,
            borders,
            tail_scale=tail_scale,
            prior_location=float(y.mean()),
            prior_scale=float(y.std()),
        )

    empty = network(torch.tensor([0.0, 1.0]), 1.0)
    targets = []
    for task in tasks:
        n = task.num_context
        mask = None if task.points is None else task.points[:, :n]
        location, scale = empty.units(task.y[:, :n, 0], mask)
        z = (task.y[:, n:, 0] - location) / scale
        targets.append(z.flatten() if task.points is None else z[task.points[:, n:]])
    borders, tail_scale = _place_bars(torch.cat(targets), config.architecture.bars)
    return network(borders, tail_scale).to(device)


def _place_bars(targets: Tensor, bars: int) -> tuple[Tensor, float]:
    """Borders and scale of the tails for targets in the network's units.

    Equal steps of their distribution blended with equal steps of the value, so that bars stay
    narrow where the posterior of an unusual target lies; 0.05% lie in each tail.
    """
    z = targets.double().sort().values
    levels = torch.linspace(0.0005, 0.9995, bars + 1, dtype=torch.float64, device=z.device)
    at = (levels * (len(z) - 1)).long()
    borders = 0.7 * z[at] + 0.3 * torch.lerp(z[at[0]], z[at[-1]], (levels - levels[0]) / 0.999)
    tails = torch.cat([borders[0] - z[z < borders[0]], z[z > borders[-1]] - borders[-1]])
    # The mean excess of a Lomax law of index 5 is a quarter of its scale.
    return borders.float(), max(4 * float(tails.mean()), 1e-3)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}


def _append(path: str | os.PathLike[str] | None, entry: Mapping[str, Any]) -> None:
    if path is not None:
        with open(path, "a") as file:
            file.write(json.dumps(entry) + "\n")
