"""From an objective and a space to a finished study in one call.

Optuna runs the trials and keeps them; this adds what a long search needs around it: a storage
that is opened with clear errors, resuming by calling again, errors kept with the trial that
raised them, interrupted and lost trials queued again, and workers on any executor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from multiprocessing import current_process
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from nas.checks import check_whole
from nas.encoding.conditional import Declared, bare
from nas.encoding.hyperparameters import HyperparameterCube
from nas.fidelity import Fidelity
from nas.sampler import BayesianSampler
from nas.spaces import Space
from nas.studies.evaluation import Objective, Watch, evaluate, quiet
from nas.studies.storage import open_storage, storage_errors
from nas.studies.workers import Job, check_job, requeue_dead, run_jobs

__all__ = ["search"]

Direction = Literal["minimize", "maximize"]
Callback = Callable[[optuna.Study, FrozenTrial], None]


def search(
    objective: Objective,
    space: Space,
    *,
    hyperparameters: Mapping[str, Declared] | None = None,
    num_trials: int,
    storage: str | Path | BaseStorage | None = None,
    study_name: str | None = None,
    workers: int = 1,
    engine: Executor | None = None,
    sampler: optuna.samplers.BaseSampler | None = None,
    direction: Direction = "minimize",
    directions: Sequence[Direction] | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
    timeout: float | None = None,
    callbacks: Sequence[Callback] = (),
    catch: tuple[type[Exception], ...] = (Exception,),
    warm_start: optuna.Study | Sequence[optuna.Study] = (),
    fidelity: Fidelity | None = None,
    seed: int | None = None,
    show_progress: bool = True,
) -> optuna.Study:
    """Search a space, or continue an earlier search.

    A trial whose objective raises, `SystemExit` included, is recorded as failed, with the error
    in its user attributes `error` and `traceback`, and the search goes on, unless the first five
    trials of a call fail in the same line of code. On Ctrl-C the running trials are marked
    failed and queued again, and `KeyboardInterrupt` is raised; the next call with the same
    storage and name takes them up first. The trial of a local worker process that is killed is
    queued again at once, with a warning, and a new process goes on; the trials of a search that
    was killed as a whole are queued again by the next call on the same machine, and elsewhere
    after two minutes without a heartbeat. A trial is queued again at most twice.

    A trial fails if its objective raises or returns nan. The default sampler learns which
    candidates fail, and of a constraint (`trial.set_constraint(name, value)` in the objective, at
    most 0 where it holds) which are feasible.

    Args:
        objective: Called with each trial; it calls `nas.suggest(trial, space)` and returns the
            value, or a sequence of one for each of several `directions`. With several workers it
            must be picklable (a function of an importable module).
        space: The search space.
        hyperparameters: Optuna distributions by name, as the objective suggests them, `Conditional`
            where it does so for some candidates only.
        num_trials: Number of trials to run in this call.
        storage: Path of an SQLite file, an Optuna URL, or an Optuna storage; None keeps the
            study in memory.
        study_name: Name of the study in the storage; `"search"` if None.
        workers: Number of trials that run at the same time.
        engine: Executor that runs the workers; None means this process for one worker and local
            processes for several. It is not shut down.
        sampler: If None, `BayesianSampler` with the space, the hyperparameters, `warm_start`,
            `fidelity` and `seed`.
        direction: `"minimize"` or `"maximize"`.
        directions: Of several objectives, in place of `direction`.
        pruner: Stops trials early that report values (`nas.report_value`, `nas.should_prune`);
            None is Optuna's default, the median rule.
        timeout: Seconds after which no further trial is started.
        callbacks: Called with the study and each trial that ended, in the worker that ran it.
            `study.stop()` in one of them, or `trial.study.stop()` in the objective, ends the call
            once the running trials end.
        catch: Exceptions that fail a trial; another ends the call, after the trial is recorded.
        warm_start: Earlier studies that the default sampler starts from, see `BayesianSampler`.
        fidelity: Levels at which the objective trains, chosen by the default sampler, see
            `BayesianSampler`. The best trial is one of those trained in full.
        seed: Seed of the default sampler.
        show_progress: Whether to draw a progress bar in place of Optuna's log lines.

    Returns:
        The study with all its trials, earlier calls included.

    Raises:
        ValueError: impossible numbers, several workers without a storage they can share, or a
            stored study of other directions or with a hyperparameter of another kind.
        TypeError: an argument is of the wrong kind, or several workers and an objective, sampler,
            pruner or callback that they cannot import.
        StorageError: the storage cannot be opened, or cannot be written any more.
        SearchError: the first five trials of the call fail in the same line of code (other than
            by a nan or for want of memory), the sampler cannot propose, or worker processes do
            not start.
    """
    if getattr(current_process(), "_inheriting", False):
        # A worker process imports a script that calls this function without a `__main__` guard:
        # it must not start a search of its own. The process that started it says what to do.
        raise SystemExit(1)
    check_whole(num_trials=num_trials, workers=workers)
    if timeout is not None and not (isinstance(timeout, Real) and timeout > 0):
        raise ValueError(f"timeout must be a positive number of seconds, got {timeout!r}.")
    callbacks = _callables(callbacks)
    _check_kinds_of_objects(objective, space, sampler, pruner, catch)
    wanted = _directions(direction, directions)
    if engine is not None and not isinstance(engine, Executor):
        raise TypeError(
            f"engine must be a concurrent.futures.Executor, got {engine!r}. For Ray use "
            "Dask on Ray and its `client.get_executor()`: Ray itself has no such executor."
        )
    HyperparameterCube(hyperparameters or {})  # checks the kinds
    earlier = [warm_start] if isinstance(warm_start, optuna.Study) else list(warm_start)
    if sampler is None:
        sampler = BayesianSampler(
            space,
            hyperparameters=hyperparameters,
            warm_start=earlier,
            fidelity=fidelity,
            seed=seed,
        )
    elif seed is not None or earlier or fidelity is not None:
        raise ValueError(
            "seed, warm_start and fidelity apply to the default sampler only; give your sampler "
            "its own."
        )
    if isinstance(sampler, BayesianSampler):
        sampler.check(len(wanted))
    opened = storage if isinstance(storage, BaseStorage) else open_storage(storage)
    study = _study(opened, study_name or "search", wanted, sampler, pruner)
    _check_stored(study, bare(hyperparameters or {}))
    watch = Watch(study, num_trials, show_progress)
    with quiet(show_progress), storage_errors(study.study_name), watch:
        requeue_dead(study)
        if workers > 1 or engine is not None:
            job = Job(objective, study, opened, tuple(callbacks), catch, silent=show_progress)
            check_job(job, local=engine is None)
            run_jobs(job, study, num_trials, workers, engine, watch.update, timeout)
        else:
            study.optimize(
                partial(evaluate, objective),
                n_trials=num_trials,
                timeout=timeout,
                catch=catch,
                callbacks=[lambda _, trial: watch.update(trial), *callbacks],
            )
    return study


def _callables(callbacks: Any) -> list[Callback]:
    found = list(callbacks) if isinstance(callbacks, Sequence) else [callbacks]
    if not all(map(callable, found)):
        raise TypeError(f"callbacks must be functions of a study and a trial, got {callbacks!r}.")
    return found


def _check_kinds_of_objects(
    objective: object, space: object, sampler: object, pruner: object, catch: object
) -> None:
    if not callable(objective):
        raise TypeError(f"objective must be a function of a trial, got {objective!r}.")
    if not isinstance(space, Space):
        raise TypeError(
            f"space must be a nas.spaces.Space, such as MLPSpace(64, 10), got {space!r}."
        )
    for name, value, kind in (
        ("sampler", sampler, optuna.samplers.BaseSampler),
        ("pruner", pruner, optuna.pruners.BasePruner),
    ):
        if not (value is None or isinstance(value, kind)):
            raise TypeError(f"{name} must be an Optuna {kind.__name__} or None, got {value!r}.")
    kinds = catch if isinstance(catch, tuple) else (catch,)
    if not all(isinstance(each, type) and issubclass(each, BaseException) for each in kinds):
        raise TypeError(f"catch must be a tuple of exception classes, got {catch!r}.")


def _directions(one: Direction, several: Sequence[Direction] | None) -> list[Direction]:
    if several is not None and (isinstance(several, str) or not several):
        raise ValueError(
            f"directions must be a sequence of 'minimize' and 'maximize', got {several!r}."
        )
    if several is not None and one != "minimize":
        raise ValueError("Give either direction or directions, not both.")
    wanted: list[Direction] = [one] if several is None else list(several)
    for direction in wanted:
        if direction not in ("minimize", "maximize"):
            raise ValueError(f"direction must be 'minimize' or 'maximize', got {direction!r}.")
    return wanted


def _study(
    storage: BaseStorage,
    name: str,
    directions: list[Direction],
    sampler: optuna.samplers.BaseSampler,
    pruner: optuna.pruners.BasePruner | None,
) -> optuna.Study:
    with quiet(True), storage_errors(name):
        study = optuna.create_study(
            storage=storage,
            sampler=sampler,
            pruner=pruner,
            study_name=name,
            directions=directions,
            load_if_exists=True,
        )
    stored = [direction.name.lower() for direction in study.directions]
    if stored != directions:
        raise ValueError(
            f"The stored study {name!r} is to {' and '.join(stored)}, but this call is to "
            f"{' and '.join(directions)}; choose another study_name or the same directions."
        )
    return study


def _check_stored(study: optuna.Study, hyperparameters: Mapping[str, BaseDistribution]) -> None:
    """Optuna fixes the kind of a parameter when it is first suggested in a study."""
    stored: dict[str, BaseDistribution] = {}
    for trial in study.get_trials(deepcopy=False):
        stored.update(trial.distributions)
    for name, distribution in hyperparameters.items():
        try:
            check_distribution_compatibility(stored.get(name, distribution), distribution)
        except ValueError as error:
            raise ValueError(
                f"In the study {study.study_name!r} the hyperparameter {name!r} is stored as "
                f"{stored[name]}, this call declares {distribution}: Optuna keeps the kind, the "
                "log scale and the choices of a parameter for the life of a study. Rename it or "
                "choose another study_name."
            ) from error
