"""Search for a network from the command line: start or resume a study, look at it, export the best.

    python -m nas search --objective train.py:objective --space mlp \
        --in-features 64 --out-features 10 --storage study.db --trials 30
    python -m nas resume --storage study.db --trials 30
    python -m nas status --storage study.db
    python -m nas report --storage study.db --out report.html
    python -m nas export --storage study.db --out best

The objective is `package.module:function` or `path/to/file.py:function`; it is called with an
Optuna trial and returns the value of a network, which `nas.suggest(trial, space)` proposes. A
space is `mlp` (multilayer perceptrons) or `cell` (image classifiers of repeated NAS-Bench-201
cells), with the options that `search --help` lists, or an object given in the same way as the
objective. `resume`, or the same command again, goes on with the study. Exit status:
0 done, 1 the study could not be opened or run or all trials of the call failed, 2 wrong usage,
130 interrupted (call again to resume).
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from nas.fidelity import trained_in_full
from nas.spaces import CellSpace, MLPSpace, Space
from nas.studies.ensembles import ensemble
from nas.studies.evaluation import SearchError, quiet
from nas.studies.export import WEIGHTS, export
from nas.studies.report import write_report
from nas.studies.search import search
from nas.studies.storage import StorageError, open_storage, shown, storage_errors
from nas.trials import ERROR, architecture_of, seconds_of, signs_of, superseded
from priors.objects import load_object

__all__ = ["main"]

COMMAND = "nas:command"  # of a study: how it was started
_STORED = (
    "objective", "space", "hyperparameters", "fidelity", "direction", "workers", "seed",
    "in_features", "out_features", "depth", "widths", "activations", "num_classes", "in_channels",
    "image_size", "channels", "num_cells",
)  # fmt: skip
NUM_SHOWN = 5  # best trials in a status


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        print("\nInterrupted; the same command resumes the study.", file=sys.stderr)
        return 130
    except (StorageError, SearchError, ValueError, TypeError, KeyError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        print(f"nas {options.command}: {message}", file=sys.stderr)
        return 1


class _WithDefaults(argparse.HelpFormatter):
    """Defaults behind each text, lists as they are typed."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, argparse.SUPPRESS):
            return action.help
        values = action.default if isinstance(action.default, tuple) else (action.default,)
        return f"{action.help} (default: {' '.join(map(str, values))})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nas",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "search", help="start a study, or go on with it", formatter_class=_WithDefaults,
        description="Start a study, or go on with the one of this name in the storage.",
    )  # fmt: skip
    given = "package.module:NAME or file.py:NAME"
    run.add_argument(
        "--objective", required=True, metavar="WHERE", help=f"function of a trial, as {given}"
    )
    run.add_argument(
        "--space", required=True, metavar="SPACE", help=f"mlp, cell, or one of your own as {given}"
    )
    run.add_argument(
        "--trials", type=_positive, required=True, metavar="N", help="how many to run now"
    )
    run.add_argument(
        "--hyperparameters", metavar="WHERE",
        help=f"dictionary of Optuna distributions by name, as {given}",
    )  # fmt: skip
    run.add_argument(
        "--fidelity", metavar="WHERE", help=f"nas.Fidelity that the objective asks, as {given}"
    )
    run.add_argument(
        "--direction", choices=("minimize", "maximize"), nargs="+", default=("minimize",),
        help="what to do with each value of the objective",
    )  # fmt: skip
    run.add_argument(
        "--workers", type=_positive, default=1, metavar="N", help="trials at the same time"
    )
    run.add_argument("--seed", type=int, metavar="N", help="of the proposals")
    run.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS", help="start no trial after so long"
    )
    run.add_argument("--no-progress", action="store_true", help="log lines in place of a bar")
    mlp = run.add_argument_group("--space mlp")
    mlp.add_argument(
        "--in-features", type=_positive, metavar="N", help="length of an input; needed"
    )
    mlp.add_argument(
        "--out-features", type=_positive, metavar="N", help="length of an output; needed"
    )
    mlp.add_argument(
        "--depth", type=_positive, nargs=2, default=(1, 4), metavar=("LEAST", "MOST"),
        help="hidden layers",
    )  # fmt: skip
    mlp.add_argument(
        "--widths", type=_positive, nargs="+", default=(16, 32, 64, 128, 256), metavar="N",
        help="choices for the width of a layer",
    )  # fmt: skip
    mlp.add_argument(
        "--activations", nargs="+", default=("relu", "gelu", "tanh"), metavar="NAME",
        help="choices for the activation",
    )  # fmt: skip
    cell = run.add_argument_group("--space cell")
    for option, default, text in (
        ("--num-classes", 10, "outputs of the classifier"),
        ("--in-channels", 3, "channels of an image"),
        ("--image-size", 32, "height and width of an image, divisible by 4"),
        ("--channels", 16, "channels of the first stage"),
        ("--num-cells", 5, "cells in each of the three stages"),
    ):
        cell.add_argument(option, type=_positive, default=default, metavar="N", help=text)
    run.set_defaults(run=_search)
    resume = commands.add_parser(
        "resume", help="go on with a study", formatter_class=_WithDefaults,
        description="Go on with a study that `search` started, with the objective and the space "
        "that it was started with.",
    )  # fmt: skip
    resume.add_argument(
        "--trials", type=_positive, required=True, metavar="N", help="how many to run now"
    )
    resume.add_argument(
        "--workers", type=_positive, metavar="N", help="in place of those of `search`"
    )
    resume.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS", help="start no trial after so long"
    )
    resume.add_argument("--no-progress", action="store_true", help="log lines in place of a bar")
    resume.set_defaults(run=_resume)
    status = commands.add_parser(
        "status", help="print where a study stands", formatter_class=_WithDefaults,
        description="Print how many trials ended in which way, the last error and the best trial.",
    )  # fmt: skip
    status.set_defaults(run=_status)
    report = commands.add_parser(
        "report", help="write a study as an HTML page", formatter_class=_WithDefaults,
        description="Write figures, the best architecture, errors and all trials as one HTML page "
        "that needs nothing beside it.",
    )  # fmt: skip
    report.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="HTML file to write"
    )
    report.set_defaults(run=_report)
    export_ = commands.add_parser(
        "export", help="write a network as code and weights", formatter_class=_WithDefaults,
        description="Write network.py, whose build() makes the network, and weights.safetensors "
        "where the objective kept the weights (nas.keep_predictions).",
    )  # fmt: skip
    export_.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="where the files go"
    )
    export_.add_argument(
        "--trial", type=int, metavar="N", help="number of a complete trial; the best if not given"
    )
    export_.add_argument(
        "--ensemble", type=_positive, metavar="SIZE",
        help="also write ensemble.safetensors, a pool of at most so many networks that "
        "nas.Ensemble.load reads",
    )  # fmt: skip
    export_.add_argument(
        "--kept", type=Path, metavar="FOLDER",
        help="where trials kept their networks, if not beside the storage",
    )  # fmt: skip
    export_.set_defaults(run=_export)
    for command in (run, resume, status, report, export_):
        command.add_argument(
            "--storage", required=True, metavar="FILE", help="SQLite file, or an Optuna URL"
        )
        command.add_argument(
            "--study", default="search", metavar="NAME", help="name of the study in the storage"
        )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be positive, got {value:g}")
    return value


