"""Figures of predictions: over one input, and against held-out targets."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from botorch.posteriors import Posterior
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor

from bayes.diagnostics.calibration import check_targets
from priors.figures import BLACK, BLUE, GREY, ORANGE, axes_or_new
from priors.posteriors.gaussian import as_predictive

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_posterior", "plot_predictions"]


def plot_posterior(
    model: Any,
    X: Tensor | None = None,
    *,
    ax: Axes | None = None,
    levels: Sequence[float] = (0.5, 0.9),
    observation_noise: bool = True,
    output: int = 0,
    num_samples: int = 0,
    seed: int = 0,
) -> Axes:
    """Draw the posterior of a model with one input: median, central intervals, data.

    Args:
        model: A fitted model with one input column.
        X: Inputs, `[n, 1]`, in increasing order; if None, the range of the model's training inputs
            and a tenth more.
        ax: Axes to draw on; a new figure if None.
        levels: Probabilities of the shaded intervals.
        observation_noise: Whether the intervals are of y or of f.
        output: Which output.
        num_samples: Functions drawn from the posterior, without noise, to add as lines.
        seed: Of these draws.

    Returns:
        The axes, with labels and a legend; `ax.figure.savefig(...)` stores the picture.

    Raises:
        ValueError: the model has several inputs, or X is needed and missing.
    """
    data = _training_rows(model)
    if X is None:
        if data is None:
            raise ValueError(
                "plot_posterior needs X, because this model does not expose its training rows."
            )
        low, high = data[0].min(), data[0].max()
        margin = (high - low) / 10
        share = torch.linspace(0, 1, 200, dtype=low.dtype, device=low.device)
        X = share * (high - low + 2 * margin) + low - margin
        X = X.unsqueeze(-1)
    if X.dim() != 2 or X.shape[-1] != 1:
        raise ValueError(
            f"plot_posterior supports a single input, but X has shape {tuple(X.shape)}; for "
            "several use plot_predictions."
        )
    ax = axes_or_new(ax)
    x = X[:, 0].cpu().numpy()
    of = " of y" if observation_noise else " of f"
    with torch.no_grad():
        posterior = as_predictive(model.posterior(X, observation_noise=observation_noise))
        for number, level in enumerate(sorted(levels, reverse=True)):
            tails = X.new_tensor([(1 - level) / 2, (1 + level) / 2])
            lower, upper = posterior.quantile(tails)[..., output].cpu().numpy()
            opacity = min(0.2 + 0.15 * number, 0.6)
            label = f"{level:.0%} interval{of}"
            ax.fill_between(x, lower, upper, color=BLUE, alpha=opacity, linewidth=0, label=label)
        median = posterior.quantile(X.new_tensor(0.5))[..., output]
        ax.plot(x, median.cpu().numpy(), color=BLUE, label="median")
        if num_samples:
            functions = as_predictive(model.posterior(X))
            generator = torch.Generator().manual_seed(seed)
            shape = torch.Size([num_samples])
            whole = shape + functions.base_sample_shape
            base = torch.randn(whole, generator=generator, device="cpu").to(X)
            with warnings.catch_warnings():
                # Smooth functions on a fine grid need jitter, which no picture shows.
                warnings.simplefilter("ignore", NumericalWarning)
                samples = functions.rsample_from_base_samples(shape, base)[..., output]
            paths = ax.plot(x, samples.T.cpu().numpy(), color=ORANGE, linewidth=0.8, alpha=0.8)
            paths[0].set_label("sampled functions f")
    if data is not None and data[0].shape[-1] == 1:
        classes = model.num_outputs > data[1].shape[-1]  # whose probabilities are drawn
        values = (data[1][:, 0] == output).to(data[0]) if classes else data[1][:, output]
        rows = data[0][:, 0].cpu(), values.cpu()
        ax.plot(*rows, ".", color=BLACK, markersize=5, label="data")
    ax.set(xlabel="input x", ylabel="outcome y" if observation_noise else "function f(x)")
    ax.legend()
    return ax


def plot_predictions(
    posterior: Posterior,
    Y: Tensor,
    *,
    ax: Axes | None = None,
    level: float = 0.9,
    output: int = 0,
    against: str = "rank",
) -> Axes:
    """Draw predictive intervals and held-out targets, whatever the number of inputs.

    Args:
        posterior: `model.posterior(X, observation_noise=True)`, `[n, m]`.
        Y: Targets, `[n, m]`.
        ax: Axes to draw on; a new figure if None.
        level: Probability of the intervals.
        output: Index of the output.
        against: "rank" sorts the points by predicted median; "target" puts the target on the
            horizontal axis, where a perfect prediction lies on the diagonal.

    Returns:
        The axes, with labels and a legend.

    Raises:
        ValueError: `Y` has another shape than the posterior, or `against` is neither.
    """
    if against not in ("rank", "target"):
        raise ValueError(f'against must be "rank" or "target", got {against!r}.')
    predictive = as_predictive(posterior)
    check_targets(predictive, Y)
    with torch.no_grad():
        tails = Y.new_tensor([(1 - level) / 2, 0.5, (1 + level) / 2])
        lower, median, upper = predictive.quantile(tails)[..., output].cpu()
    target = Y[:, output].cpu()
    ax = axes_or_new(ax)
    ranked = against == "rank"
    order = (median if ranked else target).argsort()
    lower, median, upper, target = lower[order], median[order], upper[order], target[order]
    place = torch.arange(len(order), device="cpu") if ranked else target
    inside = (lower <= target) & (target <= upper)
    for some, color, which in ((inside, BLUE, ""), (~inside, ORANGE, ", target outside")):
        label = f"{level:.0%} interval{which}"
        ax.vlines(place[some], lower[some], upper[some], color=color, alpha=0.4, label=label)
    ax.plot(place, median, "_" if ranked else ".", color=BLUE, markersize=5, label="median")
    if ranked:
        ax.plot(place, target, ".", color=BLACK, markersize=4, label="target")
        ax.set(xlabel="held-out points, by predicted median", ylabel="outcome y")
    else:
        ends = [float(target.min()), float(target.max())]
        ax.plot(ends, ends, color=GREY, linewidth=0.8, label="prediction = target")
        ax.set(xlabel="target", ylabel="prediction")
    ax.legend()
    return ax


def _training_rows(model: Any) -> tuple[Tensor, Tensor] | None:
    X, Y = getattr(model, "train_X", None), getattr(model, "train_Y", None)
    return (X, Y) if isinstance(X, Tensor) and isinstance(Y, Tensor) else None
