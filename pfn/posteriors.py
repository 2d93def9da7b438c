"""Predictive distributions of a network as BoTorch posteriors.

Bars in regression and class probabilities in classification, independent over points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions.transforms import AffineTransform

from pfn.distribution import BarDistribution
from pfn.network import Encoding, Network
from priors.posteriors.categorical import CategoricalPosterior
from priors.posteriors.protocol import PredictivePosterior, leading
from priors.posteriors.transformed import TransformedPosterior
from priors.representation import count

__all__ = ["BarPosterior", "CategoricalPosterior", "predictive", "probabilities"]


class BarPosterior(PredictivePosterior):
    """Bar distributions as a posterior, independent over points.

    Args:
        bars: The distribution's borders and tails.
        logits: `[..., n, m, K]`.
    """

    def __init__(self, bars: BarDistribution, logits: Tensor) -> None:
        self.bars, self.logits = bars, logits

    @property
    def _kind(self) -> Sequence[str]:
        return [count(self.bars.num_logits, "node")]

    @property
    def mean(self) -> Tensor:
        return self.bars.mean(self.logits)

    @property
    def variance(self) -> Tensor:
        return self.bars.variance(self.logits)

    def log_prob(self, Y: Tensor) -> Tensor:
        return self.bars.log_prob(self.logits, Y)

    def cdf(self, Y: Tensor) -> Tensor:
        return self.bars.cdf(self.logits, Y)

    def quantile(self, value: Tensor) -> Tensor:
        return self.bars.quantile(self.logits, leading(value, self.logits[..., 0]))

    def log_excess(self, threshold: Tensor | float, order: int, above: bool = True) -> Tensor:
        threshold = torch.as_tensor(threshold, dtype=self.dtype, device=self.device)
        return self.bars.log_excess(self.logits, threshold, order, above)

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        return self.bars.quantile(self.logits, probabilities(base_samples))

    @property
    def device(self) -> torch.device:
        return self.logits.device

    @property
    def dtype(self) -> torch.dtype:
        return self.logits.dtype

    @property
    def shape(self) -> torch.Size:
        return self.logits.shape[:-1]


def predictive(network: Network, encoding: Encoding, logits: Tensor) -> Any:
    """Predictive of y in its own units from the logits `[B, m, *]` that a network decoded."""
    if network.bars is None:
        return CategoricalPosterior(logits)
    affine = AffineTransform(encoding.location[..., None], encoding.scale[..., None])
    return TransformedPosterior(BarPosterior(network.bars, logits[:, :, None]), affine)


def probabilities(base_samples: Tensor) -> Tensor:
    """Of standard normal numbers; never 0 or 1."""
    p = torch.special.ndtr(base_samples)
    eps = torch.finfo(p.dtype).eps
    return p.clamp(eps, 1 - eps)
