"""Amortised inference: prior-data fitted networks.

Train a transformer once on tasks drawn from a prior; afterwards Bayesian inference on a new data
set is one forward pass, whose distance to the exact posterior `certify` measures.

`PFNRegressor` and `PFNClassifier` need scikit-learn, an extra, and are imported when asked for.
"""

from typing import TYPE_CHECKING, Any

from pfn.architecture import ArchitectureConfig
from pfn.certificate import Certificate
from pfn.certification import certify
from pfn.distribution import BarDistribution
from pfn.model import PFNModel
from pfn.posteriors import BarPosterior, CategoricalPosterior
from pfn.prior_fitted_network import PFN, load
from pfn.rates import Probe, Rate, probe
from pfn.reweighting import ReweightedPosterior, reweight
from pfn.training import TrainingConfig, train

if TYPE_CHECKING:
    from pfn.estimators import PFNClassifier, PFNRegressor

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
    "certify",
    "load",
    "probe",
    "reweight",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in ("PFNClassifier", "PFNRegressor"):
        from pfn import estimators

        return getattr(estimators, name)
    raise AttributeError(f"module 'pfn' has no attribute {name!r}")
