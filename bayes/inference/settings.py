"""Checks of the numbers that a method is given."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["check_settings"]


def check_settings(
    method: object, *, at_least_one: Sequence[str] = (), positive: Sequence[str] = ()
) -> None:
    """Refuse settings that are out of range, by name.

    Args:
        method: Whose attributes they are.
        at_least_one: Names of those >= 1.
        positive: Names of those > 0.

    Raises:
        ValueError: one of them is not.
    """
    for names, bound in ((at_least_one, ">= 1"), (positive, "> 0")):
        for name in names:
            value = getattr(method, name)
            fine = value >= 1 if bound == ">= 1" else value > 0
            if not fine:
                raise ValueError(f"{type(method).__name__} needs {name} {bound}, got {value}.")
