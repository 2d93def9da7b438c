"""What we believe before data: infinite-width kernels, priors over functions, task priors."""

from priors.diagnostics.generalisation import learning_curve, plot_learning_curve, predicted_risk
from priors.diagnostics.plots import plot_prior, prior_summary
from priors.functions import FunctionPrior, GaussianProcessPrior, ScaleMixturePrior
from priors.gaussian.quasi_monte_carlo import QuasiMonteCarlo
from priors.kernels.empirical import (
    EmpiricalNTKKernel,
    empirical_ntk,
    linearize,
    monte_carlo_kernels,
)
from priors.kernels.network import NNGPKernel, NTKKernel
from priors.kernels.random_features import RandomFeatureKernel, random_features
from priors.kernels.universal_features import UniversalFeatures
from priors.limits.batch import batch_kernel
from priors.networks.infinite_depth import InfiniteDepthClassifier, classify_activation
from priors.networks.network import InfiniteNetwork, NetworkPrior
from priors.posteriors.acquisition import (
    ExpectedImprovement,
    GaussianApproximation,
    LogExpectedImprovement,
    LogProbabilityOfImprovement,
    ProbabilityOfImprovement,
    UpperConfidenceBound,
)
from priors.posteriors.linear_pool import MixturePosterior
from priors.posteriors.posterior import (
    GaussianPosterior,
    PredictivePosterior,
    TransformedPosterior,
    score,
)
from priors.posteriors.transforms import TailCompression
from priors.programs.program import UnsupportedOperationError
from priors.programs.tracer import Nonlinearity
from priors.tasks.annealing import AnnealedSampler
from priors.tasks.base import LatentTaskPrior, TaskSize
from priors.tasks.gaussian_processes import RandomKernelTaskPrior
from priors.tasks.mixture import ClassificationTaskPrior, MixtureTaskPrior
from priors.tasks.networks import NetworkTaskPrior
from priors.tasks.observation import RandomInputs, RandomNoise
from priors.tasks.optimisation import OptimizationTaskPrior
from priors.tasks.plots import plot_tasks
from priors.tasks.tables import Tabular
from priors.tasks.tabular_functions import CausalTaskPrior, LinearTaskPrior, TreeTaskPrior
from priors.tasks.task import FunctionTaskPrior, Task, TaskPrior
from priors.tasks.training_curves import LearningCurveTaskPrior, log_time

__all__ = [
    "AnnealedSampler",
    "CausalTaskPrior",
    "ClassificationTaskPrior",
    "EmpiricalNTKKernel",
    "ExpectedImprovement",
    "FunctionPrior",
    "FunctionTaskPrior",
    "GaussianApproximation",
    "GaussianPosterior",
    "GaussianProcessPrior",
    "InfiniteDepthClassifier",
    "InfiniteNetwork",
    "LatentTaskPrior",
    "LearningCurveTaskPrior",
    "LinearTaskPrior",
    "LogExpectedImprovement",
    "LogProbabilityOfImprovement",
    "MixturePosterior",
    "MixtureTaskPrior",
    "NNGPKernel",
    "NTKKernel",
    "NetworkPrior",
    "NetworkTaskPrior",
    "Nonlinearity",
    "OptimizationTaskPrior",
    "PredictivePosterior",
    "ProbabilityOfImprovement",
    "QuasiMonteCarlo",
    "RandomFeatureKernel",
    "RandomInputs",
    "RandomKernelTaskPrior",
    "RandomNoise",
    "ScaleMixturePrior",
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
    "batch_kernel",
    "classify_activation",
    "empirical_ntk",
    "learning_curve",
    "linearize",
    "log_time",
    "monte_carlo_kernels",
    "plot_learning_curve",
    "plot_prior",
    "plot_tasks",
    "predicted_risk",
    "prior_summary",
    "random_features",
    "score",
]
