"""What is matched, and to what: checks of both."""

from __future__ import annotations

from priors.functions import draws_functions
from priors.networks.finite import NetworkPrior

__all__ = ["checked_network", "checked_target"]


def checked_network(network_prior: object) -> None:
    """Raise a TypeError for what is no network of Gaussian weights."""
    if not isinstance(network_prior, NetworkPrior):
        raise TypeError(
            f"Matching needs a NetworkPrior, got {type(network_prior).__name__}; of a WeightPrior "
            "match weight_prior.network, then wrap it again."
        )


def checked_target(target: object) -> None:
    """Raise a TypeError for what is no prior over functions."""
    if not draws_functions(target):
        raise TypeError(
            f"The target must be a prior over functions, got {type(target).__name__}; "
            "GaussianProcessPrior(kernel) makes one of a kernel."
        )
