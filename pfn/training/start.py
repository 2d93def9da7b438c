"""The network that a training starts with: a new one, or another one's weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from pfn.architecture import ArchitectureConfig
from pfn.coverage import Coverage
from pfn.distribution import BarDistribution, choose_num_nodes, place_nodes
from pfn.growth import grown
from pfn.prior_fitted_network import PFN
from pfn.training.config import TrainingConfig
from pfn.training.tasks import fixed_tasks
from priors.files import tensors_under
from priors.tasks.task import Task, TaskPrior, exchangeable

__all__ = ["initial_network"]

_SETTLED = 8  # context rows whose deviation is worth something
_COVER = 128  # tasks that show what a prior covers


def initial_network(task_prior: TaskPrior, config: TrainingConfig, initial: PFN | None) -> PFN:
    """A network whose units and bars fit the prior's targets, with the weights of `initial`."""
    generator = torch.Generator().manual_seed(config.seed)
    initial = None if initial is None else copy.deepcopy(initial).cpu()
    as_before = initial is not None and config.architecture == initial.architecture
    # Of a network that keeps its bars only what the tasks cover is asked.
    count = min(config.border_tasks, _COVER) if as_before else config.border_tasks
    tasks = fixed_tasks(task_prior, config, generator, count)
    _check_tasks(tasks, config.architecture)
    covered = _covered_by(tasks, task_prior, config, initial)
    if initial is not None and as_before:
        values = initial.state_dict()
        return _with(initial, initial.architecture, config, initial.bars, values, covered)
    made = _fitting_network(tasks, config, covered)
    if config.inputs == "raw" and not config.architecture.cell_layers:
        _spread_inputs(made, tasks)
    return made if initial is None else _started_from(initial, made, config)


def _check_tasks(tasks: list[Task], architecture: ArchitectureConfig) -> None:
    """Refuse an architecture that the tasks do not fit."""
    features = max(task.X.shape[-1] for task in tasks)
    if features > architecture.max_features:
        raise ValueError(
            f"The prior draws tasks with {features} features, but the network has slots for "
            f"only {architecture.max_features}; raise ArchitectureConfig.max_features."
        )
    classes = [int(task.num_classes.max()) for task in tasks if task.num_classes is not None]
    if (len(classes) > 0) != (architecture.classes > 0):
        raise ValueError(
            "ArchitectureConfig.classes must be positive for a prior of classification tasks, and "
            f"0 for one of regression; it is {architecture.classes}."
        )
    if classes and max(classes) > architecture.classes:
        raise ValueError(
            f"The prior draws {max(classes)} classes, but the network has only "
            f"{architecture.classes}; raise ArchitectureConfig.classes."
        )


def _covered_by(
    tasks: list[Task], task_prior: TaskPrior, config: TrainingConfig, initial: PFN | None
) -> Coverage:
    """What the tasks cover before any step, and the trainings before."""
    input_range = target_range = None
    if config.inputs == "raw":
        input_range = _range([task.X for task in tasks])
    if config.targets != "standardised" and not config.architecture.classes:
        there = [task.y if task.points is None else task.y[task.points] for task in tasks]
        target_range = _range(there)
    covered = Coverage(
        max_context=0,
        max_buffer=0,
        missing=any(bool(task.X.isnan().any()) for task in tasks),
        categorical=any(task.categorical is not None for task in tasks),
        known_noise=False,
        function=False,
        exchangeable=exchangeable(task_prior),
        input_range=input_range,
        target_range=target_range,
        num_features=0,
    )
    if initial is None:
        return covered
    before = initial.coverage
    if before.num_features is None:
        before = replace(before, num_features=initial.architecture.max_features)
    return covered.joined(before)


def _range(values: list[Tensor]) -> tuple[float, float]:
    """Least and largest."""
    seen = torch.cat([part[part.isfinite()] for part in values])
    return float(seen.min()), float(seen.max())


