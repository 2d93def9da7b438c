"""Search for a network from the command line: start or resume a study, look at it, report on it.

    python -m nas search --objective train.py:objective --space mlp \
        --in-features 64 --out-features 10 --storage study.db --trials 30
    python -m nas status --storage study.db
    python -m nas report --storage study.db --out report.html

The objective is `package.module:function` or `path/to/file.py:function`; it is called with an
Optuna trial and returns the value of a network, which `nas.suggest(trial, space)` proposes. A
space is `mlp` (multilayer perceptrons) or `cell` (image classifiers of repeated NAS-Bench-201
cells), with the options that `search --help` lists, or an object given in the same way as the
objective. The same command again goes on with the study. Exit status:
0 done, 1 the study could not be opened or run or all trials of the call failed, 2 wrong usage,
130 interrupted (call again to resume).
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import optuna
from optuna.trial import TrialState

from nas.spaces import CellSpace, MLPSpace, Space
from nas.studies.evaluation import SearchError
from nas.studies.report import write_report
from nas.studies.search import search
from nas.studies.storage import StorageError, open_storage, shown, storage_errors
from nas.trials import ERROR, architecture_of, superseded
from priors.objects import load_object

__all__ = ["main"]


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
        "--direction", choices=("minimize", "maximize"), default="minimize",
        help="what to do with the value of the objective",
    )  # fmt: skip
    run.add_argument(
        "--workers", type=_positive, default=1, metavar="N", help="trials at the same time"
    )
    run.add_argument("--seed", type=int, metavar="N", help="of the proposals")
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
    for command in (run, status, report):
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
    objective = load_object(options.objective)
    if not callable(objective):
        raise ValueError(f"{options.objective} is not callable.")
    hyperparameters = load_object(options.hyperparameters) if options.hyperparameters else None
    start = datetime.now()
    study = search(
        objective,
        _space(options),
        hyperparameters=hyperparameters,
        num_trials=options.trials,
        storage=options.storage,
        study_name=options.study,
        workers=options.workers,
        direction=options.direction,
        seed=options.seed,
        show_progress=not options.no_progress,
    )
    _print_status(study)
    ended = [t for t in study.get_trials(deepcopy=False) if (t.datetime_complete or start) > start]
    if all(trial.state == TrialState.FAIL for trial in ended):
        raise SearchError("No trial of this call came to an end; see the last error.")
    return 0


def _status(options: argparse.Namespace) -> int:
    with storage_errors(options.study):
        _print_status(_load(options))
    return 0


def _report(options: argparse.Namespace) -> int:
    with storage_errors(options.study):
        study = _load(options)
        try:
            print(write_report(study, options.out))
        except OSError as error:
            raise ValueError(
                f"Cannot write the report {options.out}: {error.strerror}. Give --out a file in "
                "a folder that you can write to."
            ) from error
    return 0


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
    if not any(t.state == TrialState.COMPLETE for t in trials):
        return
    for best in study.best_trials if len(study.directions) > 1 else [study.best_trial]:
        print(f"best       {', '.join(f'{v:.6g}' for v in best.values)} (trial {best.number})")
        for name, value in sorted(best.params.items()):
            print(f"  {name} = {value}")
        if "num_parameters" in best.user_attrs:
            print(f"  num_parameters = {best.user_attrs['num_parameters']}")
        architecture = architecture_of(best)
        if architecture is not None:
            print(textwrap.indent(str(architecture), "  "))


if __name__ == "__main__":
    sys.exit(main())