def _space(options: argparse.Namespace) -> Space:
    if options.space == "mlp":
        if options.in_features is None or options.out_features is None:
            raise ValueError("--space mlp needs --in-features and --out-features.")
        return MLPSpace(
            options.in_features,
            options.out_features,
            depth=tuple(options.depth),
            widths=options.widths,
            activations=options.activations,
        )
    if options.space == "cell":
        return CellSpace(
            options.num_classes,
            in_channels=options.in_channels,
            image_size=options.image_size,
            channels=options.channels,
            num_cells=options.num_cells,
        )
    space = load_object(options.space)
    if not isinstance(space, Space):
        raise ValueError(f"{options.space} is {type(space).__name__}, not a nas.spaces.Space.")
    return space


def _search(options: argparse.Namespace) -> int:
    return _run(options, {name: value for name, value in vars(options).items() if name in _STORED})


def _resume(options: argparse.Namespace) -> int:
    with storage_errors(options.study):
        stored = _load(options).user_attrs.get(COMMAND)
    if stored is None:
        raise ValueError(
            f"The study {options.study!r} was not started by `nas search`, so its objective is not "
            "known here; go on with it where it was started, or by `nas search`."
        )
    command = json.loads(stored)
    here = {name: value for name, value in vars(options).items() if value is not None}
    return _run(argparse.Namespace(**{"timeout": None, **command, **here}), command)


