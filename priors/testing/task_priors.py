"""What every prior over tasks must satisfy, so that networks can be trained on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from priors.tasks.task import Task, TaskPrior, describe
from priors.testing.dtypes import both_dtypes

__all__ = ["TaskPriorContract"]


class TaskPriorContract(ABC):
    """Shapes, randomness, noise; and where the prior has an oracle, that it is calibrated.

    Attributes:
        batch: Tasks of a call.
        calls: Calls whose tasks are averaged over in statistical tests.
    """

    batch = 16
    calls = 12

    @abstractmethod
    def make_task_prior(self) -> TaskPrior:
        """The prior, the same at every call."""

    def draw(self, seed: int, dtype: torch.dtype = torch.float64) -> Task:
        """Tasks from a seed."""
        generator = torch.Generator().manual_seed(seed)
        return self.make_task_prior().sample(self.batch, generator=generator, dtype=dtype)

    @both_dtypes
    def test_shapes_and_dtypes(self, dtype: torch.dtype) -> None:
        """As `Task` documents them, at every size that is drawn."""
        assert isinstance(self.make_task_prior(), TaskPrior)
        for seed in range(self.calls):
            task = self.draw(seed, dtype)
            B, N, d = task.X.shape
            assert B == self.batch
            assert d >= 1
            assert 0 <= task.num_context < N
            assert task.y.shape == (B, N, 1)
            assert task.f is None or task.f.shape == (B, N, 1)
            assert task.noise_var.shape in ((B,), (B, N))
            assert task.X.dtype == task.y.dtype == dtype
            assert not task.X.isinf().any()
            shown = task.y if task.points is None else task.y[task.points]
            assert shown.isfinite().all()
            for mask, shape in (
                (task.points, (B, N)),
                (task.features, (B, d)),
                (task.categorical, (B, d)),
            ):
                assert mask is None or (mask.shape == shape and mask.dtype == torch.bool)
            assert all(len(value) == B for value in task.latents.values())
            assert all(value.shape[:2] == (B, N) for value in task.row_latents.values())
            if task.num_classes is not None:
                assert task.num_classes.shape == (B,)
                assert (task.y == task.y.round()).all()
                assert ((task.y >= 0) & (task.y < task.num_classes[:, None, None])).all()

    def test_a_generator_determines_the_tasks(self) -> None:
        """Whatever was drawn before, and without touching the global random state."""
        before = torch.random.get_rng_state()
        first, again, other = self.draw(0), self.draw(0), self.draw(1)
        assert torch.equal(before, torch.random.get_rng_state())
        assert torch.equal(first.X.nan_to_num(), again.X.nan_to_num())
        assert torch.equal(first.y, again.y)
        assert first.y.shape != other.y.shape or not torch.equal(first.y, other.y)

    def test_tasks_of_a_batch_differ(self) -> None:
        """No two have the same targets."""
        y = self.draw(0).y[..., 0]
        same = (y[:, None] == y[None]).all(-1)
        assert same.sum() == len(y)

    def test_noise_is_as_large_as_it_says(self) -> None:
        """(y - f)^2 over the noise variance has mean 1, where there is Gaussian noise."""
        squares = []
        for seed in range(self.calls):
            task = self.draw(seed)
            if task.f is None:
                continue
            noise = task.row_noise_var
            usable = noise.isfinite() & (noise > 0)
            ratio = ((task.y - task.f)[..., 0] ** 2 / noise)[usable]
            squares.append(ratio)
        drawn = torch.cat(squares) if squares else torch.empty(0)
        if len(drawn) > 1:
            # Rows of one task share its noise level only, not the noise.
            assert abs(drawn.mean() - 1) < 5 * drawn.std() / len(drawn) ** 0.5

    def test_description_is_one_line(self) -> None:
        """It is stored with every network."""
        text = describe(self.make_task_prior())
        assert text
        assert "\n" not in text

    def test_the_oracle_is_calibrated(self) -> None:
        """Where there is one that knows a distribution function, that of y is uniform."""
        prior: Any = self.make_task_prior()
        if not hasattr(prior, "oracle"):
            return
        ranks = []
        for seed in range(self.calls):
            task = self.draw(seed)
            try:
                u = _ranks(prior.oracle(task), task.y[:, task.num_context :])
            except (NotImplementedError, ValueError):  # of classes, or not of these tasks
                continue
            ranks.append(u.mean(1))  # queries of a task depend on each other
        if ranks:
            u = torch.cat(ranks)
            assert abs(u.mean() - 0.5) < 5 * u.std() / len(u) ** 0.5


def _ranks(distribution: Any, y: Tensor) -> Tensor:
    """Of y under a posterior or a distribution of torch, `[B, m]`."""
    if hasattr(distribution, "concentration1"):  # torch has no distribution function of a beta
        raise NotImplementedError
    return distribution.cdf(y)[..., 0]
