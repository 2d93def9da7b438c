"""What the stored trials of a study say, as far as it concerns the next proposal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas.architectures import Architecture
from nas.encoding.candidates import Candidate
from nas.encoding.hyperparameters import HyperparameterCube
from nas.fidelity import Fidelity
from nas.pruning.curves import curve_of
from nas.spaces import Space
from nas.trials import FINISHED, PROPOSED, SCREENED, architecture_of, seconds_of, signs_of

__all__ = ["History"]


class History:
    """The trials of this space and these hyperparameters.

    Args:
        trials: Of the study, without the one that asks and without those that run again.
        space: Others' architectures are left out.
        cube: Others' hyperparameters are left out.
        directions: Of the objectives.
        is_member: Whether an architecture is of the space, where that is remembered.
        fidelity: Others' levels are left out; None leaves out all below a full one.

    Attributes:
        num_objectives: Values of a trial.
        observed: Candidates whose trial has ended, `n` of them, failed ones included.
        failed: For each whether it failed, and so has no values.
        values: Their values, `n` lists of one number for each objective, larger is better; `-inf`
            is as bad as can be, NaN where the trial failed.
        constraints: By name `n` numbers, at most 0 where the candidate is feasible; NaN where the
            trial did not say.
        seconds: How long they took once proposed; NaN unless they are complete.
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
        fidelity: Fidelity | None = None,
    ) -> None:
        member: Callable[[Architecture], bool] = is_member or space.__contains__
        self.observed: list[Candidate] = []
        self.pending: list[Candidate] = []
        ended: list[FrozenTrial] = []
        for trial in trials:
            architecture = architecture_of(trial)
            values = {**trial.user_attrs.get(PROPOSED, {}), **trial.params}
            below = _below_full(trial, fidelity)
            if architecture is None or not member(architecture) or below is None:
                continue
            if not cube.contains(values, architecture):
                continue
            own = cube.chosen(architecture, values, None)
            candidate = replace(Candidate.of(architecture, own), below=below)
            if trial.state == TrialState.RUNNING:
                self.pending.append(candidate)
            elif trial.state.is_finished():
                self.observed.append(candidate)
                ended.append(trial)
        self.num_objectives = len(directions)
        self.failed = [trial.state not in FINISHED for trial in ended]
        levels = [candidate.below for candidate in self.observed]
        self.values = _values(ended, levels, signs_of(directions))
        names = sorted({name for t in ended for name in t.constraints if name != SCREENED})
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


def _below_full(trial: FrozenTrial, fidelity: Fidelity | None) -> int | None:
    if fidelity is not None:
        return fidelity.below_full(trial)
    return None if SCREENED in trial.constraints else 0


def _values(
    ended: Sequence[FrozenTrial], levels: Sequence[int], signs: Sequence[float]
) -> list[list[float]]:
    middles = {}
    for level in set(levels):
        complete = [
            trial.values
            for trial, own in zip(ended, levels, strict=True)
            if trial.state == TrialState.COMPLETE and own == level
        ]
        columns = [sorted(sign * row[k] for row in complete) for k, sign in enumerate(signs)]
        middles[level] = [c[len(c) // 2] if c else math.inf for c in columns]
    return [_of_trial(t, signs, middles[level]) for t, level in zip(ended, levels, strict=True)]


def _of_trial(trial: FrozenTrial, signs: Sequence[float], middles: Sequence[float]) -> list[float]:
    """Values of a trial; a pruned one is at most as good as the middle of its fidelity."""
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
    return seconds_of(trial) if trial.state == TrialState.COMPLETE else math.nan
