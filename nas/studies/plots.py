"""Figures of a study: progress, hyperparameters, sizes, Pareto front.

They are plain matplotlib figures, made without pyplot's global state. Axes of values show what
most trials have: values far beyond the middle half on the bad side, infinite ones among them, are
triangles at the edge, so that one diverged trial does not flatten the others.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas.fidelity import is_feasible, trained_in_full
from priors.figures import BLACK, BLUE, GREY, ORANGE, letter, log_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = [
    "objective_names",
    "plot_hyperparameters",
    "plot_pareto_front",
    "plot_progress",
    "plot_sizes",
]

_REACH = 3.0  # interquartile ranges beyond a quartile that still are on the axis
_FEWEST = 5  # values of which some may be left off the axis
_SHADES = "viridis_r"
_LONGEST = 20  # characters of a category under a turned tick


def objective_names(study: optuna.Study) -> list[str]:
    """What the axes call the objectives: `study.set_metric_names`, else "value" or numbers."""
    names = study.metric_names
    if names is not None:
        return list(names)
    several = len(study.directions) > 1
    return [f"objective {k + 1}" if several else "value" for k in range(len(study.directions))]


def plot_progress(study: optuna.Study, *, objective: int = 0) -> Figure:
    """Value of each trial and the best feasible so far, failed trials marked at the bottom.

    Args:
        study: With any number of trials, none included.
        objective: Which one.
    """
    figure, ax = _axes((7.2, 3.4))
    values = Values.of(study, objective)
    if values.trials:
        numbers = np.array([trial.number for trial in values.trials])
        for feasible, style in (
            (True, {"color": GREY, "label": "trial"}),
            (False, {"facecolors": "none", "edgecolors": GREY, "label": "infeasible"}),
        ):
            kept = np.flatnonzero(values.feasible == feasible).tolist()
            values.scatter(ax, numbers[kept], kept=kept, s=22, **style)
        since = values.feasible.cumsum() > 0
        ax.step(
            numbers[since], values.best_so_far()[since],
            where="post", color=BLUE, lw=2, label="best so far",
        )  # fmt: skip
        values.set_axis(ax.yaxis)
    else:
        ax.set_yticks([])
        ax.set_ylabel(values.name)
    below = {"failed": (TrialState.FAIL, "x", ORANGE), "pruned": (TrialState.PRUNED, "|", BLACK)}
    for label, (state, marker, color) in below.items():
        found = [t.number for t in study.get_trials(deepcopy=False, states=(state,))]
        if found:
            ax.plot(
                found, [0.03] * len(found), marker, color=color, ms=6, label=label,
                transform=ax.get_xaxis_transform(), clip_on=False,
            )  # fmt: skip
    ax.set(xlabel="trial", xlim=(-0.5, max(1, len(study.get_trials(deepcopy=False))) - 0.5))
    _whole_numbers(ax.xaxis)
    if ax.has_data():
        ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def plot_hyperparameters(study: optuna.Study, *, objective: int = 0) -> Figure | None:
    """Value against each hyperparameter, later trials darker; None without any, or with
    fewer than two complete trials.

    Categories have a column of points each, with the median as a line. A conditional
    hyperparameter shows the trials that have it.

    Args:
        study: With any number of trials.
        objective: Which one.
    """
    values = Values.of(study, objective)
    found: dict[str, BaseDistribution] = {}
    for trial in values.trials:
        found |= trial.distributions
    found = {name: d for name, d in sorted(found.items()) if not d.single()}
    if not found or len(values.trials) < 2:
        return None
    from matplotlib.figure import Figure

    columns = min(3, len(found))
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(3.4 * columns + 0.6, 2.9 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    last = max(1, values.trials[-1].number)
    for ax, (name, distribution) in zip(grid.flat, found.items(), strict=False):
        kept = [k for k, trial in enumerate(values.trials) if name in trial.params]
        chosen = [values.trials[k].params[name] for k in kept]
        shade = {"c": [values.trials[k].number for k in kept], "vmin": 0, "vmax": last}
        style = {**shade, "cmap": _SHADES, "s": 22}
        if isinstance(distribution, CategoricalDistribution):
            places = _categories(ax, distribution, chosen)
            values.medians(ax, kept, places)
            jitter = 0.3 * np.random.default_rng(0).uniform(-1, 1, len(kept))
            values.scatter(ax, places + jitter, kept=kept, **style)
        else:
            values.scatter(ax, np.array(chosen), kept=kept, **style)
            if distribution.log:  # type: ignore[attr-defined]
                log_axis(ax.xaxis)
            else:
                ax.locator_params(axis="x", nbins=5)
        having = "" if len(kept) == len(values.trials) else f" ({len(kept)} trials)"
        ax.set_xlabel(name + having)
        ax.spines[["top", "right"]].set_visible(False)
    values.set_axis(grid[0, 0].yaxis)
    for ax in grid[:, 0]:
        ax.set_ylabel(values.name)
    for ax in grid.flat[len(found) :]:
        ax.set_visible(False)
    _colour_bar(figure, grid, "trial", 0, last)
    return figure


def plot_sizes(study: optuna.Study, *, objective: int = 0) -> Figure | None:
    """Value against the number of parameters, best feasible trial marked; None with fewer than two.

    Args:
        study: With any number of trials.
        objective: Which one.
    """
    values = Values.of(study, objective)
    kept = [k for k, t in enumerate(values.trials) if "num_parameters" in t.user_attrs]
    if len(kept) < 2:
        return None
    trials = [values.trials[k] for k in kept]
    figure, ax = _axes((6.2, 3.4))
    sizes = np.array([trial.user_attrs["num_parameters"] for trial in trials])
    depths = np.array([trial.user_attrs["depth"] for trial in trials])
    span = {"vmin": int(depths.min()), "vmax": int(max(depths.max(), depths.min() + 1))}
    for feasible, style in ((True, {}), (False, {"alpha": 0.3, "label": "infeasible"})):
        rows = np.flatnonzero(values.feasible[kept] == feasible)
        shown = [kept[row] for row in rows]
        values.scatter(
            ax, sizes[rows], kept=shown, c=depths[rows], cmap=_SHADES, s=28, **span, **style
        )
    best = values.best_of(kept)
    if best is not None:
        ax.scatter(
            sizes[best], values.numbers[kept][best], s=130, facecolors="none", edgecolors=ORANGE,
            lw=2, label="best",
        )  # fmt: skip
    values.set_axis(ax.yaxis)
    ax.set(xlabel="parameters of the network")
    if min(sizes) > 0 and max(sizes) > 3 * min(sizes):
        log_axis(ax.xaxis)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize="small")
    _colour_bar(figure, ax, "weight layers", span["vmin"], span["vmax"])
    return figure


def plot_pareto_front(study: optuna.Study) -> Figure | None:
    """Each pair of objectives, trials that no other one beats in all marked; None if none ended.

    Args:
        study: Of two objectives or more.
    """
    each = [Values.of(study, k) for k in range(len(study.directions))]
    if not each[0].trials:
        return None
    from matplotlib.figure import Figure

    front = {trial.number for trial in study.best_trials}
    pairs = list(combinations(each, 2))
    columns = min(3, len(pairs))
    rows = math.ceil(len(pairs) / columns)
    figure = Figure(figsize=(4.4 * columns, 3.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for ax, (one, other) in zip(grid.flat, pairs, strict=False):
        best = np.array([trial.number in front for trial in one.trials])
        one, other = one.showing(best), other.showing(best)
        x, y = (np.clip(values.numbers, values.low, values.high) for values in (one, other))
        off = (x != one.numbers) | (y != other.numbers)
        ax.plot(x[~best & ~off], y[~best & ~off], "o", color=GREY, ms=5, label="trial")
        if off.any():
            style = {"color": GREY, "markeredgecolor": ORANGE, "ms": 6}
            ax.plot(x[off], y[off], "^", **style, label="off the axis")
        order = np.argsort(x[best], kind="stable")
        line = {"ls": "-" if len(each) == 2 else "", "lw": 1}
        steps = "steps-pre" if one.maximise else "steps-post"  # around what the front dominates
        ax.plot(
            x[best][order], y[best][order], "o", color=ORANGE, ms=6, drawstyle=steps, **line,
            label="Pareto front",
        )  # fmt: skip
        one.set_axis(ax.xaxis)
        other.set_axis(ax.yaxis)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in grid.flat[len(pairs) :]:
        ax.set_visible(False)
    grid[0, 0].legend(frameon=False, fontsize="small")
    return figure


@dataclass(frozen=True, eq=False)
class Values:
    """Complete trials with their values of one objective, and the range that an axis shows.

    Attributes:
        trials: Complete ones, in order.
        numbers: Their values, `[n]`; may be infinite.
        name: Of the objective.
        maximise: Whether larger is better.
        low: Least value on the axis.
        high: Greatest value on the axis.
    """

    trials: list[FrozenTrial]
    numbers: np.ndarray
    name: str
    maximise: bool
    low: float
    high: float

    @classmethod
    def of(cls, study: optuna.Study, objective: int) -> Values:
        trials = [
            trial
            for trial in trained_in_full(study)
            if not any(math.isnan(value) for value in trial.values)
        ]
        numbers = np.array([trial.values[objective] for trial in trials], dtype=float)
        maximise = study.directions[objective] == StudyDirection.MAXIMIZE
        low, high = _range(numbers, maximise)
        return cls(trials, numbers, objective_names(study)[objective], maximise, low, high)

    @cached_property
    def feasible(self) -> np.ndarray:
        """For each whether it keeps all constraints, `[n]`."""
        return np.array([is_feasible(trial) for trial in self.trials], dtype=bool)

    @property
    def better(self) -> np.ufunc:
        """Of two values the better one."""
        return np.maximum if self.maximise else np.minimum

    def best_so_far(self) -> np.ndarray:
        """Of the feasible ones up to each, `[n]`; before the first the worst there can be."""
        worst = -math.inf if self.maximise else math.inf
        return self.better.accumulate(np.where(self.feasible, self.numbers, worst))

    def best_of(self, rows: Sequence[int]) -> int | None:
        """Place in `rows` of the best feasible finite one, None where there is none."""
        found = np.flatnonzero(self.feasible[rows] & np.isfinite(self.numbers[rows]))
        if not len(found):
            return None
        choose = np.argmax if self.maximise else np.argmin
        return int(found[choose(self.numbers[rows][found])])

    def showing(self, rows: np.ndarray) -> Values:
        """With some finite values on the axis, however far they are."""
        shown = self.numbers[rows & np.isfinite(self.numbers)]
        low, high = min(self.low, *shown, self.high), max(self.high, *shown, self.low)
        return replace(self, low=float(low), high=float(high))

    @property
    def is_log(self) -> bool:
        """Whether the axis is logarithmic: positive values over more than a factor of 20."""
        return self.low > 0 and self.high > 20 * self.low

    def scatter(
        self, ax: Axes, x: np.ndarray, *, kept: Sequence[int] | None = None, **style: Any
    ) -> None:
        """Points at `x`; those off the axis as triangles at its edge."""
        y = self.numbers if kept is None else self.numbers[list(kept)]
        for rows, marker, edge in (
            ((y >= self.low) & (y <= self.high), "o", None),
            (y > self.high, "^", self.high),
            (y < self.low, "v", self.low),
        ):
            if not rows.any():
                continue
            own = {**style, "marker": marker}
            if "c" in own:
                own["c"] = np.asarray(own["c"])[rows]
            if edge is not None:
                own |= {"edgecolors": ORANGE, "linewidths": 1.2, "zorder": 3}
                if "label" in own:
                    own["label"] = "off the axis"
            ax.scatter(x[rows], y[rows] if edge is None else np.full(rows.sum(), edge), **own)

    def medians(self, ax: Axes, kept: Sequence[int], places: np.ndarray) -> None:
        """A line at the median of each place that holds three values or more."""
        y = np.clip(self.numbers[list(kept)], self.low, self.high)
        for place in np.unique(places):
            here = y[places == place]
            if len(here) > 2:
                ends = place - 0.38, place + 0.38
                ax.hlines(np.median(here), *ends, color=ORANGE, lw=2, zorder=1.5)

    def set_axis(self, axis: Axis) -> None:
        """Name, scale and range of the axis."""
        axis.set_label_text(self.name)
        if self.is_log:
            margin = (self.high / self.low) ** 0.06
            axis.axes.set(**{f"{letter(axis)}lim": (self.low / margin, self.high * margin)})
            log_axis(axis)
        elif self.trials:
            margin = 0.06 * (self.high - self.low) or max(1e-12, 0.05 * abs(self.high))
            axis.axes.set(**{f"{letter(axis)}lim": (self.low - margin, self.high + margin)})


def _range(numbers: np.ndarray, maximise: bool) -> tuple[float, float]:
    """What an axis shows of values, all of the good side; of positive ones by their logarithms."""
    finite = numbers[np.isfinite(numbers)]
    if not len(finite):
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    if len(finite) < _FEWEST:
        return low, high
    seen = np.log(finite) if low > 0 else finite
    first, third = np.quantile(seen, [0.25, 0.75])
    reach = _REACH * (third - first)
    if reach > 0 and maximise:
        low = float(finite[seen >= first - reach].min())
    elif reach > 0:
        high = float(finite[seen <= third + reach].max())
    return low, high


def _categories(ax: Axes, distribution: CategoricalDistribution, chosen: Sequence[Any]) -> Any:
    """Places of chosen categories, which become the ticks."""
    names = [str(choice) for choice in distribution.choices]
    width = max(4, 30 // len(names))
    if max(len(word) for name in names for word in name.split() or [""]) <= width:
        ticks = ["\n".join(textwrap.wrap(name, width, max_lines=4)) for name in names]
        ax.set_xticks(range(len(names)), ticks, fontsize="small")
    else:
        ticks = [name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..." for name in names]
        ax.set_xticks(range(len(names)), ticks, fontsize="small", rotation=40, ha="right")
    ax.set_xlim(-0.6, len(names) - 0.4)
    return np.array([distribution.to_internal_repr(choice) for choice in chosen], dtype=float)


def _colour_bar(figure: Figure, axes: Any, label: str, low: float, high: float) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    shades = ScalarMappable(Normalize(low, high), _SHADES)
    _whole_numbers(figure.colorbar(shades, ax=axes, label=label, pad=0.02).ax.yaxis)


def _whole_numbers(axis: Axis) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(6, integer=True))


def _axes(size: tuple[float, float]) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    ax = figure.subplots()
    ax.spines[["top", "right"]].set_visible(False)
    return figure, ax
