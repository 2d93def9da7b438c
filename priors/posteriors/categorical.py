"""Class probabilities: of one distribution per point, and of many drawn functions.

Classes are numbered 0, 1, ..., C - 1. Outcomes Y are class numbers `[..., n, 1]`; moments
`[..., n, C]` are of the class indicators.
"""

from __future__ import annotations

import torch
from botorch.posteriors import Posterior
from torch import Tensor, nn
from torch.distributions import Categorical

from priors.posteriors.draws import EmpiricalPosterior
from priors.representation import as_predictions

__all__ = ["CategoricalPosterior", "ClassProbabilityPosterior"]


class CategoricalPosterior(Posterior):
    """Class probabilities, independent over points.

    Args:
        logits: `[..., n, classes]`; -inf for impossible classes.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits.log_softmax(-1)

    def __repr__(self) -> str:
        where = as_predictions(self.logits.shape, self.dtype, self.device, "class")
        return f"{type(self).__name__}({where})"

    @property
    def mean(self) -> Tensor:
        """Probabilities, `[..., n, classes]`."""
        return self.logits.exp()

    @property
    def variance(self) -> Tensor:
        """Variances of the class indicators, `[..., n, classes]`."""
        return self.mean * (1 - self.mean)

    def log_prob(self, Y: Tensor) -> Tensor:
        """Log probabilities of classes `Y` `[..., n, 1]`, of the same shape."""
        chosen = nn.functional.one_hot(Y[..., 0].long(), self.logits.shape[-1]).bool()
        return torch.where(chosen, self.logits, 0).sum(-1, keepdim=True)

    def rsample(self, sample_shape: torch.Size | None = None) -> Tensor:
        """Class indicators `[*sample_shape, ..., n, classes]`; without gradients."""
        shape = torch.Size([1]) if sample_shape is None else sample_shape
        drawn = Categorical(logits=self.logits.detach()).sample(shape)
        return torch.nn.functional.one_hot(drawn, self.logits.shape[-1]).to(self.logits)

    @property
    def device(self) -> torch.device:
        """Device of the distribution."""
        return self.logits.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the distribution."""
        return self.logits.dtype

    @property
    def batch_shape(self) -> torch.Size:
        """Batch shape, without points and classes."""
        return self.logits.shape[:-2]

    def _extended_shape(self, sample_shape: torch.Size = torch.Size()) -> torch.Size:  # noqa: B008
        return torch.Size(sample_shape) + self.logits.shape


class ClassProbabilityPosterior(EmpiricalPosterior):
    """The distribution of drawn class probabilities.

    Its mean are the predictive class probabilities, and its variance is how much the draws differ
    about them.

    Args:
        draws: Class probabilities, `[S, ..., n, C]`, which sum to 1 over the last axis.
        log_weights: Log probabilities of the draws, `[S]`; equal if None.
    """

    def log_prob(self, Y: Tensor) -> Tensor:
        """Log predictive probabilities of classes `Y` `[..., n, 1]`, of the same shape.

        Args:
            Y: Class numbers.
        """
        return CategoricalPosterior(self.mean.log()).log_prob(Y)
