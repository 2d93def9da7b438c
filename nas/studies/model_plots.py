"""Figures of what the values of a study depend on, and of how far its surrogate can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from nas.studies.analysis import LEVEL, Calibration, MotifEffect
from priors.figures import BLACK, BLUE, GREY, ORANGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_calibration", "plot_importances", "plot_motif_effects"]

_MOST = 14  # bars
_DEVIATIONS = 1.6449  # of a 90% interval
_LONGEST = 44  # characters of a name


def plot_importances(importances: Mapping[str, float]) -> Figure:
    """Bars of `nas.importances`, the largest above; what is beyond 14 is one bar.

    Args:
        importances: Name to share.
    """
    order = sorted(importances, key=lambda name: -importances[name])
    shown = order if len(order) <= _MOST else order[: _MOST - 1]
    names = [_short(name) for name in shown]
    shares = [importances[name] for name in shown]
    if len(shown) < len(order):
        names.append(f"{len(order) - len(shown)} others")
        shares.append(sum(importances[name] for name in order[len(shown) :]))
    figure, ax = _bars(len(names))
    ax.barh(range(len(names)), shares, color=BLUE, height=0.6)
    for place, share in enumerate(shares):
        ax.text(share, place, f" {share:.2f}", va="center", fontsize="small", color=BLACK)
    ax.set_yticks(range(len(names)), names)
    ax.set(
        xlabel="share of importance", xlim=(0, max(shares) * 1.12), ylim=(len(names) - 0.4, -0.6)
    )
    return figure


def plot_motif_effects(effects: Sequence[MotifEffect]) -> Figure | None:
    """Effects of `nas.motif_effects` with 90% intervals, the best above; None without any.

    Args:
        effects: The most certain first; 14 of them are shown.
    """
    shown = sorted(effects[:_MOST], key=lambda effect: -effect.effect)
    if not shown:
        return None
    figure, ax = _bars(len(shown))
    for place, effect in enumerate(shown):
        certain = abs(effect.effect) > _DEVIATIONS * effect.std
        ax.errorbar(
            effect.effect, place, xerr=_DEVIATIONS * effect.std, fmt="o", ms=5, capsize=2,
            color=BLUE if certain else GREY,
        )  # fmt: skip
    ax.axvline(0, color=BLACK, lw=0.8, zorder=0)
    names = [f"{_short(effect.motif)}  ({effect.count})" for effect in shown]
    ax.set_yticks(range(len(names)), names)
    ax.set_xlabel("standard deviations of the value, better to the right", loc="right")
    ax.set_ylim(len(names) - 0.4, -0.6)
    return figure


def plot_calibration(calibration: Calibration) -> Figure:
    """What was expected of each trial from the others, with 90% intervals, against what came.

    Args:
        calibration: Of `nas.studies.analysis.StudyModel`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    ax = figure.subplots()
    mean, values = calibration.mean.numpy(), calibration.values.numpy()
    reach = _DEVIATIONS * calibration.std.numpy()
    missed = np.abs(values - mean) > reach
    for rows, colour, label in ((~missed, BLUE, "inside"), (missed, ORANGE, "outside")):
        if rows.any():
            ax.errorbar(
                values[rows], mean[rows], yerr=reach[rows], fmt="o", ms=4, lw=0.8, color=colour,
                label=f"{label} its {LEVEL:.0%} interval",
            )  # fmt: skip
    ends = [min(values.min(), (mean - reach).min()), max(values.max(), (mean + reach).max())]
    ax.plot(ends, ends, color=GREY, lw=1, zorder=0)
    ax.set(xlabel="value, standardised (larger is better)", ylabel="expected from the other trials")
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize="small", loc="outside upper left", ncols=2)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _bars(number: int):  # type: ignore[no-untyped-def]  # matplotlib is loaded when it is needed
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.8, 0.9 + 0.3 * number), layout="constrained")
    ax = figure.subplots()
    ax.spines[["top", "right"]].set_visible(False)
    return figure, ax
