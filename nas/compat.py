"""Names that searches borrow from private parts of Optuna.

`tests/nas/test_compat.py` says what is relied on.
"""

from __future__ import annotations

from typing import Any

import optuna
from optuna.distributions import BaseDistribution

__all__ = ["contains", "stop_was_asked"]


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a distribution can give a value.

    Raises:
        ValueError: a value of the wrong kind.
    """
    return distribution._contains(distribution.to_internal_repr(value))


def stop_was_asked(study: optuna.Study) -> bool:
    """Whether `study.stop()` was called in the latest `study.optimize` of this object."""
    return study._stop_flag
