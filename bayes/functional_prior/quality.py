"""How well second moments match, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayes.functional_prior.arguments import checked_network
from bayes.functional_prior.measurements import checked_inputs
from bayes.functional_prior.second_moments import network_second_moment, target_second_moment
from priors.functions import FunctionPrior
from priors.networks.finite import NetworkPrior
from priors.representation import as_record

__all__ = ["MatchQuality", "match_quality"]


@dataclass(frozen=True)
class MatchQuality:
    """How far a network's functions are from the target's, in second moments.

    Attributes:
        covariance_error: ||K_network - K_target||_F / ||K_target||_F.
        variance_error: Largest |K_network - K_target| on the diagonal, over the largest target.
        wasserstein: 2-Wasserstein distance of the two centred Gaussians with these covariances,
            over the root mean square norm of a target function.
        sampling_error: Share of covariance_error that drawing explains: the standard error of
            K_network - K_target in the same norm; 0 where both have a closed form.
    """

    covariance_error: float
    variance_error: float
    wasserstein: float
    sampling_error: float = 0.0

    def __repr__(self) -> str:
        return as_record(self)


def match_quality(
    network_prior: NetworkPrior,
    target: FunctionPrior,
    X: Tensor,
    *,
    num_functions: int = 4096,
    seed: int = 0,
) -> MatchQuality:
    """Compare second moments of a network and a target at inputs not used for the match.

    Args:
        network_prior: The matched (or any) prior.
        target: Prior over functions of mean zero.
        X: Inputs `[n, d]`.
        num_functions: Networks and target functions drawn where there is no closed form.
        seed: Of them.

    Raises:
        TypeError: the prior is no `NetworkPrior`.
        NotImplementedError: the target has a mean.
        ValueError: the target's second moments are infinite, or X is not a matrix.
    """
    checked_network(network_prior)
    X = checked_inputs(X).double()
    with torch.no_grad():
        found, error = network_second_moment(
            network_prior, X, num_networks=num_functions, seed=seed
        )
        truth, other = target_second_moment(target, X, num_functions=num_functions, seed=seed + 1)
        root = _symmetric_root(truth)
        cross = _symmetric_root(root @ found @ root).diagonal().sum()
        trace = truth.diagonal().sum()
        squared = (found.diagonal().sum() + trace - 2 * cross).clamp_min(0)
        difference = found - truth
        return MatchQuality(
            covariance_error=float(difference.norm() / truth.norm()),
            variance_error=float(difference.diagonal().abs().max() / truth.diagonal().max()),
            wasserstein=float((squared / trace).sqrt()),
            sampling_error=float((error.square() + other.square()).sum().sqrt() / truth.norm()),
        )


def _symmetric_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
