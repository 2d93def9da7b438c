"""Ways to draw from the posterior of a Pyro model, one per file."""

from bayes.inference.chees import ChEES
from bayes.inference.draws import Draws, InferenceMethod
from bayes.inference.hmc import HMC
from bayes.inference.log_density import HasLogDensity, LogDensity, Rows
from bayes.inference.mean_field import MeanField
from bayes.inference.nuts import NUTS

__all__ = [
    "HMC",
    "NUTS",
    "ChEES",
    "Draws",
    "HasLogDensity",
    "InferenceMethod",
    "LogDensity",
    "MeanField",
    "Rows",
]
