"""Trials on workers: each job is one trial against the shared storage, on any executor.

The trial of a local process that dies is queued again and a new process goes on.
"""

from __future__ import annotations

import math
import pickle
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import contextmanager, nullcontext
from datetime import datetime
from functools import partial
from uuid import uuid4

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from nas.compat import stop_was_asked
from nas.studies.evaluation import Objective, SearchError, evaluate, quiet
from nas.studies.presence import WORKER, is_gone
from nas.studies.processes import LocalProcesses
from nas.studies.storage import storage_errors
from nas.trials import ERROR, MAX_RETRIES, numbered, requeue

__all__ = ["Job", "check_job", "requeue_dead", "run_jobs"]

MAX_IDLE_DEATHS = 3  # of processes in a row that had no trial yet
NAMING_SECONDS = 60.0  # in which a living worker writes its name into a trial that it began


class Job:
    """One trial in a worker, against the shared storage; picklable.

    Called with a name for the run, it returns the number of its trial and whether the study is to
    stop.

    Args:
        objective: What the trial evaluates.
        study: Where; it must be in the storage.
        storage: Shared by all workers.
        callbacks: Called with the study and the trial that ended.
        catch: Exceptions of the objective that fail the trial.
        silent: Whether to leave out Optuna's log lines.
    """

    def __init__(
        self,
        objective: Objective,
        study: optuna.Study,
        storage: BaseStorage,
        callbacks: Sequence[Callable[[optuna.Study, FrozenTrial], None]],
        catch: tuple[type[Exception], ...],
        *,
        silent: bool,
    ) -> None:
        self.objective = objective
        self.study_name = study.study_name
        self.storage = storage
        self.sampler = study.sampler
        self.pruner = study.pruner
        self.callbacks = tuple(callbacks)
        self.catch = catch
        self.silent = silent

    def __call__(self, name: str) -> tuple[int, bool]:
        numbers: list[int] = []
        with quiet(self.silent), storage_errors(self.study_name):
            study = optuna.load_study(
                study_name=self.study_name,
                storage=self.storage,
                sampler=self.sampler,
                pruner=self.pruner,
            )
            study.optimize(
                partial(evaluate, self.objective, job=name),
                n_trials=1,
                catch=self.catch,
                callbacks=[lambda _, trial: numbers.append(trial.number), *self.callbacks],
            )
        return numbers[0], stop_was_asked(study)


def check_job(job: Job, *, local: bool) -> None:
    """Whether workers can run it.

    Args:
        job: The job.
        local: Whether the workers are processes of this machine, started by `run_jobs`.

    Raises:
        ValueError: the storage is in memory.
        TypeError: workers cannot import the objective, the sampler, the pruner or a callback.
    """
    if isinstance(job.storage, optuna.storages.InMemoryStorage):
        raise ValueError(
            "Several workers need a storage they can share: give storage a path or a URL."
        )
    try:
        pickled = pickle.dumps(job)
    except Exception as error:
        raise TypeError(
            f"Workers need an objective, a sampler, a pruner and callbacks that can be pickled "
            f"({error}): define the objective as a function of an importable module."
        ) from error
    # Worker processes import the main script, and here there is none.
    if local and b"__main__" in pickled and not hasattr(sys.modules["__main__"], "__file__"):
        raise TypeError(
            "Worker processes cannot import what a notebook or an interactive session defines: "
            "move the objective to a module, or use workers=1."
        )


def run_jobs(
    job: Job,
    study: optuna.Study,
    num_trials: int,
    workers: int,
    engine: Executor | None,
    update: Callable[[FrozenTrial], None],
    timeout: float | None,
) -> None:
    """At most `workers` jobs at a time, so that each proposal sees the trials before it.

    Args:
        job: One trial.
        study: Its study.
        num_trials: Trials to bring to an end; a trial that is queued again counts once.
        workers: Jobs at the same time.
        engine: Where they run; None starts local processes.
        update: Told of each trial that ended.
        timeout: Seconds after which none is started.

    Raises:
        SearchError: the engine broke, or local processes die before they have a trial.
    """
    pool = LocalProcesses(workers) if engine is None else engine
    try:
        broken = _run_on(pool, job, study, num_trials, workers, update, timeout, engine is None)
    finally:
        if engine is None:
            pool.shutdown(cancel_futures=True)
    if broken:
        raise SearchError(
            "The engine is broken because one of its workers died; the trials it ran are "
            "queued again. Call again with a new engine."
        )


