"""The contract of task priors: ours, and one that a user writes."""

import torch

from priors import (
    CausalTaskPrior,
    ClassificationTaskPrior,
    LearningCurveSize,
    LearningCurveTaskPrior,
    LinearTaskPrior,
    NetworkTaskPrior,
    OptimizationSize,
    OptimizationTaskPrior,
    RandomKernelTaskPrior,
    RandomNoise,
    StrokeTaskPrior,
    Tabular,
    Task,
    TaskSize,
    TreeTaskPrior,
)
from priors.testing import TaskPriorContract

SMALL = TaskSize(max_features=5, max_context=24, num_queries=8)


class TestKernels(TaskPriorContract):
    def make_task_prior(self):
        return RandomKernelTaskPrior(size=SMALL)


class TestSharedKernels(TaskPriorContract):
    def make_task_prior(self):
        return RandomKernelTaskPrior(size=SMALL, functions=4)


class TestNetworks(TaskPriorContract):
    def make_task_prior(self):
        return NetworkTaskPrior(size=SMALL, noise=RandomNoise(heteroscedastic=0.5))


class TestLinear(TaskPriorContract):
    def make_task_prior(self):
        return LinearTaskPrior(size=SMALL)


class TestTrees(TaskPriorContract):
    def make_task_prior(self):
        return TreeTaskPrior(size=SMALL)


class TestCauses(TaskPriorContract):
    def make_task_prior(self):
        return CausalTaskPrior(size=SMALL)


class TestTables(TaskPriorContract):
    def make_task_prior(self):
        return Tabular(TreeTaskPrior(size=SMALL), max_features=6)


class TestClasses(TaskPriorContract):
    def make_task_prior(self):
        return ClassificationTaskPrior(LinearTaskPrior(size=SMALL))


class TestLearningCurves(TaskPriorContract):
    def make_task_prior(self):
        return LearningCurveTaskPrior(size=LearningCurveSize(max_context=30, num_queries=8))

    def test_noise_is_as_large_as_it_says(self):
        """It is of the beta family, whose square is not that of its variance in every task."""
        task = self.draw(0)
        assert (task.noise_var >= 0).all()


class TestOptimisation(TaskPriorContract):
    def make_task_prior(self):
        return OptimizationTaskPrior(
            size=OptimizationSize(max_context=20, num_queries=8), output_warping=0.0
        )


class TestStrokes(TaskPriorContract):
    def make_task_prior(self):
        return StrokeTaskPrior(max_shots=3, queries=1)


class Sines:
    """As a user writes one."""

    description = "sines of random frequency and phase"

    def sample(self, batch, *, generator=None, device=None, dtype=None):
        options = {"generator": generator, "device": device, "dtype": dtype}
        X = torch.rand(batch, 20, 1, **options)
        frequency, phase = (10 * torch.rand(batch, 1, 1, **options) for _ in range(2))
        f = torch.sin(frequency * X + phase)
        y = f + 0.1 * torch.randn(batch, 20, 1, **options)
        return Task(X, y, f, torch.full((batch,), 0.01, device=device, dtype=dtype), 12)


class TestOfAUser(TaskPriorContract):
    def make_task_prior(self):
        return Sines()
