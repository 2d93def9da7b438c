"""The data that a model is conditioned on, and how the network sees them.

A data set of several outputs is several of one output to the network, which share their inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pfn.queries import Queries, which_encoding
from pfn.transforms import Transforms

__all__ = ["Observations"]


@dataclass(frozen=True)
class Observations:
    """A batch of data sets in the user's units.

    Attributes:
        X: Inputs `[*batch, n, d]`.
        Y: Targets `[*batch, n, m]`.
        Yvar: Known noise variances of the shape of Y, NaN where unknown; None for none.
        transforms: To the network's units.
        categorical: `[d]`, True for columns of categories; None for none.
    """

    X: Tensor
    Y: Tensor
    Yvar: Tensor | None
    transforms: Transforms
    categorical: Tensor | None

    @property
    def batch_shape(self) -> torch.Size:
        """Batch of data sets."""
        return self.X.shape[:-2]

    @property
    def outputs(self) -> list[int]:
        """Indices of all outputs."""
        return list(range(self.Y.shape[-1]))

    def flat(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Inputs `[B m, n, d]`, targets and noise variances `[B m, n]` as the network sees them."""
        rows = self.transforms.observed(self.X)
        targets = self.transforms.targets(self.Y)
        noise = None if self.Yvar is None else self.transforms.noise(self.Yvar)
        batch, (n, m) = self.batch_shape.numel(), self.Y.shape[-2:]
        rows = rows.reshape(batch, n, rows.shape[-1]).repeat_interleave(m, dim=0)

        def by_output(value: Tensor) -> Tensor:
            return value.reshape(batch, n, m).mT.reshape(batch * m, n)

        return rows, by_output(targets), None if noise is None else by_output(noise)

    def kinds(self) -> Tensor | None:
        """`categorical` for every flat data set, `[B m, d]`."""
        if self.categorical is None:
            return None
        return self.categorical.expand(self.batch_shape.numel() * self.Y.shape[-1], -1)

    def further(self, X: Tensor, Y: Tensor, Yvar: Tensor | None) -> Observations:
        """Further rows, broadcast over what is a batch in them or here.

        Raises:
            TypeError: something is not a tensor.
            ValueError: rows or columns disagree, or batch dimensions do not broadcast.
        """
        given = {"X": X, "Y": Y} | ({} if Yvar is None else {"noise": Yvar})
        for name, value in given.items():
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"{name} must be a tensor of {self.X.dtype}, got {type(value).__name__}; "
                    f"torch.as_tensor({name}, dtype={self.X.dtype}) makes one."
                )
        for name, before, after in (("X", self.X, X), ("Y", self.Y, Y)):
            columns = before.shape[-1]
            if after.dim() < 2:
                raise ValueError(
                    f"{name} must have shape [..., n, {columns}], got {tuple(after.shape)}; one "
                    f"row is {name}[None], one column {name}.unsqueeze(-1)."
                )
            if after.shape[-1] != columns:
                raise ValueError(
                    f"the model was conditioned on {columns} columns of {name} and got "
                    f"{after.shape[-1]}; they must agree."
                )
        shapes = {"the model": self.batch_shape, **{k: v.shape[:-2] for k, v in given.items()}}
        try:
            batch = torch.broadcast_shapes(*shapes.values())
        except RuntimeError as error:
            told = ", ".join(f"{tuple(shape)} of {name}" for name, shape in shapes.items())
            raise ValueError(f"batch dimensions do not broadcast: {told}.") from error
        X, Y = X.expand(*batch, *X.shape[-2:]), Y.expand(*batch, *Y.shape[-2:])
        Yvar = None if Yvar is None else Yvar.expand(*batch, *Yvar.shape[-2:])
        return replace(self, X=X, Y=Y, Yvar=Yvar)

    def joined(self, more: Observations) -> Observations:
        """These rows and then those of `more`, which is of `further`.

        Raises:
            TypeError: another dtype or device.
        """
        for name, before, after in (("X", self.X, more.X), ("Y", self.Y, more.Y)):
            if after.dtype != before.dtype or after.device != before.device:
                raise TypeError(
                    f"the model was conditioned in {before.dtype} on {before.device} and got "
                    f"{name} in {after.dtype} on {after.device}; convert one of them."
                )
        batch = more.batch_shape

        def join(before: Tensor, after: Tensor) -> Tensor:
            return torch.cat([before.expand(*batch, -1, -1), after], -2)

        Yvar = None
        if self.Yvar is not None or more.Yvar is not None:
            Yvar = join(self.known_or_nan(), more.known_or_nan())
        return replace(self, X=join(self.X, more.X), Y=join(self.Y, more.Y), Yvar=Yvar)

    def known_or_nan(self) -> Tensor:
        """Noise variances of the shape of Y, NaN where unknown."""
        return torch.full_like(self.Y, math.nan) if self.Yvar is None else self.Yvar

    def of_outputs(self, outputs: list[int]) -> Observations:
        """Some outputs only."""
        Yvar = None if self.Yvar is None else self.Yvar[..., outputs]
        transforms = self.transforms.of_outputs(outputs)
        return replace(self, Y=self.Y[..., outputs], Yvar=Yvar, transforms=transforms)

    def mean_noise(self) -> Tensor | None:
        """Mean known noise variance `[..., 1, m]`; None if some is not known."""
        if self.Yvar is None:
            return None
        mean = self.Yvar.mean(-2, keepdim=True)
        return mean if bool(mean.isfinite().all()) else None

    def index(self, batch: torch.Size, outputs: list[int]) -> Tensor:
        """Which flat data set serves each of `[*batch, outputs]`, flat."""
        return which_encoding(self.batch_shape, self.Y.shape[-1], batch, outputs, self.X.device)

    def queries(self, rows: Tensor, outputs: list[int]) -> Queries:
        """Queries of some outputs at rows `[..., q, d]` in the network's units."""
        return Queries.of(rows, outputs, self.batch_shape, self.Y.shape[-1])
