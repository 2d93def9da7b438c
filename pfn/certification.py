"""Measuring the distance of a network from exact Bayesian inference under a prior.

For tasks drawn from the prior, the expected difference of log densities

    gap = E[log p(y | x, context) - log q(y | x, context)]

is the Kullback-Leibler divergence of the network's predictive q from the reference p, if p is the
exact posterior predictive. It is estimated on the same tasks for both, so that most of the noise
cancels. Where the exact predictive is not known it can be bracketed: a reference that knows more
than the context tells (the hyperparameters of the task, say) gives an upper bound of the gap, and
any other approximation (a long-run sampler, say) a lower bound, since none beats the exact one.

Besides, without any reference: calibration (coverage, the distribution of the probability integral
transform), and coherence, which exact inference has and a network only approximates:

    martingale  E[q(y | D + (x', y'))] over y' ~ q(. | D) is q(y | D); the largest difference of
                the two distribution functions (Falck et al. 2024, 2406.00793, test that of LLMs)
    order       q(y1) q(y2 | y1) = q(y2) q(y1 | y2); mean absolute difference of the logs, nats
    columns     the order of the columns means nothing, if the prior says so; mean absolute change
                of a log density when it is reversed, nats

and how well the halves of a context predict each other, under the prior: a data set that scores
outside that range is unlike the prior (`PFN.condition` warns; see `pfn.familiarity`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pfn.certificate import ECE_BINS, Certificate, CertificateRow
from pfn.familiarity import context_score
from pfn.posteriors import predictive
from pfn.prior_fitted_network import PFN
from pfn.references import LowerReference, Reference, own_reference
from priors.tasks.task import Task, TaskPrior, describe

__all__ = ["certify"]

_LEVELS = (0.5, 0.8, 0.9, 0.95)
_PIT_BINS = 20
_LOW_NOISE = -4  # decades below this one
_NO_DECADE = 99  # of tasks without a finite, positive noise variance
_SCORE_SIZES = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
_COHERENCE_ROWS, _COHERENCE_TASKS = 10, 256
_SCORE_LEVELS = (0.005, 0.05, 0.5, 0.95, 0.995)


def certify(
    pfn: PFN,
    task_prior: TaskPrior | Callable[[int], TaskPrior],
    *,
    reference: Reference | Literal["own"] | None = "own",
    reference_is: str = "exact",
    lower_reference: LowerReference | None = None,
    lower_tasks: int = 64,
    score_prior: TaskPrior | Callable[[int], TaskPrior] | None = None,
    low_noise_prior: TaskPrior | Callable[[int], TaskPrior] | None = None,
    context_sizes: Sequence[int] = (0, 5, 20, 80),
    num_queries: int = 16,
    num_tasks: int = 512,
    batch: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> Certificate:
    """Measure a network on tasks of a prior that it has not seen.

    Args:
        pfn: The network, with its metadata left as it is.
        task_prior: Where tasks come from; their split into context and queries is not used. Or a
            function from a number of context rows to a prior of tasks with so many, whose split
            is used: where inputs depend on what was observed, as in optimisation, a part of the
            context with the queries of the whole is not a task of the prior.
        reference: From a task to the posterior of y at its query rows, `[B, m, 1]`, or another
            density: the exact one, or one that knows more. "own" is the `oracle` of the prior,
            if it has one; tasks that it refuses have no gap. None for no reference.
        reference_is: What a `reference` given here is, "exact" or "upper bound".
        lower_reference: Another approximation of the exact posterior, for a lower bound; it may
            decline a task by None.
        lower_tasks: Number of tasks of each size to ask it for: long samplers are slow.
        score_prior: What the tasks of `Certificate.scores` are drawn from, of the same kind as
            `task_prior`, which is a part of the training's where only that has a reference.
            `task_prior` if None.
        low_noise_prior: Further tasks for `Certificate.low_noise`, of the same kind, a quarter as
            many; those of more noise do not count. For a `task_prior` that has little of it.
        context_sizes: Numbers of context rows to measure; a task serves those that leave it
            `num_queries` rows.
        num_queries: Query rows of each task, its last ones.
        num_tasks: Tasks in all.
        batch: Tasks at a time. Tasks of a batch share what a prior draws for all of them, such as
            the number of features: larger batches are faster and less precise.
        seed: Seed of the tasks.
        progress: Show a progress bar.

    Raises:
        ValueError: no task is large enough, or `reference_is` is unknown.
    """
    if reference_is not in ("exact", "upper bound"):
        raise ValueError(f"reference_is must be 'exact' or 'upper bound', got {reference_is!r}.")
    known: LowerReference | None
    if reference == "own":
        known, reference_is = own_reference(task_prior)
    else:
        known = reference
    parameter = next(pfn.parameters())
    where: Any = {"device": parameter.device, "dtype": parameter.dtype}
    generator = torch.Generator(parameter.device).manual_seed(seed + 2**33)  # not of a training
    measured = _Measurements()
    scores: dict[int, list[Tensor]] = {}
    coherence: list[dict[str, float]] = []
    usual = min(context_sizes, key=lambda n: abs(n - _COHERENCE_ROWS))
    pfn = pfn.eval()
    joint = pfn.bars is not None and bool(pfn.coverage.max_buffer)
    groups = _groups(task_prior, context_sizes)
    scored = groups if score_prior is None else _groups(score_prior, context_sizes)
    if len(scored) != len(groups):
        raise ValueError(
            "score_prior must be of the same kind as task_prior: both priors, or both functions."
        )
    with torch.no_grad(), tqdm(total=num_tasks, disable=not progress, desc="certify") as bar:
        for start in range(0, num_tasks, batch):
            size = min(batch, num_tasks - start)
            for (sizes, prior), (_, other) in zip(groups, scored, strict=True):
                task = prior.sample(size, generator=generator, **where)
                rows, own = task.X.shape[1], len(groups) > 1
                for n in sizes:
                    if n + num_queries <= rows:
                        part = _split(task, n, num_queries)
                        lower = lower_reference if start < lower_tasks else None
                        measured.add(n, start, own, part, _measure(pfn, part, known, lower))
                alike = task
                if other is not prior:
                    alike = other.sample(size, generator=generator, **where)
                for n in sizes if own else _SCORE_SIZES:
                    if 4 <= n <= min(alike.X.shape[1], max(sizes)):
                        scores.setdefault(n, []).append(_task_scores(pfn, _split(alike, n, 0)))
                if joint and start < _COHERENCE_TASKS and (usual in sizes or not own):
                    n = usual if own else min(_COHERENCE_ROWS, rows - 2)
                    coherence += [_coherence(pfn, _split(task, n, 2))] if n >= 0 else []
            bar.update(size)
        apart = _Measurements()
        extra = [] if low_noise_prior is None else _groups(low_noise_prior, context_sizes)
        for start in range(0, num_tasks // 4, batch):
            for sizes, prior in extra:
                task = prior.sample(
                    min(batch, num_tasks // 4 - start), generator=generator, **where
                )
                for n in sizes:
                    if n + num_queries <= task.X.shape[1]:
                        part, own = _split(task, n, num_queries), len(extra) > 1
                        lower = lower_reference if start < lower_tasks // 4 else None
                        apart.add(n, start, own, part, _measure(pfn, part, known, lower))
    if not measured.values:
        raise ValueError(
            f"No task has enough rows for {num_queries} queries and any of "
            f"{tuple(context_sizes)} context rows; use smaller numbers."
        )
    return Certificate(
        prior=describe(groups[-1][1]),
        reference="none" if known is None else reference_is,
        seed=seed,
        by_context=measured.table("context"),
        by_features=measured.table("features"),
        by_noise={f"1e{k}": row for k, row in measured.table("noise").items() if k < _NO_DECADE},
        low_noise=(apart if extra else measured).table("context", below=_LOW_NOISE),
        other_noise=measured.rest_of_low_noise(),
        pit=measured.pits() if pfn.bars is not None else {},
        coherence=_means(coherence),
        **(measured.calibration_errors() if pfn.bars is None else {}),
        scores={n: _quantiles(parts) for n, parts in scores.items()},
    )


def _groups(
    task_prior: TaskPrior | Callable[[int], TaskPrior], context_sizes: Sequence[int]
) -> list[tuple[tuple[int, ...], TaskPrior]]:
    """Numbers of context rows, with the prior whose tasks serve them."""
    if isinstance(task_prior, TaskPrior):
        return [(tuple(context_sizes), task_prior)]
    return [((n,), task_prior(n)) for n in context_sizes]


def _quantiles(parts: list[Tensor]) -> list[float]:
    values = torch.cat(parts).double().cpu()
    return values.quantile(values.new_tensor(_SCORE_LEVELS)).tolist()


def _task_scores(pfn: PFN, task: Task) -> Tensor:
    return context_score(pfn, task.X, task.y[..., 0], categorical=task.categorical)


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
        row_latents={name: rows(value) for name, value in task.row_latents.items()},
        noise_var=task.noise_var if task.noise_var.dim() == 1 else rows(task.noise_var),
        num_context=num_context,
    )


def _measure(
    pfn: PFN, task: Task, reference: LowerReference | None, lower: LowerReference | None
) -> tuple[Tensor, Tensor]:
    """Per task the numbers of a row, `[B, 8]`; and per query what calibration is judged by.

    That is the probability integral transform, `[B, m, 1]`; in classification the probability of
    the most probable class and whether it was right, `[B, m, 2]`.
    """
    n = task.num_context
    y = task.y[:, n:]
    encoding = pfn.encode(
        task.X[:, :n],
        task.y[:, :n, 0],
        categorical=task.categorical,
        num_classes=task.num_classes,
    )
    logits, _ = pfn.decode(encoding, task.X[:, n:])
    posterior = predictive(pfn, encoding, logits)
    log_q = posterior.log_prob(y)
    gaps = []
    for known in (reference, lower):
        density = None if known is None else known(task)
        if density is None:
            gaps.append(torch.full_like(log_q, math.nan))
            continue
        log_p = density.log_prob(y.double()).to(log_q)
        if log_p.shape != log_q.shape:
            raise ValueError(
                f"reference gave densities of shape {tuple(log_p.shape)} at queries of shape "
                f"{tuple(log_q.shape)}."
            )
        gaps.append(log_p - log_q)
    nothing = torch.full_like(log_q, math.nan)
    if pfn.bars is None:
        shares = [nothing] * len(_LEVELS)
        confidence, best = logits.softmax(-1).max(-1, keepdim=True)
        right = (best == y.long()).to(log_q)
        judged = torch.cat([confidence, right], dim=-1)
    else:
        judged, right = posterior.cdf(y), nothing
        central = 2 * (judged - 0.5).abs()
        shares = [(central <= level).to(y) for level in _LEVELS]
    numbers = torch.stack([-log_q, *gaps, *shares, right], dim=-1)
    return numbers.mean(dim=(1, 2)).double(), judged


class _Measurements:
    """Numbers of tasks with what they are grouped by."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        self.keys: dict[str, list[Tensor]] = {k: [] for k in (*_KEYS, "batch", "task")}
        self._judged: dict[int, list[Tensor]] = {}

    def add(self, n: int, batch: int, own: bool, task: Task, found: tuple[Tensor, Tensor]) -> None:
        """Tasks of a batch; `own` if every number of context rows has tasks of its own."""
        values, judged = found
        self.values.append(values.cpu())
        noise = task.row_noise_var.double().mean(1).cpu()
        usable = noise.isfinite() & (noise > 0)
        if task.num_classes is not None:
            usable = torch.zeros_like(usable)
        power = torch.where(usable, noise, 1.0).log10() + 1e-6  # 0.01 of float32 is below 1e-2
        decade = power.floor().clamp(-9, 9).long()
        self.keys["noise"].append(torch.where(usable, decade, _NO_DECADE))
        for name, value in (("context", n), ("features", task.X.shape[-1]), ("batch", batch)):
            self.keys[name].append(torch.full((len(values),), value, device="cpu"))
        number = torch.arange(len(values), device="cpu")
        self.keys["task"].append(batch + number + (own * n << 32))
        of_queries = judged.flatten(0, 1).double().cpu()
        of_batch = of_queries.new_full((len(of_queries), 1), batch)
        self._judged.setdefault(n, []).append(torch.cat([of_queries, of_batch], dim=-1))

    def table(
        self, name: str, *, least: int = -_NO_DECADE, below: int = _NO_DECADE + 1
    ) -> dict[int, CertificateRow]:
        """Rows by a key, of tasks whose decade of the noise is in a range."""
        if not self.values:
            return {}
        decade = torch.cat(self.keys["noise"])
        some = (decade >= least) & (decade < below)
        key, values = torch.cat(self.keys[name])[some], torch.cat(self.values)[some]
        groups = [torch.cat(self.keys[kind])[some] for kind in ("context", "batch", "task")]
        return {
            int(k): _row(values[key == k], *(group[key == k] for group in groups))
            for k in key.unique()
        }

    def rest_of_low_noise(self) -> dict[int, CertificateRow]:
        """By number of context rows, of tasks with more noise; nothing if there are no others."""
        if not self.table("context", below=_LOW_NOISE):
            return {}
        return self.table("context", least=_LOW_NOISE, below=_NO_DECADE)

    def pits(self) -> dict[int, list[float]]:
        """Shares of the transforms in equal bins, by number of context rows."""
        shares = {}
        for n, parts in sorted(self._judged.items()):
            counts = torch.histc(torch.cat(parts)[:, 0], bins=_PIT_BINS, min=0.0, max=1.0)
            shares[n] = (counts / counts.sum()).tolist()
        return shares

    def calibration_errors(self) -> dict[str, dict[int, float]]:
        """Of the expected calibration error what a certificate has, by number of context rows."""
        found = {n: _ece(*torch.cat(parts).T) for n, parts in sorted(self._judged.items())}
        return {
            name: {n: values[i] for n, values in found.items()}
            for i, name in enumerate(("ece", "ece_error", "ece_expected"))
        }


