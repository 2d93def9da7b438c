"""Hyperparameters that exist only for some candidates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution

from nas.architectures import Architecture
from nas.spaces import FlatSpace, Space

__all__ = ["Conditional", "Declared", "bare", "check_conditions", "descriptor"]

COUNT = "count_"
DESCRIPTORS = ("num_parameters", "depth", "flops")


@dataclass(frozen=True)
class Conditional:
    """A hyperparameter that the objective suggests only where a condition holds.

    Args:
        distribution: Of its values.
        condition: When it exists: a function of the architecture to a truth value, or a dictionary
            of names to a value, or to a collection of values, that are all met. A name is that of
            another hyperparameter, of a parameter of a flat space, or of a descriptor of the
            architecture: `num_parameters`, `depth`, `flops`, `count_linear` and so on for the
            number of each operation. With several workers a function must be picklable.
    """

    distribution: BaseDistribution
    condition: Callable[[Architecture], bool] | Mapping[str, Any]

    def met(self, name: str, value: Any) -> bool:
        """Whether a value of a name is one that the condition asks for."""
        assert isinstance(self.condition, Mapping)
        wanted = self.condition[name]
        if isinstance(wanted, list | tuple | set | frozenset | range):
            return value in wanted
        return bool(value == wanted)


Declared = BaseDistribution | Conditional
"""What a hyperparameter is declared by."""


def descriptor(architecture: Architecture, name: str) -> float:
    """A descriptor of an architecture, by a name in `DESCRIPTORS` or `count_<operation>`."""
    if name.startswith(COUNT):
        return architecture.operation_counts().get(name.removeprefix(COUNT), 0)
    return architecture.descriptors()[name]


def check_conditions(declared: Mapping[str, Declared], space: Space) -> None:
    """Raises a `ValueError` where a condition tells of a name that nothing has.

    Args:
        declared: The hyperparameters.
        space: Of the architectures.
    """
    flat = set(space.parameters()) if isinstance(space, FlatSpace) else set()
    for name, each in declared.items():
        if not isinstance(each, Conditional) or callable(each.condition):
            continue
        for asked in each.condition:
            if asked in {*declared, *flat, *DESCRIPTORS} or asked.startswith(COUNT):
                continue
            raise ValueError(
                f"The condition of the hyperparameter {name!r} tells of {asked!r}, which is no "
                f"hyperparameter {sorted(declared)}, no parameter of a flat space {sorted(flat)} "
                f"and none of {list(DESCRIPTORS)} and {COUNT}<operation>."
            )


def bare(declared: Mapping[str, Declared]) -> dict[str, BaseDistribution]:
    """The distributions, whatever they depend on."""
    return {
        name: each.distribution if isinstance(each, Conditional) else each
        for name, each in declared.items()
    }
