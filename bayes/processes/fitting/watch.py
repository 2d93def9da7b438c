"""Limits of a fit, and its progress while it runs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import torch
from tqdm import tqdm

from priors.work_clock import WorkClock

__all__ = ["Stopped", "Watch"]

# What a fit usually takes, to tell how long it may last.
_EVALUATIONS = 50
# Seconds: what must be expected for a bar and a warning, and have passed for the warning.
_BAR_AFTER, _WARN_AFTER, _TRUST_AFTER = 10.0, 60.0, 10.0


class Stopped(Exception):
    """Raised inside the optimiser where a limit is reached; the message names the limit."""


class Watch:
    """Counts evaluations, ends a fit that has no time left and shows a bar where it takes long.

    The limit and the bar are about the time that passes, the warning about that of the work itself.

    Args:
        owner: Name of the model, for messages.
        device: Where it computes.
        timeout: Seconds, or None.
        progress: Whether to show a bar; None shows it if over ten seconds are expected.
        num_starts: How often the optimiser starts.
        reasons: Called for what makes the evaluations expensive and what would be cheaper, if
            minutes are expected.
    """

    def __init__(
        self,
        owner: str,
        *,
        device: torch.device,
        timeout: float | None,
        progress: bool | None,
        num_starts: int,
        reasons: Callable[[], Sequence[str]],
    ) -> None:
        self.owner = owner
        self.timeout, self.progress = timeout, progress
        self.evaluations = 0
        self._total = _EVALUATIONS * num_starts
        self._reasons = reasons
        self._clock = WorkClock(device)
        self._began = 0.0, 0.0
        self._fastest, self._least_work = math.inf, math.inf
        self._bar: tqdm | None = None
        self._warned = False

    @property
    def elapsed(self) -> float:
        """Seconds since the fit began."""
        return self._clock.seconds[0]

    def before(self) -> None:
        """Called before each evaluation.

        Raises:
            Stopped: the time is over. The first evaluation is always made.
        """
        self._began = self._clock.seconds
        if self.timeout is not None and self.evaluations and self._began[0] > self.timeout:
            raise Stopped(f"its timeout of {self.timeout:g} s")

    def after(self, objective: float) -> None:
        """Called after each evaluation with the objective's best value so far."""
        self.evaluations += 1
        passed, work = self._clock.seconds
        self._fastest = min(self._fastest, passed - self._began[0])
        self._least_work = min(self._least_work, work - self._began[1])
        # the first one also loads, traces and makes tables of expectations
        if self.evaluations > 1:
            self._tell(work)
        if self._bar is not None:
            if self.evaluations > self._bar.total:
                self._bar.total = self.evaluations
            self._bar.set_postfix_str(f"{objective:.4f} nats per row", refresh=False)
            self._bar.update(self.evaluations - self._bar.n)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

    def _tell(self, work: float) -> None:
        wanted = self.progress or (
            self.progress is None and self._expected(self._fastest) > _BAR_AFTER
        )
        if self._bar is None and wanted:
            self._bar = tqdm(total=self._total, desc="fit", unit="evaluation", leave=False)
        expected = self._expected(self._least_work)
        if not self._warned and expected > _WARN_AFTER and work > _TRUST_AFTER:
            self._warned = True
            causes = "".join(f"\n* {reason}" for reason in self._reasons())
            warnings.warn(
                f"This fit of {self.owner} is expected to take about {expected / 60:.0f} minutes, "
                f"{self._least_work:.1f} s for each of some {self._total} evaluations; timeout= or "
                f"max_iter= end it sooner and keep the best so far.{causes}",
                stacklevel=2,
            )

    def _expected(self, seconds: float) -> float:
        """Seconds of the whole fit, from those of an evaluation."""
        expected = seconds * self._total
        return expected if self.timeout is None else min(expected, self.timeout)