def _fitting_network(tasks: list[Task], config: TrainingConfig, covered: Coverage) -> PFN:
    """An untrained network whose units and bars fit the targets of the tasks."""
    if config.architecture.classes:
        return PFN(
            config.architecture,
            None,
            inputs=config.inputs,
            targets="raw",
            metadata=covered.to_json(),
        )
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
            metadata=covered.to_json(),
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


def _spread_inputs(pfn: PFN, tasks: list[Task]) -> None:
    """Let hidden units start with variance 1 over the inputs of the tasks, whatever their units.

    Where inputs hardly move them, as those from 0 to 1 among slots without a feature, a network
    takes most of a short training to tell rows apart.
    """
    embed = pfn.network.embed_x
    assert isinstance(embed, nn.Sequential)
    first = embed[0]
    assert isinstance(first, nn.Linear)
    columns: list[list[Tensor]] = [[] for _ in range(pfn.architecture.max_features)]
    for task in tasks:
        there = task.X if task.points is None else task.X[task.points]
        for column, values in zip(columns, there.flatten(0, -2).unbind(-1), strict=False):
            column.append(values[values.isfinite()])
    number = max(task.X.shape[-1] for task in tasks)
    with torch.no_grad():
        for slot, parts in enumerate(columns):
            values = torch.cat(parts) if parts else torch.empty(0)
            if len(values) < 2 or values.std() == 0:
                continue
            weights = torch.randn(len(first.weight)) / (number**0.5 * values.std())
            first.weight[:, slot] = weights
            first.bias.sub_(weights * values.mean())


def _started_from(initial: PFN, made: PFN, config: TrainingConfig) -> PFN:
    """The weights of `initial` in a network like `made`: larger, or with other bars."""
    values, bars = initial.state_dict(), initial.bars
    if bars is not None and made.bars is not None and bars.num_logits != made.bars.num_logits:
        values |= _heads_for(made.bars, bars, values)
        bars = made.bars
    weights = grown(tensors_under("network", values), initial.architecture, made.architecture)
    values |= {f"network.{name}": value for name, value in weights.items()}
    return _with(initial, made.architecture, config, bars, values, made.coverage)


def _with(
    initial: PFN,
    architecture: ArchitectureConfig,
    config: TrainingConfig,
    bars: BarDistribution | None,
    values: Mapping[str, Tensor],
    covered: Coverage,
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
        metadata={**covered.to_json(), "training": initial.metadata.get("training")},
    )
    pfn.load_state_dict(values)
    return pfn


def _heads_for(
    new: BarDistribution, old: BarDistribution, values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Nodes, and heads whose log densities there are those of the old heads, interpolated."""
    b, at = old.borders, new.borders
    right = torch.searchsorted(b, at).clamp(1, len(b) - 1)
    share = ((at - b[right - 1]) / (b[right] - b[right - 1])).clamp(0, 1)
    before, after = old.areas(b).log(), new.areas(at).log()
    found = {"bars.borders": at}
    for head in ("network.head_y", "network.head_f"):
        weight, bias = (values[f"{head}.{kind}"].to(at) for kind in ("weight", "bias"))
        height = bias - before
        found[f"{head}.weight"] = torch.lerp(weight[right - 1], weight[right], share[:, None])
        found[f"{head}.bias"] = torch.lerp(height[right - 1], height[right], share) + after
    return found


def _enough_bars(targets: Tensor, narrowest: list[Tensor]) -> int:
    """Nodes that represent every posterior of y: none is narrower than its noise."""
    known = torch.cat(narrowest, dim=1) if narrowest else targets.new_empty(2, 0)
    known = known[:, known[1].isfinite() & (known[1] > 0)][:, :200]
    if known.shape[1] == 0:
        raise ValueError(
            "ArchitectureConfig.bars = 0 chooses the number of nodes by the noise of the "
            "prior's tasks, but none of them has a function and a finite noise variance; set a "
            "number."
        )
    return choose_num_nodes(targets, known[0].double(), known[1].double())
