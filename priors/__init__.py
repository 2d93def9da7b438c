"""What we believe before data: infinite-width kernels, priors over functions, task priors."""

from priors.acquisition import ExpectedImprovement, GaussianApproximation, LogExpectedImprovement
from priors.kernels import NNGPKernel, NTKKernel
from priors.network import InfiniteNetwork, NetworkPrior
from priors.posterior import GaussianPosterior, PredictivePosterior, TransformedPosterior, score
from priors.program import UnsupportedOperationError

__all__ = [
    "ExpectedImprovement",
    "GaussianApproximation",
    "GaussianPosterior",
    "InfiniteNetwork",
    "LogExpectedImprovement",
    "NNGPKernel",
    "NTKKernel",
    "NetworkPrior",
    "PredictivePosterior",
    "TransformedPosterior",
    "UnsupportedOperationError",
    "score",
]
