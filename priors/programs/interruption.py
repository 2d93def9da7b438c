"""Signals that wait until something that must not be left half done is done."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["signals_wait"]


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Ctrl-C, alarms and terminations that raise are handled at the end; a second one at once.

    Signals reach the main thread alone: elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    handlers: dict[int, Callable[[int, FrameType | None], object]] = {}

    def wait(number: int, frame: FrameType | None) -> None:
        if number in waiting:
            handlers[number](number, frame)
        waiting.append(number)

    for name in ("SIGINT", "SIGALRM", "SIGTERM"):
        number = getattr(signal, name, None)
        before = None if number is None else signal.getsignal(number)
        if number is not None and callable(before):
            handlers[number] = before
            signal.signal(number, wait)
    try:
        yield
    finally:
        for number, before in handlers.items():
            signal.signal(number, before)
        for number in dict.fromkeys(waiting):
            signal.raise_signal(number)
