"""Calibration of a model, and comparison of several on the same splits.

All numbers come from the true predictive (`log_prob`, `cdf`, `quantile`) of y, so that a Gaussian
process, a t process, a sampled network and a PFN are compared by what they claim. Plain BoTorch
models take part: their Gaussian posterior is given the same answers.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, overload

import torch
from botorch.models.model import Model
from botorch.posteriors import Posterior
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor
from tqdm.auto import tqdm

from bayes.reliability import Reliability, reliability
from priors.figures import BLACK, BLUE, CATEGORIES, GREY, ORANGE, axes_or_new
from priors.posteriors.categorical import CategoricalPosterior, ClassProbabilityPosterior
from priors.posteriors.gaussian import as_predictive
from priors.posteriors.poisson_mixture import PoissonMixturePosterior
from priors.posteriors.protocol import PredictivePosterior
from priors.posteriors.scores import class_scores, score
from priors.representation import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Calibration",
    "Comparison",
    "calibration",
    "compare",
    "plot_posterior",
    "plot_predictions",
]

Factory = Callable[[Tensor, Tensor], Any]
Split = tuple[Tensor, Tensor, Tensor, Tensor]

# Scores and how tables name them.
_METRICS = {
    "rmse": "RMSE",
    "accuracy": "accuracy",
    "nlpd": "NLPD",
    "brier": "Brier",
    "ece": "ECE",
    "coverage": "coverage",
    "seconds": "seconds",
}


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
    _check_targets(predictive, Y)
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


@dataclass(frozen=True)
class Comparison:
    """Scores of several models on the same splits.

    Attributes:
        scores: By model, then "rmse" (units of Y), "nlpd" (nats per value), "coverage" and
            "seconds" (fit and prediction), each `[splits]`; of classifiers "accuracy", "nlpd",
            "brier", "ece" and "seconds".
        level: Nominal probability behind "coverage".
    """

    scores: dict[str, dict[str, Tensor]]
    level: float

    @property
    def _metrics(self) -> list[str]:
        known = next(iter(self.scores.values()))
        return [metric for metric in _METRICS if metric in known]

    def records(self) -> list[dict[str, Any]]:
        """One row per model: mean and standard error of every score over the splits.

        The standard error is NaN with a single split.
        """
        rows = []
        for name, values in self.scores.items():
            row: dict[str, Any] = {"model": name, "splits": len(values["nlpd"])}
            for metric in self._metrics:
                row[metric] = float(values[metric].mean())
                row[f"{metric}_error"] = _standard_error(values[metric])
            rows.append(row)
        return rows

    def difference(self, first: str, second: str, metric: str = "nlpd") -> tuple[float, float]:
        """Mean of first minus second, paired by split, and its standard error.

        Args:
            first: A model's name.
            second: Another's.
            metric: A name in `scores`.
        """
        paired = self.scores[first][metric] - self.scores[second][metric]
        return float(paired.mean()), _standard_error(paired)

    def to_pandas(self) -> Any:
        """The records as a `pandas.DataFrame`."""
        import pandas  # type: ignore[import-untyped]

        return pandas.DataFrame(self.records()).set_index("model")

    def __repr__(self) -> str:
        splits = len(next(iter(self.scores.values()))["nlpd"]) if self.scores else 0
        sizes = f"{count(len(self.scores), 'model')}, {count(splits, 'split')}"
        return f"Comparison({sizes})\n{self}"

    def __str__(self) -> str:
        names = {**_METRICS, "coverage": f"{self.level:.0%} coverage"}
        heads = ["model", *(names[metric] for metric in self._metrics)]
        cells = [
            [row["model"], *(_with_error(row[m], row[f"{m}_error"]) for m in self._metrics)]
            for row in self.records()
        ]
        widths = [max(len(line[k]) for line in [heads, *cells]) for k in range(len(heads))]

        def line(values: Sequence[str]) -> str:
            first = values[0].ljust(widths[0])
            rest = [value.rjust(width) for value, width in zip(values, widths, strict=True)]
            return "  ".join([first, *rest[1:]]).rstrip()

        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        return "\n".join([line(heads), rule, *(line(row) for row in cells)])


def compare(
    models: Mapping[str, Factory | Model],
    splits: Iterable[Split],
    *,
    level: float = 0.9,
    progress: bool = True,
) -> Comparison:
    """Score models on the same splits.

    Args:
        models: By name, a factory `(train_X, train_Y) -> model`, called on the training rows of
            every split, or a fitted model, used as it is. A model needs
            `posterior(X, observation_noise=True)`. All are regressors, or all classifiers.
        splits: `(train_X, train_Y, test_X, test_Y)`, rows `[n, d]` and `[n, m]`.
        level: Probability of the interval whose coverage is counted.
        progress: Whether to show a bar.

    Returns:
        The scores; printing it gives an aligned table.

    Raises:
        ValueError: there are no models or no splits, or classifiers and others.
        TypeError: an entry is neither a model nor a factory, or a posterior has no density.
    """
    splits = list(splits)
    if not models or not splits:
        raise ValueError(
            f"compare needs at least one model and one split, got {len(models)} models and "
            f"{len(splits)} splits."
        )
    found: dict[str, dict[str, list[float]]] = {name: {} for name in models}
    with tqdm(total=len(models) * len(splits), disable=not progress) as bar:
        for train_X, train_Y, test_X, test_Y in splits:
            for name, given in models.items():
                bar.set_description_str(name)
                _synchronise(test_X)
                start = time.perf_counter()
                model = _made(name, given, train_X, train_Y)
                with torch.no_grad():
                    scores = _scores(model.posterior(test_X, observation_noise=True), test_Y, level)
                _synchronise(test_X)
                scores["seconds"] = time.perf_counter() - start
                for metric, value in scores.items():
                    found[name].setdefault(metric, []).append(value)
                bar.update()
    if len({tuple(values) for values in found.values()}) > 1:
        raise ValueError("compare scores regressors or classifiers, got both; compare each apart.")
    return Comparison(
        {
            name: {m: torch.tensor(v, dtype=torch.float64, device="cpu") for m, v in values.items()}
            for name, values in found.items()
        },
        level,
    )


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
    _check_targets(predictive, Y)
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


def _made(name: str, given: Any, train_X: Tensor, train_Y: Tensor) -> Any:
    # BoTorch models are callable modules: a model is told by its posterior.
    model = given if hasattr(given, "posterior") and not isinstance(given, type) else None
    if model is None and callable(given):
        model = given(train_X, train_Y)
    if not hasattr(model, "posterior"):
        raise TypeError(
            f"compare needs {name!r} to be a fitted model with posterior(X, "
            "observation_noise=True), or a factory (train_X, train_Y) -> model; got "
            f"{type(given).__name__}."
        )
    return model


def _scores(posterior: Posterior, Y: Tensor, level: float) -> dict[str, float]:
    if isinstance(posterior, CategoricalPosterior | ClassProbabilityPosterior):
        scores = asdict(class_scores(posterior, Y))
        return {**scores, "ece": reliability(posterior, Y).ece}
    of_values = asdict(score(as_predictive(posterior), Y, level=level))
    return {metric: of_values[metric] for metric in ("rmse", "nlpd", "coverage")}


def _synchronise(like: Tensor) -> None:
    if like.device.type == "cuda":
        torch.cuda.synchronize(like.device)


def _standard_error(values: Tensor) -> float:
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan


def _with_error(value: float, error: float) -> str:
    if math.isnan(error):
        return f"{value:.4g}"
    digits = 3 if error == 0 else max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{min(digits, 6)}f} ± {error:.{min(digits, 6)}f}"


def _check_targets(posterior: PredictivePosterior, Y: Tensor) -> None:
    shape = posterior.shape
    if Y.shape != shape:
        raise ValueError(
            f"Targets have shape {tuple(Y.shape)}, the posterior {tuple(shape)}; they must agree."
        )


def _training_rows(model: Any) -> tuple[Tensor, Tensor] | None:
    X, Y = getattr(model, "train_X", None), getattr(model, "train_Y", None)
    return (X, Y) if isinstance(X, Tensor) and isinstance(Y, Tensor) else None
