"""Storing an architecture in an Optuna trial, and queueing one.

The architecture is stored with its trial as user attributes: canonical JSON and numeric
descriptors (one column each in Optuna's tables and dashboard). In a flat space it is a choice of
ordinary Optuna parameters. In any other, a sampler that proposes whole graphs hands its proposal
over inside the trial's relative parameters, under a name that no objective suggests, so that
nothing needs to be remembered between the two.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import count
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from torch import Generator

from nas.architectures.architecture import Architecture
from nas.spaces import FlatSpace, Space

__all__ = [
    "architecture_of",
    "columns_of",
    "enqueue",
    "numbered",
    "requeue",
    "seconds_of",
    "signs_of",
    "suggest",
    "superseded",
    "warn_of_ignored",
]

ARCHITECTURE = "architecture"
PROPOSED = "proposed_hyperparameters"
REQUEUED_FROM = "requeued_from"
RETRIES = "retries"
BEGAN = "began"  # when the candidate was there, seconds since 1970
ERROR = "error"
TRACEBACK = "traceback"
UNPROPOSED = "unproposed"  # of a trial whose sampler failed
KEPT = "kept_predictions"  # name of the file
# What a trial that runs again does not keep: it is of the attempt, not of the candidate.
OF_A_RUN = (ERROR, TRACEBACK, UNPROPOSED, "worker", "curve", BEGAN, KEPT)
RELATIVE_ARCHITECTURE = "nas:architecture"
RELATIVE_FIDELITY = "nas:fidelity"
SCREENED = "trained in full"  # the constraint that trials at a lower fidelity miss
DERIVATION = "derivation"
MAX_RETRIES = 2  # of a trial whose worker dies
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def signs_of(directions: Sequence[StudyDirection]) -> list[float]:
    """By which the values of each objective are multiplied so that larger is better."""
    return [1.0 if direction == StudyDirection.MAXIMIZE else -1.0 for direction in directions]


def seconds_of(trial: FrozenTrial) -> float:
    """What a trial took since its candidate was proposed; NaN while it runs."""
    if trial.datetime_complete is None or trial.datetime_start is None:
        return math.nan
    start = trial.user_attrs.get(BEGAN, trial.datetime_start.timestamp())
    return max(0.0, trial.datetime_complete.timestamp() - start)


def suggest(trial: optuna.Trial, space: Space) -> Architecture:
    """The architecture of a trial.

    In a flat space it is drawn as ordinary parameters of the trial, under every sampler, so that
    importances, data frames and the dashboard see them and `study.enqueue_trial` can set them.
    In any other space it is what the sampler proposes or, under a sampler that proposes no
    architectures, a random derivation whose seed is drawn. A trial from the queue keeps the
    architecture it came with.

    Args:
        trial: The running trial. Its user attributes receive the architecture as JSON and its
            descriptors (`num_parameters`, `depth`, `flops`).
        space: The search space.

    Raises:
        ValueError: the trial was queued with an architecture that is not in the space, or with
            parameters by names that the study has for another space (see `columns_of`).
    """
    architecture = architecture_of(trial)
    if architecture is not None and architecture not in space:
        raise ValueError(
            f"Trial {trial.number} was queued with an architecture that is not in the space:"
            f"\n{architecture}"
        )
    study = getattr(trial, "study", None)  # none where a finished trial is replayed
    trials = [] if study is None else study.get_trials(deepcopy=False)
    proposal = {} if study is None else dict(trial.relative_params)
    if study is not None and BEGAN not in trial.user_attrs:
        trial.set_user_attr(BEGAN, time.time())
    graph = proposal.pop(RELATIVE_ARCHITECTURE, None)
    proposal.pop(RELATIVE_FIDELITY, None)  # `Fidelity.suggest` reads it
    if isinstance(space, FlatSpace):
        columns = columns_of(space, trials)
        queued = _queued_parameters(trials, trial.number)
        if architecture is None:
            _refuse_old_names(trial.number, queued, columns)
        known = {**proposal, **queued, **trial.params}
        # An architecture that was queued without its parameters, under a sampler that does not
        # know the space, runs without them.
        if architecture is None or _gives(known, columns, space, architecture):
            drawn = _draw(trial, {columns[n]: d for n, d in space.parameters().items()})
            architecture = space.from_parameters({n: drawn[columns[n]] for n in columns})
        proposal = {n: value for n, value in proposal.items() if n not in columns.values()}
    elif architecture is None and graph is not None:
        architecture = Architecture.from_json(graph)
    elif architecture is None:
        seed = trial.suggest_int(DERIVATION, 0, 2**31 - 1)
        architecture = space.random(Generator().manual_seed(seed))
    proposal |= trial.user_attrs.get(PROPOSED, {})
    if proposal:
        trial.set_user_attr(PROPOSED, proposal)
    _store(trial, architecture)
    return architecture


def columns_of(space: FlatSpace, trials: Sequence[FrozenTrial]) -> dict[str, str]:
    """The names under which a study records the parameters of a flat space.

    These are the parameters' own names. Optuna fixes the choices of a categorical parameter for
    the life of a study, so where a study has the name with other choices, from a space that was
    changed since, the parameter is recorded as `name (2)`, `name (3)` and so on.

    Args:
        space: The space as it is now.
        trials: All trials of the study.
    """
    recorded: dict[str, BaseDistribution] = {}
    for trial in trials:
        recorded.update(trial.distributions)
    columns = {}
    for name, distribution in space.parameters().items():
        versions = (name if n == 1 else f"{name} ({n})" for n in count(1))
        columns[name] = next(c for c in versions if recorded.get(c, distribution) == distribution)
    return columns


def architecture_of(trial: FrozenTrial | optuna.Trial) -> Architecture | None:
    """The architecture stored with a trial, None where it has none yet."""
    stored = trial.user_attrs.get(ARCHITECTURE)
    return None if stored is None else _parsed(stored)


@lru_cache(maxsize=1 << 13)
def _parsed(text: str) -> Architecture:
    """Of the JSON; every proposal reads those of all trials."""
    return Architecture.from_json(text)


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
        space: A flat space, so that the trial's flat parameters are recorded as well; None takes
            that of the study's sampler, if it has one.
    """
    fixed = dict(hyperparameters or {})
    attributes = {ARCHITECTURE: architecture.to_json(), **architecture.descriptors()}
    if space is None:
        space = getattr(study.sampler, "space", None)
    if isinstance(space, FlatSpace) and architecture in space:
        columns = columns_of(space, study.get_trials(deepcopy=False))
        flat = space.to_parameters(architecture)
        fixed = {**{columns[name]: value for name, value in flat.items()}, **fixed}
    study.enqueue_trial(fixed, user_attrs=attributes)


