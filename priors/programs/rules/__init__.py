"""What each layer and function of torch becomes in a tensor program: one file per kind.

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
