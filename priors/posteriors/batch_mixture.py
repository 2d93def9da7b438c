"""The average of a batch of posteriors that an engine made in one go.

As `MixturePosterior`, where the components are the last batch dimension of one posterior: one
Gaussian process for each draw of its hyperparameters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from priors.posteriors.inversion import invert_cdf
from priors.posteriors.protocol import PredictivePosterior, leading

__all__ = ["BatchMixturePosterior"]


class BatchMixturePosterior(PredictivePosterior):
    """The equally weighted mixture of the S components of a posterior `[..., S, n, m]`.

    Joint densities and samples choose one component for all points and outputs. Base samples are
    `[..., k + 1]` for components of k base samples, which all have the first k; the last one
    chooses.

    Args:
        components: The batch.

    Raises:
        ValueError: it has no batch dimension.
    """

    def __init__(self, components: PredictivePosterior) -> None:
        if len(components.shape) < 3:
            raise ValueError(
                "the components of a batch mixture are the last batch dimension, got a posterior "
                f"of shape {tuple(components.shape)}."
            )
        self.components = components

    @property
    def _log_size(self) -> float:
        return math.log(self.components.shape[-3])

    @property
    def mean(self) -> Tensor:
        return self.components.mean.mean(-3)

    @property
    def variance(self) -> Tensor:
        means = self.components.mean
        spread = (means - means.mean(-3, keepdim=True)).square()
        return (self.components.variance + spread).mean(-3)

    def log_prob(self, Y: Tensor) -> Tensor:
        return self.components.log_prob(Y.unsqueeze(-3)).logsumexp(-3) - self._log_size

    def cdf(self, Y: Tensor) -> Tensor:
        return self.components.cdf(Y.unsqueeze(-3)).mean(-3)

    def _knots(self) -> Tensor:
        return self.components._knots().movedim(-3, 0).flatten(0, 1).sort(0).values

    def joint_log_prob(self, Y: Tensor) -> Tensor:
        each = self.components.joint_log_prob(
            Y.unsqueeze(-3).expand(*Y.shape[:-2], self.components.shape[-3], *Y.shape[-2:])
        )
        return each.logsumexp(-1) - self._log_size

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
        if isinstance(threshold, Tensor) and threshold.dim() >= 2:
            threshold = threshold.unsqueeze(-3)
        each = self.components.log_excess(threshold, order, above)
        return each.logsumexp(-3) - self._log_size

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        size, event = self.components.shape[-3], self._event
        own = base_samples[..., :-1].unflatten(-1, event)
        own = own.unsqueeze(-1 - len(event))
        own = own.expand(*own.shape[: -1 - len(event)], size, *event)
        drawn = self.components.rsample_from_base_samples(sample_shape, own)
        p = torch.special.ndtr(base_samples[..., -1])
        index = (p * size).long().clamp(0, size - 1)[..., None, None, None]
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
