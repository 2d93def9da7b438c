"""Pruners: which running trials are not worth their remaining steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import optuna
import torch
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor
from torch.distributions import StudentT

from nas.checks import check_whole
from nas.encoding.outcomes import affine_of
from nas.proposals.fronts import fronts
from nas.pruning.curve_process import CurveProcess
from nas.pruning.curves import curve_of
from nas.trials import FINISHED, SCREENED, signs_of

__all__ = ["FittedCurves", "LearningCurvePruner", "ParetoPruner", "should_prune"]

MAX_CURVES = 256  # the latest, of which the process is learnt
MAX_STEPS = 64  # of a curve, evenly in log epochs


def should_prune(trial: optuna.Trial) -> bool:
    """Whether a running trial should stop, by the study's pruner and what the trial reported.

    With several objectives, of which Optuna's pruners know nothing, the study's pruner must be a
    `ParetoPruner` or Optuna's `NopPruner`; where it is Optuna's default, `ParetoPruner()` is asked.

    Args:
        trial: The running trial, which reports by `nas.report_value`.

    Raises:
        NotImplementedError: several objectives and another pruner.
    """
    if len(trial.study.directions) == 1:
        return trial.should_prune()
    pruner = trial.study.pruner
    if isinstance(pruner, NopPruner):
        return False
    if type(pruner) is MedianPruner:
        pruner = ParetoPruner()
    if not isinstance(pruner, ParetoPruner):
        raise NotImplementedError(
            f"{type(pruner).__name__} reads one objective, and the study has "
            f"{len(trial.study.directions)}; use pruner=nas.ParetoPruner()."
        )
    trials = trial.study.get_trials(deepcopy=False)
    return pruner.prune(trial.study, next(t for t in trials if t.number == trial.number))


class ParetoPruner(BasePruner):
    """The median rule for any number of objectives.

    The latest values of all trials of its fidelity that have come as far are sorted into Pareto
    fronts; a trial stops if at least half of the others are on better fronts. With one objective
    these are the better values.

    Args:
        num_startup_trials: Other trials that must have come as far.
        num_warmup_steps: Steps before which none stops.
    """

    def __init__(self, num_startup_trials: int = 5, num_warmup_steps: int = 0) -> None:
        check_whole(num_startup_trials=num_startup_trials)
        self.num_startup_trials = num_startup_trials
        self.num_warmup_steps = num_warmup_steps

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial should stop at its latest step."""
        own = curve_of(trial)
        if not own:
            return False
        step = max(own)
        if any(math.isnan(value) for value in own[step]):
            return True
        others = []
        for other in study.get_trials(deepcopy=False):
            if other.number == trial.number or not _alike(other, trial):
                continue
            curve = curve_of(other)
            steps = [reported for reported in curve if reported <= step]
            if steps and max(curve) >= step:
                others.append(curve[max(steps)])
        if step < self.num_warmup_steps or len(others) < self.num_startup_trials:
            return False
        Y = torch.tensor([own[step], *others], dtype=torch.float64)
        Y = Y * Y.new_tensor(signs_of(study.directions))
        numbers = fronts(Y.nan_to_num(nan=-math.inf))
        return bool(2 * (numbers[1:] < numbers[0]).sum() >= len(others))


