"""The average of a batch of posteriors that an engine made in one go.

As `MixturePosterior`, where the components are the last batch dimension of one posterior: one
Gaussian process for each draw of its hyperparameters, or for each scale that it may have.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from priors.posteriors.crps import crps_of_gaussians
from priors.posteriors.draws import beside
from priors.posteriors.gaussian import GaussianPosterior
from priors.posteriors.inversion import invert_cdf
from priors.posteriors.protocol import PredictivePosterior, leading

__all__ = ["BatchMixturePosterior"]

_MOST_KNOTS = 384  # of components, for quadrature of the distribution


class BatchMixturePosterior(PredictivePosterior):
    """The mixture of the S components of a posterior `[..., S, n, m]`.

    Joint densities and samples choose one component for all points and outputs. Base samples are
    `[..., k + 1]` for components of k base samples, which all have the first k; the last one
    chooses.

    Args:
        components: The batch.
        log_weights: Log probabilities of the components, broadcasting with `[..., S]`, or
            `[..., S, n, 1]` with those of each point, which then has no joint density; equal if
            None. They are normalised here.

    Raises:
        ValueError: it has no batch dimension.
    """

    def __init__(self, components: PredictivePosterior, log_weights: Tensor | None = None) -> None:
        if len(components.shape) < 3:
            raise ValueError(
                "the components of a batch mixture are the last batch dimension, got a posterior "
                f"of shape {tuple(components.shape)}."
            )
        self.components = components
        if log_weights is None:
            log_weights = torch.zeros(
                components.shape[-3], dtype=components.dtype, device=components.device
            )
        if log_weights.shape[-1:] == components.shape[-3:-2]:
            log_weights = log_weights[..., None, None]
        if log_weights.dim() < 3 or log_weights.shape[-3] != components.shape[-3]:
            raise ValueError(
                f"log_weights must be [..., {components.shape[-3]}], one for each component, got "
                f"{tuple(log_weights.shape)}."
            )
        self.log_weights = log_weights.log_softmax(-3)
        """`[..., S, n or 1, 1]`."""

    @property
    def mean(self) -> Tensor:
        return self._average(self.components.mean)

    @property
    def variance(self) -> Tensor:
        means = self.components.mean
        spread = (means - self._average(means).unsqueeze(-3)).square()
        return self._average(self.components.variance + spread)

    def log_prob(self, Y: Tensor) -> Tensor:
        return self._log_average(lambda each: each.log_prob(_beside(Y)))

    def cdf(self, Y: Tensor) -> Tensor:
        return self._average(self.components.cdf(_beside(Y)))

    def crps(self, Y: Tensor) -> Tensor:
        if not isinstance(self.components, GaussianPosterior):
            return super().crps(Y)
        means = self.components.mean
        parts = (means, self.components.variance, self.log_weights.expand_as(means))
        means, variances, log_weights = (beside(part.movedim(-3, 0), Y) for part in parts)
        return crps_of_gaussians(means, variances, log_weights, Y)

    def _knots(self, levels: Tensor) -> Tensor:
        of_components = self.components._knots(levels).movedim(-3, 0).flatten(0, 1).sort(0).values
        step = -(-len(of_components) // _MOST_KNOTS)
        if step == 1:
            return of_components
        # every so many of them, and quantiles of the mixture where most of its mass is
        some = [of_components[::step], of_components[-1:], super()._knots(levels)]
        return torch.cat(some).sort(0).values

    def joint_log_prob(self, Y: Tensor) -> Tensor:
        if self.log_weights.shape[-2] > 1:
            raise ValueError(
                "Every point of this mixture has weights of its own, and so there is no joint "
                "density; use log_prob."
            )
        each = self.components.joint_log_prob(
            Y.unsqueeze(-3).expand(*Y.shape[:-2], self.components.shape[-3], *Y.shape[-2:])
        )
        return (each + self.log_weights[..., 0, 0]).logsumexp(-1)

    def quantile(self, value: Tensor) -> Tensor:
        """Marginal quantiles to rounding, differentiable in the components.

        Args:
            value: Probabilities in (0, 1), any shape `[*p]`.

        Returns:
            `[*p, ..., n, m]`.
        """
        p = leading(value, self.mean)
        value = torch.as_tensor(value, dtype=p.dtype, device=p.device)
        with torch.no_grad():
            each = self.components.quantile(value)
        return invert_cdf(self, p, each.amin(-3), each.amax(-3))

    def log_excess(self, threshold: Tensor | float, order: int, above: bool = True) -> Tensor:
        beside = _beside(threshold) if isinstance(threshold, Tensor) else threshold
        return self._log_average(lambda each: each.log_excess(beside, order, above))

    def _average(self, values: Tensor) -> Tensor:
        """Over components, `[..., S, n, m]` to `[..., n, m]`."""
        return (self.log_weights.exp() * values).sum(-3)

    def _log_average(self, ask: Callable[[PredictivePosterior], Tensor]) -> Tensor:
        """Log of the average of what components have as a logarithm."""
        return (ask(self.components) + self.log_weights).logsumexp(-3)

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        size, event = self.components.shape[-3], self._event
        own = base_samples[..., :-1].unflatten(-1, event)
        own = own.unsqueeze(-1 - len(event))
        own = own.expand(*own.shape[: -1 - len(event)], size, *event)
        drawn = self.components.rsample_from_base_samples(sample_shape, own)
        p = torch.special.ndtr(base_samples[..., -1])[..., None, None, None]
        reached = self.log_weights.exp().cumsum(-3)
        index = (p > reached).sum(-3, keepdim=True).clamp_max(size - 1)
        shape = (*drawn.shape[:-3], 1, *drawn.shape[-2:])
        return drawn.gather(-3, index.expand(shape)).squeeze(-3)

    @property
    def _event(self) -> torch.Size:
        """Shape of the base samples of one component."""
        return self.components.base_sample_shape[len(self.components.batch_shape) :]

    @property
    def base_sample_shape(self) -> torch.Size:
        return torch.Size([*self.batch_shape, self._event.numel() + 1])

    @property
    def batch_range(self) -> tuple[int, int]:
        return (0, -1)

    @property
    def device(self) -> torch.device:
        return self.components.device

    @property
    def dtype(self) -> torch.dtype:
        return self.components.dtype

    @property
    def shape(self) -> torch.Size:
        *batch, _, n, m = self.components.shape
        return torch.Size([*batch, n, m])

    @property
    def batch_shape(self) -> torch.Size:
        """That of the mixture, `[...]`."""
        return self.shape[:-2]


def _beside(Y: Tensor) -> Tensor:
    """Values `[..., n, m]` that broadcast with those of components `[..., S, n, m]`."""
    return Y.unsqueeze(-3) if Y.dim() >= 2 else Y
