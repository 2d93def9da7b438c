"""The rules that translate torch's layers and functions into a tensor program, a file per kind.

Importing this package registers all rules.
"""

from priors.programs.rules import (
    arithmetic,
    attention,
    elementwise,
    linear,
    normalisation,
    positions,
    recurrent,
)

__all__ = [
    "arithmetic",
    "attention",
    "elementwise",
    "linear",
    "normalisation",
    "positions",
    "recurrent",
]
