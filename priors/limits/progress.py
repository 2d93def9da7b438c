"""What a user sees of a kernel that takes long: a bar, and why where it takes minutes."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence

from tqdm import tqdm

__all__ = ["BlockProgress"]

# Seconds: what must have passed before an estimate is trusted, and what it must exceed.
_BAR = (2.0, 10.0)
_WARNING = (10.0, 60.0)


class BlockProgress:
    """Counts blocks of a kernel; those that are done tell how long all of them will take.

    Args:
        blocks: How many there are.
        shown: Show a bar where more than ten seconds are expected.
        reasons: Called for what makes the kernel expensive, where minutes are expected.
    """

    def __init__(self, blocks: int, *, shown: bool, reasons: Callable[[], Sequence[str]]) -> None:
        self._blocks, self._shown, self._reasons = blocks, shown, reasons
        self._start = time.monotonic()
        self._done, self._warned = 0, False
        self._bar: tqdm | None = None

    def update(self) -> None:
        """Called after each block."""
        self._done += 1
        elapsed = time.monotonic() - self._start
        expected = elapsed * self._blocks / self._done
        if self._bar is None and self._shown and elapsed > _BAR[0] and expected > _BAR[1]:
            self._bar = tqdm(total=self._blocks, desc="kernel", unit="block", leave=False)
        if not self._warned and elapsed > _WARNING[0] and expected > _WARNING[1]:
            self._warned = True
            causes = "".join(f"\n* {reason}" for reason in self._reasons())
            warnings.warn(
                f"This kernel is expected to take about {expected / 60:.0f} minutes.{causes}",
                stacklevel=2,
            )
        if self._bar is not None:
            self._bar.update(self._done - self._bar.n)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
