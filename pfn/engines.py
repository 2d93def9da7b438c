"""The shipped networks as engines, found by the entry points of this distribution."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

from torch import Tensor

from pfn.prior_fitted_network import PFN, load
from priors.engines import Engine

__all__ = ["classification", "regression"]


@lru_cache(maxsize=2)
def _network(name: str) -> PFN:
    return load(name)


def _condition(name: str, X: Tensor, Y: Tensor) -> Any:
    classes = int(Y.max()) + 1 if name == "classification" else None
    return _network(name).to(X.device).condition(X, Y, num_classes=classes, check=False)


# as trained: `Coverage.max_context` and `ArchitectureConfig` of the files, which need not be read
# before they are used
regression = Engine(
    "PFN",
    "regression",
    partial(_condition, "regression"),
    max_rows=512,
    max_columns=20,
)
classification = Engine(
    "PFN",
    "classification",
    partial(_condition, "classification"),
    max_rows=512,
    max_columns=20,
    max_classes=10,
)
