"""What we believe before data: infinite-width kernels, priors over functions, task priors."""

from priors.acquisition import (
    ExpectedImprovement,
    GaussianApproximation,
    LogExpectedImprovement,
    LogProbabilityOfImprovement,
    ProbabilityOfImprovement,
    UpperConfidenceBound,
)
from priors.annealing import AnnealedSampler
from priors.batch_norm import batch_kernel
from priors.columns import Tabular
from priors.empirical import EmpiricalNTKKernel, empirical_ntk, linearize, monte_carlo_kernels
from priors.features import RandomFeatureKernel, random_features
from priors.functions import FunctionPrior, GaussianProcessPrior, ScaleMixturePrior
from priors.infinite_depth import InfiniteDepthClassifier, classify_activation
from priors.kernel_tasks import RandomKernelTaskPrior
from priors.kernels import NNGPKernel, NTKKernel
from priors.latent_tasks import LatentTaskPrior, TaskSize
from priors.learning_curve_tasks import LearningCurveTaskPrior, log_time
from priors.learning_curves import learning_curve, plot_learning_curve, predicted_risk
from priors.network import InfiniteNetwork, NetworkPrior
from priors.network_tasks import NetworkTaskPrior
from priors.observation import RandomInputs, RandomNoise
from priors.optimization_tasks import OptimizationTaskPrior
from priors.plots import plot_prior, prior_summary
from priors.pooling import MixturePosterior
from priors.posterior import GaussianPosterior, PredictivePosterior, TransformedPosterior, score
from priors.program import UnsupportedOperationError
from priors.quasi_monte_carlo import QuasiMonteCarlo
from priors.tabular_tasks import CausalTaskPrior, LinearTaskPrior, TreeTaskPrior
from priors.task_mixtures import ClassificationTaskPrior, MixtureTaskPrior
from priors.task_plots import plot_tasks
from priors.tasks import FunctionTaskPrior, Task, TaskPrior
from priors.tracing import Nonlinearity
from priors.transforms import TailCompression
from priors.universal_features import UniversalFeatures

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
