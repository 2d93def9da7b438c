"""Hyperparameters as points of the unit cube, for a Gaussian process and for local moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from torch import Generator, Tensor
from torch.quasirandom import SobolEngine

from nas.architectures import Architecture
from nas.compat import contains
from nas.encoding.columns import columns_of, from_unit, reflect, to_unit
from nas.encoding.conditional import Conditional, Declared, bare, descriptor
from nas.spaces import FlatSpace, Space
from priors.randomness import RandomSource

__all__ = ["HyperparameterCube"]

Values = dict[str, Any]


class HyperparameterCube:
    """The map between named values and the unit cube.

    Values by name lack the conditional hyperparameters that a candidate does not have.

    Args:
        distributions: Name to distribution, or to a `Conditional` one; the order of the coordinates
            is the names' order.
        space: A flat space, of whose parameters conditions may tell.

    Attributes:
        distributions: By name, without conditions.
        conditions: By name, of those that have one.

    Raises:
        TypeError: not a dictionary, or a distribution of another kind than Optuna's float, int
            and categorical.
        ValueError: conditions that ask for each other in a circle.
    """

    def __init__(self, distributions: Mapping[str, Declared], space: Space | None = None) -> None:
        if not isinstance(distributions, Mapping):
            raise TypeError(
                "Hyperparameters must be a dictionary of names to Optuna distributions, got "
                f"{type(distributions).__name__}."
            )
        known = (FloatDistribution, IntDistribution, CategoricalDistribution)
        for name, distribution in bare(distributions).items():
            if not isinstance(distribution, known):
                raise TypeError(
                    f"The hyperparameter {name!r} needs an Optuna FloatDistribution, "
                    f"IntDistribution or CategoricalDistribution, got {distribution!r}."
                )
        self.distributions = dict(sorted(bare(distributions).items()))
        self.conditions = {n: d for n, d in distributions.items() if isinstance(d, Conditional)}
        self.space = space
        self._columns = {
            name: columns_of(distribution, conditional=name in self.conditions)
            for name, distribution in self.distributions.items()
        }
        self._order = self._parents_first()

    @property
    def declared(self) -> dict[str, Declared]:
        """The distributions with their conditions."""
        return {**self.distributions, **self.conditions}

    @property
    def dimension(self) -> int:
        """Coordinates of an encoded point."""
        return sum(self.sizes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many coordinates share each length scale, in their order."""
        return tuple(size for column in self._columns.values() for size in column.sizes)

    def chosen(
        self, architecture: Architecture, values: Mapping[str, Any], generator: Generator | None
    ) -> Values:
        """The values that a candidate has, of values that another one had.

        Args:
            architecture: Of the candidate.
            values: Values by name.
            generator: Draws those that are missing; None where none is, and raises KeyError.
        """
        kept = {name: values[name] for name in self.distributions if name not in self.conditions}
        for name in self._order:
            if not self.exists(name, architecture, kept):
                continue
            if name in values:
                kept[name] = values[name]
            elif generator is None:
                raise KeyError(name)
            else:
                alone = HyperparameterCube({name: self.distributions[name]})
                kept |= alone.random(generator)
        return kept

    def exists(self, name: str, architecture: Architecture, values: Mapping[str, Any]) -> bool:
        """Whether a candidate has a hyperparameter.

        Args:
            name: Of the hyperparameter.
            architecture: Of the candidate.
            values: At least those that the condition tells of; one that is missing is not met.
        """
        if name not in self.conditions:
            return True
        conditional = self.conditions[name]
        if callable(conditional.condition):
            return bool(conditional.condition(architecture))
        return all(
            self._met(conditional, each, architecture, values) for each in conditional.condition
        )

    def _met(
        self,
        conditional: Conditional,
        name: str,
        architecture: Architecture,
        values: Mapping[str, Any],
    ) -> bool:
        if name in self.distributions:
            return name in values and conditional.met(name, values[name])
        if isinstance(self.space, FlatSpace) and name in self.space.parameters():
            return conditional.met(name, self.space.to_parameters(architecture)[name])
        return conditional.met(name, descriptor(architecture, name))

    def _parents_first(self) -> list[str]:
        """The conditional hyperparameters, each after those that its condition tells of."""
        order: list[str] = []
        waiting = sorted(self.conditions)
        while waiting:
            ready = [name for name in waiting if not self._asked(name) & set(waiting)]
            if not ready:
                raise ValueError(f"The conditions of {waiting} ask for each other in a circle.")
            order += ready
            waiting = [name for name in waiting if name not in ready]
        return order

    def _asked(self, name: str) -> set[str]:
        condition = self.conditions[name].condition
        return set() if callable(condition) else set(condition)

    def encode(self, values: Mapping[str, Any]) -> Tensor:
        """The point of these values, `[dimension]` in float64; extra names are not looked at."""
        return torch.tensor(self.row(values), dtype=torch.float64, device="cpu")

    def row(self, values: Mapping[str, Any]) -> list[float]:
        """The coordinates of `encode`."""
        row: list[float] = []
        for name, column in self._columns.items():
            absent = name in self.conditions and name not in values
            row += column.absent if absent else column.point(values[name])
        return row

    def contains(self, values: Mapping[str, Any], architecture: Architecture | None = None) -> bool:
        """Whether every name is there with a value inside its distribution.

        Args:
            values: Values by name; other names are not looked at.
            architecture: Whose hyperparameters these are; None asks for all, conditional or not.
        """
        for name, distribution in self.distributions.items():
            if architecture is not None and not self.exists(name, architecture, values):
                continue
            try:
                inside = contains(distribution, values[name])
            except (KeyError, ValueError):
                return False
            if not inside:
                return False
        return True

    def random(self, generator: Generator) -> Values:
        """Draw every value, uniformly in its unit coordinate."""
        return self._at(
            RandomSource(generator, dtype=torch.float64).uniform(len(self.distributions))
        )

    def quasi_random(self, index: int, seed: int) -> Values:
        """The values at one index of a scrambled Sobol sequence."""
        if not self.distributions:
            return {}
        sequence = SobolEngine(len(self.distributions), scramble=True, seed=seed)
        return self._at(sequence.fast_forward(index).draw(1, dtype=torch.float64)[0])

    def perturb(self, values: Mapping[str, Any], scale: float, generator: Generator) -> Values:
        """Values near others, of the same names.

        Args:
            values: Starting values.
            scale: Standard deviation of a number's step in its unit coordinate, reflected at
                the bounds; also the probability that a categorical is drawn anew.
            generator: Source of randomness.
        """
        moved: Values = {}
        source = RandomSource(generator, dtype=torch.float64)
        steps = source.normal(len(self.distributions))
        draws = source.uniform(len(self.distributions), 2)
        for (name, distribution), step, (chance, place) in zip(
            self.distributions.items(), steps.tolist(), draws.tolist(), strict=True
        ):
            if name not in values:
                continue
            if isinstance(distribution, CategoricalDistribution):
                again = chance < scale
                moved[name] = from_unit(place, distribution) if again else values[name]
            else:
                unit = to_unit(values[name], distribution) + scale * step
                moved[name] = from_unit(reflect(unit), distribution)
        return moved

    def _at(self, uniform: Tensor) -> Values:
        pairs = zip(self.distributions.items(), uniform.tolist(), strict=True)
        return {name: from_unit(unit, distribution) for (name, distribution), unit in pairs}
