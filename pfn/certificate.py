"""How far a network is from exact Bayesian inference under a prior, measured.

For tasks drawn from the prior, the expected difference of log densities

    gap = E[log p(y | x, context) - log q(y | x, context)]

is the Kullback-Leibler divergence of the network's predictive q from the reference p, if p is the
exact posterior predictive. It is estimated on the same tasks for both, so that most of the noise
cancels. If the reference knows more than the context tells (the hyperparameters of the task, say),
the gap is an upper bound of the distance to the exact posterior, and the certificate says so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pfn.inference import BarPosterior
from pfn.network import PFN
from priors.posterior import PredictivePosterior, TransformedPosterior
from priors.tasks import Task, TaskPrior

__all__ = ["Certificate", "CertificateRow", "Reference", "certify", "reference_nll"]

# Task -> posterior of y at its query rows, [B, m, 1].
Reference = Callable[[Task], PredictivePosterior]


@dataclass(frozen=True)
class CertificateRow:
    """Averages over tasks of one kind; densities in nats per query, in units of y.

    Attributes:
        tasks: Number of tasks.
        nll: Mean negative log density of the network.
        gap: Mean of log p - log q; NaN without a reference.
        gap_error: Standard error of `gap` over tasks.
        gap_worst: Mean gap of the worst 1% of tasks (at least one).
        coverage50: Share of targets in the central 50% interval.
        coverage90: Share of targets in the central 90% interval.
    """

    tasks: int
    nll: float
    gap: float
    gap_error: float
    gap_worst: float
    coverage50: float
    coverage90: float


@dataclass(frozen=True)
class Certificate:
    """A measured distance to the exact posterior.

    Attributes:
        prior: What the tasks were drawn from.
        reference: "exact", "upper bound" (the reference knows more than the context tells) or
            "none" (calibration only).
        seed: Of the tasks.
        by_context: Rows by number of context rows.
        by_features: Rows by number of features.
    """

    prior: str
    reference: str
    seed: int
    by_context: dict[int, CertificateRow]
    by_features: dict[int, CertificateRow]

    @property
    def gap(self) -> float:
        """Mean gap over the context sizes, nats per query."""
        return sum(row.gap for row in self.by_context.values()) / len(self.by_context)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; NaN becomes null."""
        values = asdict(self)
        for table in ("by_context", "by_features"):
            values[table] = {
                str(key): {k: None if v != v else v for k, v in row.items()}
                for key, row in values[table].items()
            }
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Certificate:
        """Inverse of `to_json`."""

        def row(numbers: Mapping[str, Any]) -> CertificateRow:
            known = {name: math.nan if v is None else v for name, v in numbers.items()}
            return CertificateRow(**known)  # type: ignore[arg-type]

        def table(rows: Mapping[str, Mapping[str, Any]]) -> dict[int, CertificateRow]:
            return {int(key): row(numbers) for key, numbers in rows.items()}

        return cls(
            prior=values["prior"],
            reference=values["reference"],
            seed=values["seed"],
            by_context=table(values["by_context"]),
            by_features=table(values["by_features"]),
        )

    def __str__(self) -> str:
        meaning = {
            "exact": "gap to the exact posterior",
            "upper bound": "gap to a reference that knows the latents: an upper bound",
            "none": "no reference: calibration only",
        }[self.reference]
        lines = [f"{self.prior}", f"{meaning}; nats per query, mean over tasks"]
        for name, rows in (("context", self.by_context), ("features", self.by_features)):
            lines.append(
                f"{name:>9} {'tasks':>6} {'gap':>8} {'± s.e.':>8} {'worst 1%':>9} {'NLL':>8} "
                f"{'cov 50%':>8} {'cov 90%':>8}"
            )
            lines += [
                f"{key:>9} {row.tasks:>6} {row.gap:>8.4f} {row.gap_error:>8.4f} "
                f"{row.gap_worst:>9.3f} {row.nll:>8.4f} {row.coverage50:>8.3f} "
                f"{row.coverage90:>8.3f}"
                for key, row in rows.items()
            ]
        return "\n".join(lines)


