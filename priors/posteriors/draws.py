"""The distribution of drawn functions, for engines that sample parameters.

`EmpiricalPosterior` is the distribution of the S drawn function values themselves, with their
weights; it is never reduced to its mean and variance. What averages over draws have in common
is here too.
"""

from __future__ import annotations

import torch
from botorch.utils.safe_math import log_fatmoid, log_fatplus
from torch import Tensor

from priors.posteriors.protocol import PredictivePosterior, check_order, probabilities

__all__ = ["EmpiricalPosterior", "beside", "choose", "log_average", "normalised"]

# Width of the smoothing that keeps gradients where no draw improves, in deviations of the draws.
_SMOOTHING = 1e-6


class EmpiricalPosterior(PredictivePosterior):
    """The distribution of drawn functions: S atoms per point, joint over points and outputs.

    Args:
        draws: Function values, `[S, ..., n, m]`.
        log_weights: Log probabilities of the draws, `[S]`; equal if None. They are normalised here.

    Its `log_excess` is that of the draws, with max(., 0) and the step smoothed at a width of 1e-6
    of the draws' deviation (Ament et al. 2023, 2310.20708), so that it has gradients where no draw
    is beyond the threshold. Elsewhere the gradient of the probability is negligible: prefer the
    expected improvement.
    """

    def __init__(self, draws: Tensor, log_weights: Tensor | None = None) -> None:
        self.draws = draws
        self.log_weights = normalised(log_weights, draws)

    @property
    def atoms(self) -> tuple[Tensor, Tensor]:
        return self.draws, self.log_weights

    @property
    def mean(self) -> Tensor:
        return torch.tensordot(self.log_weights.exp(), self.draws, dims=1)

    @property
    def variance(self) -> Tensor:
        return torch.tensordot(self.log_weights.exp(), (self.draws - self.mean).square(), dims=1)

    def log_prob(self, Y: Tensor) -> Tensor:
        """Undefined: a distribution on finitely many values has no density.

        Args:
            Y: Values.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "The posterior of f is a set of draws and has no density; "
            "posterior(X, observation_noise=True), of y, has one."
        )

    def cdf(self, Y: Tensor) -> Tensor:
        """Weight of the draws at most `Y` `[..., n, m]`, `[..., n, m]`; a step function."""
        below = (beside(self.draws, Y) <= Y).to(self.draws.dtype)
        return torch.tensordot(self.log_weights.exp(), below, dims=1)

    def quantile(self, value: Tensor) -> Tensor:
        """Smallest draws whose cdf reaches `value` `[*p]`, `[*p, ..., n, m]`.

        Args:
            value: Probabilities in (0, 1).
        """
        value = probabilities(value, self.draws)
        ordered, order = self.draws.sort(dim=0)
        reached = self.log_weights.exp()[order].cumsum(0).movedim(0, -1).contiguous()
        targets = value.flatten().expand(*reached.shape[:-1], value.numel()).contiguous()
        # Half a rounding error of slack, so that the quantile of a cdf value is that draw.
        slack = 4 * torch.finfo(self.draws.dtype).eps
        index = torch.searchsorted(reached, targets - slack).clamp_max(len(self.draws) - 1)
        found = ordered.movedim(0, -1).gather(-1, index).movedim(-1, 0)
        return found.reshape(value.shape + self.draws.shape[1:])

    def log_excess(self, threshold: Tensor | float, order: int, above: bool = True) -> Tensor:
        check_order(order)
        threshold = torch.as_tensor(threshold, dtype=self.draws.dtype, device=self.draws.device)
        draws = beside(self.draws, threshold)
        gain = draws - threshold if above else threshold - draws
        with torch.no_grad():
            limits = torch.finfo(gain.dtype)
            rounding = limits.eps * (gain.abs() + draws.abs()).amax(0)
            width = _SMOOTHING * torch.maximum(self.variance.sqrt(), rounding)
            width = width.clamp_min(limits.tiny)
        if order == 0:
            return log_average(log_fatmoid(gain / width, tau=1.0), self.log_weights)
        return log_average(log_fatplus(gain / width, tau=1.0), self.log_weights) + width.log()

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        return choose(self.draws, self.log_weights, base_samples[..., 0])

    @property
    def base_sample_shape(self) -> torch.Size:
        """One normal per batch element: it chooses the draw."""
        return torch.Size([*self.draws.shape[1:-2], 1])

    @property
    def batch_range(self) -> tuple[int, int]:
        return (0, -1)


def normalised(log_weights: Tensor | None, draws: Tensor) -> Tensor:
    if draws.dim() < 3 or len(draws) == 0:
        raise ValueError(
            f"Draws must be [S, ..., n, m] with S >= 1, got shape {tuple(draws.shape)}."
        )
    if log_weights is None:
        log_weights = draws.new_zeros(len(draws))
    if log_weights.shape != draws.shape[:1]:
        raise ValueError(
            f"log_weights must be [{len(draws)}], one per draw, got {tuple(log_weights.shape)}."
        )
    return log_weights.to(draws).log_softmax(0)


def beside(draws: Tensor, Y: Tensor) -> Tensor:
    """Draws `[S, ..., n, m]` that broadcast with values `[*s, ..., n, m]`, the first axis apart."""
    extra = max(Y.dim() - draws.dim() + 1, 0)
    return draws[(slice(None), *(None,) * extra)]


def log_average(values: Tensor, log_weights: Tensor) -> Tensor:
    """log of sum_s w_s exp(values[s]), `[S, ...]` to `[...]`."""
    return (values + log_weights.reshape(-1, *[1] * (values.dim() - 1))).logsumexp(0)


def choose(draws: Tensor, log_weights: Tensor, normal: Tensor) -> Tensor:
    """One of the draws `[S, *batch, n, m]` per normal `[*sample, *batch]`."""
    batch = draws.shape[1:-2]
    probability = torch.special.ndtr(normal).contiguous()
    index = torch.searchsorted(log_weights.exp().cumsum(0), probability)
    index = index.clamp_max(len(draws) - 1)
    index = index.expand(*index.shape[: index.dim() - len(batch)], *batch)
    lead = index.shape[: index.dim() - len(batch)]
    count = batch.numel()
    flat = draws.movedim(0, -3).reshape(count, len(draws), *draws.shape[-2:])
    chosen = flat[torch.arange(count, device=draws.device), index.reshape(-1, count)]
    return chosen.reshape(*lead, *batch, *draws.shape[-2:])
