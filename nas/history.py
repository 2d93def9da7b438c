"""What the stored trials of a study say, as far as it concerns the next proposal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas.architectures import Architecture
from nas.encoding.candidates import Candidate
from nas.encoding.hyperparameters import HyperparameterCube
from nas.pruning.curves import curve_of
from nas.spaces import Space
from nas.trials import FINISHED, PROPOSED, architecture_of, signs_of

__all__ = ["History"]


class History:
    """The trials of this space and these hyperparameters.

    Args:
        trials: Of the study, without the one that asks and without those that run again.
        space: Others' architectures are left out.
        cube: Others' hyperparameters are left out.
        directions: Of the objectives.
        is_member: Whether an architecture is of the space, where that is remembered.

    Attributes:
        num_objectives: Values of a trial.
        observed: Candidates whose trial has ended, `n` of them, failed ones included.
        failed: For each whether it failed, and so has no values.
        values: Their values, `n` lists of one number for each objective, larger is better; `-inf`
            is as bad as can be, NaN where the trial failed.
        constraints: By name `n` numbers, at most 0 where the candidate is feasible; NaN where the
            trial did not say.
        seconds: How long they took; NaN unless they are complete.
        pending: Candidates that are running.
        seen: All of them.
    """

    def __init__(
        self,
        trials: Sequence[FrozenTrial],
        space: Space,
        cube: HyperparameterCube,
        directions: Sequence[StudyDirection],
        *,
        is_member: Callable[[Architecture], bool] | None = None,
    ) -> None:
        member: Callable[[Architecture], bool] = is_member or space.__contains__
        self.observed: list[Candidate] = []
        self.pending: list[Candidate] = []
        ended: list[FrozenTrial] = []
        for trial in trials:
            architecture = architecture_of(trial)
            values = {**trial.user_attrs.get(PROPOSED, {}), **trial.params}
            if architecture is None or not member(architecture) or not cube.contains(values):
                continue
            candidate = Candidate.of(
                architecture, {name: values[name] for name in cube.distributions}
            )
            if trial.state == TrialState.RUNNING:
                self.pending.append(candidate)
            elif trial.state.is_finished():
                self.observed.append(candidate)
                ended.append(trial)
        self.num_objectives = len(directions)
        self.failed = [trial.state not in FINISHED for trial in ended]
        self.values = _values(ended, signs_of(directions))
        names = sorted({name for trial in ended for name in trial.constraints})
        self.constraints = {
            name: [trial.constraints.get(name, math.nan) for trial in ended] for name in names
        }
        self.seconds = [_seconds(trial) for trial in ended]
        self.seen = {*self.observed, *self.pending}

    @property
    def num_finished(self) -> int:
        """Candidates whose trial came to an end without failing."""
        return self.failed.count(False)

    @property
    def violations(self) -> list[float]:
        """How far each candidate is from being feasible: 0 if it is, the sum of what is above 0."""
        return [
            sum(max(value, 0.0) for value in row if not math.isnan(value))
            for row in zip(*self.constraints.values(), strict=True)
        ] or [0.0] * len(self.observed)


def _values(ended: Sequence[FrozenTrial], signs: Sequence[float]) -> list[list[float]]:
    complete = [trial.values for trial in ended if trial.state == TrialState.COMPLETE]
    middles = []
    for k, sign in enumerate(signs):
        column = sorted(sign * values[k] for values in complete)
        middles.append(column[len(column) // 2] if column else math.inf)
    return [_of_trial(trial, signs, middles) for trial in ended]


def _of_trial(trial: FrozenTrial, signs: Sequence[float], middles: Sequence[float]) -> list[float]:
    """Values of a trial; a pruned one is at most as good as the middle of the others."""
    if trial.state == TrialState.COMPLETE:
        return [sign * value for sign, value in zip(signs, trial.values, strict=True)]
    if trial.state != TrialState.PRUNED:
        return [math.nan] * len(signs)
    curve = curve_of(trial)
    if not curve:
        return [-math.inf] * len(signs)
    latest = curve[max(curve)]
    return [
        min(sign * value, middle)
        for sign, value, middle in zip(signs, latest, middles, strict=True)
    ]


def _seconds(trial: optuna.trial.FrozenTrial) -> float:
    if trial.state != TrialState.COMPLETE or trial.duration is None:
        return math.nan
    return trial.duration.total_seconds()
