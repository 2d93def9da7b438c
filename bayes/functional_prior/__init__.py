"""Weight priors whose functions resemble those of a chosen prior over functions.

Tran, Rossi, Milios & Filippone 2022 (JMLR 23(74)) pose the problem: choose the variances of a
network's layers so that its functions are close, at measurement points, to those of a prior that
one understands. Three distances, one a file: second moments (`moments`), sliced Wasserstein
distances (`sliced`) and their adversarial Wasserstein distance (`wasserstein`).
"""

from bayes.functional_prior.matching import MatchingMethod, match_functional_prior
from bayes.functional_prior.measurements import TrainingBox
from bayes.functional_prior.moments import MomentMatching
from bayes.functional_prior.quality import MatchQuality, match_quality
from bayes.functional_prior.report import MatchReport, match_report
from bayes.functional_prior.sliced import SlicedMatching
from bayes.functional_prior.wasserstein import WassersteinMatching

__all__ = [
    "MatchQuality",
    "MatchReport",
    "MatchingMethod",
    "MomentMatching",
    "SlicedMatching",
    "TrainingBox",
    "WassersteinMatching",
    "match_functional_prior",
    "match_quality",
    "match_report",
]
