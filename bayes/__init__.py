"""What we believe after data: engines that condition a prior on observations."""

from bayes.bayesian_network import BayesianNetwork
from bayes.convergence_report import ConvergenceReport, report
from bayes.diagnostics import (
    Calibration,
    Comparison,
    calibration,
    compare,
    plot_posterior,
    plot_predictions,
)
from bayes.functional_prior import (
    MatchQuality,
    MatchReport,
    match_functional_prior,
    match_quality,
    match_report,
)
from bayes.gaussian_process import GaussianProcess
from bayes.inference import (
    HMC,
    MCLMC,
    NUTS,
    SGHMC,
    ChEES,
    LangevinEnsemble,
    LogDensity,
    MeanField,
    Rows,
)
from bayes.saas import SaasPrior
from bayes.scale_mixture import StudentTProcess
from bayes.student_t import StudentTPosterior
from priors.posteriors.draws import EmpiricalPosterior
from priors.posteriors.gaussian_mixture import GaussianMixturePosterior
from priors.version import __version__

__all__ = [
    "HMC",
    "MCLMC",
    "NUTS",
    "SGHMC",
    "BayesianNetwork",
    "Calibration",
    "ChEES",
    "Comparison",
    "ConvergenceReport",
    "EmpiricalPosterior",
    "GaussianMixturePosterior",
    "GaussianProcess",
    "LangevinEnsemble",
    "LogDensity",
    "MatchQuality",
    "MatchReport",
    "MeanField",
    "Rows",
    "SaasPrior",
    "StudentTPosterior",
    "StudentTProcess",
    "__version__",
    "calibration",
    "compare",
    "match_functional_prior",
    "match_quality",
    "match_report",
    "plot_posterior",
    "plot_predictions",
    "report",
]
