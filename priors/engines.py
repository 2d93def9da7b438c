"""Engines by name: what turns a table of numbers into a fitted model, whoever made it.

An engine is an object with the attributes of `Engine`. A distribution offers its engines by entry
points of the group `wideprior.engines`, so that they are found without being imported by name:

    [project.entry-points."wideprior.engines"]
    forest = "my_package.engines:forest"

where `forest` is an `Engine`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from typing import Any

from torch import Tensor

__all__ = ["GROUP", "Engine", "installed_engines"]

GROUP = "wideprior.engines"
_KINDS = ("regression", "classification")


@dataclass(frozen=True)
class Engine:
    """A way to condition on a table, and which tables it takes.

    Attributes:
        name: How users call it.
        kind: "regression" or "classification".
        factory: `(X, Y) -> model`, a fitted BoTorch model whose
            `posterior(X, observation_noise=True)` has densities, or class probabilities. X is
            `[n, d]`, finite, not scaled; Y is `[n, 1]`, of classes their numbers 0, 1, ...
            A function of a module, or a `functools.partial` of one, can be pickled. One with a
            third argument `sample_weight=None` takes weights of the rows, `[n]`, > 0.
        max_rows: Most rows it takes, None for any number. Callers give it a random part of more.
        max_columns: Most columns, None for any number. Tables of more are not given to it.
        max_classes: Most classes, None for any number.
        is_default: Whether it belongs to the default stack.
    """

    name: str
    kind: str
    factory: Callable[[Tensor, Tensor], Any]
    max_rows: int | None = None
    max_columns: int | None = None
    max_classes: int | None = None
    is_default: bool = True

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(
                f"the kind of engine {self.name!r} must be 'regression' or 'classification', got "
                f"{self.kind!r}."
            )

    def refuses(self, columns: int, classes: int) -> str | None:
        """Why it does not take a table; None if it does.

        Args:
            columns: Columns of X.
            classes: Number of classes; 0 of regression.
        """
        if self.max_columns is not None and columns > self.max_columns:
            return f"it takes {self.max_columns} columns at most, the table has {columns}"
        if self.max_classes is not None and classes > self.max_classes:
            return f"it takes {self.max_classes} classes at most, y has {classes}"
        return None


def installed_engines(kind: str) -> dict[str, Engine]:
    """The engines that installed distributions offer, by name.

    Args:
        kind: "regression" or "classification".

    Warns:
        Of entry points that cannot be loaded or are no engines; they are left out.
    """
    found: dict[str, Engine] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        try:
            engine = _as_engine(point.load())
        except Exception as error:  # whatever an outsider's module fails with
            warnings.warn(
                f"the engine {point.name!r} of {point.value} is left out: "
                f"{type(error).__name__}: {error}",
                stacklevel=2,
            )
            continue
        if engine.kind == kind and engine.name not in found:
            found[engine.name] = engine
    return found


def _as_engine(loaded: Any) -> Engine:
    if isinstance(loaded, Engine):
        return loaded
    missing = [name for name in ("name", "kind", "factory") if not hasattr(loaded, name)]
    if missing:
        raise TypeError(f"it has no {missing[0]!r}; see priors.engines.Engine")
    engine = Engine(loaded.name, loaded.kind, loaded.factory)
    others = ("max_rows", "max_columns", "max_classes", "is_default")
    return replace(engine, **{k: getattr(loaded, k) for k in others if hasattr(loaded, k)})
