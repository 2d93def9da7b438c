"""Amortised inference: prior-data fitted networks.

Train a transformer once on tasks drawn from a prior; afterwards Bayesian inference on a new data
set is one forward pass, whose distance to the exact posterior `certify` measures.

Names are loaded when they are asked for: a network and what is under it need no BoTorch.
`PFNRegressor` and `PFNClassifier` need scikit-learn, an extra.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from priors.version import __version__

if TYPE_CHECKING:
    from pfn.architecture import ArchitectureConfig
    from pfn.certificate import Certificate
    from pfn.certification import certify
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
    "probe",
    "reweight",
    "train",
]

_HOMES = {
    "architecture": ("ArchitectureConfig",),
    "certificate": ("Certificate",),
    "certification": ("certify",),
    "distribution": ("BarDistribution",),
    "estimators": ("PFNClassifier", "PFNRegressor"),
    "model": ("PFNModel",),
    "posteriors": ("BarPosterior", "CategoricalPosterior"),
    "prior_fitted_network": ("PFN", "load"),
    "rates": ("Probe", "Rate", "probe"),
    "reweighting": ("ReweightedPosterior", "reweight"),
    "training": ("TrainingConfig", "train"),
}
_MODULES = {name: f"pfn.{module}" for module, names in _HOMES.items() for name in names}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:  # a type checker would take every name for known

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module 'pfn' has no attribute {name!r}")
        value = getattr(import_module(_MODULES[name]), name)
        globals()[name] = value
        return value
