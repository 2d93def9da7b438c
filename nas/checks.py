"""What users pass, checked where it comes in."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any

__all__ = ["check_choices", "check_whole"]


def check_whole(least: int = 1, **values: Any) -> None:
    """Raises a `ValueError` unless each is a whole number of at least `least`, by its name."""
    for name, value in values.items():
        if not _is_whole(value) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")


def check_choices(least: int | None = None, **values: Any) -> None:
    """Raises a `ValueError` unless each is a sequence that is not empty, by its name.

    Args:
        least: The choices are whole numbers of at least this; None where they are of another kind.
        **values: The choices.
    """
    kind = "values" if least is None else f"whole numbers of at least {least}"
    for name, value in values.items():
        choices = [] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
        fine = least is None or all(_is_whole(one) and one >= least for one in choices)
        if not choices or not fine:
            raise ValueError(
                f"{name} must be a sequence of one or more {kind}, such as a tuple, got {value!r}."
            )


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
