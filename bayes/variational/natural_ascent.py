"""The optimal q(v) at fixed hyperparameters: natural gradient steps that never lower the bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bayes.variational.extrapolation import Extrapolation
from bayes.variational.whitened_gaussian import Factorised, WhitenedGaussian

__all__ = ["improved"]

_HALVINGS = 12


def improved(
    q: WhitenedGaussian,
    inverse_scale: float,
    bound: Callable[[Factorised], tuple[float, WhitenedGaussian]],
    *,
    max_steps: int,
    tolerance: float,
) -> tuple[WhitenedGaussian, Factorised, float, int]:
    """Steps along the natural gradient, extrapolated or shortened so that the bound does not fall.

    Args:
        q: Where to begin.
        inverse_scale: r.
        bound: The bound in nats at a q, and the q to move towards.
        max_steps: Steps at most.
        tolerance: In nats; ends where a step gains less.

    Returns:
        q, its factors, the bound and the number of steps.
    """
    at = q.factorised(inverse_scale)
    if at is None:
        q = WhitenedGaussian.prior(q.linear.shape, q.linear.device)
        at = q.factorised(inverse_scale)
        assert at is not None
    value, ahead = bound(at)
    extrapolate, step, taken = Extrapolation(), 1.0, 0
    for _ in range(max_steps):
        for candidate, length in _candidates(q, ahead, extrapolate(q, ahead, at.half), step):
            there = candidate.factorised(inverse_scale)
            if there is not None:
                new, further = bound(there)
                if new >= value - 1e-12 * abs(value):
                    step = min(1.0, 2 * length)
                    break
        else:
            break
        gain = new - value
        q, at, value, ahead = candidate, there, new, further
        taken += 1
        if gain < tolerance:
            break
    return q, at, value, taken


def _candidates(
    q: WhitenedGaussian, ahead: WhitenedGaussian, extrapolated: WhitenedGaussian | None, step: float
) -> Iterator[tuple[WhitenedGaussian, float]]:
    """What to try, and with which step: far, then plain steps, shorter and shorter."""
    if extrapolated is not None:
        yield extrapolated, step
    for _ in range(_HALVINGS):
        yield q.towards(ahead, step), step
        step /= 2
