"""How an architecture travels with an Optuna trial, and back into the queue.

The architecture is stored with its trial as user attributes: canonical JSON and numeric
descriptors (one column each in Optuna's tables and dashboard). A sampler that proposes whole
graphs hands its proposal over inside the trial's relative parameters, under a name that no
objective suggests, so that nothing needs to be remembered between the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial
from torch import Generator

from nas.architecture import Architecture
from nas.spaces import FlatSpace, Space

__all__ = ["architecture_of", "enqueue", "requeue", "suggest", "superseded"]

ARCHITECTURE = "architecture"
PROPOSED = "proposed_hyperparameters"
REQUEUED_FROM = "requeued_from"
RETRIES = "retries"
ERROR = "error"
RELATIVE_ARCHITECTURE = "nas:architecture"
DERIVATION = "derivation"
FLAT = "flat"  # the trial's flat parameters are recorded with it, or queued with it


def suggest(trial: optuna.Trial, space: Space) -> Architecture:
    """The architecture of a trial.

    What the sampler proposes, if it proposes architectures; otherwise, under any other Optuna
    sampler, the flat parameters of the space are drawn from it (for a space that is not flat, the
    seed of a random derivation is). A trial from the queue keeps the architecture it came with.

    Args:
        trial: The running trial. Its user attributes receive the architecture as JSON and its
            descriptors (`num_parameters`, `depth`, `flops`).
        space: Where to look.

    Raises:
        ValueError: the trial came with an architecture that is not in the space.
    """
    architecture = architecture_of(trial)
    if architecture is not None:
        if architecture not in space:
            raise ValueError(
                f"Trial {trial.number} was queued with an architecture that is not in the space:"
                f"\n{architecture}"
            )
        if not (isinstance(space, FlatSpace) and trial.user_attrs.get(FLAT)):
            return architecture
    elif RELATIVE_ARCHITECTURE in trial.relative_params:
        proposal = dict(trial.relative_params)
        architecture = Architecture.from_json(proposal.pop(RELATIVE_ARCHITECTURE))
        trial.set_user_attr(PROPOSED, proposal)
        _store(trial, architecture)
        return architecture
    if isinstance(space, FlatSpace):
        architecture = space.from_parameters(_draw(trial, space.parameters()))
        trial.set_user_attr(FLAT, True)
    else:
        seed = trial.suggest_int(DERIVATION, 0, 2**31 - 1)
        architecture = space.random(Generator().manual_seed(seed))
    _store(trial, architecture)
    return architecture


def architecture_of(trial: FrozenTrial | optuna.Trial) -> Architecture | None:
    """The architecture stored with a trial, None where it has none yet."""
    stored = trial.user_attrs.get(ARCHITECTURE)
    return None if stored is None else Architecture.from_json(stored)


def enqueue(
    study: optuna.Study,
    architecture: Architecture,
    hyperparameters: Mapping[str, Any] | None = None,
    *,
    space: Space | None = None,
) -> None:
    """Put a candidate at the end of the queue of a study.

    Args:
        study: The study.
        architecture: What `suggest` gives to the trial.
        hyperparameters: Values of hyperparameters; those not given are sampled.
        space: Give a flat space when the study has a sampler of Optuna's, so that the trial's flat
            parameters are recorded as well.
    """
    fixed = dict(hyperparameters or {})
    attributes = {ARCHITECTURE: architecture.to_json(), **architecture.descriptors()}
    if isinstance(space, FlatSpace):
        fixed = {**space.to_parameters(architecture), **fixed}
        attributes[FLAT] = True
    study.enqueue_trial(fixed, user_attrs=attributes)


def requeue(study: optuna.Study, trial: FrozenTrial, *, max_retries: int | None = None) -> None:
    """Queue a trial that did not come to its end once more, with all that was chosen for it.

    Args:
        study: Its study.
        trial: The lost trial.
        max_retries: After so many losses in a row it is given up; None never gives up.
    """
    retries = int(trial.user_attrs.get(RETRIES, 0)) + 1
    if max_retries is not None and retries > max_retries:
        return
    attributes = {name: value for name, value in trial.user_attrs.items() if name != ERROR}
    fixed = {
        **trial.system_attrs.get("fixed_params", {}),
        **trial.user_attrs.get(PROPOSED, {}),
        **trial.params,
    }
    attributes |= {REQUEUED_FROM: trial.number, RETRIES: retries}
    study.enqueue_trial(fixed, user_attrs=attributes)


def superseded(trials: list[FrozenTrial]) -> set[int]:
    """Numbers of the lost trials whose place another trial has taken."""
    return {
        int(trial.user_attrs[REQUEUED_FROM])
        for trial in trials
        if REQUEUED_FROM in trial.user_attrs
    }


def _draw(trial: optuna.Trial, distributions: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, distribution in distributions.items():
        if isinstance(distribution, CategoricalDistribution):
            values[name] = trial.suggest_categorical(name, distribution.choices)
        elif isinstance(distribution, IntDistribution):
            values[name] = trial.suggest_int(
                name,
                distribution.low,
                distribution.high,
                step=distribution.step,
                log=distribution.log,
            )
        elif isinstance(distribution, FloatDistribution):
            values[name] = trial.suggest_float(
                name,
                distribution.low,
                distribution.high,
                step=distribution.step,
                log=distribution.log,
            )
        else:
            raise TypeError(f"The parameter {name!r} has an unknown distribution {distribution!r}.")
    return values


def _store(trial: optuna.Trial, architecture: Architecture) -> None:
    trial.set_user_attr(ARCHITECTURE, architecture.to_json())
    for name, value in architecture.descriptors().items():
        trial.set_user_attr(name, value)
