"""The distribution of drawn functions, for engines that sample parameters.

`EmpiricalPosterior` is the distribution of the S drawn function values themselves, with their
weights; it is never reduced to its mean and variance. What averages over draws have in common
is here too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from botorch.utils.safe_math import log_fatmoid, log_fatplus
from torch import Tensor

from priors.posteriors.crps import crps_of_draws
from priors.posteriors.protocol import PredictivePosterior, check_order, probabilities
from priors.representation import count

__all__ = ["EmpiricalPosterior", "average", "beside", "choose", "log_average", "normalised"]

# Width of the smoothing that keeps gradients where no draw improves, in deviations of the draws.
_SMOOTHING = 1e-6


class EmpiricalPosterior(PredictivePosterior):
    """The distribution of drawn functions: S atoms per point, joint over points and outputs.

    Args:
        draws: Function values, `[S, ..., n, m]`.
        log_weights: Log probabilities of the draws, `[S]`, or `[S, ...]` with weights of their own
            for each batch element; equal if None. They are normalised here.

    Its `log_excess` is that of the draws, with max(., 0) and the step smoothed at a width of 1e-6
    of the draws' deviation (Ament et al. 2023, 2310.20708), so that it has gradients where no draw
    is beyond the threshold. Elsewhere the gradient of the probability is negligible: prefer the
    expected improvement.
    """

    def __init__(self, draws: Tensor, log_weights: Tensor | None = None) -> None:
        self.draws = draws
        self.log_weights = normalised(log_weights, draws)

    @property
    def _kind(self) -> Sequence[str]:
        return [count(len(self.draws), "draw")]

    @property
    def atoms(self) -> tuple[Tensor, Tensor]:
        return self.draws, self.log_weights

    @property
    def mean(self) -> Tensor:
        return average(self.draws, self.log_weights)

    @property
    def variance(self) -> Tensor:
        return average((self.draws - self.mean).square(), self.log_weights)

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
        return average(below, self.log_weights)

    def crps(self, Y: Tensor) -> Tensor:
        log_weights = self.log_weights
        missing = self.draws.dim() - log_weights.dim()
        log_weights = log_weights.reshape(*log_weights.shape, *[1] * missing)
        return crps_of_draws(self.draws, log_weights.expand_as(self.draws), Y)

    def quantile(self, value: Tensor) -> Tensor:
        """Smallest draws whose cdf reaches `value` `[*p]`, `[*p, ..., n, m]`.

        Args:
            value: Probabilities in (0, 1).
        """
        value = probabilities(value, self.draws)
        ordered, order = self.draws.sort(dim=0)
        weights = _beside_values(self.log_weights.exp(), self.draws, 2).expand_as(self.draws)
        reached = weights.gather(0, order).cumsum(0).movedim(0, -1).contiguous()
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
    if log_weights.shape not in (draws.shape[:1], draws.shape[:-2]):
        raise ValueError(
            f"log_weights must be [{len(draws)}], one per draw, or {list(draws.shape[:-2])} with "
            f"those of each batch element, got {tuple(log_weights.shape)}."
        )
    return log_weights.to(draws).log_softmax(0)


def beside(draws: Tensor, Y: Tensor) -> Tensor:
    """Draws `[S, ..., n, m]` that broadcast with values `[*s, ..., n, m]`, the first axis apart."""
    extra = max(Y.dim() - draws.dim() + 1, 0)
    return draws[(slice(None), *(None,) * extra)]


def _beside_values(weights: Tensor, values: Tensor, event: int) -> Tensor:
    """Weights `[S]` or `[S, *batch]` beside values `[S, *s, *batch, *event]`."""
    batch = weights.shape[1:]
    extra = values.dim() - 1 - len(batch) - event
    if not batch:
        return weights.reshape(-1, *[1] * (values.dim() - 1))
    return weights.reshape(len(weights), *[1] * extra, *batch, *[1] * event)


def average(values: Tensor, log_weights: Tensor) -> Tensor:
    """Sum of w_s values[s], `[S, ..., n, m]` to `[..., n, m]`."""
    if log_weights.dim() == 1:
        return torch.tensordot(log_weights.exp(), values, dims=1)
    return (_beside_values(log_weights.exp(), values, 2) * values).sum(0)


def log_average(values: Tensor, log_weights: Tensor, event: int = 2) -> Tensor:
    """log of sum_s w_s exp(values[s]), `[S, ..., n, m]` to `[..., n, m]`.

    Args:
        values: Logarithms.
        log_weights: `[S]`, or `[S, *batch]` with those of each batch element.
        event: Dimensions of the values after the batch.
    """
    return (values + _beside_values(log_weights, values, event)).logsumexp(0)


def choose(draws: Tensor, log_weights: Tensor, normal: Tensor) -> Tensor:
    """One of the draws `[S, *batch, n, m]` per normal `[*sample, *batch]`."""
    batch = draws.shape[1:-2]
    lead = normal.shape[: normal.dim() - len(batch)]
    size, count = len(draws), batch.numel()
    weights = _beside_values(log_weights.exp(), draws, 2)[..., 0, 0].expand(size, *batch)
    reached = weights.cumsum(0).reshape(size, count).T.contiguous()
    probability = torch.special.ndtr(normal).expand(*lead, *batch).reshape(-1, count).T.contiguous()
    index = torch.searchsorted(reached, probability).clamp_max(size - 1)
    flat = draws.movedim(0, -3).reshape(count, size, *draws.shape[-2:])
    chosen = flat[torch.arange(count, device=draws.device), index.T]
    return chosen.reshape(*lead, *batch, *draws.shape[-2:])
