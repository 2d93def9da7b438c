"""Scores from a finite network at its initial weights, and its size, which any other must beat."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas.architectures.operations import ACTIVATIONS
from nas.proxies.candidates import Candidate, network_of

__all__ = ["flops", "naswot", "parameters", "synflow"]


def naswot(candidate: Candidate, X: Tensor, y: Tensor) -> float:
    """How well the units of the untrained network tell the rows apart: log |det K_H|.

    K_H counts, for each pair of rows, the units that are active for both or for neither (Mellor et
    al. 2021, 2006.04647). A unit is an entry of the input of an activation module of the
    vocabulary, active where it is positive. Larger is better; -inf where rows are not told apart.

    Args:
        candidate: A network or an architecture.
        X: Inputs, `[n, *input_shape]`.
        y: Not looked at.

    Raises:
        ValueError: the network has no activation module.
    """
    network = network_of(candidate, X)
    codes: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        codes.append((inputs[0] > 0).reshape(len(X), -1))

    kinds = tuple(ACTIVATIONS.values())
    hooks = [m.register_forward_hook(note) for m in network.modules() if isinstance(m, kinds)]
    try:
        with torch.no_grad():
            network(X)
    finally:
        for hook in hooks:
            hook.remove()
    if not codes:
        raise ValueError("naswot needs a network with activation modules, e.g. nn.ReLU.")
    active = torch.cat(codes, 1).double()
    return float(torch.linalg.slogdet(active @ active.mT + (1 - active) @ (1 - active).mT)[1])


def synflow(candidate: Candidate, X: Tensor, y: Tensor) -> float:
    """Logarithm of the synaptic flow through the network.

    sum |theta dR/dtheta| with R the sum of outputs for an input of ones, all parameters replaced by
    their absolute values (Tanaka et al. 2020, 2006.05467). In float64; the logarithm,
    because the flow is a product over layers.

    Args:
        candidate: A network or an architecture.
        X: Gives the shape of an input.
        y: Not looked at.
    """
    network = network_of(candidate, X).double()
    parameters = [p for p in network.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()
    ones = torch.ones(1, *X.shape[1:], dtype=torch.float64, device=X.device)
    gradients = torch.autograd.grad(network(ones).sum(), parameters, allow_unused=True)
    flow = sum(
        float((parameter * gradient).detach().abs().sum())
        for parameter, gradient in zip(parameters, gradients, strict=True)
        if gradient is not None
    )
    return math.log(flow) if flow > 0 else -math.inf


def parameters(candidate: Candidate, X: Tensor, y: Tensor) -> float:
    """Logarithm of the number of trainable parameters.

    Args:
        candidate: A network or an architecture.
        X: Not looked at.
        y: Not looked at.
    """
    network = network_of(candidate, X)
    return math.log(sum(p.numel() for p in network.parameters() if p.requires_grad))


def flops(candidate: Candidate, X: Tensor, y: Tensor) -> float:
    """Logarithm of the floating-point operations of products and convolutions for one input.

    Args:
        candidate: A network or an architecture.
        X: Gives the shape of an input.
        y: Not looked at.
    """
    network = network_of(candidate, X)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(X[:1])
    return math.log(counter.get_total_flops())
