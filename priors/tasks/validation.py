"""Checks that the constructors of task priors share; fields are named as the user knows them."""

from __future__ import annotations

__all__ = ["check_at_least", "check_probabilities"]


def check_at_least(owner: object, **least: int) -> None:
    """Refuse a field of `owner` below its smallest value; None is "not fixed" and passes.

    Raises:
        ValueError: a field is too small.
    """
    for name, smallest in least.items():
        value = getattr(owner, name)
        if value is not None and value < smallest:
            raise ValueError(f"{name} must be at least {smallest}, got {value}.")


def check_probabilities(owner: object, *names: str) -> None:
    """Refuse a field of `owner` outside [0, 1].

    Raises:
        ValueError: a field is not a probability.
    """
    for name in names:
        value = getattr(owner, name)
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is a probability and must lie in [0, 1], got {value}.")
