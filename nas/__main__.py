"""Command line of a study.

    python -m nas search --objective train.py:objective --space mlp \
        --in-features 64 --out-features 10 --storage study.db --trials 30
    python -m nas status --storage study.db
    python -m nas report --storage study.db --out report.html

The objective is `package.module:function` or `path/to/file.py:function`. A space is `mlp` or
`cell` with their options, or an object given in the same way as the objective. Exit status:
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

from nas.evaluation import SearchError
from nas.report import write_report
from nas.search import search
from nas.spaces import CellSpace, MLPSpace, Space
from nas.storage import StorageError, open_storage, shown, storage_errors
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nas",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("search", help="start a study or continue it")
    run.add_argument("--objective", required=True, help="module:function or file.py:function")
    run.add_argument("--space", required=True, help="mlp, cell, or module:object")
    run.add_argument("--trials", type=_positive, required=True, help="trials of this call")
    run.add_argument("--hyperparameters", help="module:dictionary of Optuna distributions")
    run.add_argument("--direction", choices=("minimize", "maximize"), default="minimize")
    run.add_argument("--workers", type=_positive, default=1)
    run.add_argument("--seed", type=int)
    run.add_argument("--no-progress", action="store_true")
    mlp = run.add_argument_group("--space mlp")
    mlp.add_argument("--in-features", type=_positive)
    mlp.add_argument("--out-features", type=_positive)
    mlp.add_argument("--depth", type=_positive, nargs=2, default=(1, 4))
    mlp.add_argument("--widths", type=_positive, nargs="+", default=(16, 32, 64, 128, 256))
    mlp.add_argument("--activations", nargs="+", default=("relu", "gelu", "tanh"))
    cell = run.add_argument_group("--space cell")
    cell.add_argument("--num-classes", type=_positive, default=10)
    cell.add_argument("--in-channels", type=_positive, default=3)
    cell.add_argument("--image-size", type=_positive, default=32)
    cell.add_argument("--channels", type=_positive, default=16)
    cell.add_argument("--num-cells", type=_positive, default=5)
    run.set_defaults(run=_search)
    status = commands.add_parser("status", help="print where a study stands")
    status.set_defaults(run=_status)
    report = commands.add_parser("report", help="write a study as an HTML page")
    report.add_argument("--out", type=Path, required=True, help="HTML file to write")
    report.set_defaults(run=_report)
    for command in (run, status, report):
        command.add_argument("--storage", required=True, help="SQLite file or Optuna URL")
        command.add_argument("--study", default="search", help="name of the study in the storage")
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
        raise SearchError("No trial of this call finished; see the last error.")
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
            print(f"{state.name.lower():<10} {count}")
    if lost:
        print(f"requeued   {len(lost)}")
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