def _run_on(
    pool: Executor,
    job: Job,
    study: optuna.Study,
    num_trials: int,
    workers: int,
    update: Callable[[FrozenTrial], None],
    timeout: float | None,
    mended: bool,
) -> bool:
    """Run jobs until all are done, or until the pool breaks where it does not mend itself.

    Returns:
        Whether it broke.
    """
    running: dict[Future[tuple[int, bool]], tuple[str, datetime]] = {}
    remaining, idle_deaths, broken = num_trials, 0, False
    end = math.inf if timeout is None else time.monotonic() + timeout
    try:
        while running or (remaining and not broken):
            if time.monotonic() > end:
                remaining = 0
            try:
                while remaining and len(running) < workers and not broken:
                    name = uuid4().hex
                    running[pool.submit(job, name)] = (name, datetime.now())
                    remaining -= 1
            except BrokenExecutor:
                broken = True
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                name, since = running.pop(future)
                if isinstance(future.exception(), BrokenExecutor):
                    broken = not mended
                    living = {job[0] for one, job in running.items() if not one.done()}
                    trial = _trial_of(study, name, since, living)
                    idle_deaths = idle_deaths + 1 if trial is None else 0
                    if mended and idle_deaths == MAX_IDLE_DEATHS:
                        raise SearchError(
                            "The worker processes died before they had a trial. In a script, the "
                            "call of search(workers=...) must stand under "
                            '`if __name__ == "__main__":`.'
                        )
                    ended = None if trial is None else _buried(study, trial)
                    remaining += ended is None
                else:
                    number, stop = future.result()
                    ended, idle_deaths = numbered(study, number), 0
                    remaining = 0 if stop else remaining
                if ended is not None:
                    update(ended)
    except BaseException as error:
        # A second Ctrl-C must not cut off the workers while they queue their trials again.
        with _no_interrupts() if isinstance(error, KeyboardInterrupt) else nullcontext():
            for future in running:
                future.cancel()
            wait(running)
        raise
    return broken


def requeue_dead(study: optuna.Study) -> None:
    """Fail the trials that dead processes of this machine left running and queue them again."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if WORKER in trial.user_attrs and is_gone(trial.user_attrs[WORKER]):
            _buried(study, trial)


def _trial_of(
    study: optuna.Study, name: str, since: datetime, living: set[str]
) -> FrozenTrial | None:
    """The trial that a dead worker ran under this name; None if it had none.

    A worker that dies in the instant between beginning a trial and writing its name leaves one
    without a name. So does, for as long, a living worker that has just begun one: a trial without
    a name is the dead worker's once all living ones have theirs.
    """
    end = time.monotonic() + NAMING_SECONDS
    nameless: set[int] | None = None
    while True:
        trials = study.get_trials(deepcopy=False)
        names = {trial.user_attrs.get(WORKER, {}).get("job"): trial for trial in trials}
        if name in names:
            return names[name]
        found = _nameless(trials, since)
        nameless = found if nameless is None else nameless & found
        if not nameless:
            return None
        if living <= names.keys() or time.monotonic() > end:
            return numbered(study, min(nameless))
        time.sleep(0.05)


def _nameless(trials: Sequence[FrozenTrial], since: datetime) -> set[int]:
    return {
        trial.number
        for trial in trials
        if trial.state == TrialState.RUNNING
        and WORKER not in trial.user_attrs
        and (trial.datetime_start or since) >= since
    }


def _buried(study: optuna.Study, trial: FrozenTrial) -> FrozenTrial | None:
    """Fail a trial whose worker died, and queue it again.

    Returns:
        The trial as it ended, None if it is to run again.
    """
    storage = study._storage
    try:
        storage.set_trial_user_attr(
            trial._trial_id, ERROR, "The worker process died; it may have run out of memory."
        )
        storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
    except UpdateFinishedTrialError:  # it died after the end of the trial
        return numbered(study, trial.number)
    failed = numbered(study, trial.number)
    again = requeue(study, failed, max_retries=MAX_RETRIES)
    warnings.warn(
        f"The worker process of trial {trial.number} died, perhaps because memory ran out: "
        + ("the trial is queued again." if again else "the trial is given up."),
        stacklevel=4,
    )
    return None if again else failed


@contextmanager
def _no_interrupts() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
