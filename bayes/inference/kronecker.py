"""Gaussians whose precision is, layer by layer, the identity plus a Kronecker product.

The generalised Gauss-Newton matrix of a layer with inputs a and derivatives g of the outputs is
E[a a' (x) g g'], which Martens & Grosse 2015 (1503.05671) take for A (x) B = E[a a'] (x) E[g g'].
With eigenvalues alpha and beta of A and B, the precision I + A (x) B of whitened weights has
1 + alpha beta, and costs what the two small matrices do (Ritter, Botev & Barber 2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["KroneckerFactors"]


@dataclass(frozen=True, eq=False)
class KroneckerFactors:
    """N(0, (I + A (x) B)^-1) of the whitened weights of a layer.

    Attributes:
        places: Which weights of the network they are, `[outputs, inputs]`, the bias last.
        inputs: A, `[inputs, inputs]`.
        outputs: B, `[outputs, outputs]`.
    """

    places: Tensor
    inputs: Tensor
    outputs: Tensor

    @property
    def log_det(self) -> float:
        """Of the precision."""
        return float(self._precisions.log().sum())

    def draw(self, number: int, generator: torch.Generator) -> Tensor:
        """`[number, outputs * inputs]`, in the order of `places`."""
        (_, left), (_, right) = self._eigen
        size = (number, *self.places.shape)
        normals = self.inputs.new_empty(size).normal_(generator=generator)
        return (left @ (normals * self._precisions.rsqrt()) @ right.mT).flatten(1)

    @cached_property
    def _eigen(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        (beta, left), (alpha, right) = (
            torch.linalg.eigh((factor + factor.mT) / 2) for factor in (self.outputs, self.inputs)
        )
        return (beta.clamp_min(0), left), (alpha.clamp_min(0), right)

    @cached_property
    def _precisions(self) -> Tensor:
        (beta, _), (alpha, _) = self._eigen
        return 1 + beta.unsqueeze(-1) * alpha
