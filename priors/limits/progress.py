"""What a user sees of a kernel that takes long: a bar, and why where it takes minutes."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence

from tqdm import tqdm

__all__ = ["BlockProgress"]

_BAR_AFTER, _WARN_AFTER = 10.0, 60.0  # seconds


class BlockProgress:
    """Counts blocks of a kernel; the first one tells how long all of them will take.

    Args:
        blocks: How many there are.
        shown: Show a bar where more than ten seconds are expected.
        workers: How many blocks are computed at a time.
        reasons: Called for what makes the kernel expensive, where minutes are expected.
    """

    def __init__(
        self, blocks: int, *, shown: bool, workers: int, reasons: Callable[[], Sequence[str]]
    ) -> None:
        self._blocks, self._workers = blocks, workers
        self._shown, self._reasons = shown, reasons
        self._start = time.monotonic()
        self._done = 0
        self._bar: tqdm | None = None

    def update(self) -> None:
        """Called after each block."""
        self._done += 1
        if self._done == 1:
            elapsed = time.monotonic() - self._start
            self._tell(elapsed * (1 + (self._blocks - 1) / self._workers))
        if self._bar is not None:
            self._bar.update(self._done - self._bar.n)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

    def _tell(self, expected: float) -> None:
        if self._shown and expected > _BAR_AFTER:
            self._bar = tqdm(total=self._blocks, desc="kernel", unit="block", leave=False)
        if expected > _WARN_AFTER:
            causes = "".join(f"\n* {reason}" for reason in self._reasons())
            warnings.warn(
                f"This kernel is expected to take about {expected / 60:.0f} minutes.{causes}",
                stacklevel=2,
            )
