"""The state of a training as a file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pfn.coverage import Coverage
from priors.files import read_safetensors, tensors_under, write_safetensors_atomically
from priors.tasks.task import TaskPrior, describe

if TYPE_CHECKING:
    from pfn.training.state import TrainingState

__all__ = ["load_state", "save_state"]

_KIND = "PFN training"
_COUNTERS = ("step", "elapsed", "tasks")
_OF_DESCENT = ("skipped", "failed")
_UNITS = ("prior_location", "prior_scale", "metadata")


def save_state(state: TrainingState, path: Path) -> None:
    """Write the state; of several processes the first one does, and all must call this."""
    states = state.fabric.all_gather(state.generator.get_state())
    assert isinstance(states, Tensor)
    if not state.fabric.is_global_zero:
        return
    pfn, descent, average = state.pfn, state.descent, state.average
    tensors: dict[str, Tensor] = {"generators": states.reshape(state.fabric.world_size, -1)}
    tensors |= {f"network.{k}": v for k, v in pfn.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.weights.items()}
    tensors |= {f"best.{k}": v for k, v in average.best.items()}
    for i, optimiser in enumerate(descent.optimisers):
        for index, values in optimiser.state_dict()["state"].items():
            for key, value in values.items():
                if not isinstance(value, Tensor):
                    value = torch.tensor(value, device="cpu")
                tensors[f"optimiser.{i}.{index}.{key}"] = value
    description: dict[str, Any] = {"config": state.config.to_json(), **_of_the_run(state)}
    description["network"] = {name: getattr(pfn, name) for name in _UNITS}
    description["tail_scale"] = None if pfn.bars is None else pfn.bars.tail_scale
    # Schedule-free averages have their weights there.
    description["groups"] = [
        [{k: v for k, v in group.items() if isinstance(v, int | float)} for group in groups]
        for groups in (optimiser.param_groups for optimiser in descent.optimisers)
    ]
    description |= {name: getattr(state, name) for name in _COUNTERS}
    description |= {name: getattr(descent, name) for name in _OF_DESCENT}
    description["covered"] = state.covered.to_json()
    # Not finite at first, which JSON cannot hold.
    description["typical_norm"] = _finite(descent.typical_norm)
    description["best_loss"] = _finite(average.best_loss)
    write_safetensors_atomically(path, tensors, kind=_KIND, description=description)


def load_state(state: TrainingState, path: Path) -> None:
    """Go on where `save_state` was called.

    Raises:
        ValueError: the file is of another training.
    """
    tensors, description = read_safetensors(path, kind=_KIND)
    _check(state, path, description, len(tensors["generators"]))
    pfn, descent, average = state.pfn, state.descent, state.average
    for name in _UNITS:
        setattr(pfn, name, description["network"][name])
    if pfn.bars is not None:
        pfn.bars.tail_scale = description["tail_scale"]
    for name in _COUNTERS:
        setattr(state, name, description[name])
    state.covered = Coverage.from_json(description["covered"])
    for name in _OF_DESCENT:
        setattr(descent, name, description[name])
    if description["typical_norm"] is not None:
        descent.typical_norm = description["typical_norm"]
    if description["best_loss"] is not None:
        average.best_loss = description["best_loss"]
    state.generator.set_state(tensors["generators"][state.fabric.global_rank].cpu())
    pfn.load_state_dict(tensors_under("network", tensors))
    average.weights = {k: v.to(state.device) for k, v in tensors_under("average", tensors).items()}
    average.best = {k: v.to(state.device) for k, v in tensors_under("best", tensors).items()}
    for i, optimiser in enumerate(descent.optimisers):
        values: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors_under(f"optimiser.{i}", tensors).items():
            index, key = name.split(".", 1)
            values.setdefault(int(index), {})[key] = value
        groups = zip(optimiser.state_dict()["param_groups"], description["groups"][i], strict=True)
        known = [{**group, **saved} for group, saved in groups]
        optimiser.load_state_dict({"param_groups": known, "state": values})


def _check(
    state: TrainingState, path: Path, description: Mapping[str, Any], processes: int
) -> None:
    """Refuse the file of another training."""
    if description["config"] != json.loads(json.dumps(state.config.to_json())):
        raise ValueError(
            f"{path} was written by a training with another configuration; pass that one, or "
            "another checkpoint file."
        )
    if processes != state.fabric.world_size:
        raise ValueError(
            f"{path} was written by {processes} processes, this training has "
            f"{state.fabric.world_size}; start as many."
        )
    for name, own in _of_the_run(state).items():
        if own and description[name] and description[name] != own:
            raise ValueError(
                f"{path} was written by a training with another {name}: {description[name]}, "
                f"here {own}. Pass the same, or another checkpoint file."
            )


def _of_the_run(state: TrainingState) -> dict[str, str]:
    """What a resumed run must have in common, beside the configuration, where it is known."""
    return {
        "prior": describe(state.task_prior),
        "prior (its repr)": _representation(state.task_prior),
        "device": state.device.type,
    }


def _representation(prior: TaskPrior) -> str:
    known = type(prior).__repr__ is not object.__repr__
    return re.sub(" at 0x[0-9a-fA-F]+", "", repr(prior)) if known else ""


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
