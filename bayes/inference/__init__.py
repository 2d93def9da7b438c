"""Ways to draw from the posterior of a Pyro model, one per file."""

from bayes.inference.draws import Draws, InferenceMethod
from bayes.inference.mean_field import MeanField
from bayes.inference.nuts import NUTS

__all__ = ["NUTS", "Draws", "InferenceMethod", "MeanField"]
