"""Draws for ArviZ: all that is of its version is here.

Python 3.11 has ArviZ 0.23, whose `from_dict` takes groups as keywords and gives an `InferenceData`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

__all__ = ["as_inference_data", "import_arviz", "many_chains", "sample_stats"]

# Statistics of samplers that are not real numbers.
_KINDS = {"diverging": bool, "tree_depth": int, "n_steps": int}


def import_arviz() -> Any:
    """The module, which takes seconds to load, without what it announces."""
    with warnings.catch_warnings():
        # It announces version 1, which this package does not use, on every import.
        warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
        import arviz
    return arviz


@contextmanager
def many_chains() -> Iterator[None]:
    """Chains may outnumber draws, which ArviZ takes for axes in the wrong order."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "More chains", UserWarning)
        yield


def as_inference_data(
    groups: Mapping[str, Mapping[str, Any]], dims: Mapping[str, list[str]]
) -> Any:
    """An `arviz.InferenceData`.

    Args:
        groups: By ArviZ's name of the group and by that of the variable, arrays
            `[chains, draws, *event]`, of observed data `[*event]`.
        dims: Names of the event's dimensions, of some variables.
    """
    with many_chains():
        return import_arviz().from_dict(**groups, dims=dict(dims))


def sample_stats(stats: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """The group of that name, none of draws that are no chain's."""
    if not stats:
        return {}
    found = {name: value.cpu().numpy() for name, value in stats.items()}
    return {
        "sample_stats": {
            name: value.astype(_KINDS.get(name, value.dtype)) for name, value in found.items()
        }
    }
