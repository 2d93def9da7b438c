"""Kernels of random networks at their own widths, by Monte Carlo: what a limit is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from priors.kernels.empirical import whitened
from priors.kernels.tangent import Method, Tangent, check_pair
from priors.networks.finite import NetworkPrior
from priors.representation import as_record

__all__ = ["MonteCarloKernels", "monte_carlo_kernels"]


@dataclass(frozen=True)
class MonteCarloKernels:
    """Averages over random finite networks, `[..., n1, n2]` or `[..., n]` each.

    Attributes:
        nngp: Second moment of one output unit.
        nngp_error: Its standard error over networks.
        ntk: Tangent kernel of one output unit; None where it was not asked.
        ntk_error: Its standard error over networks.
    """

    nngp: Tensor
    nngp_error: Tensor
    ntk: Tensor | None
    ntk_error: Tensor | None

    def __repr__(self) -> str:
        return as_record(self)


def monte_carlo_kernels(
    prior: NetworkPrior,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    num_networks: int,
    generator: torch.Generator | None = None,
    ntk: bool = True,
    diag: bool = False,
    method: Method = "auto",
    max_bytes: int = 2**30,
    progress: bool = True,
) -> MonteCarloKernels:
    """Kernels of a random network at its own widths, averaged over independent draws.

    Unbiased for those widths, at any module that `NetworkPrior` takes. Towards the infinite-width
    limit the bias is of order 1 / width; a fully connected network of one hidden layer has none.
    The errors measure the spread over networks alone, not that bias. Each average is also one
    over the output units.

    Args:
        prior: The networks and their scaling.
        x1: Inputs `[..., n1, d]`.
        x2: Inputs `[..., n2, d]`; None means x1.
        num_networks: Networks drawn, >= 2.
        generator: Source of randomness; `method` and `max_bytes` do not change what is drawn.
        ntk: Whether the tangent kernel is wanted, the dearer of the two.
        diag: Row by row instead of all pairs.
        method: As for `empirical_ntk`.
        max_bytes: As for `empirical_ntk`.
        progress: Show a progress bar when it takes longer than a few seconds.

    Returns:
        Detached estimates with their standard errors.

    Raises:
        ValueError: fewer than two networks, or shapes that do not fit.
    """
    if num_networks < 2:
        raise ValueError(f"A standard error needs num_networks >= 2, got {num_networks}.")
    check_pair(x1, x2, flat=True, diag=diag)
    nngp_moments, ntk_moments = _Moments(), _Moments()
    networks = tqdm(
        range(num_networks), desc="networks", delay=5.0, leave=False, disable=not progress
    )
    with torch.no_grad():
        for _ in networks:
            weights = prior.draw(generator=generator)
            f1 = prior.apply_parameters(weights, x1)
            f2 = f1 if x2 is None else prior.apply_parameters(weights, x2)
            nngp_moments.add((f1 * f2).mean(-1) if diag else f1 @ f2.mT / f1.shape[-1])
            if ntk:
                function, point = whitened(prior, weights, x1)
                tangent = Tangent(
                    function,
                    point,
                    x1.reshape(-1, x1.shape[-1]),
                    output="mean",
                    method=method,
                    max_bytes=max_bytes,
                )
                ntk_moments.add(tangent.batched(x1, x2, diag=diag, progress=False))
    return MonteCarloKernels(
        nngp=nngp_moments.mean,
        nngp_error=nngp_moments.standard_error(),
        ntk=ntk_moments.mean if ntk else None,
        ntk_error=ntk_moments.standard_error() if ntk else None,
    )


class _Moments:
    """Running mean and squared deviation of equally shaped tensors (Welford 1962)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self._squares = torch.zeros((), device="cpu")

    def add(self, value: Tensor) -> None:
        """Take in one tensor."""
        self.count += 1
        before = value - self.mean.to(value)
        self.mean = self.mean.to(value) + before / self.count
        self._squares = self._squares.to(value) + before * (value - self.mean)

    def standard_error(self) -> Tensor:
        """Of the mean, from independent values."""
        return (self._squares / (self.count * (self.count - 1))).sqrt()
