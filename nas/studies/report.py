"""What a study found, as one HTML file that needs nothing beside it.

The page embeds its figures as PNG; every text on it is escaped, so an error message cannot break
or script it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from nas.architectures.drawing import plot_architecture
from nas.fidelity import trained_in_full
from nas.spaces import Space
from nas.spaces.cell import cell_string
from nas.studies.analysis import fit_study
from nas.studies.importance import importances
from nas.studies.model_plots import plot_calibration, plot_importances, plot_motif_effects
from nas.studies.plots import (
    objective_names,
    plot_hyperparameters,
    plot_pareto_front,
    plot_progress,
    plot_sizes,
)
from nas.studies.timeline import plot_cost, plot_timeline
from nas.trials import ERROR, architecture_of, seconds_of, superseded
from priors.representation import count

if TYPE_CHECKING:
    import jinja2
    from matplotlib.figure import Figure

__all__ = ["Section", "write_report"]

_FEWEST = 10  # trials trained in full of which importances say something
_LONGEST = 40  # characters of a cell that is not a sentence
_ALWAYS = ("complete trials", "failed")  # also where they are 0
_READING = (
    "Later trials are darker. A line is the median of a category, a triangle a value off the axis."
)
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


def write_report(
    study: optuna.Study,
    path: str | Path,
    *,
    extra_sections: Sequence[Section] = (),
    space: Space | None = None,
) -> Path:
    """Write a study as one self-contained HTML page.

    Progress and cost, the best trial or the Pareto front with pictures, importances,
    hyperparameters, sizes, effects of motifs and calibration of a surrogate that is fitted to the
    newest 150 trials, when trials ran, errors and all trials.

    Args:
        study: With any number of trials, none included.
        path: File to write; its folder is made.
        extra_sections: Shown before the table of trials.
        space: The searched space, by which the surrogate tells hyperparameters from choices of the
            architecture; None takes that of the study's sampler, if it has one.

    Returns:
        The path.

    Raises:
        OSError: the file cannot be written.
    """
    trials = study.get_trials(deepcopy=False)
    names = objective_names(study)
    best = _best(study)
    states = [trial.state for trial in trials]
    full = trained_in_full(study)
    requeued = len(superseded(trials))
    several = len(names) > 1
    value = "none" if not best or best[0].values is None else _text(best[0].values[0])
    facts = [
        ("trials on the Pareto front", len(best)) if several else (f"best {names[0]}", value),
        ("complete trials", len(full)),
        ("complete at a lower fidelity", states.count(TrialState.COMPLETE) - len(full)),
        ("pruned", states.count(TrialState.PRUNED)),
        ("failed", states.count(TrialState.FAIL) - requeued),
        ("lost and queued again", requeued),
        ("running or waiting", sum(not state.is_finished() for state in states)),
    ]
    parameters = _parameter_names(trials)
    descriptors = [name for name in DESCRIPTORS if _has(trials, name)]
    goals = " and ".join(
        f"{direction.name.lower()} {name}"
        for direction, name in zip(study.directions, names, strict=True)
    )
    page = _template().render(
        title=f"Study {study.study_name}",
        subtitle=f"{count(len(trials), 'trial')}, to {goals}." if trials else "No trials yet.",
        facts=[(label, value) for label, value in facts if value or label in _ALWAYS],
        sections=[
            _rendered(section) for section in (*_sections(study, best, space), *extra_sections)
        ],
        trial_columns=[
            *names,
            *parameters,
            *(DESCRIPTORS[name] for name in descriptors),
        ],
        trials=[_trial_row(trial, len(names), parameters, descriptors, best) for trial in trials],
        footer=f"Optuna {optuna.__version__}; values as the objective returned them.",
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _sections(
    study: optuna.Study, best: Sequence[FrozenTrial], space: Space | None
) -> list[Section]:
    """What the page shows between the facts and the table of trials."""
    trials = study.get_trials(deepcopy=False)
    if not trials:
        return []
    names = objective_names(study)
    found: list[tuple[str, Figure | None]] = []
    if len(names) > 1:
        found.append(("Pareto front", plot_pareto_front(study)))
    for k, name in enumerate(names):
        of = f": {name}" if len(names) > 1 else ""
        found.append((f"Progress of the search{of}", plot_progress(study, objective=k)))
        found.append((f"Cost of the search{of}", plot_cost(study, objective=k)))
    sections = [Section(title, figures=[drawn]) for title, drawn in found if drawn is not None]
    if len(names) > 1:
        sections += _front_section(best, names)
    else:
        sections += [_best_section(trial) for trial in best]
    for k, name in enumerate(names):
        of = f": {name}" if len(names) > 1 else ""
        sections += _importance_section(study, k, of)
        for title, text, drawn in (
            ("Hyperparameters", _READING, plot_hyperparameters(study, objective=k)),
            ("Size and value", "", plot_sizes(study, objective=k)),
        ):
            if drawn is not None:
                sections.append(Section(f"{title}{of}", text=text, figures=[drawn]))
        sections += _surrogate_sections(study, k, of, space)
    timeline = plot_timeline(study)
    if timeline is not None:
        sections.append(Section("When trials ran", figures=[timeline]))
    return sections + _error_section(trials)


def _importance_section(study: optuna.Study, objective: int, of: str) -> list[Section]:
    if len(trained_in_full(study)) < _FEWEST:
        return []
    try:
        shares = importances(study, objective=objective)
    except ValueError:  # too little to tell
        return []
    text = (
        "What sets the good trials apart from the others (PED-ANOVA), as shares. Traits that "
        "depend on each other share their importance."
    )
    return [Section(f"Importance{of}", text=text, figures=[plot_importances(shares)])]


def _surrogate_sections(
    study: optuna.Study, objective: int, of: str, space: Space | None
) -> list[Section]:
    """What a Gaussian process of the trials says; nothing where there are too few."""
    model = fit_study(study, objective=objective, space=space)
    if model is None:
        return []
    calibration = model.calibration()
    inside = round(calibration.coverage * len(calibration.values))
    sees = ", ".join(("the architecture", *model.hyperparameters))
    sections = []
    effects = plot_motif_effects(model.effects())
    if effects is not None:
        sections.append(
            Section(
                f"Effects of motifs{of}",
                text="Slope of the surrogate on the number of each operation, and of each "
                "operation behind others (>), at a given number of operations and the "
                "hyperparameters of the best trial, with 90% intervals; grey ones contain 0. In "
                "brackets: how many architectures have the motif. What often comes together is not "
                "told apart.",
                figures=[effects],
            )
        )
    sections.append(
        Section(
            f"Calibration of the surrogate{of}",
            text=f"Each trial against what the others said of it: {inside} of "
            f"{len(calibration.values)} values are in their 90% intervals, rank correlation "
            f"{calibration.rank_correlation:.2f}. The Gaussian process sees {sees}.",
            figures=[plot_calibration(calibration)],
        )
    )
    return sections


def _best(study: optuna.Study) -> list[FrozenTrial]:
    """The best trial, or those on the Pareto front of several objectives; none if none ended."""
    if len(study.directions) > 1:
        return study.best_trials
    try:
        return [study.best_trial]
    except ValueError:  # nothing complete
        return []


def _best_section(best: FrozenTrial) -> Section:
    architecture = architecture_of(best)
    rows: list[tuple[str, Any]] = sorted(best.params.items())
    rows += [
        (label, best.user_attrs[n]) for n, label in DESCRIPTORS.items() if n in best.user_attrs
    ]
    cell = None if architecture is None else cell_string(architecture)
    rows += [] if cell is None else [("NAS-Bench-201 cell", cell)]
    return Section(
        f"Best trial: {best.number}",
        columns=("", "value"),
        rows=rows,
        figures=[] if architecture is None else [plot_architecture(architecture)],
        code="" if architecture is None else str(architecture).replace("->", "→"),
    )


def _front_section(best: Sequence[FrozenTrial], names: Sequence[str]) -> list[Section]:
    if not best:
        return []
    parameters = _parameter_names(best)
    rows = [
        [trial.number, *trial.values, *(trial.params.get(name, "") for name in parameters)]
        for trial in sorted(best, key=lambda trial: trial.values)
    ]
    return [
        Section(
            "Trials on the Pareto front",
            text="No other trial is at least as good in all objectives and better in one.",
            columns=("trial", *names, *parameters),
            rows=rows,
        ),
        *_front_pictures(best),
    ]


def _front_pictures(best: Sequence[FrozenTrial]) -> list[Section]:
    """Networks along the front: its ends and its middle."""
    drawn = [(t, a) for t in sorted(best, key=lambda t: t.values) if (a := architecture_of(t))]
    places = sorted({0, len(drawn) // 2, len(drawn) - 1}) if drawn else []
    return [
        Section(
            f"Trial {trial.number} of the front",
            text=", ".join(_text(value) for value in trial.values),
            code=cell_string(architecture) or "",
            figures=[plot_architecture(architecture)],
        )
        for trial, architecture in (drawn[place] for place in places)
    ]


def _error_section(trials: list[FrozenTrial]) -> list[Section]:
    """Each error once, with the trials that it ended."""
    lost = superseded(trials)
    numbers: dict[str, list[int]] = {}
    for trial in trials:
        if ERROR in trial.user_attrs and trial.number not in lost:
            numbers.setdefault(trial.user_attrs[ERROR], []).append(trial.number)
    rows = [(_listed(found), error) for error, found in numbers.items()]
    return [Section("Errors", columns=("trials", "error"), rows=rows)] if rows else []


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:10]))
    return shown if len(numbers) <= 10 else f"{shown} and {len(numbers) - 10} more"


def _parameter_names(trials: Sequence[FrozenTrial]) -> list[str]:
    return sorted({name for trial in trials for name in trial.params})


def _has(trials: Sequence[FrozenTrial], name: str) -> bool:
    return any(name in trial.user_attrs for trial in trials)


def _trial_row(
    trial: FrozenTrial,
    objectives: int,
    parameters: Sequence[str],
    descriptors: Sequence[str],
    best: Sequence[FrozenTrial],
) -> dict[str, Any]:
    values: list[Any] = [""] * objectives if trial.values is None else list(trial.values)
    values += [trial.params.get(name, "") for name in parameters]
    values += [trial.user_attrs.get(name, "") for name in descriptors]
    return {
        "number": trial.number,
        "state": trial.state.name,
        "best": trial.number in {one.number for one in best},
        "cells": [_text(value) for value in values],
        "seconds": "" if trial.duration is None else _text(seconds_of(trial)),
    }


def _rendered(section: Section) -> dict[str, Any]:
    rows = [[_text(cell) for cell in row] for row in section.rows]
    kinds = [_kind([row[k] for row in section.rows]) for k in range(len(section.columns))]
    return {
        "title": section.title,
        "text": section.text,
        "columns": list(zip(section.columns, kinds, strict=True)),
        "rows": [list(zip(row, kinds, strict=True)) for row in rows],
        "images": [_png(figure) for figure in section.figures],
        "code": section.code,
    }


def _kind(cells: Sequence[Any]) -> str:
    """How a column is set: sentences wrap, words begin at the left, numbers end at the right."""
    if any(len(_text(cell)) > _LONGEST for cell in cells):
        return "long"
    return "" if any(isinstance(cell, Real) for cell in cells) else "text"


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, Real):
        return str(value)
    number = float(value)
    if isinstance(value, int) or (number.is_integer() and abs(number) < 1e12):
        return f"{number:,.0f}".replace(",", "\u202f")
    return f"{number:.4g}"


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(
        resources.files("nas.studies").joinpath("report.html").read_text("utf-8")
    )
