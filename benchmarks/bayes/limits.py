"""Processor time of a call, and its end where it takes too long."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["NotEnded", "Stopwatch", "processor_limit"]


class NotEnded(BaseException):
    """The limit was reached; no `Exception`, which what is stopped might catch."""


@contextmanager
def processor_limit(seconds: float) -> Iterator[None]:
    """Raise `NotEnded` in the main thread after these processor seconds of the process.

    Args:
        seconds: Of all threads, so that other work on the machine does not count; infinite for
            none.
    """
    if seconds == float("inf"):
        yield
        return

    def stop(*_: Any) -> None:
        raise NotEnded(f"no end in {seconds:g} processor seconds")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


class Stopwatch:
    """Processor seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.process_time()

    @property
    def seconds(self) -> float:
        """Of this process, all threads."""
        return time.process_time() - self._start
