"""A summary of a study as its note in optuna-dashboard, which shows the trials themselves."""

from __future__ import annotations

from collections.abc import Sequence

import optuna

from nas.spaces import Space
from nas.studies.analysis import fit_study
from nas.studies.importance import importances
from nas.studies.plots import objective_names
from nas.trials import architecture_of

__all__ = ["annotate", "summary"]

NUM_SHOWN = 8  # lines of a table


def annotate(study: optuna.Study, *, space: Space | None = None) -> None:
    """Write the best architecture, importances and effects of motifs into the note of a study.

    `optuna-dashboard study.db` shows it beside its own figures. A call replaces the note.

    Args:
        study: In a storage.
        space: As in `nas.motif_effects`.

    Raises:
        ImportError: optuna-dashboard is not installed.
    """
    try:
        from optuna_dashboard import save_note
    except ImportError as error:
        raise ImportError(
            "nas.annotate writes a note for optuna-dashboard: pip install 'wideprior[dashboard]'."
        ) from error
    save_note(study, summary(study, space=space))


def summary(study: optuna.Study, *, space: Space | None = None) -> str:
    """The note as Markdown.

    Args:
        study: With any number of trials.
        space: As in `nas.motif_effects`.
    """
    parts = []
    try:
        best = study.best_trials
    except ValueError:  # nothing complete
        best = []
    names = objective_names(study)
    for trial in best[:NUM_SHOWN]:
        values = ", ".join(f"{n} {v:.4g}" for n, v in zip(names, trial.values, strict=True))
        parts.append(f"### Trial {trial.number}: {values}")
        architecture = architecture_of(trial)
        if architecture is not None:
            parts.append(f"```\n{architecture}\n```")
    for k, name in enumerate(names):
        of = f": {name}" if len(names) > 1 else ""
        try:
            shares = list(importances(study, objective=k).items())[:NUM_SHOWN]
        except ValueError:  # too little to tell
            continue
        rows = [(label, f"{share:.2f}") for label, share in shares]
        parts.append(_table(f"### Importance{of}", ("", "share"), rows))
        model = fit_study(study, objective=k, space=space)
        if model is not None:
            effects = [
                (effect.motif, f"{effect.effect:+.2f}", f"{effect.std:.2f}")
                for effect in model.effects()[:NUM_SHOWN]
            ]
            columns = ("one more of", "deviations of the value (+ is better)", "+-")
            parts.append(_table(f"### Effects of motifs{of}", columns, effects))
    return "\n\n".join(parts) or "No trial is complete yet."


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join([title, "", *(f"| {' | '.join(line)} |" for line in lines)])