def requeue(study: optuna.Study, trial: FrozenTrial, *, max_retries: int | None = None) -> bool:
    """Queue a trial that did not come to its end once more, with all that was chosen for it.

    Args:
        study: Its study.
        trial: The lost trial.
        max_retries: After so many losses in a row it is given up; None never gives up.

    Returns:
        Whether it was queued.
    """
    retries = int(trial.user_attrs.get(RETRIES, 0)) + 1
    if max_retries is not None and retries > max_retries:
        return False
    attributes = {name: value for name, value in trial.user_attrs.items() if name not in OF_A_RUN}
    fixed = {
        **trial.system_attrs.get("fixed_params", {}),
        **trial.user_attrs.get(PROPOSED, {}),
        **trial.params,
    }
    attributes |= {REQUEUED_FROM: trial.number, RETRIES: retries}
    study.enqueue_trial(fixed, user_attrs=attributes)
    return True


def superseded(trials: list[FrozenTrial]) -> set[int]:
    """Numbers of the lost trials whose place another trial has taken."""
    return {
        int(trial.user_attrs[REQUEUED_FROM])
        for trial in trials
        if REQUEUED_FROM in trial.user_attrs
    }


def warn_of_ignored(trial: FrozenTrial) -> None:
    """Say what a completed trial passed over: the architecture, or values it was queued with.

    Args:
        trial: The stored trial.
    """
    if architecture_of(trial) is None:
        warnings.warn(
            "The objective returned without calling nas.suggest(trial, space), so the "
            "architecture is not searched.",
            stacklevel=3,
        )
    queued = set(trial.system_attrs.get("fixed_params", {}))
    ignored = sorted(queued - set(trial.params) - set(trial.user_attrs.get(PROPOSED, {})))
    if ignored and REQUEUED_FROM not in trial.user_attrs:
        warnings.warn(
            f"A trial was queued with {ignored}, which the objective never suggested.",
            stacklevel=3,
        )


def numbered(study: optuna.Study, number: int) -> FrozenTrial:
    """The stored trial of a study with this number."""
    return next(t for t in study.get_trials(deepcopy=False) if t.number == number)


def _queued_parameters(trials: Sequence[FrozenTrial], number: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for trial in trials:
        if trial.number == number:
            found |= trial.system_attrs.get("fixed_params", {})
    return found


def _refuse_old_names(number: int, queued: Mapping[str, Any], columns: Mapping[str, str]) -> None:
    """A parameter that was queued by the name of an older space would be passed over."""
    old = sorted(name for name, column in columns.items() if name in queued and name != column)
    if old:
        raise ValueError(
            f"Trial {number} was queued with {old}, names that this study has for another space; "
            f"queue them as {[columns[name] for name in old]}, or use nas.enqueue."
        )


def _gives(
    values: Mapping[str, Any],
    columns: Mapping[str, str],
    space: FlatSpace,
    architecture: Architecture,
) -> bool:
    """Whether recorded values are a choice of parameters for the architecture."""
    try:
        chosen = {name: values[column] for name, column in columns.items()}
        return space.from_parameters(chosen) == architecture
    except (KeyError, ValueError):
        return False


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
