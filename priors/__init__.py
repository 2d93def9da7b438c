"""What we believe before data: infinite-width kernels, priors over functions, task priors.

Names are imported when they are asked for: kernels and priors over functions load no BoTorch, which
changes settings of GPyTorch for the whole process; posteriors and acquisition functions do.
"""

from typing import TYPE_CHECKING

from priors.lazy import lazy_names
from priors.version import __version__

if TYPE_CHECKING:
    from priors.diagnostics.generalisation import (
        generalisation_curve,
        plot_generalisation_curve,
        predicted_risk,
    )
    from priors.diagnostics.monte_carlo import monte_carlo_kernels
    from priors.diagnostics.plots import plot_prior, prior_summary
    from priors.functions import FunctionPrior, GaussianProcessPrior, ScaleMixturePrior
    from priors.gaussian.activations import Activation
    from priors.gaussian.quasi_monte_carlo import QuasiMonteCarlo
    from priors.kernels.empirical import EmpiricalNTKKernel, empirical_ntk
    from priors.kernels.linearisation import linearize
    from priors.kernels.network import NNGPKernel, NTKKernel
    from priors.kernels.random_features import RandomFeatureKernel, random_features
    from priors.kernels.universal_features import UniversalFeatures
    from priors.networks.batch import batch_kernel, batch_kernel_error
    from priors.networks.finite import NetworkPrior
    from priors.networks.infinite import InfiniteNetwork
    from priors.networks.infinite_depth import InfiniteDepthClassifier, classify_activation
    from priors.networks.variances import LayerVariances
    from priors.posteriors.acquisition import (
        ExpectedImprovement,
        GaussianApproximation,
        LogExpectedImprovement,
        LogProbabilityOfImprovement,
        ProbabilityOfImprovement,
        UpperConfidenceBound,
    )
    from priors.posteriors.categorical import CategoricalPosterior, ClassProbabilityPosterior
    from priors.posteriors.draws import EmpiricalPosterior
    from priors.posteriors.gaussian import GaussianPosterior, as_predictive
    from priors.posteriors.gaussian_mixture import GaussianMixturePosterior
    from priors.posteriors.linear_pool import MixturePosterior
    from priors.posteriors.missing import MissingInputs
    from priors.posteriors.poisson_mixture import PoissonMixturePosterior
    from priors.posteriors.protocol import PredictivePosterior
    from priors.posteriors.scores import score
    from priors.posteriors.stacking import stacking_weights
    from priors.posteriors.student_t_mixture import StudentTMixturePosterior
    from priors.posteriors.transformed import TransformedPosterior
    from priors.posteriors.transforms import TailCompression
    from priors.programs.registry import (
        UnsupportedOperationError,
        register_function,
        register_layer,
    )
    from priors.programs.tracer import Nonlinearity
    from priors.scales import BetaPrime, BurrXII, HalfCauchyVariance
    from priors.tasks.annealing import AnnealedSampler
    from priors.tasks.base import LatentTaskPrior
    from priors.tasks.causal import CausalTaskPrior
    from priors.tasks.classification import ClassificationTaskPrior
    from priors.tasks.function_tasks import FunctionTaskPrior
    from priors.tasks.gaussian_processes import RandomKernelTaskPrior
    from priors.tasks.inputs import RandomInputs
    from priors.tasks.linear import LinearTaskPrior
    from priors.tasks.mixture import MixtureTaskPrior
    from priors.tasks.networks import NetworkTaskPrior
    from priors.tasks.noise import RandomNoise
    from priors.tasks.optimisation import OptimizationTaskPrior
    from priors.tasks.plots import plot_tasks
    from priors.tasks.sizes import LearningCurveSize, OptimizationSize, TaskSize
    from priors.tasks.strokes import StrokeTaskPrior
    from priors.tasks.tables import Tabular
    from priors.tasks.task import Task, TaskPrior
    from priors.tasks.training_curves import LearningCurveTaskPrior, log_time
    from priors.tasks.trees import TreeTaskPrior

__all__ = [
    "Activation",
    "AnnealedSampler",
    "BetaPrime",
    "BurrXII",
    "CategoricalPosterior",
    "CausalTaskPrior",
    "ClassProbabilityPosterior",
    "ClassificationTaskPrior",
    "EmpiricalNTKKernel",
    "EmpiricalPosterior",
    "ExpectedImprovement",
    "FunctionPrior",
    "FunctionTaskPrior",
    "GaussianApproximation",
    "GaussianMixturePosterior",
    "GaussianPosterior",
    "GaussianProcessPrior",
    "HalfCauchyVariance",
    "InfiniteDepthClassifier",
    "InfiniteNetwork",
    "LatentTaskPrior",
    "LayerVariances",
    "LearningCurveSize",
    "LearningCurveTaskPrior",
    "LinearTaskPrior",
    "LogExpectedImprovement",
    "LogProbabilityOfImprovement",
    "MissingInputs",
    "MixturePosterior",
    "MixtureTaskPrior",
    "NNGPKernel",
    "NTKKernel",
    "NetworkPrior",
    "NetworkTaskPrior",
    "Nonlinearity",
    "OptimizationSize",
    "OptimizationTaskPrior",
    "PoissonMixturePosterior",
    "PredictivePosterior",
    "ProbabilityOfImprovement",
    "QuasiMonteCarlo",
    "RandomFeatureKernel",
    "RandomInputs",
    "RandomKernelTaskPrior",
    "RandomNoise",
    "ScaleMixturePrior",
    "StrokeTaskPrior",
    "StudentTMixturePosterior",
    "Tabular",
    "TailCompression",
    "Task",
    "TaskPrior",
    "TaskSize",
    "TransformedPosterior",
    "TreeTaskPrior",
    "UniversalFeatures",
    "UnsupportedOperationError",
    "UpperConfidenceBound",
    "__version__",
    "as_predictive",
    "batch_kernel",
    "batch_kernel_error",
    "classify_activation",
    "empirical_ntk",
    "generalisation_curve",
    "linearize",
    "log_time",
    "monte_carlo_kernels",
    "plot_generalisation_curve",
    "plot_prior",
    "plot_tasks",
    "predicted_risk",
    "prior_summary",
    "random_features",
    "register_function",
    "register_layer",
    "score",
    "stacking_weights",
]

