"""Local processes that start warm and die alone.

They are forked from a server that has imported this package once, so that one starts in some
hundredths of a second; where the system has no such server they are started afresh. Python's own
pool of processes ends as a whole when one of them dies, so each is a pool of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from queue import SimpleQueue
from typing import Any, TypeVar

__all__ = ["LocalProcesses"]

T = TypeVar("T")

# Counting the operations of a first network loads torch._dynamo, which takes as long as the rest.
_WARM = ["nas.sampler", "botorch.fit", "optuna.storages", "sqlalchemy", "torch._dynamo"]


class LocalProcesses(Executor):
    """An executor on processes of this machine; one that dies breaks only what it ran.

    Args:
        workers: Processes at the same time; to submit more waits for one of them.
    """

    def __init__(self, workers: int) -> None:
        self._free: SimpleQueue[ProcessPoolExecutor | None] = SimpleQueue()
        for _ in range(workers):
            self._free.put(None)  # not started yet
        self._started: list[ProcessPoolExecutor] = []

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run it in a free process."""
        process = self._free.get()
        if process is None:
            process = ProcessPoolExecutor(1, mp_context=_context())
            self._started.append(process)
        try:
            future = process.submit(fn, *args, **kwargs)
        except BrokenExecutor:  # it died while it had nothing to do
            self._free.put(None)
            return self.submit(fn, *args, **kwargs)
        except BaseException:
            self._free.put(process)
            raise
        future.add_done_callback(partial(self._release, process))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes, each once it has nothing more to do."""
        for process in self._started:
            process.shutdown(wait=wait, cancel_futures=cancel_futures)

    def _release(self, process: ProcessPoolExecutor, future: Future[Any]) -> None:
        dead = not future.cancelled() and isinstance(future.exception(), BrokenExecutor)
        self._free.put(None if dead else process)


def _context() -> BaseContext:
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(_WARM)  # of no effect on a server that runs already
    return context
