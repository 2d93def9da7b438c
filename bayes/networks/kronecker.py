"""Kronecker factors of a network's curvature, by the optional package curvlinops-for-pytorch.

It knows the factors of linear and convolution layers, weights shared over positions among them
(Eschenhagen et al. 2023, 2311.00636, "expand"), for squared errors. Any likelihood becomes one:
with R R' the negative second derivative of a row's log likelihood in the outputs f, the errors are
R' f / sqrt 2, whose squares have the curvature J' R R' J.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayes.inference import KroneckerFactors
from priors import NetworkPrior

__all__ = ["kronecker_factors"]


def kronecker_factors(
    prior: NetworkPrior, parameters: Mapping[str, Tensor], inputs: Tensor, roots: Tensor
) -> list[KroneckerFactors]:
    """Factors of each layer, in whitened weights.

    Args:
        prior: The network; parameters whose deviation is 0 are left out.
        parameters: Where the curvature is taken, by name.
        inputs: Rows, `[n, d]`.
        roots: R of each row, `[n, k, k]`.

    Raises:
        ImportError: without curvlinops-for-pytorch.
        NotImplementedError: weights outside of `nn.Linear` and `nn.Conv2d`, or a layer that is
            used more than once.
    """
    try:
        from curvlinops import FisherType, KFACLinearOperator
    except ImportError as error:
        raise ImportError(
            'Laplace(structure="kronecker") needs curvlinops-for-pytorch: '
            "`pip install wideprior[curvature]`."
        ) from error
    network = _Errors(copy.deepcopy(prior), parameters)
    stds = {k: std.detach() for k, std in prior.parameter_std().items() if float(std) > 0}
    named = dict(network.module.named_parameters())
    _check_layers(network, inputs, roots, stds)
    operator = KFACLinearOperator(
        network,
        nn.MSELoss(reduction="sum"),
        [named[name] for name in named if name in stds],
        [({"inputs": inputs, "roots": roots}, torch.zeros_like(roots[:, 0]))],
        check_deterministic=False,
        fisher_type=FisherType.TYPE2,
        separate_weight_and_bias=False,
        num_data=len(inputs),
        num_per_example_loss_terms=1,
        batch_size_fn=lambda rows: len(rows["inputs"]),
    )
    operator.compute_kronecker_factors()
    state = operator.state_dict()
    places = _places(named, stds)
    found = []
    for layer, outputs in state["gradient_covariances"].items():
        path = layer.removeprefix("module").removeprefix(".")
        names = [f"{path}.{kind}" if path else kind for kind in ("weight", "bias")]
        free = [name for name in names if name in stds]
        where = torch.cat([places[name].flatten(1) for name in free], 1)
        scale = torch.cat(
            [stds[name].to(inputs).expand(places[name].flatten(1).shape[1]) for name in free]
        )
        # a bias alone has the input 1
        before = state["input_covariances"].get(layer, scale.new_ones(1, 1))
        before = scale.unsqueeze(-1) * before * scale
        found.append(KroneckerFactors(where, before, outputs))
    return found


class _Errors(nn.Module):
    """R' f / sqrt 2 of rows and their R, with a network of its own."""

    def __init__(self, prior: NetworkPrior, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.prior, self.module = prior, prior.module  # which the prior does not register
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                parameter.data = parameters[name].detach().clone()
                parameter.requires_grad_()

    def forward(self, rows: Mapping[str, Tensor]) -> Tensor:
        named = dict(self.module.named_parameters())
        f = self.prior.apply_parameters(named, rows["inputs"])
        return (f.unsqueeze(-2) @ rows["roots"]).squeeze(-2) / math.sqrt(2)


def _places(named: Mapping[str, Tensor], stds: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Numbers of the whitened weights of each parameter, `[outputs, ...]`, a bias as a column."""
    found, start = {}, 0
    for name, parameter in named.items():
        if name in stds:
            numbers = torch.arange(start, start + parameter.numel(), device=parameter.device)
            found[name] = numbers.reshape(len(parameter), -1)
            start += parameter.numel()
    return found


def _check_layers(
    network: _Errors, inputs: Tensor, roots: Tensor, stds: Mapping[str, Tensor]
) -> None:
    """Every free weight belongs to one linear or convolution layer, which is used once."""
    module = network.module
    uses: dict[str, int] = {}
    known: set[str] = set()
    handles = []
    for path, layer in module.named_modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        own = {f"{path}.{k}" if path else k for k, _ in layer.named_parameters(recurse=False)}
        if own & known or (isinstance(layer, nn.Conv2d) and layer.groups > 1):
            continue
        known |= own

        def count(*_: Any, path: str = path) -> None:
            uses[path] = uses.get(path, 0) + 1

        handles.append(layer.register_forward_pre_hook(count))
    with torch.no_grad():
        network({"inputs": inputs[:1], "roots": roots[:1]})
    for handle in handles:
        handle.remove()
    other = sorted(set(stds) - known) + [path for path, number in uses.items() if number > 1]
    if other:
        raise NotImplementedError(
            'Laplace(structure="kronecker") knows nn.Linear and ungrouped nn.Conv2d layers that '
            f'are used once, not {", ".join(map(repr, other))}; take structure="diagonal".'
        )
