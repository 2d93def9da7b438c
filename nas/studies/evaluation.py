"""One trial: calling the objective, recording how it ended, and a bar over many of them."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

from nas.sampler import BayesianSampler
from nas.studies.presence import WORKER, here
from nas.trials import (
    BEGAN,
    ERROR,
    TRACEBACK,
    UNPROPOSED,
    numbered,
    requeue,
    warn_of_ignored,
)

__all__ = ["Objective", "SearchError", "Watch", "evaluate", "quiet"]

Objective = Callable[[optuna.Trial], float | Sequence[float]]
"""Of a trial: one number, or one for each direction of the study."""

MAX_EQUAL_FAILURES = 5  # from the start of a call, before it is given up
NAN = "The objective returned nan."
_KIND_ERRORS = (  # Optuna's, which do not name what they are about
    "Cannot set different distribution kind to the same parameter name.",
    "Cannot set different log configuration to the same parameter name.",
    "CategoricalDistribution does not support dynamic value space.",
)


class SearchError(RuntimeError):
    """A search cannot continue: its objective fails in every trial, its sampler cannot propose, or
    its workers do not start."""


def evaluate(objective: Objective, trial: optuna.Trial, job: str = "") -> float | list[float]:
    """The objective, leaving a trace of where it ran and how it ended in the trial.

    Args:
        objective: Of a trial.
        trial: The trial.
        job: Which job of this process runs it.
    """
    trial.set_user_attr(WORKER, here(job))
    try:
        _wait_for_proposal(trial)
        value = _numbers(objective(trial), len(trial.study.directions))
        if not isinstance(trial.study.sampler, BayesianSampler):  # which does it itself
            warn_of_ignored(numbered(trial.study, trial.number))
        return value
    except optuna.TrialPruned:
        raise
    except KeyboardInterrupt:
        trial.set_user_attr(ERROR, "KeyboardInterrupt")
        requeue(trial.study, numbered(trial.study, trial.number))
        raise
    except Exception as error:
        trial.set_user_attr(ERROR, _described(error))
        trial.set_user_attr(TRACEBACK, traceback.format_exc())
        raise
    except SystemExit as error:
        text = f"SystemExit: the objective left the program with status {error.code!r}"
        trial.set_user_attr(ERROR, text)
        trial.set_user_attr(TRACEBACK, traceback.format_exc())
        raise RuntimeError(text) from error
    except BaseException as error:
        # Optuna lets these pass and would leave the trial running.
        trial.set_user_attr(ERROR, f"{type(error).__name__}: {error}")
        trial.study.tell(trial, state=TrialState.FAIL)
        raise


def _wait_for_proposal(trial: optuna.Trial) -> None:
    """Have the sampler propose, whose errors and time are not the objective's."""
    try:
        trial.relative_params  # noqa: B018  # Optuna asks when they are first read
    except Exception:
        trial.set_user_attr(UNPROPOSED, True)
        raise
    trial.set_user_attr(BEGAN, time.time())


def _numbers(value: Any, wanted: int) -> float | list[float]:
    if value is None:
        raise TypeError("The objective returned None; is its return statement missing?")
    if wanted == 1:
        return _number(value)
    if not hasattr(value, "__len__") or len(value) != wanted:
        raise TypeError(f"The objective must return {wanted} numbers, got {value!r:.200}.")
    return [_number(one) for one in value]


def _number(value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"The objective must return one number, got {value!r:.200}.") from error
    if number != number:
        raise ValueError(NAN)
    return number


def _described(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, ValueError) and str(error) in _KIND_ERRORS:
        text += (
            " A parameter keeps its kind, log scale and choices: suggest it as `hyperparameters` "
            "declares it and as the study has it, or under another name, and pass `nas.suggest` "
            "the space that is searched."
        )
    return text


class Watch:
    """The progress bar of a call, and its end where every trial fails in the same way.

    Args:
        study: What runs.
        total: Trials of the call.
        active: Whether to draw the bar.
    """

    def __init__(self, study: optuna.Study, total: int, active: bool) -> None:
        self.study = study
        self.active = active
        self.total = total
        self.failures: list[FrozenTrial] | None = []  # None once a trial came to an end

    def __enter__(self) -> None:
        self.bar = tqdm(
            total=self.total, desc=self.study.study_name, unit="trial", disable=not self.active
        )

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def update(self, trial: FrozenTrial) -> None:
        """Take note of a trial that ended.

        Raises:
            SearchError: the sampler could not propose its candidate, or it is the last of a few
                that failed in the same way, and no other ended.
        """
        self.bar.update()
        if self.active:
            states = [t.state for t in self.study.get_trials(deepcopy=False)]
            notes = {"failed": str(states.count(TrialState.FAIL))}
            if TrialState.COMPLETE in states and len(self.study.directions) > 1:
                notes["front"] = str(len(self.study.best_trials))
            elif TrialState.COMPLETE in states:
                notes["best"] = _best_value(self.study)
            self.bar.set_postfix(notes)
        if trial.state == TrialState.FAIL and UNPROPOSED in trial.user_attrs:
            raise SearchError(
                f"The sampler could not propose a candidate for trial {trial.number}, which keeps "
                f"the traceback: {trial.user_attrs.get(ERROR)}"
            )
        if trial.state != TrialState.FAIL or _may_be_the_candidate(trial):
            self.failures = None
        if self.failures is None:
            return
        self.failures.append(trial)
        if len({_place_of_failure(failure) for failure in self.failures}) > 1:
            self.failures = None
        elif len(self.failures) == MAX_EQUAL_FAILURES:
            raise SearchError(
                f"The first {MAX_EQUAL_FAILURES} trials of this call failed in the same way, the "
                f"last, trial {trial.number}, by {trial.user_attrs.get(ERROR, 'an unknown error')}"
            )


def _best_value(study: optuna.Study) -> str:
    try:
        return f"{study.best_value:.4g}"
    except ValueError:  # no trial is feasible
        return "none"


def _may_be_the_candidate(trial: FrozenTrial) -> bool:
    """Whether another candidate might not fail: diverged, or too large."""
    error = str(trial.user_attrs.get(ERROR, ""))
    kind = error.partition(":")[0]
    return error.endswith(NAN) or kind.endswith("MemoryError") or TRACEBACK not in trial.user_attrs


def _place_of_failure(trial: FrozenTrial) -> tuple[str, ...]:
    """The kind of error and the lines it came through; its text may hold numbers that differ."""
    lines = str(trial.user_attrs.get(TRACEBACK, "")).splitlines()
    kind = str(trial.user_attrs.get(ERROR, "")).partition(":")[0]
    return (kind, *(line for line in lines if line.startswith("  File ")))


@contextmanager
def quiet(active: bool) -> Iterator[None]:
    """Optuna's own log at errors only for the duration; failures are kept with their trials."""
    level = optuna.logging.get_verbosity()
    if active and level < optuna.logging.ERROR:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)