def _run(options: argparse.Namespace, command: dict[str, Any]) -> int:
    """Search, and store with the study how it was started.

    Args:
        options: What to do.
        command: What `resume` shall find; its files are made absolute.
    """
    objective = load_object(options.objective)
    if not callable(objective):
        raise ValueError(f"{options.objective} is not callable.")
    hyperparameters = load_object(options.hyperparameters) if options.hyperparameters else None
    fidelity = load_object(options.fidelity) if options.fidelity else None
    space = _space(options)
    for name in ("objective", "space", "hyperparameters", "fidelity"):
        command[name] = _from_anywhere(command[name])
    start = datetime.now()
    storage = open_storage(options.storage)
    with storage_errors(options.study):
        _note(storage, options, command)
    study = search(
        objective,
        space,
        hyperparameters=hyperparameters,
        num_trials=options.trials,
        storage=storage,
        study_name=options.study,
        workers=options.workers,
        directions=options.direction,
        fidelity=fidelity,
        seed=options.seed,
        timeout=options.timeout,
        show_progress=not options.no_progress,
    )
    _print_status(study)
    ended = [t for t in study.get_trials(deepcopy=False) if (t.datetime_complete or start) > start]
    if all(trial.state == TrialState.FAIL for trial in ended):
        raise SearchError("No trial of this call came to an end; see the last error.")
    return 0


def _note(storage: BaseStorage, options: argparse.Namespace, command: dict[str, Any]) -> None:
    """Leave with a study how it was started, before it can be interrupted."""
    with quiet(True):
        study = optuna.create_study(
            storage=storage,
            study_name=options.study,
            directions=options.direction,
            load_if_exists=True,
        )
    if [direction.name.lower() for direction in study.directions] == list(options.direction):
        study.set_user_attr(COMMAND, json.dumps(command))  # otherwise `search` refuses


def _status(options: argparse.Namespace) -> int:
    with storage_errors(options.study):
        study = _load(options)
        _register_operations(study)
        _print_status(study)
    return 0


def _report(options: argparse.Namespace) -> int:
    with storage_errors(options.study):
        study = _load(options)
        _register_operations(study)
        try:
            print(write_report(study, options.out, space=_stored_space(study)))
        except OSError as error:
            raise ValueError(
                f"Cannot write the report {options.out}: {error.strerror}. Give --out a file in "
                "a folder that you can write to."
            ) from error
    return 0


def _stored_space(study: optuna.Study) -> Space | None:
    """The space that `search` was started with; None where it cannot be had any more."""
    stored = study.user_attrs.get(COMMAND)
    try:
        return None if stored is None else _space(argparse.Namespace(**json.loads(stored)))
    except ValueError:
        return None


def _register_operations(study: optuna.Study) -> None:
    """Import the module of the objective where architectures need operations of its own."""
    stored = study.user_attrs.get(COMMAND)
    try:
        for trial in study.get_trials(deepcopy=False):
            architecture_of(trial)
    except ValueError:
        if stored is not None:
            with suppress(ValueError):  # what is missing is said of the architecture
                load_object(json.loads(stored)["objective"])


