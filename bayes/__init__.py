"""What we believe after data: engines that condition a prior on observations.

`Regressor` and `Classifier` need scikit-learn, an extra, and are loaded when they are asked for.
"""

from typing import TYPE_CHECKING

from bayes.deep_kernel_machine.deep_kernel_machine import DeepKernelMachine
from bayes.diagnostics import (
    Calibration,
    Comparison,
    ConvergenceReport,
    Reliability,
    calibration,
    compare,
    plot_posterior,
    plot_predictions,
    report,
)
from bayes.functional_prior import (
    MatchQuality,
    MatchReport,
    match_functional_prior,
    match_quality,
    match_report,
)
from bayes.gradient_descent.gradient_descent_ensemble import GradientDescentEnsemble
from bayes.inference import (
    HMC,
    MCLMC,
    NUTS,
    SGHMC,
    ChEES,
    DeepEnsemble,
    LangevinEnsemble,
    Laplace,
    LogDensity,
    LowRank,
    MeanField,
    Rows,
)
from bayes.inference.draws import isolated
from bayes.large_n.choosing import gaussian_process_for
from bayes.large_n.weight_space_process import WeightSpaceProcess
from bayes.likelihoods import (
    Categorical,
    Gaussian,
    Heteroscedastic,
    HeteroscedasticStudentT,
    Likelihood,
    Ordinal,
    Poisson,
    StudentT,
)
from bayes.networks.bayesian_network import BayesianNetwork
from bayes.networks.reweighted import ReweightedNetwork
from bayes.networks.weight_priors import WeightPrior, student_t_weights
from bayes.processes.gaussian_process import GaussianProcess
from bayes.processes.heteroscedastic_process import HeteroscedasticGaussianProcess
from bayes.processes.saas import SaasPrior
from bayes.processes.scale_mixture import ScaleMixturePosterior
from bayes.processes.scale_mixture_process import ScaleMixtureProcess
from bayes.processes.student_t import StudentTPosterior
from bayes.processes.student_t_process import StudentTProcess
from bayes.stacking import StackedModel, stack
from bayes.variational.classifiers import GaussianProcessClassifier, ScaleMixtureClassifier
from bayes.variational.variational_gaussian_process import VariationalGaussianProcess
from priors.lazy import lazy_names
from priors.posteriors.draws import EmpiricalPosterior
from priors.posteriors.gaussian_mixture import GaussianMixturePosterior
from priors.version import __version__

if TYPE_CHECKING:
    from bayes.estimators import Classifier, Regressor

__all__ = [
    "HMC",
    "MCLMC",
    "NUTS",
    "SGHMC",
    "BayesianNetwork",
    "Calibration",
    "Categorical",
    "ChEES",
    "Classifier",
    "Comparison",
    "ConvergenceReport",
    "DeepEnsemble",
    "DeepKernelMachine",
    "EmpiricalPosterior",
    "Gaussian",
    "GaussianMixturePosterior",
    "GaussianProcess",
    "GaussianProcessClassifier",
    "GradientDescentEnsemble",
    "Heteroscedastic",
    "HeteroscedasticGaussianProcess",
    "HeteroscedasticStudentT",
    "LangevinEnsemble",
    "Laplace",
    "Likelihood",
    "LogDensity",
    "LowRank",
    "MatchQuality",
    "MatchReport",
    "MeanField",
    "Ordinal",
    "Poisson",
    "Regressor",
    "Reliability",
    "ReweightedNetwork",
    "Rows",
    "SaasPrior",
    "ScaleMixtureClassifier",
    "ScaleMixturePosterior",
    "ScaleMixtureProcess",
    "StackedModel",
    "StudentT",
    "StudentTPosterior",
    "StudentTProcess",
    "VariationalGaussianProcess",
    "WeightPrior",
    "WeightSpaceProcess",
    "__version__",
    "calibration",
    "compare",
    "gaussian_process_for",
    "isolated",
    "match_functional_prior",
    "match_quality",
    "match_report",
    "plot_posterior",
    "plot_predictions",
    "report",
    "stack",
    "student_t_weights",
]

if not TYPE_CHECKING:  # a type checker would take every name for known
    __getattr__, __dir__ = lazy_names(__name__, {"estimators": ("Classifier", "Regressor")})
