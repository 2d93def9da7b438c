"""Borrowed names: what inference uses of Pyro's samplers that is not public there.

`tests/bayes/test_compat.py` says of each what is relied on, and of the methods of BoTorch's models
that `ExactProcess` calls or overrides.
"""

from __future__ import annotations

from typing import Any

__all__ = ["mean_acceptance", "potential_energy"]


def potential_energy(kernel: Any) -> float:
    """Potential energy of the last draw of a Pyro HMC kernel, minus the log joint density."""
    return float(kernel._potential_energy_last)


def mean_acceptance(kernel: Any) -> float:
    """Mean acceptance probability of a Pyro HMC kernel, of all draws since the warm-up."""
    return kernel._mean_accept_prob
