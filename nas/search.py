"""One call from an objective and a space to a finished study.

Optuna runs the trials and keeps them; this adds what a long search needs around it: a storage
that is opened with clear errors, resuming by calling again, errors kept with the trial that
raised them, interrupted and lost trials queued again, and workers on any executor. Each worker
job is one trial against the shared storage, so any `concurrent.futures.Executor` will do.
"""

from __future__ import annotations

import pickle
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import optuna
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

from nas.sampler import BayesianSampler
from nas.spaces import Space
from nas.trials import ERROR, architecture_of, requeue, warn_without_architecture

__all__ = ["Objective", "StorageError", "open_storage", "search"]

Direction = Literal["minimize", "maximize"]
Objective = Callable[[optuna.Trial], float]

HEARTBEAT_SECONDS = 30
GRACE_SECONDS = 120
MAX_RETRIES = 2
TRACEBACK = "traceback"
_KIND_ERRORS = (  # Optuna's, which do not name what they are about
    "Cannot set different distribution kind to the same parameter name.",
    "Cannot set different log configuration to the same parameter name.",
    "CategoricalDistribution does not support dynamic value space.",
)


class StorageError(OSError):
    """The storage of a study cannot be opened or written."""


def search(
    objective: Objective,
    space: Space,
    *,
    hyperparameters: Mapping[str, BaseDistribution] | None = None,
    num_trials: int,
    storage: str | Path | BaseStorage | None = None,
    study_name: str | None = None,
    workers: int = 1,
    engine: Executor | None = None,
    sampler: optuna.samplers.BaseSampler | None = None,
    direction: Direction = "minimize",
    seed: int | None = None,
    show_progress: bool = True,
) -> optuna.Study:
    """Search a space, or go on with a search.

    A trial whose objective raises is recorded as failed, with the error in its user attributes
    `error` and `traceback`, and the search goes on. On Ctrl-C the running trials are marked
    failed and queued again, and `KeyboardInterrupt` is raised; the next call with the same
    storage and name takes them up first. Trials of a worker that died are found by their missing
    heartbeat after two minutes and queued again, at most twice.

    Args:
        objective: Called with each trial; it calls `nas.suggest(trial, space)` and returns the
            value. With several workers it must be picklable (a function of an importable module).
        space: Where the architectures live.
        hyperparameters: Name to Optuna distribution, as the objective suggests them.
        num_trials: Trials of this call.
        storage: Path of an SQLite file, an Optuna URL, or an Optuna storage; None keeps the
            study in memory.
        study_name: Name in the storage; None is `"search"`.
        workers: Trials at the same time.
        engine: Where workers run; None is this process for one worker and local processes for
            several. It is not shut down.
        sampler: None is `BayesianSampler(space, hyperparameters=hyperparameters, seed=seed)`.
        direction: `"minimize"` or `"maximize"`.
        seed: Of the default sampler.
        show_progress: Whether to draw a progress bar in place of Optuna's log lines.

    Returns:
        The study with all its trials, earlier calls included.

    Raises:
        ValueError: impossible numbers, several workers without a storage they can share, or a
            stored study of the other direction or with a hyperparameter of another kind.
        TypeError: several workers and an objective or sampler that cannot be pickled.
        StorageError: the storage cannot be opened or written.
    """
    if num_trials < 1:
        raise ValueError(f"num_trials must be at least 1, got {num_trials}.")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}.")
    if direction not in ("minimize", "maximize"):
        raise ValueError(f"direction must be 'minimize' or 'maximize', got {direction!r}.")
    if sampler is None:
        sampler = BayesianSampler(space, hyperparameters=hyperparameters, seed=seed)
    elif seed is not None:
        raise ValueError("seed is for the default sampler; give yours its own seed.")
    opened = storage if isinstance(storage, BaseStorage) else open_storage(storage)
    study = _study(opened, study_name or "search", direction, sampler)
    _check_kinds(study, hyperparameters or {})
    elsewhere = workers > 1 or engine is not None
    with _quiet(show_progress), _progress(study, num_trials, show_progress) as update:
        if elsewhere:
            job = _job(objective, study, sampler, opened, show_progress)
            _run_elsewhere(job, num_trials, workers, engine, update)
        else:
            with _storage_errors(study.study_name):
                study.optimize(
                    partial(_evaluate, objective),
                    n_trials=num_trials,
                    catch=(Exception,),
                    callbacks=[lambda _, __: update()],
                )
    return study


