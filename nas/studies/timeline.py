"""Figures of what a study cost: when each trial ran, and how good the best was after how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from nas.studies.plots import Values
from nas.trials import seconds_of
from priors.figures import BLACK, BLUE, GREY, ORANGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["lanes_of", "plot_cost", "plot_timeline"]

_COLOURS = {
    TrialState.COMPLETE: (BLUE, "complete"),
    TrialState.PRUNED: (GREY, "pruned"),
    TrialState.FAIL: (ORANGE, "failed"),
}
_UNITS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
_PAUSE = 0.25  # share of the whole above which a time without trials is left out


def lanes_of(spans: Sequence[tuple[float, float]]) -> list[int]:
    """The row of each span so that those of a row do not overlap, as few rows as there can be.

    Args:
        spans: Start and end, ordered by start.
    """
    free: list[float] = []  # when each row ends
    found = []
    for start, end in spans:
        row = next((k for k, last in enumerate(free) if last <= start), len(free))
        free[row : row + 1] = [end]
        found.append(row)
    return found


def plot_timeline(study: optuna.Study) -> Figure | None:
    """When each trial ran, side by side those at the same time; None if none ended.

    Long times in which nothing ran, between two calls of a search, are left out and marked.

    Args:
        study: With any number of trials.
    """
    trials = _ended(study)
    if not trials:
        return None
    from matplotlib.figure import Figure

    spans, breaks = _without_pauses(trials)
    lanes = lanes_of(spans)
    size, unit = _unit(max(end for _, end in spans))
    figure = Figure(figsize=(7.2, 1.1 + 0.28 * (max(lanes) + 1)), layout="constrained")
    ax = figure.subplots()
    for state, (colour, label) in _COLOURS.items():
        rows = [k for k, trial in enumerate(trials) if trial.state == state]
        if rows:
            ax.barh(
                [lanes[k] for k in rows],
                [(spans[k][1] - spans[k][0]) / size for k in rows],
                left=[spans[k][0] / size for k in rows],
                height=0.7, color=colour, edgecolor="white", linewidth=0.5, label=label,
            )  # fmt: skip
    for k, place in enumerate(breaks):
        legend = "pause left out" if k == 0 else None
        ax.axvline(place / size, color=BLACK, lw=0.8, ls=":", label=legend)
    ax.set(xlabel=f"{unit} since the first trial began", ylim=(max(lanes) + 0.6, -0.6))
    ax.set_yticks(range(max(lanes) + 1), [str(lane + 1) for lane in range(max(lanes) + 1)])
    ax.set_ylabel("at once")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def plot_cost(study: optuna.Study, *, objective: int = 0) -> Figure | None:
    """The best value against the time that trials had taken together; None if none has a finite
    feasible one.

    Failed and pruned trials cost too.

    Args:
        study: With any number of trials.
        objective: Which one.
    """
    trials = sorted(_ended(study), key=lambda trial: _when(trial.datetime_complete))
    values = Values.of(study, objective)
    known = {
        trial.number: value
        for trial, value, feasible in zip(
            values.trials, values.numbers, values.feasible, strict=True
        )
        if feasible and np.isfinite(value)
    }
    if not any(trial.number in known for trial in trials):
        return None
    from matplotlib.figure import Figure

    spent = np.cumsum([seconds_of(trial) for trial in trials])
    size, unit = _unit(float(spent[-1]))
    rows = [k for k, trial in enumerate(trials) if trial.number in known]
    numbers = np.array([known[trials[k].number] for k in rows])
    best = values.better.accumulate(numbers)
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    ax = figure.subplots()
    # From the first value that is not far off; the axis shows the best, not all trials.
    first = int(np.argmax((best >= values.low) & (best <= values.high)))
    shown = best[first:]
    ends = [*spent[rows[first:]] / size, spent[-1] / size]
    ax.step(ends, [*shown, shown[-1]], where="post", color=BLUE)
    ax.set(xlabel=f"{unit} of all trials together", xlim=(0, None))
    replace(values, low=float(shown.min()), high=float(shown.max())).set_axis(ax.yaxis)
    ax.set_ylabel(f"best {values.name}")
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that ran, ordered by their start."""
    found = [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state in _COLOURS and trial.datetime_start and trial.datetime_complete
    ]
    return sorted(found, key=lambda trial: _when(trial.datetime_start))


def _when(time: datetime | None) -> float:
    assert time is not None
    return time.timestamp()


def _without_pauses(
    trials: Sequence[FrozenTrial],
) -> tuple[list[tuple[float, float]], list[float]]:
    """Start and end of each trial in seconds, and where a pause was cut out."""
    times = [(_when(t.datetime_start), _when(t.datetime_complete)) for t in trials]
    busy = sum(max(0.0, end - start) for start, end in times)
    spans: list[tuple[float, float]] = []
    breaks: list[float] = []
    shift, last = times[0][0], times[0][0]
    for start, end in times:
        if start - last > max(_PAUSE * busy, 1.0):
            breaks.append(last - shift)
            shift += start - last
        spans.append((start - shift, max(end, start) - shift))
        last = max(last, end)
    return spans, breaks


def _unit(seconds: float) -> tuple[float, str]:
    """The largest unit of which there are two or more."""
    return next((size, name) for size, name in _UNITS if seconds >= 2 * size or size == 1.0)
