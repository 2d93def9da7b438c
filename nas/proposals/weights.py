"""What else a candidate is judged by: whether it may be used, whether it fails, what it costs.

Each judgement is a factor of the acquisition's value, added in logarithms: the probability that a
constraint holds (Gardner et al. 2014, "Bayesian optimization with inequality constraints",
section 3.1), the probability that the trial does not fail, and one over the seconds it is expected
to take (Snoek et al. 2012, 1206.2944, section 3.2). Each has a model of its own, of the kind that
models the objective.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from botorch.acquisition import AcquisitionFunction
from botorch.models.model import Model
from torch import Tensor
from torch.nn import functional

from priors.posteriors.gaussian import GaussianPosterior
from priors.posteriors.protocol import PredictivePosterior

__all__ = ["Feasibility", "Speed", "Success", "Weighted", "Weight"]

Fit = Callable[[Tensor, Tensor], Model]
"""Rows `[n, d]` and standardised targets `[n]` to a fitted model."""


class Weight(ABC):
    """A factor of an acquisition's value.

    Attributes:
        model: What it is computed from.
    """

    model: Model

    @abstractmethod
    def log(self, X: Tensor) -> Tensor:
        """Its logarithm at `[b, 1, d]`, `[b]`."""


class Feasibility(Weight):
    """The probability that a constraint holds.

    Values are modelled as sign(c) log(1 + |c| / median |c|), which compresses tails and keeps the
    border at 0 (Eriksson & Poloczek 2021, 2002.08526, section 2).

    Args:
        fit: Makes the model.
        X: Rows of the trials that gave a value, `[n, d]`.
        values: At most 0 where the constraint held, `[n]`.
    """

    def __init__(self, fit: Fit, X: Tensor, values: Tensor) -> None:
        size = values.abs().clamp(max=torch.finfo(values.dtype).max).median()
        values = values / torch.where(size > 0, size, 1.0)
        warped = values.sign() * values.abs().clamp(max=1e12).log1p()
        targets, centre, spread = _standardised(warped)
        self.model = fit(X, targets)
        self.border = float(-centre / spread)

    def log(self, X: Tensor) -> Tensor:
        posterior: Any = self.model.posterior(X)
        border = posterior.mean.new_tensor(self.border)
        gaussian = isinstance(posterior, GaussianPosterior)
        if isinstance(posterior, PredictivePosterior) and not gaussian:
            below = posterior.cdf(border.expand_as(posterior.mean))
            return below.clamp_min(1e-12).log()[..., 0, 0]
        deviation = posterior.variance.clamp_min(1e-12).sqrt()
        return torch.special.log_ndtr((border - posterior.mean) / deviation)[..., 0, 0]


class Success(Weight):
    """The probability that a trial does not fail.

    The mean of a regression on 0 and 1, which estimates a probability by squared error, kept inside
    what `n` trials can tell, 1 / (n + 2) from either end.

    Args:
        fit: Makes the model.
        X: Rows of all trials that ended, `[n, d]`.
        failed: Which of them failed, `[n]`.
    """

    def __init__(self, fit: Fit, X: Tensor, failed: Tensor) -> None:
        targets, self.centre, self.spread = _standardised((~failed).to(X))
        self.model = fit(X, targets)
        self.margin = 1 / (len(X) + 2)

    def log(self, X: Tensor) -> Tensor:
        posterior: Any = self.model.posterior(X)
        mean = self.centre + self.spread * posterior.mean[..., 0, 0]
        return mean.clamp(self.margin, 1 - self.margin).log()


class Speed(Weight):
    """One over the seconds that a trial is expected to take, if their logarithm is Gaussian.

    Args:
        fit: Makes the model.
        X: Rows of complete trials, `[n, d]`.
        seconds: What they took, `[n]`.
    """

    def __init__(self, fit: Fit, X: Tensor, seconds: Tensor) -> None:
        targets, self.centre, self.spread = _standardised(seconds.clamp_min(1e-3).log())
        self.model = fit(X, targets)

    def log(self, X: Tensor) -> Tensor:
        posterior: Any = self.model.posterior(X)
        mean = self.centre + self.spread * posterior.mean[..., 0, 0]
        return -(mean + 0.5 * self.spread.square() * posterior.variance[..., 0, 0])


class Weighted(AcquisitionFunction):
    """An acquisition function times its weights, in logarithms.

    Of an acquisition that is not in logarithms and may be negative, a draw or a bound of the
    function in standardised units, the logarithm of its softplus is taken, which keeps its order.

    Args:
        acquisition: None where no candidate was feasible yet, so that only the weights count.
        weights: At least one.
    """

    def __init__(self, acquisition: AcquisitionFunction | None, weights: Sequence[Weight]) -> None:
        super().__init__(weights[0].model if acquisition is None else acquisition.model)
        self.acquisition = acquisition
        self.weights = list(weights)

    def forward(self, X: Tensor) -> Tensor:
        """`[b, 1, d]` to `[b]`."""
        total = torch.stack([weight.log(X) for weight in self.weights]).sum(0)
        if self.acquisition is None:
            return total
        value = self.acquisition(X)
        if not getattr(self.acquisition, "_log", False):
            value = functional.softplus(value).log()
        return value + total


def _standardised(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values with mean 0 and variance 1, what was subtracted and what they were divided by."""
    centre, spread = values.mean(), values.std(correction=0)
    spread = torch.where(spread > 1e-9, spread, 1.0)
    return (values - centre) / spread, centre, spread
