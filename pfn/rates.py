"""The speed of a training on a device, by batch and precision, and the choice of both.

A GPU is idle at the batch that suits a CPU. `probe` takes a few steps at a time at growing batches,
all with the same sizes of tasks, and chooses the batch that makes the most progress: smaller ones
make more steps of the same tasks. Steps to a given loss are about in proportion to 1 + C / B for
batches of B, where C is the critical batch (McCandlish et al. 2018, 1812.06162, equation 5.1), so
that time is in proportion to (B + C) / rate.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from tqdm.auto import tqdm

from pfn.prior_fitted_network import PFN
from pfn.training.config import TrainingConfig
from pfn.training.fabric import make_fabric
from pfn.training.state import TrainingState
from priors.tasks.task import TaskPrior

__all__ = ["PROBED", "Probe", "Rate", "probe"]

# Fields of a configuration that a probe sets.
PROBED = ("batch", "precision", "compile", "held_out_batch", "evaluate_every")

_FACTOR = 4  # from one batch to the next
_GAIN = 1.1  # a larger batch that is not faster by this factor is the last one tried
_CRITICAL = 1024  # tasks; assumed, not measured: it grows as the loss falls
_COMPILED_GAIN = 1.15  # compilation must pay for its minutes
_WARM_UP = 2


@dataclass(frozen=True)
class Rate:
    """What was measured with some settings.

    Attributes:
        batch: Tasks per step.
        precision: See `TrainingConfig`.
        compile: See `TrainingConfig`.
        tasks_per_second: Tasks per second of wall-clock time, drawing included.
        drawing: Share of that time that drawing tasks takes alone.
        memory: Largest memory of the steps on a GPU in GiB; None on a CPU.
    """

    batch: int
    precision: str
    compile: bool
    tasks_per_second: float
    drawing: float
    memory: float | None

    def __str__(self) -> str:
        compiled = ", compiled" if self.compile else ""
        memory = "" if self.memory is None else f", {self.memory:.1f} GiB"
        return (
            f"batch {self.batch:5d}, {self.precision}{compiled}: {self.tasks_per_second:8.1f} "
            f"tasks/s, {self.drawing:.0%} of the time drawing{memory}"
        )


@dataclass(frozen=True)
class Probe:
    """Measured rates, and a configuration with the settings chosen.

    Attributes:
        rates: In the order in which they were measured.
        chosen: One of them.
        config: The configuration with these settings. Held-out tasks are drawn as before, so that
            losses compare with those of other devices.
    """

    rates: tuple[Rate, ...]
    chosen: Rate
    config: TrainingConfig

    def __str__(self) -> str:
        return "\n".join(f"{rate}{' *' if rate is self.chosen else ''}" for rate in self.rates)


def probe(
    task_prior: TaskPrior,
    config: TrainingConfig | None = None,
    *,
    device: torch.device | str | None = None,
    seconds: float = 30.0,
    steps: int = 8,
    try_compile: bool = False,
    initial: PFN | None = None,
    progress: bool = True,
) -> Probe:
    """Measure rates and choose batch, precision and compilation.

    Args:
        task_prior: The prior that draws the tasks.
        config: Sizes and schedule; its batch is the smallest tried.
        device: Device to train on; if None, the GPU when there is one.
        seconds: After so many no further setting is tried; the first one always is.
        steps: Steps of a measurement; the sizes of their tasks are the same in all.
        try_compile: Whether to try `torch.compile` with the chosen batch, which takes a minute.
        initial: See `train`.
        progress: Show a progress bar.

    Raises:
        ValueError: the prior and the configuration do not fit; see `train`.
    """
    config = TrainingConfig() if config is None else config
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    small = replace(
        config,
        held_out_batch=config.held_out_batch or config.batch,
        border_tasks=min(config.border_tasks, 128),
        held_out_tasks=1,
        compile=False,
    )
    started = time.monotonic()
    rates: list[Rate] = []
    precisions = [config.precision]
    if device.type == "cuda":
        precisions = ["bf16-mixed", "32-true"]
    with tqdm(total=seconds, disable=not progress, desc="probe", bar_format=_BAR) as bar:

        def in_time() -> bool:
            bar.n = min(seconds, time.monotonic() - started)
            bar.refresh()
            return bar.n < seconds

        for precision in precisions:
            batch, before = config.batch, 0.0
            while not rates or in_time():
                rate = _measure(task_prior, small, device, initial, steps, batch, precision)
                if rate is None:  # out of memory
                    break
                rates.append(rate)
                if rate.tasks_per_second < _GAIN * before:
                    break
                batch, before = batch * _FACTOR, rate.tasks_per_second
        if not rates:
            raise RuntimeError(
                f"A step of {config.batch} tasks does not fit into the memory of {device}; lower "
                "TrainingConfig.batch and raise accumulate."
            )
        parts = config.accumulate
        chosen = max(
            rates, key=lambda rate: rate.tasks_per_second / (rate.batch * parts + _CRITICAL)
        )
        if try_compile and in_time():
            compiled = _measure(
                task_prior,
                replace(small, compile=True),
                device,
                initial,
                steps,
                chosen.batch,
                chosen.precision,
            )
            if compiled is not None:
                rates.append(compiled)
                if compiled.tasks_per_second > _COMPILED_GAIN * chosen.tasks_per_second:
                    chosen = compiled
    # Held-out losses about twice a minute, so that the best network is not an old one.
    every = round(30 * chosen.tasks_per_second / (chosen.batch * config.accumulate))
    every = min(config.evaluate_every, max(100, every))
    found = chosen.batch, chosen.precision, chosen.compile, small.held_out_batch, every
    changes: dict[str, Any] = dict(zip(PROBED, found, strict=True))
    return Probe(tuple(rates), chosen, replace(config, **changes))


_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"


def _measure(
    task_prior: TaskPrior,
    config: TrainingConfig,
    device: torch.device,
    initial: PFN | None,
    steps: int,
    batch: int,
    precision: str,
) -> Rate | None:
    """One setting; None where it needs more memory than there is."""
    config = replace(config, batch=batch, precision=precision)
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        state = TrainingState(task_prior, config, make_fabric(device, precision), None, initial)
        for step in range(_WARM_UP):
            state.take(step)
        seconds = _seconds(state, steps, draw_only=False)
        drawing = _seconds(state, steps, draw_only=True)
    except torch.OutOfMemoryError:
        if gpu:
            torch.cuda.empty_cache()
        return None
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if gpu else None
    tasks = steps * batch * config.accumulate
    share = min(1.0, drawing / seconds)
    return Rate(batch, precision, config.compile, tasks / seconds, share, memory)


def _seconds(state: TrainingState, steps: int, *, draw_only: bool) -> float:
    """Of some steps by the clock, or of their draws; step i has tasks of the same size in all."""
    gpu = state.device.type == "cuda"
    if gpu:
        torch.cuda.synchronize(state.device)
    start = time.perf_counter()
    for step in range(steps):
        state.take(_WARM_UP + step, draw_only=draw_only)
    if gpu:
        torch.cuda.synchronize(state.device)
    return time.perf_counter() - start
