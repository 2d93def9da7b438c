"""Comparison of several models on the same splits.

All numbers come from the true predictive (`log_prob`, `cdf`, `quantile`) of y, so that a Gaussian
process, a t process, a sampled network and a PFN are compared by what they claim. Plain BoTorch
models take part: their Gaussian posterior is given the same answers.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from botorch.models.model import Model
from botorch.posteriors import Posterior
from torch import Tensor
from tqdm.auto import tqdm

from bayes.diagnostics.memory import peak_memory
from bayes.diagnostics.reliability import reliability
from priors.figures import BLUE, GREY
from priors.posteriors.categorical import CategoricalPosterior, ClassProbabilityPosterior
from priors.posteriors.gaussian import as_predictive
from priors.posteriors.scores import class_scores, score
from priors.representation import count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Comparison", "compare"]

Factory = Callable[[Tensor, Tensor], Any]
Split = tuple[Tensor, Tensor, Tensor, Tensor]

# Panels of a figure beside each other.
_PANELS = 4
# Scores and how tables name them.
_METRICS = {
    "rmse": "RMSE",
    "accuracy": "accuracy",
    "nlpd": "NLPD",
    "crps": "CRPS",
    "interval_score": "interval score",
    "brier": "Brier",
    "ece": "ECE",
    "coverage_50": "50% coverage",
    "coverage": "coverage",
    "coverage_95": "95% coverage",
    "seconds": "seconds",
    "memory": "peak MiB",
}
_LEVELS = (0.5, 0.95)  # beside the one that is asked for


@dataclass(frozen=True)
class Comparison:
    """Scores of several models on the same splits.

    Attributes:
        scores: By model, then "rmse" (units of Y), "nlpd" (nats per value), "crps" and
            "interval_score" (units of Y), "coverage_50", "coverage", "coverage_95", "seconds" (fit
            and prediction) and "memory" (peak, MiB beyond what was in use before; of CUDA tensors,
            or of the process, NaN where the system does not tell), each `[splits]`; of classifiers
            "accuracy", "nlpd", "brier", "ece", "seconds" and "memory".
        level: Nominal probability behind "coverage" and "interval_score".
        failures: By model, what went wrong first with one that failed, whose scores of that split
            are NaN.
    """

    scores: dict[str, dict[str, Tensor]]
    level: float
    failures: dict[str, str] = field(default_factory=dict)

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

    def plot(self, metrics: Sequence[str] | None = None) -> Figure:
        """Draw scores, a panel each: means over the splits with their standard errors.

        Args:
            metrics: Names in `scores`; if None, all but costs.

        Returns:
            The figure. Panels of coverage have a line at the nominal probability.
        """
        import matplotlib.pyplot as plt

        shown = list(metrics or [m for m in self._metrics if m not in ("seconds", "memory")])
        rows = self.records()
        across = min(len(shown), _PANELS)
        down = -(-len(shown) // across)
        size = (2.2 * across + 1.5, (0.4 * len(rows) + 1.2) * down)
        figure, axes = plt.subplots(
            down, across, figsize=size, sharey=True, squeeze=False, layout="constrained"
        )
        for ax in axes.flat[len(shown) :]:
            ax.remove()
        names = self._names
        nominal = {"coverage_50": 0.5, "coverage": self.level, "coverage_95": 0.95}
        for ax, metric in zip(axes.flat, shown, strict=False):
            at = [row[metric] for row in rows]
            errors = [0.0 if math.isnan(e := row[f"{metric}_error"]) else e for row in rows]
            ax.errorbar(at, range(len(rows)), xerr=errors, fmt="o", color=BLUE)
            if metric in nominal:
                ax.axvline(nominal[metric], color=GREY, linewidth=0.8)
            ax.set(xlabel=names[metric])
            ax.locator_params(axis="x", nbins=4)
        axes[0, 0].set_yticks(range(len(rows)), [row["model"] for row in rows])
        axes[0, 0].invert_yaxis()
        return figure

    @property
    def _names(self) -> dict[str, str]:
        level = f"{self.level:.3g}" if self.level * 100 % 1 else f"{self.level:.0%}"
        return {
            **_METRICS,
            "coverage": f"{level} coverage",
            "interval_score": f"{level} interval score",
        }

    def __repr__(self) -> str:
        splits = len(next(iter(self.scores.values()))["nlpd"]) if self.scores else 0
        sizes = f"{count(len(self.scores), 'model')}, {count(splits, 'split')}"
        return f"Comparison({sizes})\n{self}"

    def __str__(self) -> str:
        heads = ["model", *(self._names[metric] for metric in self._metrics)]
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
        failed = [f"{name} failed on {reason}" for name, reason in self.failures.items()]
        return "\n".join([line(heads), rule, *(line(row) for row in cells), *failed])


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
        The scores; printing it gives an aligned table. A model that fails on a split, or whose
        posterior has no density, has NaN there, with a warning and in `failures`.

    Raises:
        ValueError: there are no models or no splits, a split is of other than four parts, or
            there are classifiers and others.
        TypeError: an entry is neither a model nor a factory.
        RuntimeError: every model failed.
    """
    splits = list(splits)
    if any(not isinstance(split, Sequence) for split in splits):
        raise ValueError(
            "compare needs a list of splits, each a tuple (train_X, train_Y, test_X, test_Y), got "
            f"{type(splits[0]).__name__}s; put a single split into a list, [(X, Y, Xt, Yt)]."
        )
    if not models or not splits:
        raise ValueError(
            f"compare needs at least one model and one split, got {len(models)} models and "
            f"{len(splits)} splits."
        )
    for k, split in enumerate(splits):
        if len(split) != 4:
            raise ValueError(
                "compare needs splits (train_X, train_Y, test_X, test_Y) of four tensors, split "
                f"{k} has {len(split)}."
            )
    found: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    failures: dict[str, str] = {}
    with tqdm(total=len(models) * len(splits), disable=not progress) as bar:
        for k, split in enumerate(splits):
            for name, given in models.items():
                bar.set_description_str(name)
                try:
                    found[name].append(_scores_of(name, given, split, level))
                except _Unusable:
                    raise
                except Exception as error:  # whatever a model fails with
                    found[name].append({})
                    reason = f"split {k} with {type(error).__name__}: {error}"
                    failures.setdefault(name, reason)
                    warnings.warn(f"compare has no scores of {name!r}, on {reason}", stacklevel=2)
                bar.update()
    kinds = {tuple(scores) for each in found.values() for scores in each if scores}
    if not kinds:
        told = "; ".join(f"{name} on {reason}" for name, reason in failures.items())
        raise RuntimeError(f"compare has no scores, all models failed: {told}")
    if len(kinds) > 1:
        raise ValueError("compare scores regressors or classifiers, got both; compare each apart.")
    (metrics,) = kinds
    return Comparison(
        {
            name: {
                metric: torch.tensor(
                    [scores.get(metric, math.nan) for scores in each],
                    dtype=torch.float64,
                    device="cpu",
                )
                for metric in metrics
            }
            for name, each in found.items()
        },
        level,
        failures,
    )


