"""Training of a prior-data fitted network on tasks drawn afresh at every step.

The loss is the mean negative log density of the query targets under the predicted distribution, in
the network's units; its minimiser over all functions of the context is the exact posterior
predictive (Mueller et al. 2022, 2112.10510, corollary 1.1). Where tasks carry their noise-free
function, a second head learns its posterior the same way.

Steps differ in what the network is told, so that it can be told so later: in some the noise
variances are known, and in some the last context rows are appended to the encoded others, as noisy
targets or as exact values of the function. That is what joint samples and fantasies need.

Matrices inside the blocks are trained by Muon, everything else by AdamW; the result is the
exponential moving average of the weights, the best one by loss on held-out tasks. One schedule
follows the share of the steps or of the time limit, whichever is further on, so that a run on a
slow machine still ends annealed. Devices, several processes and mixed precision go through
Lightning Fabric.
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pfn.architecture import CODE_SIZE, ArchitectureConfig
from pfn.distribution import BarDistribution, choose_num_nodes, place_nodes
from pfn.growth import grown
from pfn.muon import Muon
from pfn.network import Encoding
from pfn.prior_fitted_network import PFN
from pfn.references import Reference, reference_nll
from priors.files import read_safetensors, write_safetensors_atomically
from priors.random_state import seeded
from priors.randomness import RandomSource
from priors.tasks.task import Task, TaskPrior, describe, exchangeable
from priors.tasks.validation import check_at_least

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["TrainingConfig", "train"]

_SETTLED = 8  # context rows whose deviation is worth something
_COVER = 128  # tasks that show what a prior covers
_PATIENCE = 20  # steps in a row without a usable gradient before training gives up


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained.

    Attributes:
        architecture: Sizes of the network.
        inputs: Units of the inputs, "raw" or "standardised"; see `PFN`.
        targets: Units of the targets, "raw", "given" or "standardised"; see `PFN`.
        steps: Optimisation steps.
        batch: Tasks per step and process, in each of the `accumulate` parts.
        accumulate: Parts whose gradients are added up before a step.
        time_limit: Seconds after which training ends, annealed; None for no limit.
        optimizer: "muon" (matrices, the rest AdamW), "adamw" or "schedule-free" (AdamW, Defazio et
            al. 2024, 2405.15682; needs the package `schedulefree`).
        schedule: "cosine" to zero, "linear" to zero, or "constant"; after the warm-up.
        learning_rate: Peak learning rate of AdamW.
        matrix_learning_rate: Peak learning rate of Muon.
        weight_decay: Decoupled weight decay of matrices.
        warmup: Steps of linear warm-up.
        clip: Largest norm of the gradient.
        spike: A step is left out when the norm of its gradient is so many times the recent one.
        average_decay: Decay of the moving average of the weights.
        known_noise: Share of the steps in which noise variances are given to the network.
        appended: Share of the steps in which some context rows are appended to the others.
        max_buffer: Most appended rows.
        precision: "32-true" or "bf16-mixed".
        compile: Whether to compile the blocks of the network by `torch.compile`.
        border_tasks: Tasks from whose targets the bars are placed.
        held_out_tasks: Tasks on which the average is compared with its earlier states.
        held_out_batch: How many of these, and of the border tasks, are drawn together, and so have
            one size; `batch` if None. Held-out losses of trainings can be compared where this and
            the seed agree.
        evaluate_every: Steps between such comparisons.
        checkpoint_every: Seconds between checkpoints.
        seed: Seed of weights and tasks.
    """

    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    inputs: str = "raw"
    targets: str = "given"
    steps: int = 20_000
    batch: int = 32
    accumulate: int = 1
    time_limit: float | None = None
    optimizer: str = "muon"
    schedule: str = "cosine"
    learning_rate: float = 2e-3
    matrix_learning_rate: float = 1e-2
    weight_decay: float = 0.0
    warmup: int = 100
    clip: float = 1.0
    spike: float = 20.0
    average_decay: float = 0.999
    known_noise: float = 0.15
    appended: float = 0.25
    max_buffer: int = 32
    precision: str = "32-true"
    compile: bool = False
    border_tasks: int = 2_000
    held_out_tasks: int = 256
    held_out_batch: int | None = None
    evaluate_every: int = 1_000
    checkpoint_every: float = 300.0
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("steps", "batch", "accumulate", "border_tasks", "evaluate_every")
        check_at_least(self, **dict.fromkeys((*counts, "held_out_batch"), 1))
        for name in ("known_noise", "appended"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share in [0, 1], got {getattr(self, name)}.")
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay must lie in [0, 1), got {self.average_decay}.")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}.")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """Inverse of `to_json`."""
        return cls(**{**values, "architecture": ArchitectureConfig(**values["architecture"])})