def open_storage(storage: str | Path | None, *, must_exist: bool = False) -> BaseStorage:
    """An Optuna storage with heartbeats, from a path or URL.

    Args:
        storage: Path of an SQLite file (its folder is made), an Optuna URL, or None for memory.
        must_exist: Refuse a path where no file is.

    Raises:
        StorageError: it cannot be opened; the message says why.
    """
    if storage is None:
        return optuna.storages.InMemoryStorage()
    from sqlalchemy.exc import SQLAlchemyError  # slow to load

    url = str(storage)
    connect = {}
    if "://" not in url:
        path = Path(storage)
        if must_exist and not path.is_file():
            raise StorageError(f"There is no study storage at {path}.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab"):
                pass
        except OSError as error:
            raise StorageError(
                f"Cannot write the study storage {path}: {error.strerror}. Give a path in a "
                "folder that you can write to."
            ) from error
        url = f"sqlite:///{path.resolve()}"
    if url.startswith("sqlite"):
        connect = {"connect_args": {"timeout": 60}}  # seconds to wait for another worker's lock
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats
        try:
            return RDBStorage(
                url,
                engine_kwargs=connect,
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=GRACE_SECONDS,
                heartbeat_stale_trial_callback=_requeue_stale,
            )
        except (SQLAlchemyError, ImportError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise StorageError(f"Cannot open the study storage {storage}: {reason}") from error


def _requeue_stale(study: optuna.Study, trial: FrozenTrial) -> None:
    requeue(study, trial, max_retries=MAX_RETRIES)


def _study(
    storage: BaseStorage, name: str, direction: Direction, sampler: optuna.samplers.BaseSampler
) -> optuna.Study:
    with _quiet(True), _storage_errors(name):
        study = optuna.create_study(
            storage=storage,
            sampler=sampler,
            study_name=name,
            direction=direction,
            load_if_exists=True,
        )
    stored = study.direction.name.lower()
    if stored != direction:
        raise ValueError(
            f"The stored study {name!r} is to {stored}, this call wants to {direction}; choose "
            "another study_name or the same direction."
        )
    return study


def _check_kinds(study: optuna.Study, hyperparameters: Mapping[str, BaseDistribution]) -> None:
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


def _evaluate(objective: Objective, trial: optuna.Trial) -> float:
    """The objective, leaving a trace of how it ended in the trial."""
    try:
        value = float(objective(trial))
        if not isinstance(trial.study.sampler, BayesianSampler) and architecture_of(trial) is None:
            warn_without_architecture()
        if value != value:
            raise ValueError("The objective returned nan.")
        return value
    except optuna.TrialPruned:
        raise
    except KeyboardInterrupt:
        trial.set_user_attr(ERROR, "KeyboardInterrupt")
        requeue(trial.study, _stored(trial))
        raise
    except Exception as error:
        trial.set_user_attr(ERROR, _described(error))
        trial.set_user_attr(TRACEBACK, traceback.format_exc())
        raise


def _described(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, ValueError) and str(error) in _KIND_ERRORS:
        text += (
            " A parameter keeps its kind, log scale and choices: suggest it as `hyperparameters` "
            "declares it and as the study has it, or under another name."
        )
    return text


def _stored(trial: optuna.Trial) -> FrozenTrial:
    return next(t for t in trial.study.get_trials(deepcopy=False) if t.number == trial.number)


class _Job:
    """One trial in a worker, against the shared storage; picklable."""

    def __init__(
        self,
        objective: Objective,
        study_name: str,
        storage: BaseStorage,
        sampler: optuna.samplers.BaseSampler,
        quiet: bool,
    ) -> None:
        self.quiet = quiet
        self.objective = objective
        self.study_name = study_name
        self.storage = storage
        self.sampler = sampler

    def __call__(self) -> None:
        with _quiet(self.quiet):
            study = optuna.load_study(
                study_name=self.study_name, storage=self.storage, sampler=self.sampler
            )
            study.optimize(partial(_evaluate, self.objective), n_trials=1, catch=(Exception,))


def _job(
    objective: Objective,
    study: optuna.Study,
    sampler: optuna.samplers.BaseSampler,
    storage: BaseStorage,
    quiet: bool,
) -> _Job:
    if isinstance(storage, optuna.storages.InMemoryStorage):
        raise ValueError(
            "Several workers need a storage they can share: give storage a path or a URL."
        )
    job = _Job(objective, study.study_name, storage, sampler, quiet)
    try:
        pickle.dumps(job)
    except Exception as error:
        raise TypeError(
            f"Workers need an objective and a sampler that can be pickled ({error}): define the "
            "objective as a function of an importable module."
        ) from error
    return job


def _run_elsewhere(
    job: _Job, num_trials: int, workers: int, engine: Executor | None, update: Callable[[], None]
) -> None:
    """At most `workers` jobs at a time, so that each proposal sees the trials before it."""
    own = None
    if engine is None:
        own = engine = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    running: set[Future[None]] = set()
    try:
        for _ in range(num_trials):
            if len(running) == workers:
                running = _collect(running, update)
            running.add(engine.submit(job))
        while running:
            running = _collect(running, update)
    except KeyboardInterrupt:
        # A second Ctrl-C must not cut off the workers while they queue their trials again.
        with _no_interrupts():
            for future in running:
                future.cancel()
            wait(running)
        raise
    finally:
        if own is not None:
            own.shutdown(cancel_futures=True)


def _collect(running: set[Future[None]], update: Callable[[], None]) -> set[Future[None]]:
    done, rest = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
        update()
    return rest


@contextmanager
def _no_interrupts() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _quiet(active: bool) -> Iterator[None]:
    """Optuna's own log at errors only for the duration; failures are kept with their trials."""
    level = optuna.logging.get_verbosity()
    if active and level < optuna.logging.ERROR:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


@contextmanager
def _progress(study: optuna.Study, total: int, active: bool) -> Iterator[Callable[[], None]]:
    with tqdm(total=total, desc=study.study_name, unit="trial", disable=not active) as bar:

        def update() -> None:
            bar.update()
            if active:
                states = [trial.state for trial in study.get_trials(deepcopy=False)]
                notes = {"failed": str(states.count(TrialState.FAIL))}
                if TrialState.COMPLETE in states:
                    notes["best"] = f"{study.best_value:.4g}"
                bar.set_postfix(notes)

        yield update


@contextmanager
def _storage_errors(name: str) -> Iterator[None]:
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
        cause = error.__cause__ or error
        raise StorageError(
            f"The storage of the study {name!r} cannot be written: {str(cause).splitlines()[0]}"
        ) from error
