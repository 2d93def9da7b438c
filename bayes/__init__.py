"""What we believe after data: engines that condition a prior on observations."""

from bayes.bayesian_network import BayesianNetwork
from bayes.diagnostics import (
    Calibration,
    Comparison,
    calibration,
    compare,
    plot_posterior,
    plot_predictions,
)
from bayes.functional_prior import MatchQuality, match_functional_prior, match_quality
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
from bayes.inference.draws import isolated
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
    "EmpiricalPosterior",
    "GaussianMixturePosterior",
    "GaussianProcess",
    "LangevinEnsemble",
    "LogDensity",
    "MatchQuality",
    "MeanField",
    "Rows",
    "SaasPrior",
    "StudentTPosterior",
    "StudentTProcess",
    "__version__",
    "calibration",
    "compare",
    "isolated",
    "match_functional_prior",
    "match_quality",
    "plot_posterior",
    "plot_predictions",
]
