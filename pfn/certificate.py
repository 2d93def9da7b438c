"""The measured distance of a network from exact inference: figures, their text and their JSON.

`pfn.certification` measures them and says what they mean.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from priors.figures import BLUE, CATEGORIES, GREY, ORANGE
from priors.representation import as_record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Certificate", "CertificateRow"]

ECE_BINS = 15


@dataclass(frozen=True)
class CertificateRow:
    """Averages over tasks of one kind; densities in nats per query, in units of y.

    Attributes:
        tasks: Number of tasks.
        nll: Mean negative log density of the network.
        gap: Mean of log p - log q; NaN without a reference.
        gap_error: Standard error of `gap`, of tasks that are dependent within a batch.
        gap_worst: Mean gap of the worst 1% of tasks (at least one).
        lower: The same for the lower reference, a lower bound of the gap; NaN without one, or
            where it declined all tasks of some number of context rows.
        lower_error: Standard error of `lower`.
        coverage50: Share of targets in the central 50% interval; NaN in classification.
        coverage80: Likewise, 80%.
        coverage90: Likewise, 90%.
        coverage95: Likewise, 95%.
        accuracy: Share of queries whose class is the most probable one; NaN in regression.
    """

    tasks: int
    nll: float
    gap: float
    gap_error: float
    gap_worst: float
    lower: float
    lower_error: float
    coverage50: float
    coverage80: float
    coverage90: float
    coverage95: float
    accuracy: float

    def __repr__(self) -> str:
        return as_record(self)


@dataclass(frozen=True)
class Certificate:
    """A measured distance to the exact posterior.

    Attributes:
        prior: Description of the prior of the tasks.
        reference: "exact", "upper bound" (the reference knows more than the context tells) or
            "none" (calibration only).
        seed: Seed of the tasks.
        by_context: Rows by number of context rows.
        by_features: Rows by number of features.
        by_noise: Rows by decade of the noise variance, "1e-2" for [0.01, 0.1).
        low_noise: Rows by number of context rows, of tasks whose noise variance is below 1e-4
            alone, where the posterior is narrow and a gap largest.
        other_noise: Likewise, of the others of the same tasks; empty where there are no tasks of
            low noise among those of `by_context`.
        pit: Shares of the probability integral transform in 20 equal bins, by number of context
            rows; 0.05 each for a calibrated network.
        coherence: "martingale", "order" and, of tasks of several exchangeable columns, "columns",
            with 10 context rows; see `pfn.certification`. Empty in classification.
        ece: Expected calibration error of the most probable class by number of context rows, in
            `ECE_BINS` equal bins of its probability (Guo et al. 2017, 1706.04599, equation 3).
            Empty in regression.
        ece_error: Standard error of `ece`, of tasks that are dependent within a batch.
        ece_expected: What `ece` would be on average for as many tasks if the network were
            calibrated: above 0, as bins have few queries.
        scores: Quantiles 0.005, 0.05, 0.5, 0.95, 0.995 of `familiarity.context_score` under the
            prior, by number of context rows.
    """

    prior: str
    reference: str
    seed: int
    by_context: dict[int, CertificateRow]
    by_features: dict[int, CertificateRow]
    by_noise: dict[str, CertificateRow] = field(default_factory=dict)
    low_noise: dict[int, CertificateRow] = field(default_factory=dict)
    other_noise: dict[int, CertificateRow] = field(default_factory=dict)
    pit: dict[int, list[float]] = field(default_factory=dict)
    coherence: dict[str, float] = field(default_factory=dict)
    ece: dict[int, float] = field(default_factory=dict)
    ece_error: dict[int, float] = field(default_factory=dict)
    ece_expected: dict[int, float] = field(default_factory=dict)
    scores: dict[int, list[float]] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """Mean gap over the context sizes, nats per query."""
        return sum(row.gap for row in self.by_context.values()) / len(self.by_context)

    @property
    def gaps(self) -> dict[int, float]:
        """Upper gaps by number of context rows, nats per query; only those that were measured.

        The gap itself where the reference is the exact posterior.
        """
        return {n: row.gap for n, row in self.by_context.items() if math.isfinite(row.gap)}

    def usual_scores(self, rows: int) -> tuple[float, float] | None:
        """Range of `context_score` that 99% of the prior's contexts of `rows` rows have.

        Interpolated in log rows; None beyond the measured sizes, or where none were.
        """
        sizes = sorted(self.scores)
        if not sizes or not sizes[0] <= rows <= sizes[-1]:
            return None
        above = next(i for i, size in enumerate(sizes) if size >= rows)
        below = max(above - 1, 0)
        a, b = self.scores[sizes[below]], self.scores[sizes[above]]
        span = math.log(sizes[above] / sizes[below]) or 1.0
        share = math.log(rows / sizes[below]) / span
        return tuple((1 - share) * a[i] + share * b[i] for i in (0, -1))  # type: ignore[return-value]

    def plot(self) -> Figure:
        """Gaps and coverage by number of context rows.

        Error bars are two standard errors. Where no gap was measured, the negative log density is
        drawn in its place; in classification, the accuracy in that of coverage.

        Returns:
            A figure with two axes.

        Raises:
            ValueError: nothing was measured by number of context rows.
        """
        if not self.by_context:
            raise ValueError("This certificate has no measurements by number of context rows.")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
        self._plot_losses(axes[0])
        self._plot_shares(axes[1])
        sizes = sorted(self.by_context)
        smallest = min((size for size in sizes if size > 0), default=1)
        for ax in axes:
            ax.set_xscale("symlog", linthresh=smallest)  # there may be none
            ax.set_xticks(sizes, map(str, sizes), minor=False, fontsize="small")
            ax.set_xticks([], minor=True)
            ax.set_xlabel("context rows")
        return figure

    def _plot_losses(self, ax: Axes) -> None:
        sizes = sorted(self.by_context)
        rows = [self.by_context[size] for size in sizes]
        if not self.gaps:
            ax.plot(sizes, [row.nll for row in rows], "o-", color=BLUE)
            ax.set(title="loss", ylabel="negative log density, nats per query")
            return
        name = "at most" if self.reference == "upper bound" else "gap"
        ax.axhline(0, color=GREY, linewidth=0.8)
        for values, errors, color, label in (
            ([r.gap for r in rows], [r.gap_error for r in rows], BLUE, name),
            ([r.lower for r in rows], [r.lower_error for r in rows], ORANGE, "at least"),
        ):
            if any(map(math.isfinite, values)):
                bars = [2 * error for error in errors]
                ax.errorbar(sizes, values, bars, fmt="o-", color=color, capsize=2, label=label)
        ax.set(title="distance to exact inference", ylabel="nats per query")
        ax.legend()

    def _plot_shares(self, ax: Axes) -> None:
        sizes = sorted(self.by_context)
        rows = [self.by_context[size] for size in sizes]
        if any(math.isfinite(row.accuracy) for row in rows):
            ax.plot(sizes, [row.accuracy for row in rows], "o-", color=BLUE)
            ax.set(title="accuracy", ylabel="share of queries", ylim=(0, 1))
            return
        for level, color in zip((50, 80, 90, 95), CATEGORIES, strict=False):
            share = [getattr(row, f"coverage{level}") for row in rows]
            ax.axhline(level / 100, color=color, linewidth=0.8, linestyle=":")
            ax.plot(sizes, share, "o-", color=color, label=f"{level}% intervals")
        ax.set(title="coverage", ylabel="share of targets inside", ylim=(0, 1))
        ax.legend(loc="lower right")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; NaN becomes null."""
        values = asdict(self)
        for table in _TABLES:
            values[table] = {
                str(key): {k: None if v != v else v for k, v in row.items()}
                for key, row in values[table].items()
            }
        for table in _LISTS:
            values[table] = {str(k): None if v != v else v for k, v in values[table].items()}
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Certificate:
        """Inverse of `to_json`; tables that a file lacks were not measured."""

        def row(numbers: Mapping[str, Any]) -> CertificateRow:
            known = {name: math.nan if v is None else v for name, v in numbers.items()}
            return CertificateRow(**known)  # type: ignore[arg-type]

        tables: dict[str, Any] = {
            table: {key(k): row(numbers) for k, numbers in values.get(table, {}).items()}
            for table, key in _TABLES.items()
        }
        lists = {
            table: {int(k): math.nan if v is None else v for k, v in values.get(table, {}).items()}
            for table in _LISTS
        }
        plain: dict[str, Any] = {
            name: values[name] for name in ("prior", "reference", "seed", "coherence")
        }
        everything: dict[str, Any] = {**plain, **tables, **lists}
        return cls(**everything)

    def __repr__(self) -> str:
        sizes = ", ".join(map(str, self.by_context))
        gap = ""
        if self.by_context and math.isfinite(self.gap):
            bound = "at most " if self.reference == "upper bound" else ""
            gap = f"gap {bound}{self.gap:.3g} nats per query; "
        rows = self.by_context.values()
        covered = sum(row.coverage90 for row in rows) / max(1, len(rows))
        correct = sum(row.accuracy for row in rows) / max(1, len(rows))
        found = (
            f"accuracy {correct:.1%}"
            if math.isnan(covered)
            else f"90% intervals cover {covered:.1%}"
        )
        tasks = sum(row.tasks for row in rows)
        return f"Certificate({gap}{found}; {tasks:,} tasks of {sizes} context rows)"

    def __str__(self) -> str:
        meaning = {
            "exact": "gap to the exact posterior",
            "upper bound": "gap to a reference that knows the latents: an upper bound",
            "none": "no reference: calibration only",
        }[self.reference]
        prior = textwrap.fill(self.prior, width=100, subsequent_indent="  ")
        lines = [prior, f"{meaning}; nats per query, mean over tasks"]
        everything = [row for table in _TABLES for row in getattr(self, table).values()]
        bracket = any(math.isfinite(row.lower) for row in everything)
        classes = any(math.isfinite(row.accuracy) for row in everything)
        for table in _TABLES:
            rows = getattr(self, table)
            if not rows:
                continue
            lines.append(
                f"{_TITLES[table]:>11} {'tasks':>6} {'gap':>8} {'± s.e.':>8} "
                f"{'worst 1%':>9} "
                + (f"{'at least':>9} {'± s.e.':>8} " if bracket else "")
                + f"{'NLL':>8} "
                + (f"{'accuracy':>8}" if classes else f"{'cov 50%':>8} {'cov 90%':>8}")
            )
            lines += [
                f"{key:>11} {row.tasks:>6} {row.gap:>8.4f} {row.gap_error:>8.4f} "
                f"{row.gap_worst:>9.3f} "
                + (f"{row.lower:>9.4f} {row.lower_error:>8.4f} " if bracket else "")
                + f"{row.nll:>8.4f} "
                + (
                    f"{row.accuracy:>8.3f}"
                    if classes
                    else f"{row.coverage50:>8.3f} {row.coverage90:>8.3f}"
                )
                for key, row in rows.items()
            ]
        lines += [f"coherence: {name} {value:.4f}" for name, value in self.coherence.items()]
        if self.ece:
            lines.append(f"expected calibration error, {ECE_BINS} equal bins of confidence")
            lines.append(f"{'context':>11} {'ECE':>8} {'± s.e.':>8} {'if calibrated':>14}")
        lines += [
            f"{n:>11} {value:>8.4f} {self.ece_error.get(n, math.nan):>8.4f} "
            f"{self.ece_expected.get(n, math.nan):>14.4f}"
            for n, value in self.ece.items()
        ]
        return "\n".join(lines)


_TABLES: dict[str, Callable[[str], Any]] = {
    "by_context": int,
    "by_features": int,
    "by_noise": str,
    "low_noise": int,
    "other_noise": int,
}
_TITLES = {
    "by_context": "context",
    "by_features": "features",
    "by_noise": "noise",
    "low_noise": "noise<1e-4",
    "other_noise": "noise>=1e-4",
}
_LISTS = ("pit", "scores", "ece", "ece_error", "ece_expected")
