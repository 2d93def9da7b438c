"""Matching second moments: closed form for one hidden layer, corrected for deeper networks.

The objective is

    mean over t of (s_network(t) - s_target(t))^2 / mean over t of s_target(t)^2,

s(t)^2 = t' K(X) t, over directions t on the sphere: the squared sliced 2-Wasserstein distance of
centred Gaussians with these second moments, which has this closed form given t. Unlike the
Frobenius norm of K_network - K_target it is a distance of draws, not governed by the directions of
largest variance. With one hidden layer K_network is the NNGP kernel K at every width, and the
objective is free of sampled functions. Otherwise

    K_network(v) = K(v) + D(v),    D = E[f f'] at the network's widths - K,

where v are the logarithms of the variances. D, of order 1 / width, is an average over networks
and expanded to first order around the present v; K keeps its dependence on v. Minimising and
expanding in turn, within a radius that shrinks where the sampled objective does not fall, ends at a
stationary point of the sampled objective (first-order model management: Alexandrov & Lewis 2001,
An overview of first-order model management for engineering optimization). Since the limit carries
nearly all of the dependence (a control variate), a few expansions do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from bayes.functional_prior.measurements import Measurements
from bayes.functional_prior.second_moments import (
    limit_is_exact,
    sampled_second_moment,
    target_second_moment,
)
from bayes.functional_prior.sliced import directions_like
from bayes.functional_prior.variables import Variables
from bayes.inference.settings import check_settings
from priors.functions import FunctionPrior
from priors.networks.finite import NetworkPrior
from priors.networks.infinite import InfiniteNetwork

__all__ = ["MomentMatching"]

# Of differences in log variances.
_STEP = 1e-3
# How far a log variance moves from where D was expanded, at first.
_RADIUS = 1.0
# Iterations of the optimiser for each expansion.
_ITERATIONS = 25
# Relative improvement below which expansions end.
_ENOUGH = 1e-3


@dataclass(frozen=True)
class MomentMatching:
    """Second moments, in closed form as far as there is one.

    Attributes:
        num_networks: Networks drawn for what the limit leaves out; none with one hidden layer.
        num_corrections: Expansions of that at most.
        num_functions: Functions drawn of a target whose second moment has no closed form.
        num_directions: Directions on the sphere.
    """

    num_networks: int = 256
    num_corrections: int = 8
    num_functions: int = 4096
    num_directions: int = 1024

    def __post_init__(self) -> None:
        check_settings(self, at_least_one=("num_networks", "num_functions", "num_directions"))
        if self.num_corrections < 0:
            raise ValueError(
                f"MomentMatching needs num_corrections >= 0, got {self.num_corrections}."
            )

    def run(
        self,
        prior: NetworkPrior,
        target: FunctionPrior,
        measurements: Measurements,
        *,
        num_sets: int,
        num_restarts: int,
        seed: int,
        progress: bool,
    ) -> None:
        """See `MatchingMethod`."""
        if prior.parameterization != "ntk":
            raise NotImplementedError(
                'Matching by moments needs parameterization="ntk": with maximal updates readouts '
                'vanish in the limit. Use method="sliced".'
            )
        generator = torch.Generator().manual_seed(seed)
        sets = [X.double() for X in measurements.several(num_sets, generator)]
        truths = [
            target_second_moment(target, X, num_functions=self.num_functions, seed=seed)[0]
            for X in sets
        ]
        sliced = _Sliced(truths, [directions_like(X, self.num_directions, generator) for X in sets])
        prior.to(sets[0])
        variables = Variables(prior, _typical_variance(truths))
        limit = InfiniteNetwork(prior)
        with tqdm(
            total=1 + self.num_corrections,
            desc="moments",
            delay=5.0,
            leave=False,
            disable=not progress,
        ) as bar:

            def of_the_limit() -> Tensor:
                return sliced.distance([limit.nngp(X) for X in sets])

            variables.restarts(lambda: variables.minimise(of_the_limit), num_restarts, generator)
            bar.update()
            if limit_is_exact(prior):
                return
            networks = _Networks(prior, sets, variables, self.num_networks, seed)
            value, radius = networks.distance(sliced), _RADIUS
            for _ in range(self.num_corrections):
                start = variables.get()
                expansion = networks.beyond_the_limit(limit)

                def corrected(expansion: _Expansion = expansion) -> Tensor:
                    kernels = [limit.nngp(X) for X in sets]
                    return sliced.distance(
                        [K + D for K, D in zip(kernels, expansion.at(variables), strict=True)]
                    )

                variables.minimise(corrected, radius=radius, max_iter=_ITERATIONS)
                found = networks.distance(sliced)
                bar.update()
                if found < value * (1 - _ENOUGH):
                    value = found
                    continue
                if found >= value:
                    variables.set(start)
                    radius /= 4
                if radius < 0.05 or found < value:
                    break


class _Networks:
    """Second moments of the same drawn networks at any variances."""

    def __init__(
        self,
        prior: NetworkPrior,
        sets: list[Tensor],
        variables: Variables,
        number: int,
        seed: int,
    ) -> None:
        self.prior, self.sets, self.variables = prior, sets, variables
        self.number, self.seed = number, seed

    def moments(self) -> list[Tensor]:
        """At the present variances, one `[n, n]` for each set."""
        with torch.no_grad():
            return [
                sampled_second_moment(
                    self.prior, X, num_networks=self.number, seed=self.seed + index
                )[0]
                for index, X in enumerate(self.sets)
            ]

    def distance(self, sliced: _Sliced) -> float:
        """The sampled objective."""
        return float(sliced.distance(self.moments()))

    def beyond_the_limit(self, limit: InfiniteNetwork) -> _Expansion:
        """What they have besides the limit, to first order around the present variances."""
        start = self.variables.get()

        def difference() -> list[Tensor]:
            with torch.no_grad():
                kernels = [limit.nngp(X) for X in self.sets]
            return [S - K for S, K in zip(self.moments(), kernels, strict=True)]

        here = difference()
        slopes: list[list[Tensor]] = [[] for _ in self.sets]
        for index in range(len(start)):
            moved = start.clone()
            # inwards at the bound
            step = _STEP if start[index] + _STEP <= self.variables.high[index] else -_STEP
            moved[index] += step
            self.variables.set(moved)
            for slope, there, before in zip(slopes, difference(), here, strict=True):
                slope.append((there - before) / step)
        self.variables.set(start)
        return _Expansion(start, here, [torch.stack(s) for s in slopes])


@dataclass(frozen=True)
class _Expansion:
    """D(v) = D(v0) + (v - v0)' slope for each measurement set."""

    start: Tensor
    values: list[Tensor]
    slopes: list[Tensor]

    def at(self, variables: Variables) -> list[Tensor]:
        """At the present variances, differentiable in them."""
        found = []
        now = torch.cat([p.flatten() for p in variables.parameters])
        change = now - self.start.to(now)
        for value, slope in zip(self.values, self.slopes, strict=True):
            found.append(value + torch.einsum("k,kij->ij", change.to(slope), slope))
        return found


class _Sliced:
    """The objective, at fixed directions `[n, k]` of each measurement set."""

    def __init__(self, truths: list[Tensor], directions: list[Tensor]) -> None:
        self.directions = directions
        self.wanted = [_deviations(K, t) for K, t in zip(truths, directions, strict=True)]

    def distance(self, found: list[Tensor]) -> Tensor:
        """Of second moments `[n, n]`, one for each set."""
        distances = [
            (_deviations(F, t) - s).square().mean() / s.square().mean()
            for F, t, s in zip(found, self.directions, self.wanted, strict=True)
        ]
        return torch.stack(distances).mean()


def _deviations(K: Tensor, directions: Tensor) -> Tensor:
    """sqrt(t' K t), `[k]`; K may have lost a little of its positive definiteness."""
    variances = ((K @ directions) * directions).sum(0)
    return variances.clamp_min(1e-12 * float(K.detach().diagonal().mean())).sqrt()


def _typical_variance(truths: list[Tensor]) -> float:
    return float(torch.cat([K.diagonal() for K in truths]).mean())
