"""Calibration of classifiers: is what they predict with probability p right p of the time?

Guo et al. 2017 (1706.04599), section 2: predictions are sorted into bins of equal width by the
probability of the predicted class, their confidence, and accuracy is compared with it bin by bin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from priors.figures import CATEGORIES, GREY, axes_or_new
from priors.posteriors.categorical import CategoricalPosterior, ClassProbabilityPosterior
from priors.representation import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Reliability", "reliability"]


@dataclass(frozen=True)
class Reliability:
    """Accuracy of held-out predictions by their confidence, in B bins of equal width.

    Attributes:
        confidence: Mean probability of the predicted class in each bin, `[B]`, NaN in empty ones.
        accuracy: Share of right predictions in each bin, `[B]`, NaN in empty ones.
        counts: Predictions in each bin, `[B]`.
        variance: Mean p (1 - p) of the predictions' confidences p in each bin, `[B]`.
    """

    confidence: Tensor
    accuracy: Tensor
    counts: Tensor
    variance: Tensor

    def __repr__(self) -> str:
        targets = count(int(self.counts.sum()), "target")
        return (
            f"Reliability({targets}, ECE {self.ece:.3g}; {self.expected_ece:.3g} expected if "
            "calibrated)"
        )

    @property
    def _shares(self) -> Tensor:
        return self.counts / self.counts.sum()

    @property
    def ece(self) -> float:
        """Expected calibration error: mean |accuracy - confidence| over predictions."""
        gaps = (self.accuracy - self.confidence).abs().nan_to_num(0.0)
        return float((self._shares * gaps).sum())

    @property
    def expected_ece(self) -> float:
        """What `ece` would be on average for these confidences if they were right.

        It is above 0 for finitely many targets. By the normal approximation of the number of right
        predictions in each bin.
        """
        errors = (self.variance / self.counts.clamp_min(1)).sqrt()
        return float((self._shares * errors).nan_to_num(0.0).sum() * math.sqrt(2 / math.pi))

    def plot(self, ax: Axes | None = None, *, label: str | None = None) -> Axes:
        """Draw accuracy against confidence, the reliability diagram.

        Args:
            ax: Axes to draw on; a new figure if None.
            label: Legend entry.

        Returns:
            The axes. Bars hold 95% of calibrated classifiers with these confidences, for each bin.
            Points below the diagonal are overconfident.
        """
        ax = axes_or_new(ax)
        if not ax.lines:
            ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
        color = CATEGORIES[(len(ax.lines) - 1) % len(CATEGORIES)]
        some = self.counts > 0
        x, y = self.confidence[some].numpy(), self.accuracy[some].numpy()
        width = 1.96 * (self.variance[some] / self.counts[some]).sqrt().numpy()
        ax.vlines(x, x - width, x + width, color=color, alpha=0.4, linewidth=3)
        name = label or "model"
        ax.plot(x, y, "o-", color=color, markersize=4, label=f"{name} (ECE {self.ece:.3f})")
        ax.set(
            xlabel="probability of the predicted class",
            ylabel="share of right predictions",
            xlim=(0, 1),
            ylim=(0, 1),
            aspect="equal",
        )
        ax.legend(loc="upper left")
        return ax


def reliability(
    posterior: CategoricalPosterior | ClassProbabilityPosterior, Y: Tensor, *, num_bins: int = 15
) -> Reliability:
    """Accuracy by confidence of predicted classes.

    Args:
        posterior: `model.posterior(X, observation_noise=True)` of a classifier, `[..., n, C]`.
        Y: Class numbers of the same rows, `[..., n, 1]`.
        num_bins: Bins of confidence, equal in width on [0, 1].

    Raises:
        ValueError: `Y` has another shape than the posterior's rows, or there are no bins.
    """
    probabilities = posterior.mean.detach()
    if Y.shape != (*probabilities.shape[:-1], 1):
        raise ValueError(
            f"Targets have shape {tuple(Y.shape)}, but class numbers of these predictions have "
            f"{(*probabilities.shape[:-1], 1)}."
        )
    if num_bins < 1:
        raise ValueError(f"reliability needs num_bins >= 1, got {num_bins}.")
    confidence, predicted = probabilities.cpu().max(-1)
    right = (predicted == Y[..., 0].cpu()).to(confidence)
    index = (confidence * num_bins).ceil().long().clamp(1, num_bins).flatten() - 1
    ones = torch.ones_like(confidence)
    sums = [
        confidence.new_zeros(num_bins).index_add(0, index, value.flatten())
        for value in (ones, confidence, right, confidence * (1 - confidence))
    ]
    counts = sums[0]
    return Reliability(sums[1] / counts, sums[2] / counts, counts.long(), sums[3] / counts)
