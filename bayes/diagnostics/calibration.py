"""Calibration of a model's predictions: coverage of its intervals on held-out targets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import torch
from botorch.posteriors import Posterior
from torch import Tensor

from bayes.diagnostics.reliability import Reliability, reliability
from priors.figures import CATEGORIES, GREY, axes_or_new
from priors.posteriors.categorical import CategoricalPosterior, ClassProbabilityPosterior
from priors.posteriors.gaussian import as_predictive
from priors.posteriors.poisson_mixture import PoissonMixturePosterior
from priors.posteriors.protocol import PredictivePosterior
from priors.representation import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Calibration", "calibration", "check_targets"]


@dataclass(frozen=True)
class Calibration:
    """Probability integral transforms of held-out targets and interval coverage.

    Attributes:
        pit: Predictive probability of a value at most the target, `[N]` over points and outputs;
            uniform on (0, 1) for a calibrated predictive.
        nominal: Probabilities of central intervals, `[L]`.
        empirical: Share of targets inside them, `[L]`.
    """

    pit: Tensor
    nominal: Tensor
    empirical: Tensor

    def __repr__(self) -> str:
        shares = [
            f"{level:.3g} intervals cover {share:.3g}"
            for level, share in zip(self.nominal.tolist(), self.empirical.tolist(), strict=True)
            if any(math.isclose(level, shown) for shown in (0.5, 0.9))
        ]
        error = f"mean coverage error {self.error:.3g}"
        return f"Calibration({', '.join([count(len(self.pit), 'target'), error, *shares])})"

    @property
    def error(self) -> float:
        """Mean absolute difference of empirical and nominal coverage."""
        return float((self.empirical - self.nominal).abs().mean())

    def plot(self, ax: Axes | None = None, *, label: str | None = None) -> Axes:
        """Draw empirical against nominal coverage.

        Args:
            ax: Axes to draw on; a new figure if None.
            label: Legend entry.

        Returns:
            The axes. The grey band holds 95% of calibrated models, for independent targets, at
            each level. Below the diagonal intervals are too narrow, above it too wide.
        """
        ax = axes_or_new(ax)
        nominal = self.nominal.numpy()
        width = 1.96 * (self.nominal * (1 - self.nominal) / len(self.pit)).sqrt().numpy()
        band = nominal - width, nominal + width
        first = not ax.collections  # of the models that share the axes
        of = "95% of calibrated models" if first else None
        ax.fill_between(nominal, *band, color=GREY, alpha=0.25, linewidth=0, label=of)
        if first:
            ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
        color = CATEGORIES[(len(ax.lines) - 1) % len(CATEGORIES)]
        ax.plot(nominal, self.empirical.numpy(), color=color, label=label or "model")
        ax.set(
            xlabel="probability of the central interval",
            ylabel="share of targets inside",
            xlim=(0, 1),
            ylim=(0, 1),
            aspect="equal",
        )
        ax.legend(loc="upper left")
        return ax


@overload
def calibration(  # type: ignore[overload-overlap]  # what a classifier gives is a Posterior, too
    posterior: CategoricalPosterior | ClassProbabilityPosterior,
    Y: Tensor,
    *,
    num_levels: int | None = ...,
) -> Reliability: ...
@overload
def calibration(
    posterior: Posterior, Y: Tensor, *, num_levels: int | None = ...
) -> Calibration: ...
def calibration(
    posterior: Posterior, Y: Tensor, *, num_levels: int | None = None
) -> Calibration | Reliability:
    """Coverage of the central intervals of a predictive posterior, or reliability of a classifier.

    Args:
        posterior: `model.posterior(X, observation_noise=True)`, `[..., n, m]`; of a classifier
            `[..., n, classes]`.
        Y: Held-out targets, `[..., n, m]`; class numbers `[..., n, 1]`.
        num_levels: Levels, equally spaced inside (0, 1), 19 if None; of a classifier, bins of
            confidence, as many as `compare` has if None.

    Returns:
        Of counts, the integral transforms are randomised between the probabilities of less than
        and of at most the target (Czado et al. 2009), with a seed of their own.

    Raises:
        ValueError: `Y` has another shape than the posterior.
    """
    if isinstance(posterior, CategoricalPosterior | ClassProbabilityPosterior):
        return reliability(posterior, Y, **({} if num_levels is None else {"num_bins": num_levels}))
    num_levels = 19 if num_levels is None else num_levels
    predictive = as_predictive(posterior)
    check_targets(predictive, Y)
    with torch.no_grad():
        pit = predictive.cdf(Y)
        if isinstance(predictive, PoissonMixturePosterior):
            generator = torch.Generator().manual_seed(0)
            share = torch.rand(pit.shape, generator=generator, dtype=pit.dtype, device="cpu")
            pit = pit - share.to(pit) * predictive.log_prob(Y).exp()
        pit = pit.flatten().cpu()
    nominal = torch.arange(1, num_levels + 1, dtype=pit.dtype, device=pit.device) / (num_levels + 1)
    # Inside the central interval of probability p is |pit - 1/2| <= p/2.
    inside = (2 * (pit - 0.5).abs()).unsqueeze(-1) <= nominal
    return Calibration(pit, nominal, inside.to(pit.dtype).mean(0))


def check_targets(posterior: PredictivePosterior, Y: Tensor) -> None:
    """Refuse targets of another shape than the posterior's."""
    shape = posterior.shape
    if Y.shape != shape:
        raise ValueError(
            f"Targets have shape {tuple(Y.shape)}, the posterior {tuple(shape)}; they must agree."
        )
