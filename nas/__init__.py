"""Deciding what to try next: Bayesian search over architectures and hyperparameters.

A space of architectures, a surrogate over graphs and hyperparameters together, BoTorch's
acquisition functions, and Optuna for everything around a study.
"""

from nas import spaces
from nas.architecture import Architecture, Node
from nas.drawing import plot_architecture
from nas.evaluation import SearchError
from nas.operations import register_operation
from nas.report import Section, write_report
from nas.sampler import BayesianSampler
from nas.search import search
from nas.storage import StorageError
from nas.trials import architecture_of, enqueue, suggest
from priors.version import __version__

__all__ = [
    "Architecture",
    "BayesianSampler",
    "Node",
    "SearchError",
    "Section",
    "StorageError",
    "__version__",
    "architecture_of",
    "enqueue",
    "plot_architecture",
    "register_operation",
    "search",
    "spaces",
    "suggest",
    "write_report",
]
