"""What a trial reports while it runs, for any number of objectives.

Optuna keeps intermediate values in studies of one objective only. In the others they are kept in a
user attribute of the trial.
"""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial

__all__ = ["CURVE", "curve_of", "report_value"]

CURVE = "curve"


def report_value(trial: optuna.Trial, values: float | Sequence[float], step: int) -> None:
    """Report the values of a running trial at a step, such as an epoch.

    Args:
        trial: The running trial.
        values: One number for each objective of the study; of a single one the number itself.
        step: At least 0; a step reported twice keeps its first values.

    Raises:
        ValueError: another number of values than objectives, or a negative step.
        TypeError: something that is no number.
    """
    wanted = len(trial.study.directions)
    row = list(values) if isinstance(values, Sequence) else [values]
    if len(row) != wanted:
        raise ValueError(
            f"report_value got {len(row)} values, but the study has {wanted} objectives; "
            "report one value for each."
        )
    numbers = [float(value) for value in row]
    if step < 0:
        raise ValueError(f"step must be at least 0, got {step}.")
    if wanted == 1:
        trial.report(numbers[0], step)
        return
    curve = dict(trial.user_attrs.get(CURVE, {}))
    if str(step) not in curve:
        curve[str(step)] = numbers
        trial.set_user_attr(CURVE, curve)


def curve_of(trial: FrozenTrial) -> dict[int, list[float]]:
    """The values that a trial reported, by step, one number for each objective."""
    if trial.intermediate_values:
        return {step: [value] for step, value in trial.intermediate_values.items()}
    return {int(step): values for step, values in trial.user_attrs.get(CURVE, {}).items()}
