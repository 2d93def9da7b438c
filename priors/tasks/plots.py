"""Pictures of tasks: what one asks a network to believe.

Each panel is a task. Context is drawn filled, queries as rings, the function behind them as a
line where one can be drawn: over the only feature, or over time for learning curves (tasks whose
row latents hold "curve", the number of each row's curve, and whose first feature is time). With
several features a panel shows y over the feature that tells most about it, coloured by the one
that tells second most; in classification these two features, coloured by class. Features count by
the share of the variance of y that the mean of y in ten bins of the feature explains. "Noise" in
a title is a standard deviation, the median over rows.
"""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from priors.functions import draws_functions
from priors.tasks.task import Task, TaskPrior, describe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["plot_tasks"]

_BINS = 10


def plot_tasks(
    task_prior: TaskPrior,
    num: int = 12,
    *,
    seed: int = 0,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Draw tasks of a prior, each of a size of its own.

    Args:
        task_prior: Anything that draws batches of tasks.
        num: How many.
        seed: Of the draws.
        figure: Where to draw; a new one outside pyplot if None.

    Returns:
        The figure, with `savefig` and, in notebooks, a picture of itself.

    Raises:
        TypeError: `task_prior` does not draw tasks.
        ValueError: `num` is not positive.
    """
    if draws_functions(task_prior):
        raise TypeError(
            f"{type(task_prior).__name__} draws functions, not tasks; use plot_prior, or turn "
            "it into a prior over tasks with FunctionTaskPrior."
        )
    if not isinstance(task_prior, TaskPrior) or isinstance(task_prior, type):
        raise TypeError(
            f"plot_tasks needs a task prior with sample(batch, generator=...), got {task_prior!r}."
        )
    if num < 1:
        raise ValueError(f"num must be at least 1, got {num}.")
    generator = torch.Generator().manual_seed(seed)
    shown = []
    for _ in range(num):
        task = task_prior.sample(1, generator=generator)
        if not isinstance(task, Task):
            raise TypeError(
                f"{type(task_prior).__name__}.sample must return a Task, got {type(task).__name__}."
            )
        shown.append(_Shown.of(task))
    columns = min(num, 4 if num > 6 else 3)
    rows = math.ceil(num / columns)
    if figure is None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3.2 * columns, 2.6 * rows + 0.9), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax, one in zip(axes, shown, strict=False):
        one.draw(ax)
        ax.set_title(one.title, fontsize=9)
        ax.tick_params(labelsize=8)
    for ax in axes[num:]:
        ax.set_axis_off()
    title = textwrap.shorten(describe(task_prior), 300, placeholder=" ...")
    figure.suptitle(textwrap.fill(title, 36 * columns), fontsize=11)
    _add_legend(figure, shown)
    return figure


@dataclass(frozen=True, eq=False)
class _Shown:
    """One task without padding: X `[n, d]`, y, f, context and curve `[n]`."""

    X: Tensor
    y: Tensor
    f: Tensor | None
    context: Tensor
    curve: Tensor | None
    categorical: Tensor
    names: list[str]
    num_classes: int | None
    noise_std: float

    @classmethod
    def of(cls, task: Task) -> _Shown:
        def first(value: Tensor) -> Tensor:
            return value[0].detach().cpu()

        X = first(task.X).double()
        N, d = X.shape
        every, none = X.new_ones(N, dtype=torch.bool), X.new_zeros(d, dtype=torch.bool)
        rows = every if task.points is None else first(task.points)
        kept = ~none if task.features is None else first(task.features)
        categorical = none if task.categorical is None else first(task.categorical)
        curve = task.row_latents.get("curve")
        is_curves = curve is not None and curve.shape[1:] == (N,) and d > 0
        noise = first(task.row_noise_var)[rows].double().sqrt()
        names = [f"x{k + 1}" for k in kept.nonzero()[:, 0].tolist()]
        return cls(
            X=X[rows][:, kept],
            y=first(task.y)[rows, 0].double(),
            f=None if task.f is None else first(task.f)[rows, 0].double(),
            context=(torch.arange(N, device="cpu") < task.num_context)[rows],
            curve=first(curve)[rows] if curve is not None and is_curves else None,
            categorical=categorical[kept],
            names=names,
            num_classes=None if task.num_classes is None else int(task.num_classes[0]),
            noise_std=float(noise[noise.isfinite()].median()) if noise.isfinite().any() else 0.0,
        )

    @property
    def title(self) -> str:
        """Sizes and noise, and what a picture cannot show."""
        n = int(self.context.sum())
        parts = [f"d = {len(self.names)}", f"n = {n} + {len(self.y) - n}"]
        if self.num_classes is not None:
            parts.append(f"{self.num_classes} classes")
        else:
            parts.append(f"noise {self.noise_std:.2g}")
        extra = []
        if self.curve is not None:
            count = len(self.curve.unique())
            extra.append(f"{count} curve" + ("s" if count > 1 else ""))
        if self.categorical.any():
            extra.append(f"{int(self.categorical.sum())} categorical")
        missing = float(self.X.isnan().double().mean()) if self.X.numel() else 0.0
        if missing > 0:
            extra.append(f"{100 * missing:.2g} % missing")
        return ", ".join(parts) + ("\n" + ", ".join(extra) if extra else "")

    def draw(self, ax: Axes) -> None:
        if not len(self.y) or not self.names:
            ax.set_axis_off()
            ax.text(0.5, 0.5, "no rows" if self.names else "no features", ha="center")
        elif self.curve is not None:
            self._draw_curves(ax)
        elif self.num_classes is not None:
            self._draw_classes(ax)
        else:
            self._draw_regression(ax)

    def _draw_curves(self, ax: Axes) -> None:
        time = self.X[:, 0]
        assert self.curve is not None
        for number, which in enumerate(self.curve.unique()):
            mine = self.curve == which
            colour = f"C{number % 10}"
            if self.f is not None:
                order = time[mine].argsort()
                ax.plot(time[mine][order], self.f[mine][order], color=colour, linewidth=0.8)
            _points(ax, time, self.y, mine & self.context, color=colour)
            _points(ax, time, self.y, mine & ~self.context, ring=True, color=colour)
        ax.set_xlim(0, 1.03)
        self._label(ax, "time", "y")

    def _draw_classes(self, ax: Axes) -> None:
        best = self._informative()
        x = self._with_missing(best[0])
        height = self._with_missing(best[1]) if len(best) > 1 else self.y
        for label in range(int(self.y.max()) + 1):
            mine = self.y == label
            colour = f"C{label % 10}"
            _points(ax, x, height, mine & self.context, color=colour)
            _points(ax, x, height, mine & ~self.context, ring=True, color=colour)
        self._label(ax, self._name(best[0]), self._name(best[1]) if len(best) > 1 else "class")

    def _draw_regression(self, ax: Axes) -> None:
        best = self._informative()
        x = self._with_missing(best[0])
        if len(best) == 1:
            if self.f is not None:
                order = x.argsort()
                ax.plot(x[order], self.f[order], color="0.4", linewidth=1)
            color: Any = "C0"
        else:
            from matplotlib import colormaps

            value = self._with_missing(best[1])
            value = (value - value.min()) / (value.max() - value.min()).clamp(min=1e-12)
            color = colormaps["viridis"](value.numpy())
        _points(ax, x, self.y, ~self.context, ring=True, color=color)
        _points(ax, x, self.y, self.context, color=color)
        coloured = f", coloured by {self._name(best[1])}" if len(best) > 1 else ""
        self._label(ax, self._name(best[0]) + coloured, "y")

    def _label(self, ax: Axes, x: str, y: str) -> None:
        ax.set_xlabel(x, fontsize=8, labelpad=1)
        ax.set_ylabel(y, fontsize=8, labelpad=1)

    def _name(self, feature: int) -> str:
        """With a mark for categories and for missing values, which the legend explains."""
        symbols = "†" if self.categorical[feature] else ""
        return self.names[feature] + symbols + ("*" if self.X[:, feature].isnan().any() else "")

    def _with_missing(self, feature: int) -> Tensor:
        """The feature, its missing values a tenth of the range below the others."""
        x = self.X[:, feature]
        there = x[~x.isnan()]
        if not len(there):
            return torch.zeros_like(x)
        gap = 0.1 * (there.max() - there.min()).clamp(min=1e-12)
        return x.nan_to_num(nan=float(there.min() - gap))

    def _informative(self) -> list[int]:
        """The one or two features that tell most about y, which come first in `X` in ties."""
        target = self.y
        if self.num_classes is not None:
            target = torch.nn.functional.one_hot(target.long()).double()
        scores = torch.stack([_explained(column, target) for column in self.X.T])
        return scores.argsort(descending=True, stable=True)[:2].tolist()


def _explained(x: Tensor, y: Tensor) -> Tensor:
    """Share of the variance of y `[n]` or `[n, k]` between bins of equal counts of x `[n]`."""
    y = y.reshape(len(x), -1)
    rank = x.nan_to_num(nan=-torch.inf).unique(return_inverse=True)[1]
    # equal values share a bin
    below = (rank[:, None] > rank).sum(-1)
    bins = below * min(_BINS, max(1, len(x) // 5)) // len(x)
    member = torch.nn.functional.one_hot(bins).double()
    means = (member.T @ y) / member.sum(0).clamp(min=1)[:, None]
    residual = (y - means[bins]).square().sum()
    return 1 - residual / (y - y.mean(0)).square().sum().clamp(min=1e-300)


def _points(
    ax: Axes, x: Tensor, y: Tensor, rows: Tensor, *, color: Any, ring: bool = False
) -> None:
    """Filled points, or rings; one colour, or one `[n, 4]` for each row."""
    if not rows.any():
        return
    color = color if isinstance(color, str) else color[rows.numpy()]
    size = 9 if rows.sum() < 150 else 5
    ax.scatter(
        x[rows].numpy(),
        y[rows].numpy(),
        s=1.6 * size if ring else size,
        facecolors="none" if ring else color,
        edgecolors=color,
        linewidths=0.7 if ring else 0,
        zorder=2,
    )


def _add_legend(figure: Figure | SubFigure, shown: list[_Shown]) -> None:
    from matplotlib.lines import Line2D

    def mark(label: str, **style: Any) -> Line2D:
        return Line2D([], [], linestyle="none", color="0.3", label=label, **style)

    entries = [
        mark("context", marker="o", markersize=4),
        mark("query", marker="o", markersize=5, markerfacecolor="none"),
    ]
    if any(one.f is not None and (one.curve is not None or len(one.names) == 1) for one in shown):
        entries.append(Line2D([], [], color="0.4", linewidth=1, label="without noise"))
    if any(one.num_classes is not None for one in shown):
        entries.append(mark("colours are classes", marker=""))
    if any(one.curve is not None for one in shown):
        entries.append(mark("colours are curves", marker=""))
    if any(one.categorical.any() for one in shown):
        entries.append(mark("categories", marker="$†$", markersize=6))
    if any(one.X.isnan().any() for one in shown):
        entries.append(mark("missing values, drawn left of or below the others", marker="$*$"))
    figure.legend(
        handles=entries,
        loc="outside lower center",
        ncols=len(entries),
        frameon=False,
        fontsize=9,
    )
