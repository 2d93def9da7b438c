"""What a training came to: the distance to the exact posterior, where the prior knows that.

Many priors know only an upper bound, the posterior of one who is also told each task's
hyperparameters: its loss O is at most the exact posterior's, E, and its entropy H' before any
context at most that of the prior, H. A network of loss L is then at most L - O from the exact
posterior, and misses (L - E) / (H - E) <= (L - O) / (H' - O) of what the contexts tell.

Where the prior knows nothing of the kind, the network is compared with what anybody knows: the
predictive of rows that are normal with unknown mean and deviation, a Student t about the mean of
the context (Gelman et al. 2013, Bayesian Data Analysis, section 3.2), which sees no inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from pfn.prior_fitted_network import PFN
from pfn.references import LowerReference, own_reference
from pfn.training.config import TrainingConfig
from pfn.training.tasks import fixed_tasks
from priors.tasks.task import Task, TaskPrior

__all__ = ["Gain", "Outcome", "measure_outcome"]

_TASKS, _BATCH = 64, 4
_FEWEST = 3  # rows of which a deviation is taken
_MISSED = 0.25  # of what the context tells; an untrained network may learn half from its units


@dataclass(frozen=True)
class Outcome:
    """Means over some tasks of the prior, each with its own number of context rows.

    Attributes:
        gap: Nats per query from the reference.
        gap_error: Standard error.
        told: Nats per query that the contexts tell the reference.
        rows: Context rows.
        exact: Whether the reference is the exact posterior, rather than one that knows more.
    """

    gap: float
    gap_error: float
    told: float
    rows: float
    exact: bool = True

    @property
    def doubtful(self) -> bool:
        """Whether the network misses more than a quarter of what the contexts tell, or may."""
        return self.gap > _MISSED * self.told

    def sentence(self, seconds: float) -> str:
        """For the user, after so many seconds of training."""
        distance = f"{self.gap:.2g} ± {self.gap_error:.1g} nats per query"
        rows = f"with {self.rows:.0f} context rows on average, which tell {self.told:.2g} nats"
        if self.exact:
            text = f"after {seconds:.0f} s: {distance} from the exact posterior, {rows}."
            verdict = "The network misses more than a quarter of that: it is of little use yet."
        else:
            text = (
                f"after {seconds:.0f} s: at most {distance} from the exact posterior, {rows}, both "
                "to one who is also told each task's hyperparameters."
            )
            verdict = (
                "Whether the network misses more than a quarter of what contexts tell cannot be "
                "seen from that: it may be of little use yet."
            )
        if self.doubtful:
            text += (
                f" {verdict} Train for longer (start from it by `initial`), on a GPU, or on a "
                "narrower prior: fewer inputs and rows, fixed hyperparameters, more noise."
            )
        return text


@dataclass(frozen=True)
class Gain:
    """The same where the exact posterior is not known.

    Attributes:
        gain: Nats per query by which the network is better than mean and deviation of the context.
        gain_error: Standard error.
        rows: Context rows.
    """

    gain: float
    gain_error: float
    rows: float

    @property
    def doubtful(self) -> bool:
        """Whether the inputs may tell the network nothing."""
        return self.gain < 2 * self.gain_error

    def sentence(self, seconds: float) -> str:
        """For the user, after so many seconds of training."""
        text = (
            f"after {seconds:.0f} s: {self.gain:.2g} ± {self.gain_error:.1g} nats per query better "
            f"than mean and deviation of {self.rows:.0f} context rows on average; the prior has no "
            "exact posterior to compare with."
        )
        if self.doubtful:
            text += (
                " The network may not use its inputs yet: train for longer (start from it by "
                "`initial`), on a GPU, or on a narrower prior."
            )
        return text


def measure_outcome(
    pfn: PFN,
    task_prior: TaskPrior,
    config: TrainingConfig,
    device: torch.device,
    reference: LowerReference | None = None,
) -> Outcome | Gain | None:
    """Measure a network on tasks that no step has seen.

    Args:
        pfn: The network.
        task_prior: Where tasks come from.
        config: Of the training.
        device: The network's.
        reference: From a task to the exact posterior; the prior's `oracle` if None.

    Returns:
        A gain where there is neither; None for classes, and where the tasks do not serve.
    """
    kind = "exact"
    if reference is None:
        reference, kind = own_reference(task_prior)
    if pfn.bars is None:
        return None
    generator = torch.Generator().manual_seed(config.seed + 2**34)
    config = replace(config, held_out_batch=_BATCH)
    tasks = fixed_tasks(task_prior, config, generator, _TASKS)
    if reference is None:
        return _gain(pfn, tasks, device)
    gaps, told, rows = [], [], []
    for task in tasks:
        n = task.num_context
        if task.points is not None or n == 0 or n == task.X.shape[1]:
            continue
        known, nothing = reference(task), reference(replace(task, num_context=0))
        if known is None or nothing is None:
            continue
        y = task.y[:, n:].double()
        exact = -known.log_prob(y).mean()
        before = -nothing.log_prob(task.y.double())[:, n:].mean()
        gaps.append(_nll(pfn, task.to(device)) - float(exact))
        told.append(float(before - exact))
        rows.append(float(n))
    if len(gaps) < 2:
        return None
    values = torch.tensor([gaps, told, rows], dtype=torch.float64)
    gap, tells, number = values.mean(1).tolist()
    error = float(values[0].std()) / math.sqrt(len(gaps))
    return Outcome(gap, error, tells, number, exact=kind == "exact")


def _gain(pfn: PFN, tasks: Iterable[Task], device: torch.device) -> Gain | None:
    gains, rows = [], []
    for task in tasks:
        n = task.num_context
        if task.points is not None or n < _FEWEST or n == task.X.shape[1]:
            continue
        seen, y = task.y[:, :n].double(), task.y[:, n:].double()
        spread = seen.std(1, keepdim=True) * math.sqrt(1 + 1 / n)
        if not bool((spread > 0).all()):
            continue
        t = torch.distributions.StudentT(n - 1.0, seen.mean(1, keepdim=True), spread)
        gains.append(float(-t.log_prob(y).mean()) - _nll(pfn, task.to(device)))
        rows.append(float(n))
    if len(gains) < 2:
        return None
    values = torch.tensor([gains, rows], dtype=torch.float64)
    gain, number = values.mean(1).tolist()
    return Gain(gain, float(values[0].std()) / math.sqrt(len(gains)), number)


def _nll(pfn: PFN, task: Task) -> float:
    """Mean negative log density of the queries, in units of y."""
    n, bars = task.num_context, pfn.bars
    assert bars is not None
    with torch.no_grad():
        encoding = pfn.encode(task.X[:, :n], task.y[:, :n, 0], categorical=task.categorical)
        logits = pfn.decode_one(encoding, task.X[:, n:], noisy=True)
        z = (task.y[:, n:, 0] - encoding.location) / encoding.scale
        return float((encoding.scale.log() - bars.log_prob(logits, z)).mean())
