"""A trained network as an inference engine: context in, BoTorch `Model` out."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pfn.architecture import ArchitectureConfig, Context, Transformer
from pfn.distribution import BarDistribution
from priors.files import write_safetensors_atomically

__all__ = ["PFN"]

# Context rows that the prior's location and scale count for.
_PRIOR_ROWS = 1.0


@dataclass(frozen=True)
class Encoding:
    """Encoded contexts and the units `[B, 1]` of their targets."""

    context: Context
    location: Tensor
    scale: Tensor


class PFN(nn.Module):
    """A network with its bar distribution and what is known about it.

    Args:
        architecture: Sizes of the network.
        borders: Borders of the bars, `[bars + 1]`, in units of the standardised target.
        tail_scale: Scale of the tails in the same units.
        prior_location: Mean of y under the prior.
        prior_scale: Standard deviation of y under the prior.
        metadata: How it was trained, its certificate, ...; plain JSON values.
    """

    def __init__(
        self,
        architecture: ArchitectureConfig,
        borders: Tensor,
        *,
        tail_scale: float,
        prior_location: float = 0.0,
        prior_scale: float = 1.0,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.network = Transformer(architecture)
        self.bars = BarDistribution(borders, tail_scale=tail_scale)
        self.prior_location, self.prior_scale = float(prior_location), float(prior_scale)
        self.metadata = dict(metadata or {})

    def encode(self, X: Tensor, y: Tensor, mask: Tensor | None = None) -> Encoding:
        """Encode contexts: inputs `[B, n, d]`, raw targets `[B, n]`, mask `[B, n]` or None."""
        location, scale = self.units(y, mask)
        units = torch.cat([location, scale.log()], dim=-1)
        z = (y - location) / scale
        return Encoding(self.network.encode(X, z, units, mask), location, scale)

    def units(self, y: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Location and scale `[B, 1]` in which the network sees the targets `[B, n]`.

        Mean and standard deviation of the context shrunk towards the prior's, which count for
        one row; so an empty context has the prior's. Both are inputs of the network, which
        therefore still knows the raw targets.
        """
        weight = torch.ones_like(y) if mask is None else mask.to(y)
        count = weight.sum(-1, keepdim=True) + _PRIOR_ROWS
        location = ((y * weight).sum(-1, keepdim=True) + _PRIOR_ROWS * self.prior_location) / count
        squares = ((y - location).square() * weight).sum(-1, keepdim=True)
        return location, ((squares + _PRIOR_ROWS * self.prior_scale**2) / count).sqrt()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights, sizes and metadata to one safetensors file, atomically."""
        description = {
            "architecture": asdict(self.architecture),
            "tail_scale": self.bars.tail_scale,
            "prior_location": self.prior_location,
            "prior_scale": self.prior_scale,
            "targets": "standardised by mean and standard deviation of the context, shrunk "
            "towards the prior's by one row; both are inputs of the network",
            "metadata": self.metadata,
        }
        write_safetensors_atomically(path, self.state_dict(), kind="PFN", description=description)