_KEYS = ("context", "features", "noise")


def _ece(confidence: Tensor, right: Tensor, batch: Tensor) -> tuple[float, float, float]:
    """Expected calibration error, its standard error, and its mean if the network is calibrated.

    The error is the sum over equal bins of |a|, a the sum of right - confidence in the bin over the
    number N of queries. Where no a is near 0 their signs are known and the error is a mean over
    queries. In a calibrated network a is normal about 0, and |a| sqrt(2 / pi) of its deviation.

    Args:
        confidence: Probability of the most probable class, `[N]`.
        right: 1 where it was right, `[N]`.
        batch: What the queries belong to within which they are dependent, `[N]`.
    """
    index = (confidence * ECE_BINS).long().clamp_max(ECE_BINS - 1)
    apart = right - confidence
    sums = confidence.new_zeros(ECE_BINS).index_add_(0, index, apart)
    signed = sums.sign()[index] * apart
    deviations = [_error(torch.where(index == k, apart, 0.0), batch) for k in index.unique()]
    expected = math.sqrt(2 / math.pi) * sum(deviations)
    return float(signed.mean()), _error(signed, batch), expected


def _row(values: Tensor, context: Tensor, batch: Tensor, task: Tensor) -> CertificateRow:
    nll, gap, _, *rest = values.mean(0).tolist()
    gaps, lower = values[:, 1], values[:, 2]
    found, index = task.unique(return_inverse=True)
    tasks = len(found)
    own = gaps.new_zeros(tasks).index_add_(0, index, gaps) / index.bincount()
    worst = own.sort(descending=True).values[: max(1, tasks // 100)].mean()
    bound = _lower(gaps, lower, context, batch)
    return CertificateRow(tasks, nll, gap, _error(gaps, batch), float(worst), *bound, *rest)


def _lower(gaps: Tensor, lower: Tensor, context: Tensor, batch: Tensor) -> tuple[float, float]:
    """Lower bound of the gap and its standard error, if it was measured for some tasks only.

    The bounds of one task are close to each other, tasks are not: where both are known, their
    difference is averaged over the tasks that have it, and the upper bound over all. Only tasks
    of the same sizes are alike: without one of the sizes there is no bound.
    """
    known = ~lower.isnan()
    if not torch.equal(context[known].unique(), context.unique()):
        return math.nan, math.nan
    if not bool(gaps.isfinite().all()):
        return float(lower[known].mean()), _error(lower[known], batch[known])
    apart = (gaps - lower)[known]
    error = math.hypot(_error(gaps, batch), _error(apart, batch[known]))
    return float(gaps.mean() - apart.mean()), error


def _error(values: Tensor, batch: Tensor) -> float:
    """Standard error of a mean of values that are dependent within their batches."""
    _, group = batch.unique(return_inverse=True)
    count = int(group.max()) + 1 if len(group) else 0
    if count < 2:
        return math.nan
    sums = values.new_zeros(count).index_add_(0, group, values - values.mean())
    return float(sums.square().sum().sqrt()) / len(values) * math.sqrt(count / (count - 1))


def _means(found: list[dict[str, float]]) -> dict[str, float]:
    """Of each name over those that have it."""
    names = dict.fromkeys(name for values in found for name in values)
    known = {name: [values[name] for values in found if name in values] for name in names}
    return {name: sum(values) / len(values) for name, values in known.items()}


def _coherence(pfn: PFN, task: Task) -> dict[str, float]:
    """Martingale, order and column scores at two queries x', x."""
    n = task.num_context
    X, y = task.X, task.y[..., 0]
    bars = pfn.bars
    assert bars is not None
    first = pfn.encode(X[:, :n], y[:, :n], categorical=task.categorical)
    z = (y[:, n:] - first.location) / first.scale
    logits, _ = pfn.decode(first, X[:, n:])
    log_q = bars.log_prob(logits, z)  # [B, 2]
    joint = []
    for a, b in ((0, 1), (1, 0)):
        told = pfn.append(first, X[:, n + a, None], y[:, n + a, None])
        other, _ = pfn.decode(told, X[:, n + b, None])
        joint.append(log_q[:, a] + bars.log_prob(other, z[:, b, None])[:, 0])
    # y' at the midpoints of 32 equally probable intervals.
    p = (torch.arange(32, device=X.device, dtype=X.dtype) + 0.5) / 32
    drawn = bars.quantile(logits[:, :1].expand(-1, 32, -1), p)  # [B, 32]
    copies = torch.arange(len(X), device=X.device).repeat_interleave(32)
    many = first.select(copies)
    new = (first.location + first.scale * drawn).reshape(-1, 1)
    told = pfn.append(many, X[copies, n, None], new)
    after, _ = pfn.decode(told, X[copies, n + 1, None])
    grid = bars.quantile(logits[:, 1:].expand(-1, 32, -1), p)  # [B, 32]
    cdf = bars.cdf(after.expand(-1, 32, -1), grid[copies])  # [B 32, 32]
    gap = (cdf.unflatten(0, (len(X), 32)).mean(1) - p).abs().amax(-1)
    scores = {
        "martingale": float(gap.mean()),
        "order": float((joint[0] - joint[1]).abs().mean()),
    }
    if pfn.coverage.exchangeable and X.shape[-1] > 1:
        kinds = None if task.categorical is None else task.categorical.flip(-1)
        turned = pfn.encode(X[:, :n].flip(-1), y[:, :n], categorical=kinds)
        other, _ = pfn.decode(turned, X[:, n:].flip(-1))
        scores["columns"] = float((bars.log_prob(other, z) - log_q).abs().mean())
    return scores
