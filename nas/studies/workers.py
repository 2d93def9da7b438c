"""Trials on workers: each job is one trial against the shared storage, on any executor.

A local process that is killed breaks its whole pool; the trials that ran in it are queued again
and a new pool goes on.
"""

from __future__ import annotations

import pickle
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import contextmanager, nullcontext
from multiprocessing import get_context
from uuid import uuid4

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from nas.studies.evaluation import Objective, SearchError, evaluate, quiet
from nas.studies.storage import storage_errors
from nas.trials import ERROR, MAX_RETRIES, numbered, requeue

__all__ = ["Job", "make_job", "run_jobs"]

SEARCH = "search"  # which call runs a trial, so that those of dead workers are found


class Job:
    """One trial in a worker, against the shared storage; picklable.

    Called, it returns the number of its trial.

    Args:
        objective: What the trial evaluates.
        study: Where; it must be in the storage.
        storage: Shared by all workers.
        silent: Whether to leave out Optuna's log lines.
    """

    def __init__(
        self, objective: Objective, study: optuna.Study, storage: BaseStorage, silent: bool
    ) -> None:
        self.silent = silent
        self.objective = objective
        self.study_name = study.study_name
        self.storage = storage
        self.sampler = study.sampler
        self.search = uuid4().hex

    def __call__(self) -> int:
        numbers: list[int] = []
        with quiet(self.silent), storage_errors(self.study_name):
            study = optuna.load_study(
                study_name=self.study_name, storage=self.storage, sampler=self.sampler
            )
            study.optimize(
                self.run,
                n_trials=1,
                catch=(Exception,),
                callbacks=[lambda _, trial: numbers.append(trial.number)],
            )
        return numbers[0]

    def run(self, trial: optuna.Trial) -> float:
        """The objective in a trial that knows its search."""
        trial.set_user_attr(SEARCH, self.search)
        return evaluate(self.objective, trial)


def make_job(
    objective: Objective, study: optuna.Study, storage: BaseStorage, silent: bool, *, local: bool
) -> Job:
    """A job that workers can run.

    Args:
        objective: See `Job`, and so the next three.
        study: The study.
        storage: Its storage.
        silent: Whether to leave out Optuna's log lines.
        local: Whether the workers are processes of this machine, started by `run_jobs`.

    Raises:
        ValueError: the storage is in memory.
        TypeError: workers cannot import the objective or the sampler.
    """
    if isinstance(storage, optuna.storages.InMemoryStorage):
        raise ValueError(
            "Several workers need a storage they can share: give storage a path or a URL."
        )
    job = Job(objective, study, storage, silent)
    try:
        pickled = pickle.dumps(job)
    except Exception as error:
        raise TypeError(
            f"Workers need an objective and a sampler that can be pickled ({error}): define the "
            "objective as a function of an importable module."
        ) from error
    # Worker processes import the main script, and here there is none.
    if local and b"__main__" in pickled and not hasattr(sys.modules["__main__"], "__file__"):
        raise TypeError(
            "Worker processes cannot import what a notebook or an interactive session defines: "
            "move the objective to a module, or use workers=1."
        )
    return job


def run_jobs(
    job: Job,
    study: optuna.Study,
    num_trials: int,
    workers: int,
    engine: Executor | None,
    update: Callable[[FrozenTrial], None],
) -> None:
    """At most `workers` jobs at a time, so that each proposal sees the trials before it.

    Args:
        job: One trial.
        study: Its study.
        num_trials: Trials to bring to an end; a trial that is queued again counts once.
        workers: Jobs at the same time.
        engine: Where they run; None starts local processes.
        update: Told of each trial that ended.

    Raises:
        SearchError: the engine broke, or local processes die before they have a trial.
    """
    remaining = num_trials
    while remaining:
        pool = _local_processes(workers) if engine is None else engine
        try:
            remaining, lost = _run_on(pool, job, study, remaining, workers, update)
        finally:
            if engine is None:
                pool.shutdown(cancel_futures=True)  # dead processes are gone when it returns
        if not lost and not remaining:
            return
        dead, given_up = _requeue_dead(study, job)
        if engine is not None:
            raise SearchError(
                "The engine is broken because one of its workers died; the trials it ran are "
                "queued again. Call again with a new engine."
            )
        if lost and not dead:
            raise SearchError(
                "The worker processes died before they had a trial. In a script, the call of "
                'search(workers=...) must stand under `if __name__ == "__main__":`.'
            )
        for trial in given_up:
            update(trial)
        remaining += lost - len(given_up)


def _local_processes(workers: int) -> Executor:
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


def _run_on(
    pool: Executor,
    job: Job,
    study: optuna.Study,
    num_trials: int,
    workers: int,
    update: Callable[[FrozenTrial], None],
) -> tuple[int, int]:
    """Run jobs until all are done or the pool breaks.

    Returns:
        How many jobs were not begun, and how many were lost with the pool.
    """
    running: set[Future[int]] = set()
    remaining, lost, broken = num_trials, 0, False
    try:
        while running or (remaining and not broken):
            try:
                while remaining and len(running) < workers and not broken:
                    running.add(pool.submit(job))
                    remaining -= 1
            except BrokenExecutor:
                broken = True
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                if isinstance(future.exception(), BrokenExecutor):
                    broken = True
                    lost += 1
                else:
                    update(numbered(study, future.result()))
    except BaseException as error:
        # A second Ctrl-C must not cut off the workers while they queue their trials again.
        with _no_interrupts() if isinstance(error, KeyboardInterrupt) else nullcontext():
            for future in running:
                future.cancel()
            wait(running)
        raise
    return remaining, lost


def _requeue_dead(study: optuna.Study, job: Job) -> tuple[int, list[FrozenTrial]]:
    """Fail the trials that dead workers left running and queue them again.

    Returns:
        How many there were, and those that had been queued too often.
    """
    dead = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if trial.user_attrs.get(SEARCH) == job.search
    ]
    given_up = []
    for trial in dead:
        text = "The worker process died; it may have run out of memory."
        job.storage.set_trial_user_attr(trial._trial_id, ERROR, text)
        study.tell(trial.number, state=TrialState.FAIL)
        failed = numbered(study, trial.number)
        again = requeue(study, failed, max_retries=MAX_RETRIES)
        if not again:
            given_up.append(failed)
        warnings.warn(
            f"The worker process of trial {trial.number} died, perhaps because memory ran out: "
            + ("the trial is queued again." if again else "the trial is given up."),
            stacklevel=4,
        )
    return len(dead), given_up


@contextmanager
def _no_interrupts() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
