"""What a network's readout sees: with it the readout's weights are averaged over exactly.

An output f = W h + b with independent weights of mean 0 has, given the features h of two inputs,
the second moment std(W)^2 <h, h'> + std(b)^2. Averages of that over networks are much more exact
than averages of f f'.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from priors.networks.finite import NetworkPrior
from priors.networks.functional_call import over_networks
from priors.programs.nodes import Linear

__all__ = ["last_features", "plain_readout"]


def plain_readout(prior: NetworkPrior) -> tuple[str, str | None] | None:
    """Names of weight and bias of a readout that is W h + b, or None.

    None where the output is anything else (pooled, or with a skip beside it), or where the readout
    has a part in the features too.
    """
    program = prior.program
    node = program.nodes[program.output]
    if not isinstance(node, Linear) or node.window is not None or node.positions:
        return None
    name = program.weights.get(node.layer)
    others = [n for i, n in enumerate(program.nodes) if i != program.output]
    if node.weight != node.layer or name is None or node.fan_in is None:
        return None
    if any(isinstance(n, Linear) and node.layer in (n.layer, n.weight) for n in others):
        return None
    bias = None
    if node.bias is not None:
        bias = program.biases.get(node.bias_layer or node.layer)
        if bias is None or any(isinstance(n, Linear) and n.bias == node.bias for n in others):
            return None
    shape = dict(prior.module.named_parameters())[name].shape
    return (name, bias) if sorted(shape) == sorted((program.num_outputs, node.fan_in)) else None


def last_features(prior: NetworkPrior, parameters: Mapping[str, Tensor], X: Tensor) -> Tensor:
    """The features h of networks with a `plain_readout`.

    Args:
        prior: The network.
        parameters: By name, each `[networks, *its shape]`; those of the readout are not used.
        X: Inputs `[n, d]`.

    Returns:
        `[networks, n, width]`.

    Raises:
        ValueError: the network has no such readout.
    """
    names = plain_readout(prior)
    if names is None:
        raise ValueError("This network's output is not W h + b of a readout of its own.")
    name, bias = names
    node = prior.program.nodes[prior.program.output]
    assert isinstance(node, Linear)
    width = node.fan_in
    assert width is not None
    # A readout that is the identity shows what it sees.
    shown = {name: torch.eye(width, dtype=X.dtype, device=X.device)}
    if bias is not None:
        shown[bias] = X.new_zeros(width)
    scaled = prior._scaled(X)
    rest = {key: value.to(X) for key, value in parameters.items() if key not in shown}
    return over_networks(prior.module, lambda values: prior._call({**values, **shown}, scaled))(
        rest
    )