class LearningCurvePruner(BasePruner):
    """Stops a trial that will hardly beat the best one.

    A process of learning curves (`nas.pruning.curve_process`) is fitted to the curves of the trials
    of its fidelity that ended, stopped ones included, again each time that there are a seventh
    more. It says where the curve of the trial will be at the last step of the complete ones.
    Reports at other steps than theirs are interpolated.

    Args:
        level: The trial stops once the probability that its last value beats the best last value is
            below this.
        num_startup_trials: Complete trials before any is stopped.
        num_warmup_steps: Steps before which none stops.

    Raises:
        ValueError: a level that is no probability, or fewer than one trial to start with.
    """

    def __init__(
        self, *, level: float = 0.05, num_startup_trials: int = 5, num_warmup_steps: int = 0
    ) -> None:
        if not 0 < level < 1:
            raise ValueError(f"level must be a probability between 0 and 1, got {level}.")
        check_whole(num_startup_trials=num_startup_trials)
        self.level = level
        self.num_startup_trials = num_startup_trials
        self.num_warmup_steps = num_warmup_steps
        self._latest: tuple[object, FittedCurves] | None = None

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial should stop at its latest step.

        Raises:
            NotImplementedError: the study has several objectives.
        """
        if len(study.directions) > 1:
            raise NotImplementedError("LearningCurvePruner reads one objective; use ParetoPruner.")
        curve = trial.intermediate_values
        if not curve:
            return False
        step = max(curve)
        if math.isnan(curve[step]):
            return True
        if step < self.num_warmup_steps:
            return False
        fitted = self._fitted(study, trial)
        return fitted is not None and fitted.probability(curve) < self.level

    def _fitted(self, study: optuna.Study, trial: FrozenTrial) -> FittedCurves | None:
        """The process given the trials that ended; kept while they are the same."""
        ended = [
            t
            for t in study.get_trials(deepcopy=False, states=FINISHED)
            if t.intermediate_values and _alike(t, trial)
        ]
        complete = [t for t in ended if t.state == TrialState.COMPLETE]
        if len(complete) < self.num_startup_trials:
            return None
        last = max(max(t.intermediate_values) for t in complete)
        whole = [t.intermediate_values for t in complete if last in t.intermediate_values]
        known = ended[: _rung(len(ended))]
        key = (study.study_name, last, tuple(t.number for t in known))
        if self._latest is None or self._latest[0] != key:
            curves = [t.intermediate_values for t in known[-MAX_CURVES:]]
            self._latest = (key, FittedCurves(whole, curves, signs_of(study.directions)[0]))
        fitted = self._latest[1]
        fitted.set_best(whole)
        return fitted

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_latest": None}


class FittedCurves:
    """The process of some curves, and the best of them, larger being better.

    Args:
        whole: Curves that reach the last step.
        curves: All to learn from.
        sign: -1 if smaller is better.
    """

    def __init__(
        self, whole: Sequence[dict[int, float]], curves: Sequence[dict[int, float]], sign: float
    ) -> None:
        self.sign = sign
        steps = sorted({step for curve in whole for step in curve})
        if len(steps) > MAX_STEPS:
            ideal = torch.linspace(0, math.log1p(steps[-1]), MAX_STEPS).expm1()
            near = (torch.tensor(steps)[:, None] - ideal).abs().argmin(0).tolist()
            steps = sorted({steps[index] for index in near})
        self.steps = steps
        rows = torch.stack([self._on_grid(curve) for curve in curves])
        self.centre, self.scale, self.lowest = affine_of(rows[~rows.isnan()])
        self.set_best(whole)
        self.process = CurveProcess(torch.tensor(steps, dtype=torch.float64), self.warped(rows))

    def set_best(self, whole: Sequence[dict[int, float]]) -> None:
        """The value to beat, the best last one of these curves."""
        last = torch.tensor([curve[self.steps[-1]] for curve in whole], dtype=torch.float64)
        self.best = self.warped(self.sign * last).nan_to_num(nan=-math.inf).max()

    def probability(self, curve: dict[int, float]) -> float:
        """That the curve's last value beats the best."""
        row = self._on_grid(curve)
        if not bool(row[-1].isnan()):
            return float(self.warped(row[-1]) > self.best)
        end = self.end(curve)
        return _above((self.best - end.loc) / end.scale, end.df)

    def end(self, curve: dict[int, float]) -> StudentT:
        """The curve's last value, as it is `warped`."""
        row = self._on_grid(curve)
        return self.process.end(self.warped(row[~row.isnan()]))

    def _on_grid(self, curve: dict[int, float]) -> Tensor:
        """Signed values at the steps, up to the curve's last; NaN afterwards."""
        steps = sorted(step for step in curve if not math.isnan(curve[step]))
        row = torch.full((len(self.steps),), math.nan, dtype=torch.float64)
        for place, step in enumerate(self.steps):
            if not steps or step > steps[-1]:
                break
            after = next(s for s in steps if s >= step)
            before = max((s for s in steps if s <= step), default=after)
            share = (step - before) / (after - before) if after > before else 0.0
            row[place] = self.sign * ((1 - share) * curve[before] + share * curve[after])
        return row

    def warped(self, values: Tensor) -> Tensor:
        """Signed values in the units of the process, outliers on the bad side moved."""
        values = torch.as_tensor(values, dtype=torch.float64)
        return (values.clamp_min(self.lowest) - self.centre) / self.scale


def _alike(one: FrozenTrial, two: FrozenTrial) -> bool:
    """Whether two trials are of the same fidelity."""
    return one.constraints.get(SCREENED) == two.constraints.get(SCREENED)


def _rung(number: int) -> int:
    """How many curves to fit to: all of a few, then so many that most fits serve several trials."""
    rung = min(number, 10)
    while (larger := rung + max(1, rung // 7)) <= number and number > 10:
        rung = larger
    return rung


def _above(value: Tensor, dof: Tensor) -> float:
    """Probability that a standard t variable is larger."""
    from scipy.special import stdtr

    return float(stdtr(dof.item(), -value.item()))
