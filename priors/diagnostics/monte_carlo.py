"""Kernels of random networks at their own widths, by Monte Carlo: what a limit is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from priors.kernels.empirical import whitened
from priors.kernels.tangent import Method, Tangent, check_pair
from priors.networks.finite import NetworkPrior
from priors.networks.functional_call import over_networks
from priors.representation import as_record

__all__ = ["MonteCarloKernels", "monte_carlo_kernels"]

# Weights of the networks that are evaluated together, at most.
_GROUP = 2**22


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
    tangents = _Tangents(prior, x1, x2, diag, method, max_bytes)
    # not of max_bytes, so that the NNGP kernel does not depend on it by rounding
    group = max(1, min(num_networks, _GROUP // sum(p.numel() for p in prior.module.parameters())))
    bar = tqdm(total=num_networks, desc="networks", delay=5.0, leave=False, disable=not progress)
    with torch.no_grad(), bar:
        for start in range(0, num_networks, group):
            drawn = [
                prior.draw(generator=generator) for _ in range(min(group, num_networks - start))
            ]
            weights = {name: torch.stack([p[name] for p in drawn]) for name in drawn[0]}
            f1 = prior.apply_parameters(weights, x1)
            f2 = f1 if x2 is None else prior.apply_parameters(weights, x2)
            nngp_moments.add((f1 * f2).mean(-1) if diag else f1 @ f2.mT / f1.shape[-1])
            if ntk:
                ntk_moments.add(tangents.of(weights))
            bar.update(len(drawn))
    return MonteCarloKernels(
        nngp=nngp_moments.mean,
        nngp_error=nngp_moments.standard_error(),
        ntk=ntk_moments.mean if ntk else None,
        ntk_error=ntk_moments.standard_error() if ntk else None,
    )


class _Tangents:
    """Tangent kernels of several networks at a time."""

    def __init__(
        self,
        prior: NetworkPrior,
        x1: Tensor,
        x2: Tensor | None,
        diag: bool,
        method: Method,
        max_bytes: int,
    ) -> None:
        self.prior, self.x1, self.x2, self.diag = prior, x1, x2, diag
        self.method, self.max_bytes = method, max_bytes
        self._first: Tangent | None = None

    def of(self, weights: dict[str, Tensor]) -> Tensor:
        """Of weights `[networks, *their shape]`, `[networks, ...]`."""
        if self._first is None:
            function, point = whitened(
                self.prior, {name: p[0] for name, p in weights.items()}, self.x1
            )
            self._first = Tangent(
                function,
                point,
                self.x1.reshape(-1, self.x1.shape[-1]),
                output="mean",
                method=self.method,
                max_bytes=self.max_bytes,
            )
        examples = sum(x.shape[:-1].numel() for x in (self.x1, self.x2) if x is not None)
        together = max(1, self._first.examples // max(1, examples))
        return over_networks(self.prior.module, self._of_one, chunk_size=together)(weights)

    def _of_one(self, weights: dict[str, Tensor]) -> Tensor:
        assert self._first is not None
        tangent = self._first.at(*whitened(self.prior, weights, self.x1))
        return tangent.batched(self.x1, self.x2, diag=self.diag, progress=False)


class _Moments:
    """Running mean and squared deviation of equally shaped tensors (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self._squares = torch.zeros((), device="cpu")

    def add(self, values: Tensor) -> None:
        """Take in several tensors, `[number, ...]`."""
        number, mean = len(values), values.mean(0)
        before, self.count = self.count, self.count + number
        change = mean - self.mean.to(mean)
        self.mean = self.mean.to(mean) + change * (number / self.count)
        self._squares = (
            self._squares.to(mean)
            + (values - mean).square().sum(0)
            + change.square() * (before * number / self.count)
        )

    def standard_error(self) -> Tensor:
        """Of the mean, from independent values."""
        return (self._squares / (self.count * (self.count - 1))).sqrt()
