"""Second moments E[f(x) f(x')] of networks at their own widths, and of targets.

Of a network with one hidden layer they are its NNGP kernel at every width. Others differ from the
limit by terms of order 1 / width: those are averages over drawn networks, in which the weights of
the readout are integrated out (Rao-Blackwell), so that a few hundred networks give them to a
percent. The same seed draws the same whitened weights, so that the estimate is a smooth function of
the variances.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from priors.functions import FunctionPrior, GaussianProcessPrior, ScaleMixturePrior
from priors.networks.finite import NetworkPrior
from priors.networks.infinite import InfiniteNetwork
from priors.networks.last_features import last_features, plain_readout
from priors.programs.nodes import (
    Combination,
    Features,
    Flatten,
    Input,
    Join,
    Linear,
    Mix,
    Nonlinear,
    Select,
)
from priors.programs.nodes import Function as FiniteFunction

__all__ = [
    "functions_of",
    "limit_is_exact",
    "network_second_moment",
    "sampled_second_moment",
    "target_second_moment",
]

# Numbers held at once: weights and features of networks that are evaluated together.
_MOST_NUMBERS = 2**24
# Standard errors by which a sampled mean may differ from 0.
_MEAN_ERRORS = 6.0


def limit_is_exact(prior: NetworkPrior) -> bool:
    """Whether the NNGP kernel is the second moment at the network's own widths.

    So it is with at most one layer of units, each weight used once: the units are then independent
    given nothing, and the average over them has the limit's mean at every number of them.
    """
    program = prior.program
    if prior.parameterization != "ntk":
        return False
    depth: dict[int, int] = {}
    for index, node in enumerate(program.nodes):
        sources = program.sources(index)
        below = max((depth[i] for i in sources), default=0)
        depth[index] = below + isinstance(node, Linear)
        plain = (Input, FiniteFunction, Features, Linear, Nonlinear, Flatten, Mix, Select, Join)
        if not isinstance(node, (*plain, Combination)):
            return False  # normalisations and attention mix finitely many units
        if isinstance(node, Nonlinear | Combination) and any(_is_raw(prior, i) for i in sources):
            return False  # units that differ by the features that they are added to
    used = [node.weight for node in program.nodes if isinstance(node, Linear)]
    return depth[program.output] <= 2 and len(set(used)) == len(used)


def _is_raw(prior: NetworkPrior, index: int) -> bool:
    """Whether a node holds raw features, as they are or at other positions."""
    program = prior.program
    if program.from_input(index):
        return True
    node = program.nodes[index]
    if isinstance(node, Linear | Nonlinear | Input | FiniteFunction):
        return False
    return any(_is_raw(prior, i) for i in program.sources(index))


def network_second_moment(
    prior: NetworkPrior, X: Tensor, *, num_networks: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Of one output, with the standard error, 0 where the limit is exact.

    Args:
        prior: The network.
        X: Inputs `[n, d]`.
        num_networks: Networks drawn where there is no closed form.
        seed: Of them.

    Returns:
        `[n, n]` each, in float64, without a graph.
    """
    X = X.double()
    prior = copy.deepcopy(prior).to(X)
    with torch.no_grad():
        if limit_is_exact(prior):
            exact = InfiniteNetwork(prior).nngp(X)
            return exact, torch.zeros_like(exact)
        return sampled_second_moment(prior, X, num_networks=num_networks, seed=seed)


def sampled_second_moment(
    prior: NetworkPrior, X: Tensor, *, num_networks: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Average over drawn networks and its standard error, whatever the depth.

    Differentiable in the variances; with the same seed the networks' whitened weights are the same
    at all variances.

    Args:
        prior: The network, in the dtype and on the device of X.
        X: Inputs `[n, d]`.
        num_networks: Networks drawn, at least 2.
        seed: Of them.

    Returns:
        `[n, n]` each.
    """
    generator = torch.Generator(X.device).manual_seed(seed)
    readout = plain_readout(prior)
    weights = sum(p.numel() for p in prior.module.parameters())
    width = max(p.shape[-1] if p.dim() else 1 for p in prior.module.parameters())
    together = max(1, _MOST_NUMBERS // (weights + 8 * len(X) * max(width, len(X))))
    total = squares = X.new_zeros(len(X), len(X))
    for start in range(0, num_networks, together):
        number = min(together, num_networks - start)
        drawn = prior.draw(torch.Size([number]), generator=generator)
        if readout is None:
            f = prior.apply_parameters(drawn, X)
            each = f @ f.mT / f.shape[-1]
        else:
            std = prior.parameter_std()
            name, bias = readout
            h = last_features(prior, drawn, X)
            each = std[name] ** 2 * (h @ h.mT)
            if bias is not None:
                each = each + std[bias] ** 2
        total = total + each.sum(0)
        squares = squares + each.detach().square().sum(0)
    mean = total / num_networks
    variance = (squares / num_networks - mean.detach().square()).clamp_min(0)
    return mean, (variance / max(1, num_networks - 1)).sqrt()


def target_second_moment(
    target: FunctionPrior, X: Tensor, *, num_functions: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Of one output of a target, with the standard error, 0 where there is a closed form.

    Args:
        target: A prior over functions of mean zero.
        X: Inputs `[n, d]`.
        num_functions: Functions (or networks) drawn where there is no closed form.
        seed: Of them.

    Returns:
        `[n, n]` each, in float64, without a graph.

    Raises:
        NotImplementedError: the target's mean is not zero.
        ValueError: its second moment is infinite.
    """
    X = X.double()
    with torch.no_grad():
        if isinstance(target, NetworkPrior):
            return network_second_moment(target, X, num_networks=num_functions, seed=seed)
        factor = 1.0
        if isinstance(target, ScaleMixturePrior):
            factor = _mean_of(target.scale)
            if math.isinf(factor):
                raise ValueError(
                    "The target's variance is infinite, so it has no second moments to match; use "
                    "method=SlicedMatching(order=1), whose distance is finite."
                )
        if isinstance(target, GaussianProcessPrior) and bool(
            (copy.deepcopy(target.mean).to(X)(X) != 0).any()
        ):
            raise NotImplementedError(_HAS_MEAN)
        if isinstance(target, GaussianProcessPrior | ScaleMixturePrior) and not math.isnan(factor):
            exact = factor * copy.deepcopy(target.kernel).to(X)(X).to_dense()
            return exact, torch.zeros_like(exact)
        f = functions_of(target, X, num_functions, torch.Generator(X.device).manual_seed(seed))
        number = len(f)
        if bool((f.mean(0).abs() > _MEAN_ERRORS * f.std(0) / math.sqrt(number)).any()):
            raise NotImplementedError(_HAS_MEAN)
        mean = f.mT @ f / number
        variance = (f.square().mT @ f.square() / number - mean.square()).clamp_min(0)
        return mean, (variance / number).sqrt()


_HAS_MEAN = (
    "The target has a mean; a network's functions have mean zero. Match a target without it, such "
    "as GaussianProcessPrior(kernel), and subtract the mean from the outcomes."
)


def functions_of(
    prior: FunctionPrior, X: Tensor, number: int, generator: torch.Generator
) -> Tensor:
    """Drawn functions as rows, `[number * outputs, n]`: each output is a function."""
    f = prior.sample(X, torch.Size([number]), generator=generator)
    return f.movedim(-1, 1).flatten(0, 1)


def _mean_of(scale: torch.distributions.Distribution) -> float:
    """NaN where the distribution does not know it."""
    try:
        return float(scale.mean)
    except NotImplementedError:
        return math.nan
