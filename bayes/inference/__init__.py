"""Ways to draw from the posterior of a Pyro model, one per file."""

from bayes.inference.chees import ChEES
from bayes.inference.deep_ensemble import DeepEnsemble
from bayes.inference.draws import Draws, InferenceMethod
from bayes.inference.hmc import HMC
from bayes.inference.kronecker import KroneckerFactors
from bayes.inference.langevin_ensemble import LangevinEnsemble
from bayes.inference.laplace import Laplace
from bayes.inference.log_density import HasLogDensity, HasParts, LogDensity, Rows
from bayes.inference.low_rank import LowRank
from bayes.inference.mclmc import MCLMC
from bayes.inference.mean_field import MeanField
from bayes.inference.nuts import NUTS
from bayes.inference.sghmc import SGHMC

__all__ = [
    "HMC",
    "MCLMC",
    "NUTS",
    "SGHMC",
    "ChEES",
    "DeepEnsemble",
    "Draws",
    "HasLogDensity",
    "HasParts",
    "InferenceMethod",
    "KroneckerFactors",
    "LangevinEnsemble",
    "Laplace",
    "LogDensity",
    "LowRank",
    "MeanField",
    "Rows",
]
