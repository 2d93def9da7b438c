"""The interface of search spaces.

`Space` is any set of architectures that can be drawn from, walked through and encoded for a
Gaussian process. `FlatSpace` is one whose members are choices of a fixed list of parameters, so
that Optuna's own samplers can search it too; it needs only the map to and from them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import product
from typing import Any

import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution
from torch import Generator, Tensor

from nas.architectures.architecture import Architecture
from priors.randomness import RandomSource

__all__ = ["FlatSpace", "Space"]

NUM_ATTEMPTS = 20


class Space(ABC):
    """A set of architectures."""

    @abstractmethod
    def random(self, generator: Generator) -> Architecture:
        """Draw a member."""

    @abstractmethod
    def neighbours(self, architecture: Architecture) -> list[Architecture]:
        """The members one edit away, without the architecture itself and without repeats."""

    def members(self, limit: int) -> list[Architecture] | None:
        """All members, each once; None where there may be more than `limit`."""
        return None

    def steps(
        self, architecture: Architecture, number: int, generator: Generator
    ) -> list[Architecture]:
        """At most so many different members near another one, drawn from its neighbours."""
        near = self.neighbours(architecture)
        order = torch.randperm(len(near), generator=generator, device=generator.device)
        return [near[index] for index in order[:number].tolist()]

    def mutate(self, architecture: Architecture, generator: Generator) -> Architecture:
        """A member near another one: one of its neighbours, or itself where it has none."""
        near = self.neighbours(architecture)
        return near[int(RandomSource(generator).integers(len(near)))] if near else architecture

    def crossover(
        self, architecture: Architecture, other: Architecture, generator: Generator
    ) -> Architecture:
        """A member with traits of two; a mutation of the first, where a space knows no better."""
        return self.mutate(architecture, generator)

    @abstractmethod
    def encode(self, architecture: Architecture) -> Tensor:
        """A point of the unit cube, `[d]` in float64, the same for equal architectures."""

    @abstractmethod
    def __contains__(self, architecture: object) -> bool:
        """Whether it is a member."""


class FlatSpace(Space):
    """A space whose members are choices of a fixed list of categorical parameters.

    Different choices may mean the same architecture (the width of a layer that is not there).
    """

    @abstractmethod
    def parameters(self) -> dict[str, BaseDistribution]:
        """The parameters as Optuna distributions."""

    @abstractmethod
    def from_parameters(self, values: Mapping[str, Any]) -> Architecture:
        """The architecture of a choice of parameters.

        Raises:
            ValueError: a parameter is missing or outside its distribution.
        """

    @abstractmethod
    def to_parameters(self, architecture: Architecture) -> dict[str, Any]:
        """A choice of parameters that gives the architecture.

        Raises:
            ValueError: the architecture is not in the space.
        """

    def code_sizes(self) -> tuple[int, ...] | None:
        """How many columns of `encode` each choice takes, in their order.

        A Gaussian process learns one length scale for each; None gives every column its own.
        """
        return None

    def members(self, limit: int) -> list[Architecture] | None:
        """All members, each once; None where the parameters have more than `limit` choices."""
        choices = [choices_of(name, d) for name, d in self.parameters().items()]
        if math.prod(len(each) for each in choices) > limit:
            return None
        every = (dict(zip(self.parameters(), chosen, strict=True)) for chosen in product(*choices))
        return list(dict.fromkeys(map(self.from_parameters, every)))

    def random(self, generator: Generator) -> Architecture:
        """Draw every parameter uniformly, as Optuna's `RandomSampler` does."""
        draws, values = RandomSource(generator), {}
        for name, distribution in self.parameters().items():
            choices = choices_of(name, distribution)
            values[name] = choices[int(draws.integers(len(choices)))]
        return self.from_parameters(values)

    def neighbours(self, architecture: Architecture) -> list[Architecture]:
        """The members that differ in one parameter."""
        values = self.to_parameters(architecture)
        found = {architecture: None}
        for name, distribution in self.parameters().items():
            for choice in choices_of(name, distribution):
                found[self.from_parameters({**values, name: choice})] = None
        return list(found)[1:]

    def mutate(self, architecture: Architecture, generator: Generator) -> Architecture:
        """A member that differs in one parameter, which is drawn anew until it does."""
        values, draws = self.to_parameters(architecture), RandomSource(generator)
        parameters = {
            name: choices
            for name, distribution in self.parameters().items()
            if len(choices := choices_of(name, distribution)) > 1
        }
        for _ in range(NUM_ATTEMPTS if parameters else 0):
            name = list(parameters)[int(draws.integers(len(parameters)))]
            others = [choice for choice in parameters[name] if choice != values[name]]
            changed = self.from_parameters(
                {**values, name: others[int(draws.integers(len(others)))]}
            )
            if changed != architecture:  # not the width of a layer that is not there
                return changed
        return architecture

    def crossover(
        self, architecture: Architecture, other: Architecture, generator: Generator
    ) -> Architecture:
        """Every parameter from either of two members."""
        one, two = self.to_parameters(architecture), self.to_parameters(other)
        taken = RandomSource(generator).integers(2, len(one)).tolist()
        return self.from_parameters(
            {name: (one, two)[which][name] for name, which in zip(one, taken, strict=True)}
        )

    def __contains__(self, architecture: object) -> bool:
        if not isinstance(architecture, Architecture):
            return False
        try:
            return self.from_parameters(self.to_parameters(architecture)) == architecture
        except ValueError:
            return False

    def checked_parameters(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values of this space's parameters, for `from_parameters` to begin with.

        Args:
            values: Values by name; those of other names are left out.

        Raises:
            ValueError: a parameter is missing or outside its distribution.
        """
        checked = {}
        for name, distribution in self.parameters().items():
            if name not in values:
                raise ValueError(f"The parameter {name!r} of {type(self).__name__} is missing.")
            choices = choices_of(name, distribution)
            if values[name] not in choices:
                raise ValueError(
                    f"The parameter {name!r} must be one of {list(choices)}, got {values[name]!r}."
                )
            checked[name] = values[name]
        return checked


def choices_of(name: str, distribution: BaseDistribution) -> tuple[Any, ...]:
    """All values of a categorical distribution.

    Args:
        name: Parameter name, for the message.
        distribution: Its distribution.

    Raises:
        TypeError: it is not categorical.
    """
    if not isinstance(distribution, CategoricalDistribution):
        raise TypeError(
            f"Parameters of a FlatSpace are categorical; {name!r} is {distribution}. Override "
            "random and neighbours for others."
        )
    return tuple(distribution.choices)
