"""The priors and configurations that the shipped networks were trained with.

    python -m pfn train NAME --hours 2 [--out FILE] [--resume] [--initial NAME]

A recipe has the prior, the configuration and the settings of the certificate. All priors are mixed
and random in size: the number of features, of context rows, the noise and the kind of function.
For training on a GPU, Gaussian processes are drawn in single precision, several to a kernel; what
certificates are drawn from stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from pfn.architecture import ArchitectureConfig
from pfn.certificate import Certificate
from pfn.certification import certify
from pfn.prior_fitted_network import PFN
from pfn.references import LowerReference, Reference
from pfn.training import TrainingConfig
from priors import (
    CausalTaskPrior,
    ClassificationTaskPrior,
    LearningCurveSize,
    LearningCurveTaskPrior,
    LinearTaskPrior,
    MixtureTaskPrior,
    NetworkTaskPrior,
    OptimizationSize,
    OptimizationTaskPrior,
    RandomKernelTaskPrior,
    RandomNoise,
    Tabular,
    TaskSize,
    TreeTaskPrior,
)
from priors.tasks.task import TaskPrior

__all__ = ["RECIPES", "Recipe"]

_STEPS = 10**7  # the time limit ends the training


@dataclass(frozen=True)
class Recipe:
    """How a network is made.

    Attributes:
        prior: Its tasks.
        config: Its training, but for the time.
        certified: Other arguments of `certify`.
        certified_prior: What the certificate's tasks are drawn from, if not from `prior`; or
            from which prior for every number of context rows.
        reference: The reference of the certificate, if there is one; see `certify`.
        reference_is: What the reference is.
        lower_reference: What gives the certificate a lower bound, if anything does.
        low_noise_prior: What the certificate's tasks of low noise are drawn from, if not from
            `certified_prior`.
        score_prior: What users' data sets are compared with, if not with `certified_prior`.
        held_out_prior: Where a training's held-out tasks come from, if not from `prior`.
    """

    prior: TaskPrior
    config: TrainingConfig
    certified: dict[str, Any] = field(default_factory=dict)
    certified_prior: TaskPrior | Callable[[int], TaskPrior] | None = None
    reference: Reference | Literal["own"] | None = None
    reference_is: str = "exact"
    lower_reference: LowerReference | None = None
    low_noise_prior: TaskPrior | None = None
    score_prior: TaskPrior | Callable[[int], TaskPrior] | None = None
    held_out_prior: TaskPrior | None = None

    def certificate(self, pfn: PFN, *, progress: bool = True, **changes: Any) -> Certificate:
        """Measure a network against this recipe's prior; `changes` are arguments of `certify`."""
        prior = self.prior if self.certified_prior is None else self.certified_prior
        options = {
            "reference": self.reference,
            "reference_is": self.reference_is,
            "lower_reference": self.lower_reference,
            "low_noise_prior": self.low_noise_prior,
            "score_prior": self.score_prior,
            "seed": 1,
            **self.certified,
            **changes,
        }
        return certify(pfn, prior, progress=progress, **options)


def _regression(gpu: bool = False) -> Recipe:
    # Users' data with less noise than 1e-4 are common. What the network is measured on stays as it
    # was, so that its versions can be compared.
    little = {"low": 1e-5}

    def priors(size: TaskSize, least: dict[str, float], **fast: Any) -> TaskPrior:
        plain = RandomNoise(**least)
        noise = RandomNoise(heteroscedastic=0.2, outliers=0.1, **least)
        return _mixture(
            [
                (0.3, RandomKernelTaskPrior(size=size, noise=plain, **fast)),
                (0.1, Tabular(RandomKernelTaskPrior(size=size, noise=noise, **fast))),
                (0.1, Tabular(NetworkTaskPrior(size=size, noise=noise))),
                (0.2, Tabular(CausalTaskPrior(size=size))),
                (0.2, Tabular(TreeTaskPrior(size=size, noise=noise))),
                (0.1, Tabular(LinearTaskPrior(size=size, noise=noise))),
            ]
        )

    longest = TaskSize(num_context=512, num_queries=16)
    certified = RandomKernelTaskPrior(size=longest, noise=RandomNoise())
    return Recipe(
        prior=priors(TaskSize(), little, **_fast(gpu)),
        held_out_prior=priors(TaskSize(), {}),
        config=TrainingConfig(
            # Width costs a GPU nothing at this size, and narrow posteriors need bars.
            architecture=_slots(
                max_features=20,
                bars=1600,
                embedding=192,
                heads=8,
                hidden=384,
                layers=8,
                experts=3,
            ),
            inputs="standardised",
            targets="standardised",
            steps=_STEPS,
            batch=8,
            evaluate_every=2_000,
        ),
        certified={"context_sizes": (0, 5, 20, 80, 256, 512), "num_tasks": 480},
        certified_prior=certified,
        reference=certified.oracle,
        reference_is="upper bound",
        # A decomposition for each of some 20,000 proposals takes too long with more rows.
        lower_reference=lambda task: certified.annealed(task) if task.num_context <= 80 else None,
        low_noise_prior=RandomKernelTaskPrior(
            size=longest, noise=RandomNoise(low=1e-6, moderate=0.0)
        ),
        score_prior=priors(longest, {}),
    )


