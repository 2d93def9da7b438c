"""Cheaper trainings that tell something about full ones: fewer epochs, less data.

The objective asks at which level to train, as it asks for the architecture. The answer is kept in a
user attribute of the trial, and a trial below the full level gets a constraint that it misses:
`study.best_trial`, `study.best_trials` and all else that looks for feasible trials then pass over
it, whoever runs the study and however it is told the value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

from nas.trials import RELATIVE_FIDELITY, SCREENED

__all__ = ["Fidelity", "is_feasible", "trained_in_full"]


@dataclass(frozen=True)
class Fidelity:
    """The levels at which a candidate can be trained.

    `BayesianSampler(..., fidelity=...)` chooses the level; any other sampler trains in full.

    Args:
        name: Of the user attribute that keeps the level of a trial, such as `"epochs"`.
        levels: Increasing positive numbers, the last one full.
        costs: Of a training at each level, in any unit; None if they are proportional to it.
        share: Most of the cost that goes to levels below the full one, the next full training
            counted.

    Raises:
        ValueError: fewer than two levels, levels or costs that do not increase from above 0, or a
            share outside (0, 1).
    """

    name: str
    levels: tuple[float, ...]
    costs: tuple[float, ...] | None = None
    share: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        costs = self.levels if self.costs is None else tuple(self.costs)
        object.__setattr__(self, "costs", costs)
        if len(self.levels) < 2 or not _increases(self.levels):
            raise ValueError(
                "levels must be two or more increasing positive numbers, the last one full, got "
                f"{self.levels}."
            )
        if len(costs) != len(self.levels) or not _increases(costs):
            raise ValueError(
                f"costs must be {len(self.levels)} increasing positive numbers, one for each "
                f"level, got {costs}."
            )
        if not 0 < self.share < 1:
            raise ValueError(f"share must be between 0 and 1, got {self.share}.")

    @property
    def full(self) -> float:
        """The level of a full training."""
        return self.levels[-1]

    @property
    def costs_below(self) -> tuple[float, ...]:
        """Of a training at each level, the full one first."""
        assert self.costs is not None
        return tuple(reversed(self.costs))

    @property
    def shares(self) -> tuple[float, ...]:
        """Each level in units of the full one, the full one first."""
        return tuple(level / self.full for level in reversed(self.levels))

    def suggest(self, trial: optuna.Trial) -> float:
        """The level at which a trial is to be trained.

        Args:
            trial: The running trial. A level that it was queued with is kept.

        Raises:
            ValueError: the trial was queued with another level.
        """
        proposed = getattr(trial, "relative_params", {}).get(RELATIVE_FIDELITY, self.full)
        level = trial.user_attrs.get(self.name, proposed)
        if level not in self.levels:
            raise ValueError(
                f"Trial {trial.number} has {self.name} = {level!r}, which is none of the levels "
                f"{self.levels}."
            )
        trial.set_user_attr(self.name, level)
        if level < self.full and SCREENED not in trial.constraints:
            trial.set_constraint(SCREENED, 1 - level / self.full)
        return level

    def below_full(self, trial: FrozenTrial) -> int | None:
        """How many levels below the full one a trial was trained; None if at none of them."""
        level = trial.user_attrs.get(self.name, self.full)
        return len(self.levels) - 1 - self.levels.index(level) if level in self.levels else None

    def affords(self, below: int, spent: Sequence[int]) -> bool:
        """Whether a training keeps to `share`.

        Args:
            below: How many levels below the full one.
            spent: The trainings so far, so many levels below the full one each.
        """
        cost = self.costs_below
        screens = cost[below] + sum(cost[each] for each in spent if each)
        full = cost[0] * (1 + sum(each == 0 for each in spent))
        return below == 0 or screens * (1 - self.share) <= full * self.share


def trained_in_full(study: optuna.Study) -> list[FrozenTrial]:
    """The complete trials of a study that were not trained at a lower level, not copied."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [trial for trial in complete if SCREENED not in trial.constraints]


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a trial keeps all constraints that it told, its level of fidelity among them."""
    return all(value <= 0 for value in trial.constraints.values())


def _increases(numbers: Sequence[float]) -> bool:
    return all(a < b for a, b in zip((0, *numbers), numbers, strict=False))