_HOMES = {
    "diagnostics.generalisation": (
        "generalisation_curve",
        "plot_generalisation_curve",
        "predicted_risk",
    ),
    "diagnostics.monte_carlo": ("monte_carlo_kernels",),
    "diagnostics.plots": (
        "plot_prior",
        "prior_summary",
    ),
    "functions": (
        "FunctionPrior",
        "GaussianProcessPrior",
        "ScaleMixturePrior",
    ),
    "gaussian.activations": ("Activation",),
    "gaussian.quasi_monte_carlo": ("QuasiMonteCarlo",),
    "kernels.empirical": (
        "EmpiricalNTKKernel",
        "empirical_ntk",
    ),
    "kernels.linearisation": ("linearize",),
    "kernels.network": (
        "NNGPKernel",
        "NTKKernel",
    ),
    "kernels.random_features": (
        "RandomFeatureKernel",
        "random_features",
    ),
    "kernels.universal_features": ("UniversalFeatures",),
    "networks.batch": ("batch_kernel", "batch_kernel_error"),
    "networks.finite": ("NetworkPrior",),
    "networks.infinite": ("InfiniteNetwork",),
    "networks.infinite_depth": (
        "InfiniteDepthClassifier",
        "classify_activation",
    ),
    "networks.variances": ("LayerVariances",),
    "posteriors.acquisition": (
        "ExpectedImprovement",
        "GaussianApproximation",
        "LogExpectedImprovement",
        "LogProbabilityOfImprovement",
        "ProbabilityOfImprovement",
        "UpperConfidenceBound",
    ),
    "posteriors.categorical": ("CategoricalPosterior", "ClassProbabilityPosterior"),
    "posteriors.draws": ("EmpiricalPosterior",),
    "posteriors.gaussian": ("GaussianPosterior", "as_predictive"),
    "posteriors.gaussian_mixture": ("GaussianMixturePosterior",),
    "posteriors.linear_pool": ("MixturePosterior",),
    "posteriors.missing": ("MissingInputs",),
    "posteriors.poisson_mixture": ("PoissonMixturePosterior",),
    "posteriors.protocol": ("PredictivePosterior",),
    "posteriors.scores": ("score",),
    "posteriors.stacking": ("stacking_weights",),
    "posteriors.student_t_mixture": ("StudentTMixturePosterior",),
    "posteriors.transformed": ("TransformedPosterior",),
    "posteriors.transforms": ("TailCompression",),
    "programs.registry": (
        "UnsupportedOperationError",
        "register_function",
        "register_layer",
    ),
    "programs.tracer": ("Nonlinearity",),
    "scales": ("BetaPrime", "BurrXII", "HalfCauchyVariance"),
    "tasks.annealing": ("AnnealedSampler",),
    "tasks.base": ("LatentTaskPrior",),
    "tasks.causal": ("CausalTaskPrior",),
    "tasks.classification": ("ClassificationTaskPrior",),
    "tasks.function_tasks": ("FunctionTaskPrior",),
    "tasks.gaussian_processes": ("RandomKernelTaskPrior",),
    "tasks.inputs": ("RandomInputs",),
    "tasks.linear": ("LinearTaskPrior",),
    "tasks.mixture": ("MixtureTaskPrior",),
    "tasks.networks": ("NetworkTaskPrior",),
    "tasks.noise": ("RandomNoise",),
    "tasks.optimisation": ("OptimizationTaskPrior",),
    "tasks.plots": ("plot_tasks",),
    "tasks.sizes": (
        "LearningCurveSize",
        "OptimizationSize",
        "TaskSize",
    ),
    "tasks.strokes": ("StrokeTaskPrior",),
    "tasks.tables": ("Tabular",),
    "tasks.task": (
        "Task",
        "TaskPrior",
    ),
    "tasks.training_curves": (
        "LearningCurveTaskPrior",
        "log_time",
    ),
    "tasks.trees": ("TreeTaskPrior",),
}
if not TYPE_CHECKING:  # a type checker would take every name for known
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
