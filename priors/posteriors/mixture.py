"""Posteriors that are an average over draws: of functions, or of Gaussians.

An engine that samples parameters leaves S draws with weights. `EmpiricalPosterior` is the
distribution of the drawn function values themselves; `GaussianMixturePosterior` adds each draw's
Gaussian noise and so has a density. Neither is ever reduced to its mean and variance.
"""

from __future__ import annotations

import torch
from botorch.utils.safe_math import log_fatmoid, log_fatplus
from torch import Tensor

from priors.posteriors.posterior import (
    PredictivePosterior,
    gaussian_log_expected_improvement,
    gaussian_log_probability_of_improvement,
    probabilities,
)

__all__ = ["EmpiricalPosterior", "GaussianMixturePosterior"]

# Width of the smoothing that keeps gradients where no draw improves, in deviations of the draws.
_SMOOTHING = 1e-6


class EmpiricalPosterior(PredictivePosterior):
    """The distribution of drawn functions: S atoms per point, joint over points and outputs.

    Args:
        draws: Function values, `[S, ..., n, m]`.
        log_weights: Log probabilities of the draws, `[S]`; equal without them. Normalised here.

    Its expected improvement and probability of improvement are those of the draws, with max(., 0)
    and the step smoothed at a width of 1e-6 of the draws' deviation (Ament et al. 2023,
    2310.20708), so that their logarithms have gradients where no draw improves. The probability
    has none to speak of elsewhere: prefer the expected improvement.
    """

    def __init__(self, draws: Tensor, log_weights: Tensor | None = None) -> None:
        self.draws = draws
        self.log_weights = _normalised(log_weights, draws)

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
        below = (self.draws <= Y).to(self.draws.dtype)
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

    def log_expected_improvement(self, best_f: Tensor | float, maximize: bool = True) -> Tensor:
        gain, width = self._gain(best_f, maximize)
        return _log_average(log_fatplus(gain / width, tau=1.0), self.log_weights) + width.log()

    def log_probability_of_improvement(
        self, best_f: Tensor | float, maximize: bool = True
    ) -> Tensor:
        gain, width = self._gain(best_f, maximize)
        return _log_average(log_fatmoid(gain / width, tau=1.0), self.log_weights)

    def _gain(self, best_f: Tensor | float, maximize: bool) -> tuple[Tensor, Tensor]:
        """Improvements `[S, ..., n, m]` and the width of their smoothing, `[..., n, m]`."""
        best = torch.as_tensor(best_f, dtype=self.draws.dtype, device=self.draws.device)
        gain = self.draws - best if maximize else best - self.draws
        with torch.no_grad():
            limits = torch.finfo(gain.dtype)
            rounding = limits.eps * (gain.abs() + self.draws.abs()).amax(0)
            width = _SMOOTHING * torch.maximum(self.variance.sqrt(), rounding)
        return gain, width.clamp_min(limits.tiny)

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        return _choose(self.draws, self.log_weights, base_samples[..., 0])

    @property
    def base_sample_shape(self) -> torch.Size:
        """One normal per batch element: it chooses the draw."""
        return torch.Size([*self.draws.shape[1:-2], 1])

    @property
    def batch_range(self) -> tuple[int, int]:
        return (0, -1)


