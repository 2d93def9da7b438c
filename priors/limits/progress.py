"""Progress of slow kernels: a bar, and a warning with the reasons where they take minutes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from tqdm import tqdm

from priors.work_clock import WorkClock

__all__ = ["BlockProgress"]

# Seconds: what must have passed before an estimate is trusted, and what must be left.
_BAR = (2.0, 10.0)
_WARNING = (10.0, 60.0)


class BlockProgress:
    """Counts blocks of a kernel; those that are done tell how long all of them will take.

    The bar is about the time that passes, the warning about that of the work itself.

    Args:
        blocks: How many there are.
        device: Where they are computed.
        shown: Show a bar where more than ten seconds are left.
        reasons: Called for what makes the kernel expensive, where minutes are left.
    """

    def __init__(
        self,
        blocks: int,
        *,
        device: torch.device,
        shown: bool,
        reasons: Callable[[], Sequence[str]],
    ) -> None:
        self._blocks, self._shown, self._reasons = blocks, shown, reasons
        self._clock = WorkClock(device)
        self._first = 0.0, 0.0
        self._done, self._warned = 0, False
        self._bar: tqdm | None = None

    def update(self) -> None:
        """Called after each block.

        The first one also does what all others share, such as tables of expectations, so that
        the estimate is made of the others.
        """
        self._done += 1
        elapsed, work = self._clock.seconds
        if self._done == 1:
            self._first = elapsed, work
            return
        share = (self._blocks - self._done) / (self._done - 1)
        left, work_left = (elapsed - self._first[0]) * share, (work - self._first[1]) * share
        if self._bar is None and self._shown and elapsed > _BAR[0] and left > _BAR[1]:
            self._bar = tqdm(total=self._blocks, desc="kernel", unit="block", leave=False)
        if not self._warned and work > _WARNING[0] and work_left > _WARNING[1]:
            self._warned = True
            causes = "".join(f"\n* {reason}" for reason in self._reasons())
            minutes = (work + work_left) / 60
            warnings.warn(
                f"This kernel is expected to take about {minutes:.0f} minutes.{causes}",
                stacklevel=2,
            )
        if self._bar is not None:
            self._bar.update(self._done - self._bar.n)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