_CHOICES = {
    "optimizer": ("muon", "adamw", "schedule-free"),
    "schedule": ("cosine", "linear", "constant"),
    # Half precision would need its gradients unscaled before they are clipped and judged.
    "precision": ("32-true", "bf16-mixed"),
}


def train(
    task_prior: TaskPrior,
    *,
    config: TrainingConfig | None = None,
    device: torch.device | str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    log: str | os.PathLike[str] | None = None,
    progress: bool = True,
    reference: Reference | None = None,
    initial: PFN | None = None,
    fabric: Fabric | None = None,
    held_out_prior: TaskPrior | None = None,
    snapshot: str | os.PathLike[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> PFN:
    """Train a network to do Bayesian inference under a task prior.

    Args:
        task_prior: Where tasks come from.
        config: Sizes and schedule.
        device: Where to train; the GPU when there is one if None.
        checkpoint: File for the state of the training, written every `checkpoint_every` seconds
            and at the end.
        resume: Continue from `checkpoint` if it exists, on a device of the same kind. The continued
            run draws the tasks that an uninterrupted one would have, and without a time limit,
            which makes learning rates depend on the clock, takes the same steps.
        log: File to which a line of JSON per 100 steps and at the end is appended: step, loss,
            tasks, seconds, norm of the gradient, steps left out; and one per evaluation.
        progress: Show a progress bar.
        reference: From a task to the exact posterior of y at its queries; where given, losses
            on held-out tasks are compared with its own.
        initial: A trained network to start from. The architecture may be larger, see `pfn.growth`,
            and the number of bars another, for which its heads are interpolated: it starts with
            the same answers.
        fabric: A `lightning_fabric.Fabric` of your own, launched; it has precedence over `device`
            and `config.precision`. Without it the processes that `torchrun` starts, on one node or
            several, train together by themselves. Every process draws tasks of its own.
        held_out_prior: Where held-out tasks come from, on the CPU and then moved; `task_prior` if
            None.
        snapshot: File for the network as it would be returned now, written as often as the
            checkpoint; its average or, once held-out losses are known, the best one.
        metadata: What else the network shall say of itself, as plain JSON.

    Raises:
        ValueError: the checkpoint is of another configuration, prior or kind of device, or tasks
            have more features than the network has slots.
        RuntimeError: the loss is no longer finite.
    """
    config = TrainingConfig() if config is None else config
    if resume and checkpoint is None:
        raise ValueError("resume=True needs the checkpoint file to resume from.")
    if fabric is None:
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        fabric = _fabric(torch.device(device), config.precision)
    state = _State(task_prior, config, fabric, reference, initial, held_out_prior)
    state.pfn.metadata |= dict(metadata or {})
    if resume and checkpoint is not None and Path(checkpoint).exists():
        state.load(Path(checkpoint))
    main = fabric.is_global_zero
    saved = fabric.broadcast(time.monotonic())
    started = saved - state.elapsed  # of the first process, whose clock serves all
    recent: list[tuple[float, float]] = []
    shown: dict[str, str] = {}
    total = config.steps if config.time_limit is None else None  # of unknown length otherwise
    bar = tqdm(total=total, initial=state.step, disable=not (progress and main), desc="train")
    if initial is not None and state.step == 0:
        # What the training starts from is not to be lost to something worse.
        found = state.evaluate()
        shown |= {name: f"{value:.4f}" for name, value in found.items()}
        _append(log, main, {"step": 0, "seconds": state.elapsed, **found})
    with bar:
        while state.step < config.steps and not state.out_of_time():
            recent.append(state.advance())
            bar.update()
            now = fabric.broadcast(time.monotonic())
            state.elapsed = now - started
            last = state.step == config.steps or state.out_of_time()
            if state.step % 100 == 0 or last:
                loss, norm = (sum(values) / len(values) for values in zip(*recent, strict=True))
                shown["loss"] = f"{loss:.4f}"
                if config.time_limit is not None:
                    shown["time"] = f"{min(1.0, state.elapsed / config.time_limit):.0%}"
                bar.set_postfix(shown)
                entry = {"step": state.step, "loss": loss, "norm": norm, "tasks": state.tasks}
                _append(log, main, {**entry, "seconds": state.elapsed, "skipped": state.skipped})
                recent.clear()
            if state.step % config.evaluate_every == 0:
                found = state.evaluate()
                shown |= {name: f"{value:.4f}" for name, value in found.items()}
                bar.set_postfix(shown)
                _append(log, main, {"step": state.step, "seconds": state.elapsed, **found})
            if now - saved > config.checkpoint_every:
                state.keep(checkpoint, snapshot)
                saved = now
    if state.step % config.evaluate_every:
        found = state.evaluate()
        _append(log, main, {"step": state.step, "seconds": state.elapsed, **found})
    state.keep(checkpoint, snapshot)
    return state.result()


class _Loss(nn.Module):
    """Loss of a batch of tasks, as a module so that it can be distributed and compiled."""

    def __init__(self, pfn: PFN) -> None:
        super().__init__()
        self.pfn = pfn

    def forward(self, batch: _Batch) -> tuple[Tensor, Tensor | None]:
        """Mean negative log density of the queries' y, and of their f where there is one."""
        pfn, task, told = self.pfn, batch.task, batch.told
        n = task.num_context
        noise = task.row_noise_var if told.noise else None
        encoding = _encoding(pfn, task, told, noise)
        query_noise = noise[:, n:] if noise is not None and told.query_noise else None
        logits_y, logits_f = pfn.decode(encoding, task.X[:, n:], noise_var=query_noise)
        weight = None if task.points is None else task.points[:, n:].to(task.y)
        if pfn.bars is None:
            target = task.y[:, n:, 0].long()
            nll = nn.functional.cross_entropy(logits_y.mT.float(), target, reduction="none")
            return _mean(nll, weight), None
        bars = pfn.bars

        def loss(logits: Tensor, target: Tensor) -> Tensor:
            z = (target[:, n:, 0] - encoding.location) / encoding.scale
            return _mean(-bars.log_prob(logits.float(), z), weight)

        if logits_f is None or task.f is None:
            unused = 0.0 if logits_f is None else 0.0 * logits_f.sum()  # DDP wants every gradient
            return loss(logits_y, task.y) + unused, None
        return loss(logits_y, task.y), loss(logits_f, task.f)


@dataclass(frozen=True)
class _Told:
    """What the network is told in one step."""

    noise: bool = False
    query_noise: bool = False
    appended: int = 0
    exact: bool = False


class _Batch:
    """Tasks and what is told of them; no dataclass, which Fabric would want to convert."""

    def __init__(self, task: Task, told: _Told | None = None) -> None:
        self.task, self.told = task, _Told() if told is None else told


def _encoding(pfn: PFN, task: Task, told: _Told, noise: Tensor | None) -> Encoding:
    """The context, its last `told.appended` rows appended to the others."""
    n = task.num_context
    first = n - told.appended
    mask = None if task.points is None else task.points[:, :first]
    encoding = pfn.encode(
        task.X[:, :first],
        task.y[:, :first, 0],
        mask=mask,
        noise_var=None if noise is None else noise[:, :first],
        categorical=task.categorical,
        num_classes=task.num_classes,
        codes=task.latents.get("column_codes"),
    )
    if told.appended == 0:
        return encoding
    rows = slice(first, n)
    y = task.y[:, rows, 0]
    noise = None if noise is None else noise[:, rows]
    if told.exact:
        assert task.f is not None
        y, noise = task.f[:, rows, 0], torch.zeros_like(y)
    return pfn.append(encoding, task.X[:, rows], y, noise_var=noise)


class _State:
    """Everything that a resumed run needs to go on as if nothing had happened."""

    def __init__(
        self,
        task_prior: TaskPrior,
        config: TrainingConfig,
        fabric: Fabric,
        reference: Reference | None,
        initial: PFN | None,
        held_out_prior: TaskPrior | None = None,
    ) -> None:
        self.task_prior, self.config, self.fabric = task_prior, config, fabric
        self.device = fabric.device
        self.step, self.elapsed, self.tasks, self.skipped, self.failed = 0, 0.0, 0, 0, 0
        self.typical_norm, self.best_loss = math.nan, math.inf
        self.covered = dict.fromkeys(_COVERED, 0)
        with seeded(config.seed):  # weights are made on the CPU, the same for every device
            self.pfn = _initial_network(task_prior, config, initial).to(self.device)
        # Processes share the weights but not the tasks, nor does a training with what it continues.
        stream = 1_000_003 * fabric.global_rank + (0 if initial is None else initial.tasks_seen)
        self.generator = torch.Generator(self.device).manual_seed(config.seed + 1 + stream)
        self.average = {k: p.detach().clone() for k, p in self.pfn.network.named_parameters()}
        self.best = {k: v.clone() for k, v in self.average.items()}
        self.held_out = self._held_out(held_out_prior or task_prior, reference)
        self.optimisers, self.peaks = _optimisers(self.pfn, config)
        if config.compile:
            # Block by block: they share one compilation, of a minute on a CPU. With all sizes
            # unknown that of the whole network did not end within seven.
            for block in self.pfn.network.blocks:
                block.compile(dynamic=True)
        self.loss, *wrapped = fabric.setup(_Loss(self.pfn), *self.optimisers)
        self.steppers = wrapped

    def out_of_time(self) -> bool:
        limit = self.config.time_limit
        return limit is not None and self.elapsed >= limit

    def schedule(self) -> float:
        share = self.step / self.config.steps
        if self.config.time_limit is not None:
            share = max(share, self.elapsed / self.config.time_limit)
        share = min(share, 1.0)
        warm = min(1.0, (self.step + 1) / max(1, self.config.warmup))
        if self.config.optimizer == "schedule-free":
            return warm
        match self.config.schedule:
            case "cosine":
                return warm * 0.5 * (1 + math.cos(math.pi * share))
            case "linear":
                return warm * (1 - share)
        return warm

    def advance(self) -> tuple[float, float]:
        """One step; returns the loss in nats per query and the norm of the gradient."""
        config, losses = self.config, []
        for optimiser in self.steppers:
            optimiser.zero_grad(set_to_none=True)
        for part in range(config.accumulate):
            task, told = self._draw()
            last = part + 1 == config.accumulate
            with self.fabric.no_backward_sync(self.loss, enabled=not last):
                with _attention(self.device):
                    loss_y, loss_f = self.loss(_Batch(task, told))
                loss = loss_y if loss_f is None else loss_y + 0.5 * loss_f
                self.fabric.backward(loss / config.accumulate)
            losses.append(loss_y.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.pfn.network.parameters(), config.clip)
        # Read together: a GPU is waited for once a step.
        total, norm = torch.stack([torch.stack(losses).mean().to(norm), norm]).tolist()
        total = self._over_processes(total, "mean")  # so that all of them take the step, or none
        self._descend(total, norm)
        self.step += 1
        self.tasks += config.batch * config.accumulate * self.fabric.world_size
        return total, norm

    def take(self, seed: int, *, draw_only: bool = False) -> None:
        """A step whose randomness begins at a seed, or only the draws of one: to be timed."""
        self.generator.manual_seed(seed)
        if not draw_only:
            self.advance()
            return
        for _ in range(self.config.accumulate):
            self._draw()

    def _over_processes(self, value: float, how: str) -> float:
        if self.fabric.world_size == 1:
            return value
        own = torch.tensor(value, dtype=torch.float64, device=self.device)
        shared = self.fabric.all_reduce(own, reduce_op=how)
        assert isinstance(shared, Tensor)
        return float(shared)

    def _draw(self) -> tuple[Task, _Told]:
        config = self.config
        task = _sample(self.task_prior, config, self.generator, self.device)
        uniform = RandomSource(self.generator).number
        noise = uniform() < config.known_noise and task.num_classes is None
        noise = noise and bool(task.noise_var.isfinite().all())
        query_noise = noise and uniform() < 0.5
        appended, exact, most = 0, False, 0
        # Padding can be hidden among encoded rows, not among appended ones.
        if task.num_context and task.points is None and uniform() < config.appended:
            most = min(config.max_buffer, task.num_context)
            appended = 1 + int(uniform() * most)
            exact = task.f is not None and uniform() < 0.5
        for name, value in zip(
            _COVERED, (task.num_context, most, noise, task.f is not None), strict=True
        ):
            self.covered[name] = max(self.covered[name], int(value))
        return task, _Told(noise, query_noise, appended, exact)

    def _descend(self, loss: float, norm: float) -> None:
        """Take the step, unless its gradient is useless."""
        finite = math.isfinite(loss) and math.isfinite(norm)
        spike = self.step > self.config.warmup and norm > self.config.spike * self.typical_norm
        if not finite or spike:
            self.skipped, self.failed = self.skipped + 1, self.failed + 1
            if self.failed >= _PATIENCE:
                raise RuntimeError(
                    f"The loss of step {self.step} is {loss}, the norm of its gradient {norm}, and "
                    f"{self.failed} steps in a row were unusable. Lower the learning rates, or "
                    "look for infinite values in the tasks."
                )
            return
        self.failed = 0
        known = math.isfinite(self.typical_norm)
        self.typical_norm = 0.98 * self.typical_norm + 0.02 * norm if known else norm
        factor = self.schedule()
        for optimiser, stepper, peak in zip(
            self.optimisers, self.steppers, self.peaks, strict=True
        ):
            for group in optimiser.param_groups:
                group["lr"] = peak * factor
            stepper.step()
        if self.config.optimizer == "schedule-free":
            return
        # A long average over the first steps would remember the initial weights.
        decay = min(self.config.average_decay, (1 + self.step) / (10 + self.step))
        parameters = dict(self.pfn.network.named_parameters())
        with torch.no_grad():
            torch._foreach_lerp_(
                [self.average[name] for name in parameters], list(parameters.values()), 1 - decay
            )

    def evaluate(self) -> dict[str, float]:
        """Loss of the average on the held-out tasks; remembers the best one."""
        if not self.held_out:
            return {}
        own = {k: p.detach().clone() for k, p in self.pfn.network.named_parameters()}
        self._take_schedule_free_average()
        self.pfn.network.load_state_dict(self.average, strict=False)
        losses, exact = [], []
        with torch.no_grad(), _attention(self.device):
            for task, known in self.held_out:
                y, _ = _Loss(self.pfn)(_Batch(task))
                losses.append(float(y))
                exact.append(known)
        self.pfn.network.load_state_dict(own, strict=False)
        loss = sum(losses) / len(losses)
        if loss < self.best_loss:
            self.best_loss = loss
            self.best = {k: v.clone() for k, v in self.average.items()}
        found = {"held_out": loss}
        if math.isfinite(sum(exact)):
            found["gap"] = loss - sum(exact) / len(exact)
        return found

    def _take_schedule_free_average(self) -> None:
        if self.config.optimizer != "schedule-free":
            return
        self.optimisers[0].eval()  # type: ignore[attr-defined]
        for name, parameter in self.pfn.network.named_parameters():
            self.average[name].copy_(parameter.detach())
        self.optimisers[0].train()  # type: ignore[attr-defined]

    def _held_out(
        self, task_prior: TaskPrior, reference: Reference | None
    ) -> list[tuple[Task, float]]:
        """Tasks with the loss of the reference in the network's units; the same on any device."""
        generator = torch.Generator().manual_seed(self.config.seed + 2**31)
        tasks = _fixed_tasks(task_prior, self.config, generator, self.config.held_out_tasks)
        found = []
        for task in tasks:
            task = task.to(self.device)
            exact = math.nan
            if reference is not None:
                n = task.num_context
                mask = None if task.points is None else task.points[:, :n]
                _, scale, _ = self.pfn.units(task.y[:, :n, 0], mask)
                exact = float(reference_nll(reference, task).mean() - scale.log().mean())
            found.append((task, exact))
        return found

    def keep(
        self,
        checkpoint: str | os.PathLike[str] | None,
        snapshot: str | os.PathLike[str] | None,
    ) -> None:
        """Write the state of the training, and the network as it would be returned now."""
        self.covered = self._covered()  # asks every process, also those that write nothing
        if checkpoint is not None:
            self.save(Path(checkpoint))
        if snapshot is not None and self.fabric.is_global_zero:
            self._finished(copy.deepcopy(self.pfn)).save(snapshot)

    def result(self) -> PFN:
        """The trained network."""
        self.covered = self._covered()
        return self._finished(self.pfn)

    def _finished(self, pfn: PFN) -> PFN:
        """The trained network in `pfn`, a copy of this training's or, at its end, that itself."""
        self._take_schedule_free_average()
        chosen = self.best if math.isfinite(self.best_loss) else self.average
        pfn.network.load_state_dict(chosen, strict=False)
        training = {
            "config": self.config.to_json(),
            "prior": describe(self.task_prior),
            "steps": self.step,
            "tasks": self.tasks,
            "seconds": round(self.elapsed, 1),
            "skipped": self.skipped,
        }
        earlier = pfn.metadata.get("training")
        pfn.metadata["training"] = training if earlier is None else {**training, "from": earlier}
        covered = self.covered
        pfn.metadata |= covered | {k: bool(covered[k]) for k in ("known_noise", "function")}
        return pfn.eval()

    def _covered(self) -> dict[str, int]:
        return {k: int(self._over_processes(v, "max")) for k, v in self.covered.items()}

    def save(self, path: Path) -> None:
        states = self.fabric.all_gather(self.generator.get_state())
        assert isinstance(states, Tensor)
        if not self.fabric.is_global_zero:
            return
        tensors: dict[str, Tensor] = {"generators": states.reshape(self.fabric.world_size, -1)}
        tensors |= {f"network.{k}": v for k, v in self.pfn.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        for i, optimiser in enumerate(self.optimisers):
            for index, values in optimiser.state_dict()["state"].items():
                for key, value in values.items():
                    if not isinstance(value, Tensor):
                        value = torch.tensor(value, device="cpu")
                    tensors[f"optimiser.{i}.{index}.{key}"] = value
        description: dict[str, Any] = {"config": self.config.to_json(), **self._of_the_run()}
        description["network"] = {name: getattr(self.pfn, name) for name in _UNITS}
        description["tail_scale"] = None if self.pfn.bars is None else self.pfn.bars.tail_scale
        # Schedule-free averages have their weights there.
        description["groups"] = [
            [{k: v for k, v in group.items() if isinstance(v, int | float)} for group in groups]
            for groups in (optimiser.param_groups for optimiser in self.optimisers)
        ]
        description |= {name: getattr(self, name) for name in _COUNTERS}
        description |= {
            name: getattr(self, name) if math.isfinite(getattr(self, name)) else None
            for name in _UNKNOWN_AT_FIRST
        }
        write_safetensors_atomically(path, tensors, kind="PFN training", description=description)

    def load(self, path: Path) -> None:
        tensors, description = read_safetensors(path, kind="PFN training")
        if description["config"] != json.loads(json.dumps(self.config.to_json())):
            raise ValueError(
                f"{path} was written by a training with another configuration; pass that one, or "
                "another checkpoint file."
            )
        generators = tensors["generators"]
        if len(generators) != self.fabric.world_size:
            raise ValueError(
                f"{path} was written by {len(generators)} processes, this training has "
                f"{self.fabric.world_size}; start as many."
            )
        for name, own in self._of_the_run().items():
            if own and description[name] and description[name] != own:
                raise ValueError(
                    f"{path} was written by a training with another {name}: {description[name]}, "
                    f"here {own}. Pass the same, or another checkpoint file."
                )
        for name in _UNITS:
            setattr(self.pfn, name, description["network"][name])
        if self.pfn.bars is not None:
            self.pfn.bars.tail_scale = description["tail_scale"]
        for name in _COUNTERS:
            setattr(self, name, description[name])
        for name in _UNKNOWN_AT_FIRST:
            if description[name] is not None:
                setattr(self, name, description[name])
        self.generator.set_state(generators[self.fabric.global_rank].cpu())
        self.pfn.load_state_dict(_under("network", tensors))
        self.average = {k: v.to(self.device) for k, v in _under("average", tensors).items()}
        self.best = {k: v.to(self.device) for k, v in _under("best", tensors).items()}
        for i, optimiser in enumerate(self.optimisers):
            values: dict[int, dict[str, Tensor]] = {}
            for name, value in _under(f"optimiser.{i}", tensors).items():
                index, key = name.split(".", 1)
                values.setdefault(int(index), {})[key] = value
            groups = zip(
                optimiser.state_dict()["param_groups"], description["groups"][i], strict=True
            )
            known = [{**group, **saved} for group, saved in groups]
            optimiser.load_state_dict({"param_groups": known, "state": values})

    def _of_the_run(self) -> dict[str, str]:
        """What a resumed run must have in common, beside the configuration, where it is known."""
        prior = self.task_prior
        known = type(prior).__repr__ is not object.__repr__
        return {
            "prior": describe(prior),
            "prior (its repr)": re.sub(" at 0x[0-9a-fA-F]+", "", repr(prior)) if known else "",
            "device": self.device.type,
        }


def _heads_for(
    new: BarDistribution, old: BarDistribution, values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Nodes, and heads whose log densities there are those of the old heads, interpolated."""
    b, at = old.borders, new.borders
    right = torch.searchsorted(b, at).clamp(1, len(b) - 1)
    share = ((at - b[right - 1]) / (b[right] - b[right - 1])).clamp(0, 1)
    before, after = old._areas(b).log(), new._areas(at).log()
    found = {"bars.borders": at}
    for head in ("network.head_y", "network.head_f"):
        weight, bias = (values[f"{head}.{kind}"].to(at) for kind in ("weight", "bias"))
        height = bias - before
        found[f"{head}.weight"] = torch.lerp(weight[right - 1], weight[right], share[:, None])
        found[f"{head}.bias"] = torch.lerp(height[right - 1], height[right], share) + after
    return found


_COUNTERS = ("step", "elapsed", "tasks", "skipped", "failed", "covered")
_COVERED = ("max_context", "max_buffer", "known_noise", "function")  # what the tasks had
_UNITS = ("prior_location", "prior_scale", "metadata")
_UNKNOWN_AT_FIRST = ("typical_norm", "best_loss")  # not finite then, which JSON cannot hold


def _fabric(device: torch.device, precision: str) -> Fabric:
    from lightning_fabric import Fabric  # loads torch's compiler, which only training needs

    kind = {"cuda": "cuda", "mps": "mps"}.get(device.type, "cpu")
    options: Any = {"accelerator": kind, "precision": precision}
    # What torchrun tells its processes.
    world, local = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if world > 1:
        fabric = Fabric(devices=local, num_nodes=world // local, strategy="ddp", **options)
        fabric.launch()
        return fabric
    return Fabric(devices=[device.index or 0] if kind == "cuda" else 1, **options)


def _attention(device: torch.device) -> AbstractContextManager[None]:
    """Kernels without a plan for each shape: sizes of tasks differ, and cuDNN plans for 0.4 s."""
    if device.type != "cuda":
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with_any_shape = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return cast(AbstractContextManager[None], sdpa_kernel(with_any_shape))


def _optimisers(
    pfn: PFN, config: TrainingConfig
) -> tuple[list[torch.optim.Optimizer], tuple[float, ...]]:
    """Optimisers and their peak learning rates."""
    named = {k: p for k, p in pfn.network.named_parameters() if p.requires_grad}
    inside = ("blocks.", "cells.layers.")
    matrices = [p for k, p in named.items() if k.startswith(inside) and p.dim() == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in named.values() if id(p) not in chosen]
    rate, decay = config.learning_rate, config.weight_decay
    match config.optimizer:
        case "muon":
            muon = Muon(matrices, lr=config.matrix_learning_rate, weight_decay=decay)
            rest = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
            return [muon, rest], (config.matrix_learning_rate, rate)
        case "adamw":
            groups = [
                {"params": matrices, "weight_decay": decay},
                {"params": others, "weight_decay": 0.0},
            ]
            return [torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))], (rate,)
    try:
        from schedulefree import AdamWScheduleFree
    except ImportError as error:
        raise ImportError(
            "optimizer='schedule-free' needs the package schedulefree: pip install schedulefree."
        ) from error
    free = AdamWScheduleFree(list(named.values()), lr=rate, weight_decay=decay)
    free.train()
    return [free], (rate,)


def _sample(
    task_prior: TaskPrior, config: TrainingConfig, generator: torch.Generator, device: torch.device
) -> Task:
    """Tasks, with fresh codes for their columns where the network has cells."""
    task = task_prior.sample(config.batch, generator=generator, device=device, dtype=torch.float32)
    if task.points is not None:  # whatever padding holds, NaN too: weights of 0 would keep that
        there = task.points[..., None]
        task = replace(
            task,
            X=torch.where(there, task.X, 0),
            y=torch.where(there, task.y, 0),
            f=None if task.f is None else torch.where(there, task.f, 0),
        )
    # Always one draw, so that networks of both kinds are trained and compared on the same tasks.
    seed = int(torch.randint(2**62, (), generator=generator, device=device))
    if config.architecture.cell_layers:
        shape = (len(task.X), task.X.shape[-1], CODE_SIZE)
        own = torch.Generator(device).manual_seed(seed)
        task.latents["column_codes"] = torch.randn(shape, generator=own, device=device)
    return task


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    return values.mean() if weight is None else (values * weight).sum() / weight.sum().clamp_min(1)


def _fixed_tasks(
    task_prior: TaskPrior, config: TrainingConfig, generator: torch.Generator, count: int
) -> list[Task]:
    """At least `count` tasks on the CPU, in batches that do not depend on that of the training."""
    config = replace(config, batch=config.held_out_batch or config.batch)
    batches = -(-count // config.batch)
    return [_sample(task_prior, config, generator, generator.device) for _ in range(batches)]


def _initial_network(task_prior: TaskPrior, config: TrainingConfig, initial: PFN | None) -> PFN:
    """A network whose units and bars fit the prior's targets, with the weights of `initial`."""
    generator = torch.Generator().manual_seed(config.seed)
    initial = None if initial is None else copy.deepcopy(initial).cpu()
    as_before = initial is not None and config.architecture == initial.architecture
    # Of a network that keeps its bars only what the tasks cover is asked.
    count = min(config.border_tasks, _COVER) if as_before else config.border_tasks
    tasks = _fixed_tasks(task_prior, config, generator, count)
    _check_tasks(tasks, config.architecture)
    covered = _covered_by(tasks, task_prior, config, initial)
    if initial is not None and as_before:
        values = initial.state_dict()
        return _with(initial, initial.architecture, config, initial.bars, values, covered)
    made = _fitting_network(tasks, config, covered)
    return made if initial is None else _started_from(initial, made, config)


def _check_tasks(tasks: list[Task], architecture: ArchitectureConfig) -> None:
    """Refuse an architecture that the tasks do not fit."""
    features = max(task.X.shape[-1] for task in tasks)
    if features > architecture.max_features:
        raise ValueError(
            f"The prior draws tasks with {features} features, the network has slots for "
            f"{architecture.max_features}; raise ArchitectureConfig.max_features."
        )
    classes = [int(task.num_classes.max()) for task in tasks if task.num_classes is not None]
    if (len(classes) > 0) != (architecture.classes > 0):
        raise ValueError(
            "ArchitectureConfig.classes must be positive for a prior of classification tasks, and "
            f"0 for one of regression; it is {architecture.classes}."
        )
    if classes and max(classes) > architecture.classes:
        raise ValueError(
            f"The prior draws {max(classes)} classes, the network has "
            f"{architecture.classes}; raise ArchitectureConfig.classes."
        )


def _covered_by(
    tasks: list[Task], task_prior: TaskPrior, config: TrainingConfig, initial: PFN | None
) -> dict[str, Any]:
    """What the tasks cover, and those of the trainings before."""
    before = {} if initial is None else initial.metadata
    covered: dict[str, Any] = {
        "missing": any(bool(task.X.isnan().any()) for task in tasks)
        or before.get("missing", False),
        "categorical": any(task.categorical is not None for task in tasks)
        or before.get("categorical", False),
        "exchangeable": exchangeable(task_prior) and before.get("exchangeable", True),
    }
    if config.inputs == "raw":
        seen = torch.cat([task.X[task.X.isfinite()] for task in tasks])
        low, high = before.get("input_range", (math.inf, -math.inf))
        covered["input_range"] = [min(low, float(seen.min())), max(high, float(seen.max()))]
    return covered


def _fitting_network(tasks: list[Task], config: TrainingConfig, covered: dict[str, Any]) -> PFN:
    """An untrained network whose units and bars fit the targets of the tasks."""
    if config.architecture.classes:
        return PFN(config.architecture, None, inputs=config.inputs, targets="raw", metadata=covered)
    y = torch.cat(
        [t.y[..., 0].flatten() if t.points is None else t.y[t.points][:, 0] for t in tasks]
    )

    def network(borders: Tensor, tail_scale: float) -> PFN:
        return PFN(
            replace(config.architecture, bars=len(borders)),
            borders,
            tail_scale=tail_scale,
            inputs=config.inputs,
            targets=config.targets,
            prior_location=float(y.mean()),
            prior_scale=float(y.std()),
            metadata=covered,
        )

    empty = network(torch.tensor([0.0, 1.0]), 1.0)
    targets, narrowest = [], []
    # A few rows are a bad standard: what is far out in their units is left to the tails.
    fewest = _SETTLED if config.targets == "standardised" else 0
    for task in [task for task in tasks if task.num_context >= fewest] or tasks:
        n = task.num_context
        mask = None if task.points is None else task.points[:, :n]
        location, scale, _ = empty.units(task.y[:, :n, 0], mask)
        z = (task.y[:, n:, 0] - location) / scale
        targets.append(z.flatten() if task.points is None else z[task.points[:, n:]])
        if task.f is not None:
            means = (task.f[:, n:, 0] - location) / scale
            sds = task.row_noise_var[:, n:].sqrt() / scale
            narrowest.append(torch.stack([means, sds])[:, :, 0])  # a query of each task will do
    bars = config.architecture.bars or _enough_bars(torch.cat(targets), narrowest)
    borders, tail_scale = place_nodes(torch.cat(targets), bars)
    return network(borders, tail_scale)


def _started_from(initial: PFN, made: PFN, config: TrainingConfig) -> PFN:
    """The weights of `initial` in a network like `made`: larger, or with other bars."""
    values, bars = initial.state_dict(), initial.bars
    if bars is not None and made.bars is not None and bars.num_logits != made.bars.num_logits:
        values |= _heads_for(made.bars, bars, values)
        bars = made.bars
    weights = grown(_under("network", values), initial.architecture, made.architecture)
    values |= {f"network.{name}": value for name, value in weights.items()}
    return _with(initial, made.architecture, config, bars, values, made.metadata)


def _with(
    initial: PFN,
    architecture: ArchitectureConfig,
    config: TrainingConfig,
    bars: BarDistribution | None,
    values: Mapping[str, Tensor],
    covered: Mapping[str, Any],
) -> PFN:
    """A network of this architecture, bars and weights, in the units of `initial`."""
    pfn = PFN(
        architecture if bars is None else replace(architecture, bars=bars.num_logits),
        None if bars is None else bars.borders,
        tail_scale=1.0 if bars is None else bars.tail_scale,
        tail_index=5.0 if bars is None else bars.tail_index,
        inputs=config.inputs,
        targets=config.targets,
        prior_location=initial.prior_location,
        prior_scale=initial.prior_scale,
        metadata={**covered, "training": initial.metadata.get("training")},
    )
    pfn.load_state_dict(values)
    return pfn


def _enough_bars(targets: Tensor, narrowest: list[Tensor]) -> int:
    """Nodes that represent every posterior of y: none is narrower than its noise."""
    known = torch.cat(narrowest, dim=1) if narrowest else targets.new_empty(2, 0)
    known = known[:, known[1].isfinite() & (known[1] > 0)][:, :200]
    if known.shape[1] == 0:
        raise ValueError(
            "ArchitectureConfig.bars = 0 chooses the number of nodes by the noise of the prior's "
            "tasks, but none of them has a function and a finite noise variance; state a number."
        )
    return choose_num_nodes(targets, known[0].double(), known[1].double())


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}


def _append(path: str | os.PathLike[str] | None, main: bool, entry: Mapping[str, Any]) -> None:
    if path is not None and main:
        with open(path, "a") as file:
            file.write(json.dumps(entry) + "\n")