class GaussianMixturePosterior(PredictivePosterior):
    """A weighted average of S Gaussians whose points are independent given the component.

    Args:
        means: Component means, `[S, ..., n, m]`.
        variances: Component variances, > 0, broadcasting with `means`.
        log_weights: Log probabilities of the components, `[S]`; equal without them. Normalised
            here.

    Base samples are `[..., n * m + 1]`: the last one chooses the component, shared by all points.
    """

    _bisections = {torch.float32: 40, torch.float64: 80}

    def __init__(self, means: Tensor, variances: Tensor, log_weights: Tensor | None = None) -> None:
        self.means = means
        self.variances = variances.expand_as(means)
        self.log_weights = _normalised(log_weights, means)

    @property
    def mean(self) -> Tensor:
        return torch.tensordot(self.log_weights.exp(), self.means, dims=1)

    @property
    def variance(self) -> Tensor:
        second = self.variances + (self.means - self.mean).square()
        return torch.tensordot(self.log_weights.exp(), second, dims=1)

    def _standardised(self, Y: Tensor) -> Tensor:
        return (Y - self.means) / self.variances.sqrt()

    def log_prob(self, Y: Tensor) -> Tensor:
        return _log_average(self._component_log_prob(Y), self.log_weights)

    def _component_log_prob(self, Y: Tensor) -> Tensor:
        square = self._standardised(Y).square()
        return -0.5 * (square + (2 * torch.pi * self.variances).log())

    def joint_log_prob(self, Y: Tensor) -> Tensor:
        return _log_average(self._component_log_prob(Y).sum((-2, -1)), self.log_weights)

    def cdf(self, Y: Tensor) -> Tensor:
        each = torch.special.ndtr(self._standardised(Y))
        return torch.tensordot(self.log_weights.exp(), each, dims=1)

    def quantile(self, value: Tensor) -> Tensor:
        """Marginal quantiles by bisection, to rounding; differentiable in the components.

        Args:
            value: Probabilities in (0, 1), any shape `[*p]`.

        Returns:
            `[*p, ..., n, m]`.
        """
        value = probabilities(value, self.means)
        return torch.stack([self._quantile(p) for p in value.flatten()]).reshape(
            value.shape + self.means.shape[1:]
        )

    def _quantile(self, p: Tensor) -> Tensor:
        with torch.no_grad():
            each = self.means + self.variances.sqrt() * torch.special.ndtri(p)
            lower, upper = each.amin(0), each.amax(0)
            for _ in range(self._bisections[self.means.dtype]):
                middle = (lower + upper) / 2
                below = self.cdf(middle) < p
                lower = torch.where(below, middle, lower)
                upper = torch.where(below, upper, middle)
            found = (lower + upper) / 2
            density = self.log_prob(found).exp()
        # Implicit differentiation of cdf(q) = p; the value stays that of the bisection.
        residual = self.cdf(found) - p
        return found - (residual - residual.detach()) / density

    def log_expected_improvement(self, best_f: Tensor | float, maximize: bool = True) -> Tensor:
        sign = 1.0 if maximize else -1.0
        best = sign * torch.as_tensor(best_f, dtype=self.means.dtype, device=self.means.device)
        each = gaussian_log_expected_improvement(sign * self.means, self.variances, best)
        return _log_average(each, self.log_weights)

    def log_probability_of_improvement(
        self, best_f: Tensor | float, maximize: bool = True
    ) -> Tensor:
        sign = 1.0 if maximize else -1.0
        best = sign * torch.as_tensor(best_f, dtype=self.means.dtype, device=self.means.device)
        each = gaussian_log_probability_of_improvement(sign * self.means, self.variances, best)
        return _log_average(each, self.log_weights)

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        both = torch.cat([self.means, self.variances.sqrt()], dim=-1)
        mean, std = _choose(both, self.log_weights, base_samples[..., -1]).chunk(2, dim=-1)
        noise = base_samples[..., :-1].reshape(*base_samples.shape[:-1], *self.means.shape[-2:])
        return mean + std * noise

    @property
    def base_sample_shape(self) -> torch.Size:
        *batch, n, m = self.means.shape[1:]
        return torch.Size([*batch, n * m + 1])

    @property
    def batch_range(self) -> tuple[int, int]:
        return (0, -1)


def _normalised(log_weights: Tensor | None, draws: Tensor) -> Tensor:
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


def _log_average(values: Tensor, log_weights: Tensor) -> Tensor:
    """log of sum_s w_s exp(values[s]), `[S, ...]` to `[...]`."""
    return (values + log_weights.reshape(-1, *[1] * (values.dim() - 1))).logsumexp(0)


def _choose(draws: Tensor, log_weights: Tensor, normal: Tensor) -> Tensor:
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
