"""The front door: a weight prior, a target, a method."""

from __future__ import annotations

import copy
from typing import Protocol

from torch import Tensor

from bayes.functional_prior.arguments import checked_network, checked_target
from bayes.functional_prior.measurements import Measurements, Sampler
from bayes.functional_prior.moments import MomentMatching
from bayes.functional_prior.sliced import SlicedMatching
from bayes.functional_prior.wasserstein import WassersteinMatching
from priors.functions import FunctionPrior
from priors.networks.finite import NetworkPrior

__all__ = ["MatchingMethod", "match_functional_prior"]


class MatchingMethod(Protocol):
    """A way to make a network's functions resemble a target's."""

    def run(
        self,
        prior: NetworkPrior,
        target: FunctionPrior,
        measurements: Measurements,
        *,
        num_sets: int,
        num_restarts: int,
        seed: int,
        progress: bool,
    ) -> None:
        """Change the learnable variances and length scales of `prior` in place.

        Args:
            prior: The network, a copy of the user's; it may be moved to another dtype.
            target: What its functions are to resemble.
            measurements: Where functions are compared.
            num_sets: Measurement sets over which an objective is averaged, where they are drawn.
            num_restarts: Starts of the optimiser, where it is one that can be started again.
            seed: Of all random numbers.
            progress: Whether to show a bar where it takes longer than seconds.
        """


_METHODS: dict[str, MatchingMethod] = {
    "moments": MomentMatching(),
    "sliced": SlicedMatching(),
    "wasserstein": WassersteinMatching(),
}


def match_functional_prior(
    network_prior: NetworkPrior,
    target: FunctionPrior,
    X_or_sampler: Tensor | Sampler,
    *,
    method: str | MatchingMethod = "moments",
    num_sets: int = 1,
    num_restarts: int = 2,
    seed: int = 0,
    progress: bool = True,
) -> NetworkPrior:
    """Choose the layer variances whose functions resemble a target prior's.

    Args:
        network_prior: Network of any depth and architecture; its learnable variances (and length
            scales) are the start and stay unchanged. A bias variance of 0 is a constant: start it
            positive to have it matched.
        target: Prior over functions of mean zero: a `GaussianProcessPrior`, also of an infinite
            network's kernel, a `ScaleMixturePrior`, another `NetworkPrior` or anything that samples
            functions. Each of several outputs counts as a function.
        X_or_sampler: Measurement inputs `[n, d]` on the scale that the model will see
            (standardised, by default), or a function from a generator to such inputs.
        method: "moments" (second moments: seconds, the right one for Gaussian processes),
            "sliced" (sliced Wasserstein distance, for heavy tails and other targets that are not
            Gaussian), "wasserstein" (the published one: minutes); or `MomentMatching(...)`,
            `SlicedMatching(...)`, `WassersteinMatching(...)` with settings of your own.
        num_sets: Measurement sets drawn from a sampler; their objectives are averaged.
            "wasserstein" draws one for each iteration.
        num_restarts: Starts of the optimiser; all but the first are perturbed. "wasserstein" has
            one.
        seed: Of all random numbers; the global ones are left alone.
        progress: Whether to show a bar where it takes longer than seconds.

    Returns:
        A new prior. `match_report(new, target, X)` on held-out inputs says how good it is.

    Raises:
        TypeError: the prior is no `NetworkPrior`, the target does not sample functions, or
            `method` is no way of matching.
        NotImplementedError: the target has a mean.
        ValueError: nothing is learnable, an unknown method, the inputs are not a matrix, or the
            target has no second moments and they are to be matched.
    """
    if isinstance(method, str) and method not in _METHODS:
        raise ValueError(f"method must be one of {list(_METHODS)}, got {method!r}.")
    if isinstance(method, type) or not (isinstance(method, str) or hasattr(method, "run")):
        raise TypeError(
            f"method must be one of {list(_METHODS)} or such as MomentMatching(), got {method!r}."
        )
    chosen = _METHODS[method] if isinstance(method, str) else method
    checked_network(network_prior)
    checked_target(target)
    measurements = Measurements(X_or_sampler)
    if num_sets < 1 or num_restarts < 1:
        raise ValueError(
            f"num_sets and num_restarts must be at least 1, got {num_sets} and {num_restarts}."
        )
    matched, result = copy.deepcopy(network_prior), copy.deepcopy(network_prior)
    matched.module.eval()  # dropout is off, as in a BayesianNetwork
    chosen.run(
        matched,
        target,
        measurements,
        num_sets=num_sets,
        num_restarts=num_restarts,
        seed=seed,
        progress=progress,
    )
    result.variances.load_state_dict(matched.variances.state_dict())
    return result
