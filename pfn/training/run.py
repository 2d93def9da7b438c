"""Training of a prior-data fitted network on tasks drawn afresh at every step.

The loss is the mean negative log density of the query targets under the predicted distribution, in
the network's units; its minimiser over all functions of the context is the exact posterior
predictive (Mueller et al. 2022, 2112.10510, corollary 1.1). Where tasks carry their noise-free
function, a second head learns its posterior the same way.

Steps differ in what the network is given, so that it can be given the same later: in some the noise
variances are known, and in some the last context rows are appended to the encoded others, as noisy
targets or as exact values of the function. That is what joint samples and fantasies need.

Matrices inside the blocks are trained by Muon, everything else by AdamW; the result is the
exponential moving average of the weights, the best one by loss on held-out tasks. One schedule
follows the share of the steps or of the time limit, whichever is further on, so that a run on a
slow machine still ends annealed. Devices, several processes and mixed precision go through
Lightning Fabric.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from pfn.prior_fitted_network import PFN
from pfn.references import Reference
from pfn.training.checkpoint import load_state
from pfn.training.config import TrainingConfig
from pfn.training.fabric import make_fabric
from pfn.training.outcome import Outcome, measure_outcome
from pfn.training.sizes import RATES, choose_sizes, chosen_by_time
from pfn.training.state import TrainingState
from priors.files import read_safetensors
from priors.tasks.task import TaskPrior

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["train"]


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

    After a training with a time limit, where there is a `reference` or the prior has an `oracle`,
    the distance to it is measured on 64 tasks, told beside the progress bar, and recorded as
    "outcome" in the network's `trainings`. It is that to the exact posterior, or at least as large
    (see `oracle_is`). Other priors are told the "gain" over mean and deviation of the context.

    Args:
        task_prior: The prior that draws the tasks.
        config: Sizes and schedule. With a time limit, the default sizes of the network and the
            default number of steps, sizes are those that the time can train on the device, as
            measured; batch and learning rates follow unless they are given, and so do the
            slots where all tasks have equally many features.
        device: Device to train on; if None, the GPU when there is one.
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
        metadata: Further metadata to store with the network, as plain JSON values.

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
        fabric = make_fabric(torch.device(device), config.precision)
    if initial is None and chosen_by_time(config):
        begun = resume and checkpoint is not None and Path(checkpoint).exists()
        config = (
            _as_begun(config, Path(str(checkpoint)))
            if begun
            else choose_sizes(task_prior, config, fabric)
        )
    state = TrainingState(task_prior, config, fabric, reference, initial, held_out_prior)
    state.pfn.metadata |= dict(metadata or {})
    if resume and checkpoint is not None and Path(checkpoint).exists():
        load_state(state, Path(checkpoint))
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
                entry: dict[str, Any] = {"step": state.step, "loss": loss, "norm": norm}
                entry |= {"tasks": state.tasks}
                _append(
                    log, main, {**entry, "seconds": state.elapsed, "skipped": state.descent.skipped}
                )
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
    made = state.result()
    outcome = None
    if main and config.time_limit is not None:
        outcome = measure_outcome(
            made, held_out_prior or task_prior, config, state.device, reference
        )
    if outcome is not None:
        kind = "outcome" if isinstance(outcome, Outcome) else "gain"
        made.metadata["training"][kind] = asdict(outcome)
        if progress:
            bar.write(outcome.sentence(state.elapsed), file=sys.stderr)
        if snapshot is not None:
            made.save(snapshot)
    return made


def _as_begun(config: TrainingConfig, checkpoint: Path) -> TrainingConfig:
    """With the sizes that were chosen when the training began."""
    _, description = read_safetensors(checkpoint, kind="PFN training")
    begun = TrainingConfig.from_json(description["config"])
    chosen = ("architecture", "batch", "held_out_batch", "steps", *RATES)
    return replace(config, **{name: getattr(begun, name) for name in chosen})


def _append(path: str | os.PathLike[str] | None, main: bool, entry: Mapping[str, Any]) -> None:
    if path is not None and main:
        with open(path, "a") as file:
            file.write(json.dumps(entry) + "\n")
