"""What we believe before data: infinite-width kernels, priors over functions, task priors."""

from priors.acquisition import ExpectedImprovement, GaussianApproximation, LogExpectedImprovement
from priors.batch_norm import batch_kernel
from priors.empirical import EmpiricalNTKKernel, empirical_ntk, linearize, monte_carlo_kernels
from priors.features import RandomFeatureKernel, random_features
from priors.functions import FunctionPrior, GaussianProcessPrior, ScaleMixturePrior
from priors.infinite_depth import InfiniteDepthClassifier, classify_activation
from priors.kernels import NNGPKernel, NTKKernel
from priors.learning_curves import learning_curve, plot_learning_curve, predicted_risk
from priors.network import InfiniteNetwork, NetworkPrior
from priors.plots import plot_prior, prior_summary
from priors.pooling import MixturePosterior
from priors.posterior import GaussianPosterior, PredictivePosterior, TransformedPosterior, score
from priors.program import UnsupportedOperationError
from priors.quasi_monte_carlo import QuasiMonteCarlo
from priors.tasks import FunctionTaskPrior, Task, TaskPrior
from priors.tracing import Nonlinearity

__all__ = [
    "EmpiricalNTKKernel",
    "ExpectedImprovement",
    "FunctionPrior",
    "FunctionTaskPrior",
    "GaussianApproximation",
    "GaussianPosterior",
    "GaussianProcessPrior",
    "InfiniteDepthClassifier",
    "InfiniteNetwork",
    "LogExpectedImprovement",
    "MixturePosterior",
    "NNGPKernel",
    "NTKKernel",
    "NetworkPrior",
    "Nonlinearity",
    "PredictivePosterior",
    "QuasiMonteCarlo",
    "RandomFeatureKernel",
    "ScaleMixturePrior",
    "Task",
    "TaskPrior",
    "TransformedPosterior",
    "UnsupportedOperationError",
    "batch_kernel",
    "classify_activation",
    "empirical_ntk",
    "learning_curve",
    "linearize",
    "monte_carlo_kernels",
    "plot_learning_curve",
    "plot_prior",
    "predicted_risk",
    "prior_summary",
    "random_features",
    "score",
]