class _Unusable(TypeError):
    """What the caller passed is no model at all: no failure of one."""


def _scores_of(name: str, given: Any, split: Split, level: float) -> dict[str, float]:
    """All scores of a model on a split, and what they cost."""
    train_X, train_Y, test_X, test_Y = split
    _synchronise(test_X)
    start = time.perf_counter()
    with peak_memory(test_X.device) as peak:
        model = _made(name, given, train_X, train_Y)
        with torch.no_grad():
            posterior = model.posterior(test_X, observation_noise=True)
            scores = _scores(posterior, test_Y, level)
    _synchronise(test_X)
    return {**scores, "seconds": time.perf_counter() - start, "memory": peak.mib}


def _made(name: str, given: Any, train_X: Tensor, train_Y: Tensor) -> Any:
    # BoTorch models are callable modules: a model is told by its posterior.
    model = given if hasattr(given, "posterior") and not isinstance(given, type) else None
    if model is None and callable(given):
        model = given(train_X, train_Y)
    if not hasattr(model, "posterior"):
        raise _Unusable(
            f"compare needs {name!r} to be a fitted model with posterior(X, "
            "observation_noise=True), or a factory (train_X, train_Y) -> model; got "
            f"{type(given).__name__}."
        )
    return model


def _scores(posterior: Posterior, Y: Tensor, level: float) -> dict[str, float]:
    if isinstance(posterior, CategoricalPosterior | ClassProbabilityPosterior):
        scores = asdict(class_scores(posterior, Y))
        return {**scores, "ece": reliability(posterior, Y).ece}
    predictive = as_predictive(posterior)
    scores = asdict(score(predictive, Y, level=level))
    scores.pop("level")
    below = predictive.cdf(Y)
    for other in _LEVELS:
        # inside the central interval of probability p is |cdf - 1/2| <= p / 2
        inside = (below - 0.5).abs() <= other / 2
        scores[f"coverage_{100 * other:.0f}"] = float(inside.to(Y.dtype).mean())
    return scores


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
