"""Amortised inference: prior-data fitted networks.

Train a transformer once on tasks drawn from a prior; afterwards Bayesian inference on a new data
set is one forward pass, whose distance to the exact posterior `certify` measures.
"""

from pfn.architecture import ArchitectureConfig
from pfn.certificate import Certificate, certify
from pfn.distribution import BarDistribution
from pfn.inference import BarPosterior, CategoricalPosterior, PFNModel
from pfn.network import PFN, load
from pfn.reweighting import ReweightedPosterior, reweight
from pfn.training import TrainingConfig, train

__all__ = [
    "PFN",
    "ArchitectureConfig",
    "BarDistribution",
    "BarPosterior",
    "CategoricalPosterior",
    "Certificate",
    "PFNModel",
    "ReweightedPosterior",
    "TrainingConfig",
    "certify",
    "load",
    "reweight",
    "train",
]
