"""Amortised inference: prior-data fitted networks.

Train a transformer once on tasks drawn from a prior; afterwards Bayesian inference on a new data
set is one forward pass, whose distance to the exact posterior `certify` measures.

Names are loaded when they are asked for: a network and what is under it need no BoTorch.
`PFNRegressor` and `PFNClassifier` need scikit-learn, an extra.
"""

from typing import TYPE_CHECKING

from priors.lazy import lazy_names
from priors.version import __version__

if TYPE_CHECKING:
    from pfn.architecture import ArchitectureConfig
    from pfn.certificate import Certificate
    from pfn.certification import certify
    from pfn.curves import predict_curve
    from pfn.distribution import BarDistribution
    from pfn.estimators import PFNClassifier, PFNRegressor
    from pfn.model import PFNModel
    from pfn.posteriors import BarPosterior, CategoricalPosterior
    from pfn.prior_fitted_network import PFN, load
    from pfn.rates import Probe, Rate, probe
    from pfn.reweighting import ReweightedPosterior, reweight
    from pfn.training import TrainingConfig, train

__all__ = [
    "PFN",
    "ArchitectureConfig",
    "BarDistribution",
    "BarPosterior",
    "CategoricalPosterior",
    "Certificate",
    "PFNClassifier",
    "PFNModel",
    "PFNRegressor",
    "Probe",
    "Rate",
    "ReweightedPosterior",
    "TrainingConfig",
    "__version__",
    "certify",
    "load",
    "predict_curve",
    "probe",
    "reweight",
    "train",
]

_HOMES = {
    "architecture": ("ArchitectureConfig",),
    "certificate": ("Certificate",),
    "certification": ("certify",),
    "curves": ("predict_curve",),
    "distribution": ("BarDistribution",),
    "estimators": ("PFNClassifier", "PFNRegressor"),
    "model": ("PFNModel",),
    "posteriors": ("BarPosterior", "CategoricalPosterior"),
    "prior_fitted_network": ("PFN", "load"),
    "rates": ("Probe", "Rate", "probe"),
    "reweighting": ("ReweightedPosterior", "reweight"),
    "training": ("TrainingConfig", "train"),
}
if not TYPE_CHECKING:  # a type checker would take every name for known
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
