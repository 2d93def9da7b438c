"""What a study found, as figures and as one HTML file that needs nothing beside it.

The figures are plain matplotlib figures, made without pyplot's global state. The page embeds
them as PNG; every text on it is escaped, so an error message cannot break or script it.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas.trials import ERROR, architecture_of, superseded

if TYPE_CHECKING:
    import jinja2
    from matplotlib.figure import Figure

__all__ = [
    "Section",
    "plot_hyperparameters",
    "plot_progress",
    "plot_sizes",
    "write_report",
]

BLUE, ORANGE, GREY = "#2f5d8a", "#c4722e", "#b8c0c8"
# User attribute to heading: "depth" is a parameter of some spaces too, and counts otherwise there.
DESCRIPTORS = {"num_parameters": "num_parameters", "depth": "weight layers", "flops": "flops"}


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: Heading.
        text: A paragraph under it.
        columns: Names of the table's columns.
        rows: The table; numbers are written with four significant digits.
        figures: Matplotlib figures.
        code: Text kept as it is, in a fixed-width font.
    """

    title: str
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    figures: Sequence[Figure] = ()
    code: str = ""


def plot_progress(study: optuna.Study) -> Figure:
    """Value of each trial and the best so far, with failed trials marked at the bottom."""
    figure, axes = _axes((7.2, 3.4))
    done = _finite(study)
    if done:
        numbers = np.array([trial.number for trial in done])
        values = np.array([trial.value for trial in done], dtype=float)
        better = np.maximum if study.direction == StudyDirection.MAXIMIZE else np.minimum
        incumbent = better.accumulate(values)
        axes.plot(numbers, values, "o", color=GREY, ms=5, label="trial")
        axes.step(numbers, incumbent, where="post", color=BLUE, lw=2, label="best so far")
        axes.set_yscale(_value_scale(done))
    failed = [t.number for t in study.get_trials(deepcopy=False) if t.state == TrialState.FAIL]
    if failed:
        axes.plot(
            failed, [0.02] * len(failed), "x", color="#a4382e", ms=6, label="failed",
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip
    axes.set(xlabel="trial", ylabel="value")
    if done or failed:
        axes.legend(frameon=False)
    return figure


def plot_hyperparameters(study: optuna.Study) -> Figure | None:
    """Value against each number-valued hyperparameter, coloured by trial; None without any."""
    done = _finite(study)
    found: dict[str, FloatDistribution | IntDistribution] = {}
    for trial in done:
        for name, distribution in trial.distributions.items():
            if isinstance(distribution, FloatDistribution | IntDistribution):
                found[name] = distribution
    if not found:
        return None
    from matplotlib.figure import Figure

    columns = min(3, len(found))
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(3.4 * columns, 2.9 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    points: Any = None
    for axes, (name, distribution) in zip(grid.flat, sorted(found.items()), strict=False):
        having = [trial for trial in done if name in trial.params]
        points = axes.scatter(
            [trial.params[name] for trial in having],
            [trial.value for trial in having],
            c=[trial.number for trial in having],
            cmap="viridis", vmin=0, vmax=done[-1].number or 1, s=24,
        )  # fmt: skip
        axes.set_xlabel(name)
        axes.set_xscale("log" if distribution.log else "linear")
        axes.set_yscale(_value_scale(done))
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("value")
    for axes in grid.flat[len(found) :]:
        axes.set_visible(False)
    figure.colorbar(points, ax=grid, label="trial", pad=0.01)
    return figure


def plot_sizes(study: optuna.Study) -> Figure | None:
    """Value against the number of parameters, best trial marked; None without architectures."""
    done = [trial for trial in _finite(study) if "num_parameters" in trial.user_attrs]
    if not done:
        return None
    figure, axes = _axes((5.4, 3.4))
    sizes = [trial.user_attrs["num_parameters"] for trial in done]
    points = axes.scatter(
        sizes,
        [trial.value for trial in done],
        c=[trial.user_attrs["depth"] for trial in done],
        cmap="viridis", s=28,
    )  # fmt: skip
    best = _best(study)
    if best is not None and "num_parameters" in best.user_attrs:
        place = ([best.user_attrs["num_parameters"]], [best.value])
        axes.scatter(*place, s=130, facecolors="none", edgecolors=ORANGE, lw=2, label="best")
        axes.legend(frameon=False)
    axes.set(xlabel="parameters", ylabel="value", yscale=_value_scale(done))
    if min(sizes) > 0:
        axes.set_xscale("log")
    figure.colorbar(points, ax=axes, label=DESCRIPTORS["depth"], pad=0.02)
    return figure


def write_report(
    study: optuna.Study, path: str | Path, *, extra_sections: Sequence[Section] = ()
) -> Path:
    """Write a study as one self-contained HTML page.

    Args:
        study: With any number of trials, none included.
        path: File to write; its folder is made.
        extra_sections: Shown before the table of trials.

    Returns:
        The path.

    Raises:
        ValueError: the study has several objectives.
        OSError: the file cannot be written.
    """
    if len(study.directions) > 1:
        raise ValueError(
            f"The study {study.study_name!r} has {len(study.directions)} objectives, a report is "
            "of one: see optuna.visualization.plot_pareto_front."
        )
    trials = study.get_trials(deepcopy=False)
    best = _best(study)
    states = [trial.state for trial in trials]
    requeued = len(superseded(trials))
    facts = [
        ("best value", "none" if best is None else _text(best.value)),
        ("complete trials", states.count(TrialState.COMPLETE)),
        ("pruned", states.count(TrialState.PRUNED)),
        ("failed", states.count(TrialState.FAIL) - requeued),
        ("lost and queued again", requeued),
        ("running or waiting", sum(not state.is_finished() for state in states)),
    ]
    sections = [Section("Search progress", figures=[plot_progress(study)])]
    if best is not None:
        sections.append(_best_section(best))
    for title, figure in (
        ("Hyperparameters", plot_hyperparameters(study)),
        ("Size and value", plot_sizes(study)),
    ):
        if figure is not None:
            sections.append(Section(title, figures=[figure]))
    parameters = _parameter_names(trials)
    descriptors = [name for name in DESCRIPTORS if _has(trials, name)]
    page = _template().render(
        title=f"Study {study.study_name}",
        subtitle=f"{len(trials)} trials, to {study.direction.name.lower()}.",
        facts=[(label, value) for label, value in facts if value or label != "pruned"],
        sections=[_rendered(section) for section in (*sections, *extra_sections)],
        trial_columns=[*parameters, *(DESCRIPTORS[name] for name in descriptors)],
        trials=[_trial_row(trial, parameters, descriptors, best) for trial in trials],
        any_error=any(ERROR in trial.user_attrs for trial in trials),
        footer=f"Optuna {optuna.__version__}; values as the objective returned them.",
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _best(study: optuna.Study) -> FrozenTrial | None:
    try:
        return study.best_trial
    except ValueError:  # nothing complete
        return None


def _best_section(best: FrozenTrial) -> Section:
    architecture = architecture_of(best)
    rows: list[tuple[str, Any]] = sorted(best.params.items())
    rows += [
        (label, best.user_attrs[n]) for n, label in DESCRIPTORS.items() if n in best.user_attrs
    ]
    return Section(
        f"Best trial: {best.number}",
        columns=("", "value"),
        rows=rows,
        code="" if architecture is None else str(architecture),
    )


def _finite(study: optuna.Study) -> list[FrozenTrial]:
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [t for t in done if t.value is not None and math.isfinite(t.value)]


def _parameter_names(trials: Sequence[FrozenTrial]) -> list[str]:
    return sorted({name for trial in trials for name in trial.params})


def _has(trials: Sequence[FrozenTrial], name: str) -> bool:
    return any(name in trial.user_attrs for trial in trials)


def _trial_row(
    trial: FrozenTrial,
    parameters: Sequence[str],
    descriptors: Sequence[str],
    best: FrozenTrial | None,
) -> dict[str, Any]:
    values = [trial.params.get(name, "") for name in parameters]
    values += [trial.user_attrs.get(name, "") for name in descriptors]
    return {
        "number": trial.number,
        "state": trial.state.name,
        "best": best is not None and trial.number == best.number,
        "value": "" if trial.values is None else _text(trial.value),
        "cells": [_text(value) for value in values],
        "seconds": "" if trial.duration is None else _text(trial.duration.total_seconds()),
        "error": trial.user_attrs.get(ERROR, ""),
    }


def _rendered(section: Section) -> dict[str, Any]:
    return {
        "title": section.title,
        "text": section.text,
        "columns": section.columns,
        "rows": [[_text(cell) for cell in row] for row in section.rows],
        "images": [_png(figure) for figure in section.figures],
        "code": section.code,
    }


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, Real):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    return f"{float(value):.4g}"


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _value_scale(done: Sequence[FrozenTrial]) -> str:
    """Logarithmic where positive values span more than a factor of 20."""
    values = [float(trial.value) for trial in done if trial.value is not None]
    return "log" if min(values) > 0 and max(values) > 20 * min(values) else "linear"


def _axes(size: tuple[float, float]) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(
        resources.files("nas").joinpath("report.html").read_text("utf-8")
    )
