"""Matching by sliced Wasserstein distances, which see more than second moments.

Functions at n points are vectors; along a direction they are numbers, whose Wasserstein distance is
that of sorted draws. Averaged over directions theta on the sphere (Bonneel, Rabin, Peyre & Pfister
2015, Sliced and Radon Wasserstein barycenters of measures),

    SW_p^p = E_theta  integral_0^1 |F_theta^{-1}(u) - G_theta^{-1}(u)|^p du,

it needs no critic and no moments. Directions and the networks' whitened weights stay the same
during a match (common random numbers), so that L-BFGS-B minimises a fixed function.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from bayes.functional_prior.measurements import Measurements
from bayes.functional_prior.second_moments import functions_of
from bayes.functional_prior.variables import Variables
from bayes.inference.settings import check_settings
from priors.functions import FunctionPrior
from priors.networks.finite import NetworkPrior

__all__ = ["SlicedMatching", "directions_like", "sliced_wasserstein"]


@dataclass(frozen=True)
class SlicedMatching:
    """Sliced Wasserstein distance between drawn functions.

    Attributes:
        order: p, 2 or 1; 1 for targets without a variance.
        num_functions: Networks drawn.
        num_directions: Directions on the sphere.
        target_share: Target functions drawn for each network: their quantiles are then smooth.
        max_iter: Iterations of the optimiser.
    """

    order: int = 2
    num_functions: int = 512
    num_directions: int = 128
    target_share: int = 8
    max_iter: int = 60

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"SlicedMatching needs order 1 or 2, got {self.order}.")
        check_settings(
            self, at_least_one=("num_functions", "num_directions", "target_share", "max_iter")
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
        """See `MatchingMethod`; restarts share networks and directions."""
        cpu = torch.Generator().manual_seed(seed)
        sets = measurements.several(num_sets, cpu)
        generator = torch.Generator(sets[0].device).manual_seed(seed)
        outputs = prior.program.num_outputs
        wanted, directions = [], []
        for X in sets:
            with torch.no_grad():
                number = self.target_share * self.num_functions * outputs
                f = functions_of(target, X, number, generator)
                f = f[: len(f) // (self.num_functions * outputs) * (self.num_functions * outputs)]
                theta = directions_like(X, self.num_directions, generator)
                wanted.append(_quantiles(f @ theta, self.num_functions * outputs))
            directions.append(theta)
        prior.to(sets[0])
        size = torch.cat([q.square().mean(0) for q in wanted]).mean()
        variables = Variables(prior, float(size))
        bar = tqdm(desc="sliced", delay=5.0, leave=False, disable=not progress)

        def objective() -> Tensor:
            values = []
            for number, (X, theta, quantiles) in enumerate(
                zip(sets, directions, wanted, strict=True)
            ):
                common = torch.Generator(X.device).manual_seed(seed + 1 + number)
                f = functions_of(prior, X, self.num_functions, common)
                difference = (f @ theta).sort(0).values - quantiles
                values.append(difference.abs().pow(self.order).mean())
            return torch.stack(values).mean() / size ** (self.order / 2)

        with bar:
            variables.restarts(
                lambda: variables.minimise(
                    objective, max_iter=self.max_iter, tolerance=1e-7, after=lambda: _tick(bar)
                ),
                num_restarts,
                cpu,
            )


def _tick(bar: tqdm) -> None:
    bar.update()


def directions_like(X: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Uniform on the sphere, `[n, number]`."""
    theta = torch.randn(
        len(X), number, generator=generator, dtype=X.dtype, device=generator.device
    ).to(X)
    return theta / theta.norm(dim=0)


def sliced_wasserstein(f: Tensor, g: Tensor, directions: Tensor, *, order: int = 2) -> Tensor:
    """Sliced Wasserstein distance of two sets of functions.

    Args:
        f: Functions as rows, `[a, n]`.
        g: Others, `[b, n]`, where b is a multiple of a.
        directions: `[n, k]`, columns of norm 1.
        order: p >= 1.

    Returns:
        0-dim, in the units of the functions.

    Raises:
        ValueError: b is not a multiple of a.
    """
    if len(g) % len(f):
        raise ValueError(f"The second set must be a multiple of the first; got {len(f)}, {len(g)}.")
    difference = (f @ directions).sort(0).values - _quantiles(g @ directions, len(f))
    return difference.abs().pow(order).mean() ** (1 / order)


def _quantiles(values: Tensor, number: int) -> Tensor:
    """Means of `number` groups of sorted values, each column by itself."""
    return values.sort(0).values.unflatten(0, (number, -1)).mean(1)