def _export(options: argparse.Namespace) -> int:
    with storage_errors(options.study):
        study = _load(options)
        _register_operations(study)
        try:
            path = export(study, options.out, trial=options.trial, kept=options.kept)
            print(path)
            weights = path.with_name(WEIGHTS)
            print(weights if weights.exists() else "no weights: the trial kept none")
            if options.ensemble is not None:
                pool = path.with_name("ensemble.safetensors")
                ensemble(study, options.ensemble, folder=options.kept).save(pool)
                print(pool)
        except FileNotFoundError as error:
            raise ValueError(str(error)) from error
        except OSError as error:
            raise ValueError(
                f"Cannot write to {options.out}: {error.strerror}. Give --out a folder that you "
                "can write to."
            ) from error
    return 0


def _from_anywhere(where: str | None) -> str | None:
    """`file.py:NAME` with the whole path of its file; other texts as they are."""
    if where is None:
        return None
    file, colon, name = where.rpartition(":")
    return f"{Path(file).resolve()}{colon}{name}" if file.endswith(".py") else where


def _load(options: argparse.Namespace) -> optuna.Study:
    storage = open_storage(options.storage, must_exist=True)
    names = optuna.get_all_study_names(storage)
    if options.study not in names:
        raise ValueError(
            f"{shown(options.storage)} has no study {options.study!r}; it has "
            f"{sorted(names) or 'none'}."
        )
    return optuna.load_study(study_name=options.study, storage=storage)


def _print_status(study: optuna.Study) -> None:
    trials = study.get_trials(deepcopy=False)
    lost = superseded(trials)
    directions = ", ".join(direction.name.lower() for direction in study.directions)
    print(f"study      {study.study_name} ({directions})")
    for state in TrialState:
        count = sum(t.state == state and t.number not in lost for t in trials)
        if count or state in (TrialState.COMPLETE, TrialState.FAIL):
            name = "failed" if state == TrialState.FAIL else state.name.lower()
            print(f"{name:<10} {count}")
    if lost:
        print(f"lost       {len(lost)}, queued again")
    errors = [t for t in trials if ERROR in t.user_attrs and t.number not in lost]
    if errors:
        print(f"last error trial {errors[-1].number}: {errors[-1].user_attrs[ERROR]}")
    complete = trained_in_full(study)
    lower = sum(t.state == TrialState.COMPLETE for t in trials) - len(complete)
    if lower:
        print(f"of these   {lower} at a lower fidelity")
    seconds = [seconds_of(t) for t in complete if t.duration is not None]
    if seconds:
        print(
            f"seconds    {sum(seconds) / len(seconds):.3g} for a trial, {sum(seconds):.3g} in all"
        )
    if not complete:
        return
    several = len(study.directions) > 1
    for best in study.best_trials if several else _best(study):
        print(f"best       {', '.join(f'{v:.6g}' for v in best.values)} (trial {best.number})")
        for name, value in sorted(best.params.items()):
            print(f"  {name} = {value}")
        if "num_parameters" in best.user_attrs:
            print(f"  num_parameters = {best.user_attrs['num_parameters']}")
        architecture = architecture_of(best)
        if architecture is not None:
            print(textwrap.indent(str(architecture), "  "))
    if not several and len(complete) > 1:
        print()
        _print_table(_best_rows(study, complete))


def _best(study: optuna.Study) -> list[FrozenTrial]:
    try:
        return [study.best_trial]
    except ValueError:  # none is feasible
        return []


def _best_rows(study: optuna.Study, complete: Sequence[FrozenTrial]) -> list[list[str]]:
    """The best trials with their values and hyperparameters, under headings."""
    (sign,) = signs_of(study.directions)
    best = sorted(complete, key=lambda trial: -sign * trial.values[0])[:NUM_SHOWN]
    names = sorted({name for trial in best for name in trial.params})
    rows = [["trial", "value", "seconds", "parameters", *names]]
    for trial in best:
        duration = "" if trial.duration is None else f"{seconds_of(trial):.3g}"
        row = [str(trial.number), f"{trial.values[0]:.6g}", duration]
        row.append(str(trial.user_attrs.get("num_parameters", "")))
        for name in names:
            value = trial.params.get(name, "")
            row.append(f"{value:.4g}" if isinstance(value, float) else str(value))
        rows.append(row)
    return rows


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    sys.exit(main())
