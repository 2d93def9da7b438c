"""Weights of a network as standard normal numbers."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from priors.networks.finite import NetworkPrior

__all__ = ["Whitening"]


class Whitening:
    """Between the weights of a `NetworkPrior` and eps ~ N(0, 1), D numbers in one vector.

    Parameters of prior variance 0 stay at their mean and are not among the D.

    Args:
        prior: Network and variances, as they are at the time of each call.
    """

    def __init__(self, prior: NetworkPrior) -> None:
        self.prior = prior

    def sizes(self) -> dict[str, int]:
        """How many of the D numbers each parameter has, by name, in their order."""
        stds = self._deviations()
        named = self.prior.module.named_parameters()
        return {name: parameter.numel() for name, parameter in named if name in stds}

    def zeros(self) -> Tensor:
        """The whitened weights at their prior mean, `[D]`."""
        like = next(self.prior.module.parameters())
        return like.new_zeros(sum(self.sizes().values()))

    def weights(self, eps: Tensor) -> dict[str, Tensor]:
        """The network's parameters `[..., *shape]` from whitened ones `[..., D]`."""
        stds, means = self._deviations(), self.prior.parameter_mean()
        values: dict[str, Tensor] = {}
        start = 0
        for name, parameter in self.prior.module.named_parameters():
            if name in stds:
                part = eps[..., start : start + parameter.numel()]
                values[name] = stds[name] * part.unflatten(-1, parameter.shape)
                start += parameter.numel()
            else:
                values[name] = eps.new_full((*eps.shape[:-1], *parameter.shape), means[name])
        return values

    def belong_to(self, names: Collection[str]) -> Tensor:
        """Which of the D numbers are of the parameters of these names, `[D]` bools."""
        shapes = dict(self.prior.module.named_parameters())
        parts = [
            torch.full((shapes[name].numel(),), name in names, device=shapes[name].device)
            for name in shapes
            if name in self._deviations()
        ]
        return torch.cat(parts)

    def _deviations(self) -> dict[str, torch.Tensor]:
        """Prior deviations of the parameters that are not held at their mean."""
        stds = self.prior.parameter_std()
        # torch.equal, unlike a comparison, has an answer while a graph is captured
        return {k: std for k, std in stds.items() if not torch.equal(std, torch.zeros_like(std))}
