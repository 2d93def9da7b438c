"""Hyperparameters as points of the unit cube, for a Gaussian process and for local moves.

A number takes one coordinate, linear or logarithmic as its distribution says; a categorical
takes one coordinate for each choice (one-hot).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from torch import Generator, Tensor
from torch.quasirandom import SobolEngine

from nas.compat import contains
from priors.randomness import RandomSource

__all__ = ["HyperparameterCube"]

Values = dict[str, Any]


class HyperparameterCube:
    """The map between named values and the unit cube.

    Args:
        distributions: Name to distribution; the order of the coordinates is the names' order.

    Raises:
        TypeError: not a dictionary, or a distribution of another kind than Optuna's float, int
            and categorical.
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution]) -> None:
        if not isinstance(distributions, Mapping):
            raise TypeError(
                "Hyperparameters must be a dictionary of names to Optuna distributions, got "
                f"{type(distributions).__name__}."
            )
        known = (FloatDistribution, IntDistribution, CategoricalDistribution)
        for name, distribution in distributions.items():
            if not isinstance(distribution, known):
                raise TypeError(
                    f"The hyperparameter {name!r} needs an Optuna FloatDistribution, "
                    f"IntDistribution or CategoricalDistribution, got {distribution!r}."
                )
        self.distributions = dict(sorted(distributions.items()))

    @property
    def dimension(self) -> int:
        """Coordinates of an encoded point."""
        return sum(_coordinates(distribution) for distribution in self.distributions.values())

    def encode(self, values: Mapping[str, Any]) -> Tensor:
        """The point of these values, `[dimension]` in float64; extra names are not looked at."""
        return torch.tensor(self.row(values), dtype=torch.float64, device="cpu")

    def row(self, values: Mapping[str, Any]) -> list[float]:
        """The coordinates of `encode`."""
        row: list[float] = []
        for name, distribution in self.distributions.items():
            if isinstance(distribution, CategoricalDistribution):
                row += [float(values[name] == choice) for choice in distribution.choices]
            else:
                row.append(_to_unit(values[name], distribution))
        return row

    def contains(self, values: Mapping[str, Any]) -> bool:
        """Whether every name is there with a value inside its distribution."""
        for name, distribution in self.distributions.items():
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
        """Values near others.

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
            if isinstance(distribution, CategoricalDistribution):
                again = chance < scale
                moved[name] = _from_unit(place, distribution) if again else values[name]
            else:
                unit = _to_unit(values[name], distribution) + scale * step
                moved[name] = _from_unit(_reflect(unit), distribution)
        return moved

    def _at(self, uniform: Tensor) -> Values:
        pairs = zip(self.distributions.items(), uniform.tolist(), strict=True)
        return {name: _from_unit(unit, distribution) for (name, distribution), unit in pairs}


def _coordinates(distribution: BaseDistribution) -> int:
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    return 1


def _bounds(distribution: FloatDistribution | IntDistribution) -> tuple[float, float]:
    """Bounds on the scale that the unit coordinate is linear in.

    Integers get half a step on each side, so that the end values are as likely as the others.
    """
    low, high = float(distribution.low), float(distribution.high)
    if isinstance(distribution, IntDistribution):
        low, high = low - 0.5 * distribution.step, high + 0.5 * distribution.step
    if distribution.log:
        return math.log(low), math.log(high)
    return low, high


def _to_unit(value: float, distribution: BaseDistribution) -> float:
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = _bounds(distribution)
    if high == low:
        return 0.5
    return ((math.log(value) if distribution.log else float(value)) - low) / (high - low)


def _from_unit(unit: float, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        size = len(distribution.choices)
        return distribution.choices[min(int(unit * size), size - 1)]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = _bounds(distribution)
    value = low + unit * (high - low)
    value = math.exp(value) if distribution.log else value
    if distribution.step is not None:
        steps = round((value - distribution.low) / distribution.step)
        value = distribution.low + steps * distribution.step
    value = min(max(value, distribution.low), distribution.high)
    return round(value) if isinstance(distribution, IntDistribution) else float(value)


def _reflect(unit: float) -> float:
    folded = unit % 2.0
    return 2.0 - folded if folded > 1.0 else folded
