"""Deciding what to try next: Bayesian search over architectures and hyperparameters.

A space of architectures, a surrogate over graphs and hyperparameters together, BoTorch's
acquisition functions, and Optuna for everything around a study.
"""

from nas import proxies, spaces
from nas.architectures.architecture import Architecture, Node
from nas.architectures.drawing import plot_architecture
from nas.architectures.operations import register_operation
from nas.encoding.conditional import Conditional
from nas.fidelity import Fidelity
from nas.pruning import LearningCurvePruner, ParetoPruner, report_value, should_prune
from nas.sampler import BayesianSampler
from nas.studies.analysis import MotifEffect, motif_effects
from nas.studies.dashboard import annotate
from nas.studies.ensembles import Ensemble, ensemble
from nas.studies.evaluation import SearchError
from nas.studies.export import export
from nas.studies.importance import importances
from nas.studies.keeping import keep_predictions
from nas.studies.report import Section, write_report
from nas.studies.search import search
from nas.studies.storage import StorageError
from nas.trials import architecture_of, enqueue, suggest
from priors.version import __version__

__all__ = [
    "Architecture",
    "BayesianSampler",
    "Conditional",
    "Ensemble",
    "Fidelity",
    "LearningCurvePruner",
    "MotifEffect",
    "Node",
    "ParetoPruner",
    "SearchError",
    "Section",
    "StorageError",
    "__version__",
    "annotate",
    "architecture_of",
    "enqueue",
    "ensemble",
    "export",
    "importances",
    "keep_predictions",
    "motif_effects",
    "plot_architecture",
    "proxies",
    "register_operation",
    "report_value",
    "search",
    "should_prune",
    "spaces",
    "suggest",
    "write_report",
]