def certify(
    pfn: PFN,
    task_prior: TaskPrior,
    *,
    reference: Reference | None = None,
    reference_is: str = "exact",
    context_sizes: Sequence[int] = (0, 5, 20, 80),
    num_queries: int = 16,
    num_tasks: int = 512,
    batch: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> Certificate:
    """Measure a network on tasks of a prior that it has not seen.

    Args:
        pfn: The network, with its metadata left as it is.
        task_prior: Where tasks come from; their split into context and queries is not used.
        reference: From a task to the posterior of y at its query rows, `[B, m, 1]`: the exact
            one, or one that knows more.
        reference_is: "exact" or "upper bound".
        context_sizes: Numbers of context rows to measure; a task serves those that leave it
            `num_queries` rows.
        num_queries: Query rows of each task, its last ones.
        num_tasks: Tasks in all.
        batch: Tasks at a time.
        seed: Of the tasks.
        progress: Show a progress bar.

    Raises:
        ValueError: no task is large enough, or `reference_is` is unknown.
    """
    if reference_is not in ("exact", "upper bound"):
        raise ValueError(f"reference_is must be 'exact' or 'upper bound', got {reference_is!r}.")
    parameter = next(pfn.parameters())
    generator = torch.Generator(parameter.device).manual_seed(seed)
    found: list[tuple[int, int, Tensor]] = []  # context size, features, [tasks, 4]
    pfn = pfn.eval()
    with torch.no_grad(), tqdm(total=num_tasks, disable=not progress, desc="certify") as bar:
        for start in range(0, num_tasks, batch):
            size = min(batch, num_tasks - start)
            task = task_prior.sample(
                size, generator=generator, device=parameter.device, dtype=parameter.dtype
            )
            for n in context_sizes:
                if n + num_queries <= task.X.shape[1]:
                    part = _split(task, n, num_queries)
                    found.append((n, task.X.shape[-1], _measure(pfn, part, reference)))
            bar.update(size)
    if not found:
        raise ValueError(
            f"No task had room for {num_queries} queries and one of {tuple(context_sizes)} context "
            "rows; ask for smaller ones."
        )
    by_context = {
        n: _row(torch.cat([t for k, _, t in found if k == n]))
        for n in sorted({n for n, _, _ in found})
    }
    by_features = {
        d: _row(torch.cat([t for _, k, t in found if k == d]))
        for d in sorted({d for _, d, _ in found})
    }
    return Certificate(
        prior=getattr(task_prior, "description", type(task_prior).__name__),
        reference="none" if reference is None else reference_is,
        seed=seed,
        by_context=by_context,
        by_features=by_features,
    )


def reference_nll(reference: Reference, task: Task) -> Tensor:
    """Mean negative log density of a reference at the queries of each task, `[B]`, nats."""
    return -reference(task).log_prob(task.y[:, task.num_context :]).mean(dim=(1, 2))


def _split(task: Task, num_context: int, num_queries: int) -> Task:
    """The same tasks with their first rows as context and their last as queries."""
    if task.points is not None:
        raise ValueError("certify needs tasks without padding; draw tasks of one size.")

    def rows(value: Tensor) -> Tensor:
        return torch.cat([value[:, :num_context], value[:, value.shape[1] - num_queries :]], dim=1)

    return dataclasses.replace(
        task,
        X=rows(task.X),
        y=rows(task.y),
        f=None if task.f is None else rows(task.f),
        num_context=num_context,
    )


def _measure(pfn: PFN, task: Task, reference: Reference | None) -> Tensor:
    """Per task: negative log density, gap, shares in the 50% and 90% intervals, `[B, 4]`."""
    n = task.num_context
    y = task.y[:, n:]
    encoding = pfn.encode(task.X[:, :n], task.y[:, :n, 0])
    logits, _ = pfn.decode(encoding, task.X[:, n:])
    assert pfn.bars is not None
    affine = torch.distributions.AffineTransform(
        encoding.location[..., None], encoding.scale[..., None]
    )
    posterior = TransformedPosterior(BarPosterior(pfn.bars, logits[:, :, None]), affine)
    log_q = posterior.log_prob(y)
    if reference is None:
        gap = torch.full_like(log_q, math.nan)
    else:
        log_p = reference(task).log_prob(y)
        if log_p.shape != log_q.shape:
            raise ValueError(
                f"reference gave densities of shape {tuple(log_p.shape)} at queries of shape "
                f"{tuple(log_q.shape)}."
            )
        gap = log_p - log_q
    central = 2 * (posterior.cdf(y) - 0.5).abs()
    shares = [(central <= level).to(y) for level in (0.5, 0.9)]
    return torch.stack([-log_q, gap, *shares], dim=-1).mean(dim=(1, 2)).double()


def _row(values: Tensor) -> CertificateRow:
    tasks = len(values)
    nll, gap, half, most = values.mean(0).tolist()
    gaps = values[:, 1]
    worst = gaps.sort(descending=True).values[: max(1, tasks // 100)].mean()
    return CertificateRow(
        tasks=tasks,
        nll=nll,
        gap=gap,
        gap_error=float(gaps.std() / math.sqrt(tasks)) if tasks > 1 else math.nan,
        gap_worst=float(worst),
        coverage50=half,
        coverage90=most,
    )
