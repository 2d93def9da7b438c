"""Checks of the numbers that a method is given."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

__all__ = ["check_settings"]


def check_settings(
    method: object, *, at_least_one: Sequence[str] = (), positive: Sequence[str] = ()
) -> None:
    """Refuse settings that are out of range or counts that are not whole numbers, by name.

    Args:
        method: Whose attributes they are.
        at_least_one: Names of those >= 1, which count something.
        positive: Names of those > 0.

    Raises:
        TypeError: a count is not a whole number.
        ValueError: one of them is out of range.
    """
    for name in at_least_one:
        value = getattr(method, name)
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError(f"{type(method).__name__} needs {name} as an int, got {value!r}.")
    for names, bound in ((at_least_one, ">= 1"), (positive, "> 0")):
        for name in names:
            value = getattr(method, name)
            fine = value >= 1 if bound == ">= 1" else value > 0
            if not fine:
                raise ValueError(f"{type(method).__name__} needs {name} {bound}, got {value}.")
