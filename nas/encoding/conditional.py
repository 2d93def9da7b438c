"""Hyperparameters that exist only for some candidates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from nas.architectures import Architecture
from nas.architectures.operations import OPERATIONS
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

    Raises:
        TypeError: the condition is neither.
    """

    distribution: BaseDistribution
    condition: Callable[[Architecture], bool] | Mapping[str, Any]

    def __post_init__(self) -> None:
        if not (callable(self.condition) or isinstance(self.condition, Mapping)):
            raise TypeError(
                "A condition must be a function of the architecture or a dictionary of names to "
                f"values, got {self.condition!r}."
            )

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
    """Raises a `ValueError` where a condition tells of a name that nothing has, or of no choice.

    Args:
        declared: The hyperparameters.
        space: Of the architectures.
    """
    parameters = space.parameters() if isinstance(space, FlatSpace) else {}
    flat = set(parameters)
    for name, each in declared.items():
        if not isinstance(each, Conditional) or callable(each.condition):
            continue
        for asked in each.condition:
            counted = asked.removeprefix(COUNT) if asked.startswith(COUNT) else None
            if asked in {*declared, *flat, *DESCRIPTORS} or counted in OPERATIONS:
                _check_values(name, each, asked, {**parameters, **bare(declared)}.get(asked))
                continue
            raise ValueError(
                f"The condition of the hyperparameter {name!r} tells of {asked!r}, which is no "
                f"hyperparameter {sorted(declared)}, no parameter of a flat space {sorted(flat)} "
                f"and none of {list(DESCRIPTORS)} and {COUNT}<operation>."
            )


def _check_values(
    name: str, declared: Conditional, asked: str, distribution: BaseDistribution | None
) -> None:
    """Refuse a condition that no choice of a categorical hyperparameter meets."""
    if isinstance(distribution, CategoricalDistribution) and not any(
        declared.met(asked, choice) for choice in distribution.choices
    ):
        assert isinstance(declared.condition, Mapping)
        raise ValueError(
            f"The condition of the hyperparameter {name!r} is never met: {asked!r} is one of "
            f"{distribution.choices}, not {declared.condition[asked]!r}."
        )


def bare(declared: Mapping[str, Declared]) -> dict[str, BaseDistribution]:
    """The distributions, whatever they depend on."""
    return {
        name: each.distribution if isinstance(each, Conditional) else each
        for name, each in declared.items()
    }
