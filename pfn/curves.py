"""The rest of a learning curve from its beginning, by a network of curves."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions.transforms import AffineTransform

from pfn.prior_fitted_network import PFN, load
from priors.tasks.training_curves import log_time

__all__ = ["predict_curve"]


def predict_curve(
    epochs: Sequence[float] | Tensor,
    values: Sequence[float] | Tensor,
    *,
    at: Sequence[float] | Tensor | float,
    maximum: float,
    best: float = 1.0,
    worst: float = 0.0,
    noisy: bool = True,
    network: str | PFN = "learning-curve",
) -> Any:
    """What a metric will be at later epochs of a training.

    Args:
        epochs: When the metric was measured, positive; any unit, also steps.
        values: The metric then.
        at: Epochs to predict, q of them or a single one.
        maximum: The epoch at which the training is to end.
        best: Best value that the metric could have; 0 for an error rate.
        worst: Its worst value, such as that of a guess; values beyond both are as these. A loss
            without a bound needs one of your own, such as its value before the training.
        noisy: Whether to predict measurements, or the smooth curve behind them.
        network: Name or path of a network trained on `priors.LearningCurveTaskPrior`, or a `PFN`.

    Returns:
        A posterior `[q, 1]` in units of the metric, with mean, variance, quantile, cdf and
        samples; `pfn.PFNModel.posterior` has more.

    Raises:
        ValueError: lengths differ, epochs are not in (0, maximum], values are not finite, or
            `best` is `worst`.

    Warns:
        Where values lie beyond one of both by more than a twentieth of the range.
    """
    measured = torch.as_tensor(epochs, dtype=torch.float64).reshape(-1)
    y = torch.as_tensor(values, dtype=torch.float64).reshape(-1)
    asked = torch.as_tensor(at, dtype=torch.float64).reshape(-1)
    if len(measured) != len(y):
        raise ValueError(
            f"predict_curve needs one value for each epoch, got {len(measured)} epochs and "
            f"{len(y)} values."
        )
    for name, times in (("epochs", measured), ("at", asked)):
        if not bool(((times > 0) & (times <= maximum)).all()):
            raise ValueError(
                f"{name} must lie in (0, maximum], maximum is {maximum}; got "
                f"{times.min():g} to {times.max():g}."
            )
    if not bool(y.isfinite().all()) or not abs(best - worst) > 0:
        raise ValueError("values must be finite, and best another number than worst.")
    pfn = network if isinstance(network, PFN) else load(network)
    low, high = min(best, worst), max(best, worst)
    slack = 0.05 * (high - low)  # metrics scatter, and may be a little worse than a guess
    beyond = (y < low - slack) | (y > high + slack)
    if bool(beyond.any()):
        warnings.warn(
            f"predict_curve takes {int(beyond.sum())} of {len(y)} values, {y.min():.4g} to "
            f"{y.max():.4g}, as the nearest of worst={worst:g} and best={best:g}, beyond which "
            "they lie. Give the bounds of the metric, such as best=0 of a loss, and as worst its "
            "value before the training.",
            stacklevel=2,
        )
    y = y.clamp(low, high)
    model = pfn.condition(
        log_time(measured, maximum)[:, None],
        y[:, None],
        outcome_transform=AffineTransform(worst, best - worst),
        check=False,
    )
    return model.posterior(log_time(asked, maximum)[:, None], observation_noise=noisy)