def _classification(gpu: bool = False) -> Recipe:
    noise = RandomNoise()

    def priors(size: TaskSize, **fast: Any) -> TaskPrior:
        parts = [
            (0.25, RandomKernelTaskPrior(size, noise=noise, **fast)),
            (0.25, NetworkTaskPrior(size, noise=noise)),
            (0.2, CausalTaskPrior(size)),
            (0.2, TreeTaskPrior(size, noise=noise)),
            (0.1, LinearTaskPrior(size, noise=noise)),
        ]
        return _mixture(
            [(weight, Tabular(ClassificationTaskPrior(prior))) for weight, prior in parts]
        )

    return Recipe(
        prior=priors(TaskSize(), **_fast(gpu)),
        config=TrainingConfig(
            architecture=_slots(max_features=20, classes=10),
            inputs="standardised",
            targets="raw",
            steps=_STEPS,
            batch=8,
            evaluate_every=2_000,
        ),
        certified={"context_sizes": (0, 5, 20, 80, 256, 512), "num_tasks": 480},
        certified_prior=priors(TaskSize(num_context=512, num_queries=16)),
        reference=ClassificationTaskPrior.oracle,
        reference_is="upper bound",
    )


def _learning_curve(gpu: bool = False) -> Recipe:
    prior = LearningCurveTaskPrior()
    return Recipe(
        prior=prior,
        config=TrainingConfig(
            # Curves without noise pass through their points: experts find that, attention hardly.
            architecture=_slots(max_features=5, bars=320, experts=3),
            inputs="raw",
            targets="raw",
            steps=_STEPS,
            batch=16,
            evaluate_every=2_000,
        ),
        certified={"context_sizes": (0, 5, 20, 80, 256), "num_tasks": 480},
        certified_prior=lambda n: LearningCurveTaskPrior(size=LearningCurveSize(num_context=n)),
        reference=prior.oracle,
        reference_is="upper bound",
    )


def _bo(gpu: bool = False) -> Recipe:
    gaussian = OptimizationTaskPrior(output_warping=0.0)
    return Recipe(
        prior=OptimizationTaskPrior(),
        config=TrainingConfig(
            # With 128 noise-free observations posteriors have deviations of 0.001: 400 bars would
            # cost 0.1 nats there, these cost 0.003.
            architecture=_slots(
                max_features=10,
                bars=1600,
                embedding=144,
                heads=6,
                hidden=288,
                layers=8,
                experts=3,
            ),
            inputs="raw",
            targets="standardised",
            steps=_STEPS,
            batch=16,
            evaluate_every=2_000,
        ),
        certified={"context_sizes": (0, 5, 10, 20, 50, 128), "num_tasks": 480},
        certified_prior=lambda n: OptimizationTaskPrior(
            size=OptimizationSize(num_context=n), output_warping=0.0
        ),
        reference=gaussian.oracle,
        reference_is="upper bound",
        lower_reference=lambda task: gaussian.annealed(task) if task.num_context <= 50 else None,
        score_prior=lambda n: OptimizationTaskPrior(size=OptimizationSize(num_context=n)),
    )


def _mixture(priors: list[tuple[float, TaskPrior]]) -> TaskPrior:
    weights, parts = zip(*priors, strict=True)
    return MixtureTaskPrior(parts, weights)


def _fast(gpu: bool) -> dict[str, Any]:
    """How `RandomKernelTaskPrior` draws where a decomposition costs more than the network's step.

    Not so the runs of `bo`: every round depends on the one before, and noise of 1e-6 needs double
    precision.
    """
    return {"functions": 4, "precision": "single"} if gpu else {}


# Networks of cells learn more slowly: see "How a row is read" in docs/pages/results.md.
def _slots(**changes: Any) -> ArchitectureConfig:
    sizes = {"embedding": 96, "layers": 6, "heads": 4, "hidden": 192}
    return ArchitectureConfig(**{**sizes, **changes})


# From whether the training is on a GPU to the recipe.
RECIPES: dict[str, Callable[..., Recipe]] = {
    "regression": _regression,
    "classification": _classification,
    "learning-curve": _learning_curve,
    "bo": _bo,
}
