"""Weight priors whose functions resemble those of a chosen prior over functions.

The layer variances of a network with one hidden layer are chosen so that its functions have the
second moments of a target Gaussian process at measurement points (Tran, Rossi, Milios &
Filippone 2022, JMLR 23(74) pose the problem and solve it by an adversarial Wasserstein distance).
The second moment of such a network is its NNGP kernel *at every width*, so that the objective

    || K_network(X) - K_target(X) ||_F^2 / || K_target(X) ||_F^2

(the degree-2 polynomial maximum mean discrepancy of centred priors) is free of sampling and
minimised by L-BFGS-B, with variances between 1e-4 and 30.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from priors.functions import GaussianProcessPrior
from priors.networks.finite import NetworkPrior
from priors.networks.infinite import InfiniteNetwork
from priors.programs.program import Linear, Program

__all__ = ["MatchQuality", "match_functional_prior", "match_quality"]

# Beyond these the limit's quadrature loses digits and the functions are steps or constants.
_LOG_VARIANCES = (math.log(1e-4), math.log(30.0))

Sampler = Callable[[torch.Generator], Tensor]


@dataclass(frozen=True)
class MatchQuality:
    """How far a network's functions are from the target's, in second moments.

    Attributes:
        covariance_error: ||K_network - K_target||_F / ||K_target||_F.
        variance_error: Largest |K_network - K_target| on the diagonal, over the largest target.
        wasserstein: 2-Wasserstein distance of the two centred Gaussians with these covariances,
            over the root mean square norm of a target function.
    """

    covariance_error: float
    variance_error: float
    wasserstein: float


def match_functional_prior(
    network_prior: NetworkPrior,
    target: GaussianProcessPrior,
    X_or_sampler: Tensor | Sampler,
    *,
    method: str = "moments",
    num_sets: int = 1,
    num_restarts: int = 2,
    seed: int = 0,
) -> NetworkPrior:
    """Choose the layer variances whose functions resemble a target prior's.

    Args:
        network_prior: Network with one hidden layer; its learnable variances are the start and
            stay unchanged. A bias variance of 0 is a constant: start it positive to have it
            matched.
        target: Zero-mean prior over functions.
        X_or_sampler: Measurement inputs `[n, d]` on the scale that the model will see
            (standardised, by default), or a function from a generator to such inputs.
        method: "moments".
        num_sets: Measurement sets drawn from a sampler; their objectives are averaged.
        num_restarts: Starts of the optimiser; all but the first are perturbed.
        seed: Seed of measurement sets and restarts.

    Returns:
        A new prior. `match_quality(new, target, X)` on held-out inputs says how good it is.

    Raises:
        NotImplementedError: another method, a deeper network, or another kind of target.
        ValueError: nothing is learnable, or the inputs are not a matrix.
    """
    if method != "moments":
        raise NotImplementedError(f'method must be "moments", got {method!r}.')
    _check_one_hidden_layer(network_prior.program)
    generator = torch.Generator().manual_seed(seed)
    if isinstance(X_or_sampler, Tensor):
        sets = [X_or_sampler]
    else:
        sets = [X_or_sampler(generator) for _ in range(num_sets)]
    sets = [_checked(X) for X in sets]
    truths = [_target_covariance(target, X) for X in sets]

    matched = copy.deepcopy(network_prior).to(sets[0])
    limit = InfiniteNetwork(matched)
    raw = [parameter for parameter in matched.variances.parameters() if parameter.requires_grad]
    if not raw:
        raise ValueError(
            "network_prior has no learnable variance: all are 0, or a homogeneous network's "
            "readout is. Start with positive variances."
        )

    def objective() -> Tensor:
        errors = [
            (limit.nngp(X) - K).square().sum() / K.square().sum()
            for X, K in zip(sets, truths, strict=True)
        ]
        return torch.stack(errors).mean()

    start = [parameter.detach().clone() for parameter in raw]
    best_value, best = math.inf, start
    for restart in range(num_restarts):
        with torch.no_grad():
            for parameter, value in zip(raw, start, strict=True):
                noise = torch.randn(value.shape, generator=generator, device="cpu").to(value)
                parameter.copy_((value + (noise if restart else 0)).clamp(*_LOG_VARIANCES))
        value = _minimise(objective, raw)
        if value < best_value:
            best_value, best = value, [parameter.detach().clone() for parameter in raw]
    with torch.no_grad():
        for parameter, value in zip(raw, best, strict=True):
            parameter.copy_(value)
    return matched.to(next(network_prior.parameters()))


def match_quality(
    network_prior: NetworkPrior, target: GaussianProcessPrior, X: Tensor
) -> MatchQuality:
    """Compare a network with one hidden layer and a target at inputs not used for the match.

    Args:
        network_prior: The matched (or any) prior.
        target: Zero-mean prior over functions.
        X: Inputs `[n, d]`.

    Raises:
        NotImplementedError: a deeper network, whose second moments depend on its width.
    """
    _check_one_hidden_layer(network_prior.program)
    X = _checked(X)
    with torch.no_grad():
        found = InfiniteNetwork(copy.deepcopy(network_prior).to(X)).nngp(X)
        truth = _target_covariance(target, X)
        root = _symmetric_root(truth)
        cross = _symmetric_root(root @ found @ root).diagonal().sum()
        trace = truth.diagonal().sum()
        squared = (found.diagonal().sum() + trace - 2 * cross).clamp_min(0)
        difference = found - truth
        return MatchQuality(
            covariance_error=float(difference.norm() / truth.norm()),
            variance_error=float(difference.diagonal().abs().max() / truth.diagonal().max()),
            wasserstein=float((squared / trace).sqrt()),
        )


def _minimise(objective: Callable[[], Tensor], parameters: list[Tensor]) -> float:
    """Minimise over the log variances from where they are; returns the objective reached."""
    from scipy.optimize import minimize  # slow to load

    shapes = [parameter.shape for parameter in parameters]

    def assign(values: np.ndarray) -> None:
        parts = parameters[0].new_tensor(values).split([shape.numel() for shape in shapes])
        with torch.no_grad():
            for parameter, part, shape in zip(parameters, parts, shapes, strict=True):
                parameter.copy_(part.reshape(shape))

    def evaluate(values: np.ndarray) -> tuple[float, np.ndarray]:
        assign(values)
        value = objective()
        gradients = torch.autograd.grad(value, parameters)
        return value.item(), torch.cat([g.flatten() for g in gradients]).cpu().numpy()

    start = torch.cat([p.detach().flatten() for p in parameters]).cpu().numpy()
    found = minimize(
        evaluate,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[_LOG_VARIANCES] * len(start),
        options={"maxiter": 100, "ftol": 1e-12, "gtol": 1e-7},
    )
    assign(found.x)
    return float(found.fun) if math.isfinite(found.fun) else math.inf


def _target_covariance(target: GaussianProcessPrior, X: Tensor) -> Tensor:
    if not isinstance(target, GaussianProcessPrior):
        raise NotImplementedError(
            f"The target must be a GaussianProcessPrior, got {type(target).__name__}."
        )
    with torch.no_grad():
        if bool((copy.deepcopy(target.mean).to(X)(X) != 0).any()):
            raise NotImplementedError(
                "The target has a mean; a network's functions have mean zero. Match "
                "GaussianProcessPrior(kernel) and subtract the mean from the outcomes."
            )
        return copy.deepcopy(target.kernel).to(X)(X).to_dense()


def _checked(X: Tensor) -> Tensor:
    if not isinstance(X, Tensor) or X.dim() != 2 or not X.is_floating_point():
        found = tuple(X.shape) if isinstance(X, Tensor) else type(X).__name__
        raise ValueError(f"Measurement inputs must be a float matrix [n, d], got {found}.")
    return X.double()


def _check_one_hidden_layer(program: Program) -> None:
    depth: dict[int, int] = {}
    for index, node in enumerate(program.nodes):
        below = max((depth[i] for i in program.sources(index)), default=0)
        depth[index] = below + isinstance(node, Linear)
    used = [node.weight for node in program.nodes if isinstance(node, Linear)]
    if depth[program.output] > 2 or len(set(used)) < len(used):
        raise NotImplementedError(
            "Matching by moments needs a network with one hidden layer, each weight used once: "
            f"this one has {depth[program.output]} layers of weights in a row and uses "
            f"{len(used)} matrices, {len(set(used))} of them different. The second moments of "
            "deeper or weight-tied finite networks depend on their width."
        )


def _symmetric_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
